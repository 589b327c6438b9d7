package repo

import (
	"errors"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directWriter writes a pack past the page cache. The cache keeps what the
// server reads, and nothing piles up for a sync to write at once, with the
// server's commits behind it. One buffer is written while the next is filled.
// What does not fill the last one goes the usual way, and so does all of it on
// a file system that has no other.
//
// It promises nothing before the file is synced.
type directWriter struct {
	f       *os.File
	buf     []byte // being filled
	full    chan []byte
	free    chan []byte
	stopped chan struct{}
	refused bool         // the file system has no other way than the cache
	cached  steadyWriter // then
	at      int64        // where the next buffer goes

	mu  sync.Mutex
	err error
}

const (
	directBytes = 1 << 20 // of a buffer
	directAlign = 4096    // of the buffer in memory and in the file; disks ask for that or less
)

var directBuffers = sync.Pool{New: func() any {
	b := make([]byte, directBytes+directAlign)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (directAlign - 1)
	b = b[skip : skip+directBytes]
	return &b
}}

// diskWriter is how an object reaches its file: w takes it, and finish, which is
// called in any case, has all of it handed over.
func diskWriter(f *os.File, name string) (w io.Writer, finish func() error) {
	if !isPack(name) {
		return &steadyWriter{f: f}, func() error { return nil }
	}
	d := newDirectWriter(f)
	return d, d.finish
}

func newDirectWriter(f *os.File) *directWriter {
	w := &directWriter{f: f, cached: steadyWriter{f: f}, full: make(chan []byte, 1), free: make(chan []byte, 2), stopped: make(chan struct{})}
	for range 2 {
		w.free <- (*directBuffers.Get().(*[]byte))[:0]
	}
	w.buf = <-w.free
	go w.run()
	return w
}

// run writes the full buffers.
func (w *directWriter) run() {
	defer close(w.stopped)
	for b := range w.full {
		if w.failed() == nil {
			w.fail(w.write(b))
		}
		w.free <- b[:0]
	}
}

// write writes a full buffer, or the file's last bytes.
func (w *directWriter) write(b []byte) error {
	at := w.at
	w.at += int64(len(b))
	if !w.refused && len(b) == directBytes {
		err := w.pastCache(b, at)
		if err == nil || !errors.Is(err, unix.EINVAL) {
			return err
		}
		w.refused = true
	}
	if err := setDirect(w.f, false); err != nil {
		return err
	}
	if _, err := w.f.WriteAt(b, at); err != nil {
		return err
	}
	return w.cached.wrote(len(b))
}

// pastCache fails with EINVAL where that is not possible.
func (w *directWriter) pastCache(b []byte, at int64) error {
	if err := setDirect(w.f, true); err != nil {
		return unix.EINVAL
	}
	_, err := w.f.WriteAt(b, at)
	return err
}

// setDirect switches between the ways to write to a file.
func setDirect(f *os.File, want bool) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_DIRECT != 0 == want {
		return err
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags^unix.O_DIRECT)
	return err
}

// Write implements io.Writer.
func (w *directWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if err := w.failed(); err != nil {
			return n, err
		}
		k := copy(w.buf[len(w.buf):directBytes], p[n:])
		w.buf = w.buf[:len(w.buf)+k]
		n += k
		if len(w.buf) == directBytes {
			w.full <- w.buf
			w.buf = <-w.free
		}
	}
	return n, nil
}

// finish writes the rest and waits for all of it. Nothing may be written
// after it; it may be called again.
func (w *directWriter) finish() error {
	if w.buf == nil {
		return w.failed()
	}
	close(w.full)
	<-w.stopped
	if w.failed() == nil && len(w.buf) > 0 {
		w.fail(w.write(w.buf))
	}
	w.free <- w.buf
	w.buf = nil
	for range 2 {
		b := <-w.free
		directBuffers.Put(&b)
	}
	return w.failed()
}

func (w *directWriter) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

func (w *directWriter) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
