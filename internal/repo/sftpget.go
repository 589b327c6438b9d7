package repo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/pkg/sftp"

	"tidemark/internal/ssh"
)

// sftpReadAhead is asked for at once where the reader takes small bites.
const sftpReadAhead = 256 << 10

// gone is the error of a store that has vanished.
func (d *SFTP) gone(err error) error {
	return fmt.Errorf("the repository directory %s is not there on %s: %w", d.o.Root, d.o.Host, errors.Join(errStoreGone, err))
}

// missing tells an object that is not there from a store that is not there.
func (d *SFTP) missing(c *sftp.Client, name string) error {
	if _, err := c.Stat(d.o.Root); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return d.gone(err)
		}
		return err
	}
	return fmt.Errorf("%s: %w", name, ErrNotExist)
}

// Get implements Driver.
func (d *SFTP) Get(ctx context.Context, name string, offset, length int64) (*Object, error) {
	if err := checkName("get", name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	body, size, err := d.open(ctx, name)
	if err != nil {
		return nil, d.fault("reading", name, err)
	}
	if offset < 0 {
		offset = max(size+offset, 0)
	}
	offset = min(offset, size)
	if length < 0 || length > size-offset {
		length = size - offset
	}
	return &Object{Size: size, Offset: offset, Length: length, ReadCloser: &rangeReader{
		ctx: ctx, retry: d.retry, offset: offset, left: length, body: body.from(offset, length),
		open: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			body, again, err := d.open(ctx, name)
			if err != nil {
				return nil, err
			}
			if again != size {
				body.file.Close()
				return nil, fmt.Errorf("%s was replaced while it was read", name)
			}
			return body.from(offset, length), nil
		}}}, nil
}

// open opens the file of an object and returns its size.
func (d *SFTP) open(ctx context.Context, name string) (body *sftpBody, size int64, err error) {
	err = d.do(ctx, func(c *sftp.Client) error {
		f, err := c.Open(d.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			return d.missing(c, name)
		}
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("%s: %w", name, ErrNotExist)
		}
		if err != nil {
			f.Close()
			return err
		}
		body, size = &sftpBody{d: d, file: f}, st.Size()
		return nil
	})
	return body, size, err
}

// sftpBody reads a file within the time limit of an operation.
type sftpBody struct {
	d       *SFTP
	file    *sftp.File
	session *ssh.Session
	r       io.Reader
}

func (b *sftpBody) from(offset, length int64) *sftpBody {
	b.d.mu.Lock()
	b.session = b.d.session
	b.d.mu.Unlock()
	n := min(max(length, 1), sftpReadAhead)
	b.r = bufio.NewReaderSize(io.NewSectionReader(b.file, offset, length), int(n))
	return b
}

// Read implements io.Reader.
func (b *sftpBody) Read(p []byte) (n int, err error) {
	if b.session == nil {
		return 0, sftp.ErrSSHFxConnectionLost
	}
	err = b.session.Watch(func() (err error) {
		n, err = b.r.Read(p)
		return err
	})
	if n == 0 && err != nil && !errors.Is(err, io.EOF) && connectionLost(err) {
		err = b.d.drop(b.session, err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *sftpBody) Close() error { return b.file.Close() }

// List implements Driver.
func (d *SFTP) List(ctx context.Context, prefix string, each func(ObjectInfo) error) error {
	if err := checkPrefix(prefix); err != nil {
		return err
	}
	return d.list(ctx, strings.TrimSuffix(prefix, "/"), each)
}

func (d *SFTP) list(ctx context.Context, folder string, each func(ObjectInfo) error) error {
	var entries []os.FileInfo
	err := d.do(ctx, func(c *sftp.Client) (err error) {
		entries, err = c.ReadDirContext(ctx, d.path(folder))
		if errors.Is(err, fs.ErrNotExist) {
			if err = d.missing(c, folder); errors.Is(err, ErrNotExist) {
				entries, err = nil, nil // removed while listing, or never there
			}
		}
		return err
	})
	if err != nil {
		return d.fault("listing", d.path(folder), err)
	}
	for _, e := range entries {
		name := path.Join(folder, e.Name())
		if !ValidName(name) {
			continue // not ours: .tmp, lost+found
		}
		switch {
		case e.IsDir():
			err = d.list(ctx, name, each)
		case e.Mode().IsRegular():
			err = each(ObjectInfo{Name: name, Size: e.Size()})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Delete implements Driver.
func (d *SFTP) Delete(ctx context.Context, name string) error {
	if err := checkName("delete", name); err != nil {
		return err
	}
	return d.fault("removing", name, d.do(ctx, func(c *sftp.Client) error {
		file := d.path(name)
		if err := c.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return d.syncFolder(c, path.Dir(file))
	}))
}

// Sweep removes temporary files that have not been written to for so long that
// no living process can be working on them, by the server's own clock.
func (d *SFTP) Sweep(ctx context.Context) (int, error) {
	removed := 0
	err := d.do(ctx, func(c *sftp.Client) error {
		dir := d.path(tmpDir)
		entries, err := c.ReadDirContext(ctx, dir)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		now, err := d.clock(c)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.Mode().IsRegular() || now.Sub(e.ModTime()) < staleUpload {
				continue
			}
			if err := c.Remove(path.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			removed++
		}
		return nil
	})
	return removed, d.fault("sweeping", tmpDir, err)
}

// clock asks the server for its time: that of a file it has just made.
func (d *SFTP) clock(c *sftp.Client) (time.Time, error) {
	probe := d.path(path.Join(tmpDir, randomToken()))
	f, err := c.OpenFile(probe, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return time.Time{}, err
	}
	defer c.Remove(probe)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return time.Time{}, err
	}
	return st.ModTime(), nil
}
