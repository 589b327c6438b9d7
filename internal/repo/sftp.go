package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"sync"

	"github.com/pkg/sftp"

	"tidemark/internal/exit"
	"tidemark/internal/ssh"
)

// SFTPOptions say where a directory on another host is, and how ssh reaches it.
type SFTPOptions struct {
	ssh.Target
	Root     string // absolute, or relative to the user's home
	Attempts int
}

func parseSFTP(u *url.URL, q *query) (*SFTPOptions, error) {
	o := &SFTPOptions{Attempts: q.number("attempts", defaultAttempts, 1, 100)}
	var err error
	if o.Target, o.Root, err = ssh.ParseURL(u); err != nil {
		return nil, err
	}
	o.Identity, o.Config, o.Timeout = q.text("identity"), q.text("config"), q.duration("timeout", defaultTimeout)
	return o, nil
}

// SFTP stores objects as files below a directory of another host. The
// connection is the system's ssh: the operator's keys, configuration and known
// hosts count, and so do jump hosts and agents.
//
// An object is written to a temporary file in ".tmp" and synced; a hard link,
// which the server refuses where the name is taken, gives it its name. Both
// are extensions of OpenSSH's server (hardlink, fsync) that others have too; a
// server without them is refused, for its plain rename may overwrite.
//
// When the connection breaks it is made again and the work goes on where it
// was; a file that was written over several connections is read back and
// compared before it gets its name.
type SFTP struct {
	o        SFTPOptions
	location string
	retry    retrier

	mu      sync.Mutex
	session *ssh.Session
	folders sync.Map // known to exist
}

// NewSFTP returns the driver for a directory on another host. It connects at
// the first use.
func NewSFTP(location string, o SFTPOptions) *SFTP {
	return &SFTP{o: o, location: location, retry: retrier{attempts: o.Attempts, retryable: connectionLost}}
}

// Location names the host and the directory.
func (d *SFTP) Location() string { return d.location }

func (d *SFTP) path(name string) string { return path.Join(d.o.Root, name) }

// do runs an operation, again on a new connection where that one breaks.
func (d *SFTP) do(ctx context.Context, op func(c *sftp.Client) error) error {
	err := d.retry.do(ctx, func(int) error {
		s, err := d.connect(ctx)
		if err != nil {
			return err
		}
		err = s.Watch(func() error { return op(s.Client) })
		if err != nil && connectionLost(err) {
			err = d.drop(s, err)
		}
		return err
	})
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// makeRoot makes the directory of a new repository.
func (d *SFTP) makeRoot(ctx context.Context) error {
	return d.do(ctx, func(c *sftp.Client) error {
		if _, err := c.Stat(d.o.Root); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := c.Mkdir(d.o.Root); err != nil {
			return exit.Wrap(err, exit.Failed, "its parent directory must exist and be writable", "cannot make a repository at %s", d.location)
		}
		if err := c.Chmod(d.o.Root, dirMode); err != nil {
			return err
		}
		return d.syncFolder(c, path.Dir(d.o.Root))
	})
}

// prepare proves that the server can make a hard link and sync a file there.
func (d *SFTP) prepare(ctx context.Context) error {
	name := "probe-" + randomToken()
	if err := putBytes(ctx, d, name, []byte("a")); err != nil {
		return err
	}
	err := putBytes(ctx, d, name, []byte("b"))
	if derr := d.Delete(ctx, name); derr != nil {
		return derr
	}
	if !errors.Is(err, ErrExist) {
		return exit.Wrap(err, exit.Refused, "use another server, such as OpenSSH's", "the server of %s overwrites what is there", d.location)
	}
	return nil
}

// able refuses a server that cannot store an object safely.
func (d *SFTP) able(c *sftp.Client) error {
	for _, ext := range []string{"hardlink@openssh.com", "fsync@openssh.com"} {
		if _, ok := c.HasExtension(ext); !ok {
			return exit.New(exit.Refused, "use a server that has it, such as OpenSSH's from version 6.5 on",
				"the SFTP server of %s lacks %s, without which an object cannot be stored safely", d.o.Host, ext)
		}
	}
	return nil
}

// syncFolder makes the names in a directory durable, where the server can:
// OpenSSH's can open a directory like a file.
func (d *SFTP) syncFolder(c *sftp.Client, dir string) error {
	f, err := c.Open(dir)
	if err == nil {
		err = f.Sync()
		f.Close()
	}
	if err != nil && connectionLost(err) {
		return err
	}
	return nil
}

// makeFolders creates dir and its missing parents below the root. It does not
// create the root: a repository on a disk that is not mounted is missing.
func (d *SFTP) makeFolders(c *sftp.Client, dir string) error {
	if _, known := d.folders.Load(dir); known {
		return nil
	}
	if dir == d.o.Root {
		_, err := c.Stat(dir)
		return err
	}
	if st, err := c.Stat(dir); err == nil && st.IsDir() {
		d.folders.Store(dir, true)
		return nil
	} else if err == nil {
		return fmt.Errorf("%s is no directory", dir)
	}
	if err := d.makeFolders(c, path.Dir(dir)); err != nil {
		return err
	}
	if err := c.Mkdir(dir); err != nil {
		if connectionLost(err) {
			return err
		}
		if st, serr := c.Stat(dir); serr != nil || !st.IsDir() {
			return fmt.Errorf("cannot make the directory %s: %w", dir, err)
		}
	} else if err := c.Chmod(dir, dirMode); err != nil {
		return err
	}
	if err := d.syncFolder(c, path.Dir(dir)); err != nil {
		return err
	}
	d.folders.Store(dir, true)
	return nil
}

// fault adds what to do to an error of the server.
func (d *SFTP) fault(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var st *sftp.StatusError
	switch {
	case exit.HintOf(err) != "", errors.Is(err, ErrExist), errors.Is(err, ErrNotExist), errors.Is(err, errStoreGone):
		return err
	case errors.Is(err, fs.ErrPermission):
		err = exit.Hint(err, fmt.Sprintf("the user that ssh logs in as needs to own %s on %s", d.o.Root, d.o.Host))
	case errors.As(err, &st) && d.full():
		err = exit.Hint(err, fmt.Sprintf("free space in %s on %s or add some; nothing that was complete there is affected", d.o.Root, d.o.Host))
	}
	return fmt.Errorf("%s %s on %s: %w", op, name, d.o.Host, err)
}

// full reports whether the server says that its disk has no space: the
// protocol has no error of its own for that.
func (d *SFTP) full() bool {
	full := false
	err := d.do(context.Background(), func(c *sftp.Client) error {
		st, err := c.StatVFS(d.o.Root)
		full = err == nil && st.Bavail*st.Frsize < 1<<20
		return err
	})
	return err == nil && full
}
