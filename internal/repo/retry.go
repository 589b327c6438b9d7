package repo

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"
)

// Defaults of the stores behind a network.
const (
	defaultAttempts = 6
	defaultTimeout  = 60 * time.Second // without any progress
	firstBackoff    = 100 * time.Millisecond
	longestBackoff  = 5 * time.Second
)

// retrier tries an operation again while its errors may pass.
type retrier struct {
	attempts  int
	retryable func(error) bool
}

// do calls try until it succeeds, fails for good, or has been tried often
// enough. The pauses double, with jitter, so that many clients do not come
// back at once. try is told how many attempts have failed before it.
func (r retrier) do(ctx context.Context, try func(failed int) error) error {
	pause := firstBackoff
	for n := 0; ; n++ {
		err := try(n)
		if err == nil || n+1 >= r.attempts || ctx.Err() != nil || !r.retryable(err) {
			return err
		}
		wait := pause/2 + rand.N(pause/2)
		if pause *= 2; pause > longestBackoff {
			pause = longestBackoff
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
	}
}

// rangeReader reads length bytes of an object from offset on, and goes on
// where it was when the connection breaks.
type rangeReader struct {
	ctx    context.Context
	retry  retrier
	open   func(ctx context.Context, offset, length int64) (io.ReadCloser, error)
	body   io.ReadCloser
	offset int64 // of what is read next
	left   int64
	failed int // attempts without a byte of progress
}

func (r *rangeReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	for {
		n, err := r.readOnce(p)
		if n > 0 {
			r.offset, r.left, r.failed = r.offset+int64(n), r.left-int64(n), 0
			return n, nil
		}
		if err == nil {
			continue
		}
		r.close()
		if cerr := r.ctx.Err(); cerr != nil {
			return 0, cerr
		}
		r.failed++
		if r.failed >= r.retry.attempts || !r.retry.retryable(err) {
			return 0, err
		}
		// The pause is that of a first retry: open has pauses of its own.
		t := time.NewTimer(firstBackoff)
		select {
		case <-r.ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

func (r *rangeReader) readOnce(p []byte) (int, error) {
	if r.body == nil {
		body, err := r.open(r.ctx, r.offset, r.left)
		if err != nil {
			return 0, err
		}
		r.body = body
	}
	n, err := r.body.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the store ends before the object does
	}
	return n, err
}

func (r *rangeReader) close() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}

// Close ends the reading.
func (r *rangeReader) Close() error {
	r.close()
	return nil
}
