package repo

import (
	"context"
	"errors"
	"io"
)

// upload is a Put that is fed from outside: bytes are written to it until
// close makes the object appear, or abort gives it up.
type upload struct {
	pipe *io.PipeWriter
	done chan error
}

const uploadCopy = 256 << 10

var errAborted = errors.New("given up")

func startUpload(ctx context.Context, d Driver, name string) *upload {
	r, w := io.Pipe()
	u := &upload{pipe: w, done: make(chan error, 1)}
	go func() {
		err := d.Put(ctx, name, func(dst io.Writer) error {
			_, err := io.CopyBuffer(struct{ io.Writer }{dst}, r, make([]byte, uploadCopy))
			return err
		})
		r.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // a writer that goes on is told why
		u.done <- err
	}()
	return u
}

func (u *upload) Write(p []byte) (int, error) { return u.pipe.Write(p) }

// close ends the object and waits until it is durable.
func (u *upload) close() error {
	u.pipe.Close()
	return <-u.done
}

// abort gives the object up and waits until nothing of it is left.
func (u *upload) abort() {
	u.pipe.CloseWithError(errAborted)
	<-u.done
}
