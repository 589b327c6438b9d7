package repo

import (
	"context"
	"errors"

	"tidemark/internal/ssh"
)

// connect returns the open connection, or makes one.
func (d *SFTP) connect(ctx context.Context) (*ssh.Session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if d.session != nil && !d.session.Dead() {
		return d.session, nil
	}
	d.session = nil
	s, err := ssh.Dial(d.o.Target)
	if err != nil {
		return nil, err
	}
	d.session = s
	return s, nil
}

// drop gives a broken connection up and returns its error, explained.
func (d *SFTP) drop(s *ssh.Session, err error) error {
	d.mu.Lock()
	if d.session == s {
		d.session = nil
	}
	d.mu.Unlock()
	return s.Drop(err)
}

// Close ends the connection.
func (d *SFTP) Close() error {
	d.mu.Lock()
	s := d.session
	d.session = nil
	d.mu.Unlock()
	if s != nil {
		s.Close()
	}
	return nil
}

// connectionLost reports whether an error is the connection's, and not the
// server's answer or our own judgement of it.
func connectionLost(err error) bool {
	return ssh.Lost(err) && !errors.Is(err, errDiffers) && !errors.Is(err, errStoreGone)
}
