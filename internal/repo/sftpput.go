package repo

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/pkg/sftp"

	"tidemark/internal/exit"
)

// sftpChunk is written at once, in packets that do not wait for each other.
const sftpChunk = 2 << 20

// errDiffers is returned when a file is not what was sent.
var errDiffers = errors.New("the server holds something else than was sent")

// Put implements Driver.
func (d *SFTP) Put(ctx context.Context, name string, write func(io.Writer) error) error {
	if err := checkName("put", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	u := &sftpUpload{d: d, ctx: ctx, name: name, tmp: d.path(path.Join(tmpDir, randomToken()))}
	err := u.begin()
	if err == nil {
		err = write(u)
		if err == nil {
			err = u.finish()
		}
		u.tidy()
	}
	return err
}

// sftpUpload writes a temporary file and gives it its name.
type sftpUpload struct {
	d    *SFTP
	ctx  context.Context
	name string
	tmp  string

	on     *sftp.Client // the connection of file
	file   *sftp.File
	buf    []byte
	offset int64 // of buf in the file
	crc    uint32
	broke  bool // the connection was made anew since the file was begun
	linked bool // the request for the name was sent, and its answer lost
}

func (u *sftpUpload) fault(op string, err error) error { return u.d.fault(op, u.name, err) }

// begin refuses a name that is taken and makes the temporary file.
func (u *sftpUpload) begin() error {
	err := u.d.do(u.ctx, func(c *sftp.Client) error {
		if err := u.d.able(c); err != nil {
			return err
		}
		final := u.d.path(u.name)
		if _, err := c.Lstat(final); err == nil {
			return u.taken(c)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f, err := c.OpenFile(u.tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		if errors.Is(err, fs.ErrNotExist) {
			if err := u.d.makeFolders(c, path.Dir(u.tmp)); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return u.d.gone(err)
				}
				return err
			}
			f, err = c.OpenFile(u.tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		}
		u.on, u.file = c, f
		return err
	})
	return u.fault("writing", err)
}

func (u *sftpUpload) taken(c *sftp.Client) error {
	if err := u.d.syncFolder(c, path.Dir(u.d.path(u.name))); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", u.name, ErrExist)
}

// Write implements io.Writer for the function that makes the object.
func (u *sftpUpload) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if err := u.ctx.Err(); err != nil {
			return n, err
		}
		if u.buf == nil {
			u.buf = make([]byte, 0, sftpChunk)
		}
		k := min(cap(u.buf)-len(u.buf), len(p)-n)
		u.buf = append(u.buf, p[n:n+k]...)
		n += k
		if len(u.buf) == cap(u.buf) {
			if err := u.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// flush writes the buffer at its place.
func (u *sftpUpload) flush() error {
	if len(u.buf) == 0 {
		return nil
	}
	err := u.withFile(func(f *sftp.File) error {
		_, err := f.WriteAt(u.buf, u.offset)
		return err
	})
	if err != nil {
		return u.fault("writing", err)
	}
	u.crc = crc32.Update(u.crc, castagnoli, u.buf)
	u.offset += int64(len(u.buf))
	u.buf = u.buf[:0]
	return nil
}

// withFile runs an operation on the temporary file, which it opens again where
// the connection is another one.
func (u *sftpUpload) withFile(op func(f *sftp.File) error) error {
	return u.d.do(u.ctx, func(c *sftp.Client) error {
		if u.on != c {
			u.broke = true
			f, err := c.OpenFile(u.tmp, os.O_RDWR)
			if err != nil {
				return err
			}
			u.on, u.file = c, f
		}
		return op(u.file)
	})
}

// finish makes the file durable and gives it its name.
func (u *sftpUpload) finish() error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	if err := u.flush(); err != nil {
		return err
	}
	if err := u.withFile(func(f *sftp.File) error { return f.Sync() }); err != nil {
		return u.fault("writing", err)
	}
	if u.broke {
		if err := u.d.do(u.ctx, func(c *sftp.Client) error { return u.compare(c, u.tmp) }); err != nil {
			return u.fault("writing", err)
		}
	}
	return u.fault("writing", u.d.do(u.ctx, u.link))
}

// link gives the file its name, which the server refuses where it is taken.
func (u *sftpUpload) link(c *sftp.Client) error {
	final := u.d.path(u.name)
	if err := c.Chmod(u.tmp, objectMode); err != nil {
		return err
	}
	if err := u.d.makeFolders(c, path.Dir(final)); err != nil {
		return err
	}
	err := c.Link(u.tmp, final)
	switch {
	case err == nil:
		return u.d.syncFolder(c, path.Dir(final))
	case connectionLost(err):
		u.linked = true
		return err
	}
	// The protocol does not say why: look.
	if _, serr := c.Lstat(final); serr != nil {
		if connectionLost(serr) {
			return serr
		}
		return u.noLink(err)
	}
	if u.linked {
		// The answer to the first request was lost. What has the name may be
		// this file; where another wrote the same, that is as good.
		if err := u.compare(c, final); err == nil {
			return u.d.syncFolder(c, path.Dir(final))
		} else if connectionLost(err) {
			return err
		}
	}
	return u.taken(c)
}

func (u *sftpUpload) noLink(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return err
	}
	return exit.Wrap(err, exit.Failed, "the file system there has to allow hard links (many on Windows and FUSE do not)",
		"cannot give %s its name", u.name)
}

// compare compares a file on the server with what was written.
func (u *sftpUpload) compare(c *sftp.Client, file string) error {
	f, err := c.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := crc32.New(castagnoli)
	n, err := f.WriteTo(sum)
	if err != nil {
		return err
	}
	if n != u.offset || sum.Sum32() != u.crc {
		return fmt.Errorf("%s: %w", file, errDiffers)
	}
	return nil
}

// tidy closes and removes the temporary file; what it cannot remove is left to
// Sweep.
func (u *sftpUpload) tidy() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), abortLimit)
	defer cancel()
	_ = u.d.do(ctx, func(c *sftp.Client) error {
		if u.on == c && u.file != nil {
			u.file.Close()
		}
		err := c.Remove(u.tmp)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}
