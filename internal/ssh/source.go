package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
)

// Source reads the data directory of a server on another host. It implements
// blockcopy.Source. Each Fetch has a connection of its own and asks ahead on it,
// so that neither the way to the host nor a million small files make it wait.
// A connection that breaks is made again, and the work goes on where it was.
type Source struct {
	at Location

	mu     sync.Mutex
	idle   []*Session
	closed bool
}

var _ blockcopy.Source = (*Source)(nil)

// OpenSource connects to the host. A directory that is not there is an
// error that is fs.ErrNotExist.
func OpenSource(ctx context.Context, at Location) (*Source, error) {
	s := &Source{at: at}
	err := s.do(ctx, func(c *Session) error {
		st, err := c.Client.Stat(at.Dir)
		if err == nil && !st.IsDir() {
			err = fmt.Errorf("it is no directory: %w", fs.ErrNotExist)
		}
		return err
	})
	if err != nil {
		s.Close()
		return nil, s.fault("opening", "", err)
	}
	return s, nil
}

// Name names the directory and the host.
func (s *Source) Name() string { return fmt.Sprintf("directory %s on %s", s.at.Dir, s.at.Host) }

// Close ends the connections. Those in use end when their Fetch does.
func (s *Source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.idle {
		c.Close()
	}
	s.idle = nil
	return nil
}

// acquire takes an idle connection or makes one.
func (s *Source) acquire(ctx context.Context) (*Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	for n := len(s.idle); n > 0; n = len(s.idle) {
		c := s.idle[n-1]
		s.idle = s.idle[:n-1]
		if !c.Dead() {
			s.mu.Unlock()
			return c, nil
		}
	}
	s.mu.Unlock()
	return Dial(s.at.Target)
}

func (s *Source) release(c *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return
	}
	s.idle = append(s.idle, c)
}

const (
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
)

// do runs an operation, again on a new connection where that one breaks. The
// pauses double, with jitter.
func (s *Source) do(ctx context.Context, op func(*Session) error) error {
	pause := firstPause
	for n := 1; ; n++ {
		moved, err := s.once(ctx, op)
		if moved {
			n, pause = 1, firstPause
		}
		if err == nil || n >= s.at.Attempts || ctx.Err() != nil || !Lost(err) {
			return err
		}
		wait := time.NewTimer(pause/2 + rand.N(pause/2))
		pause = min(2*pause, longestPause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return context.Cause(ctx)
		case <-wait.C:
		}
	}
}

// progress is the error of an operation that got further before its
// connection broke.
type progress struct{ error }

func (p progress) Unwrap() error { return p.error }

func (s *Source) once(ctx context.Context, op func(*Session) error) (moved bool, err error) {
	c, err := s.acquire(ctx)
	if err != nil {
		return false, err
	}
	err = op(c)
	if p, ok := err.(progress); ok {
		moved, err = true, p.error
	}
	if err != nil && Lost(err) {
		return moved, c.Drop(err)
	}
	var mine *receiverError
	if ctx.Err() != nil || errors.As(err, &mine) { // files are open at the other end
		c.Close()
		return moved, err
	}
	s.release(c)
	return moved, err
}

func (s *Source) path(name string) string { return path.Join(s.at.Dir, name) }

// fault says what was being done, and what can be done about an error.
func (s *Source) fault(doing, name string, err error) error {
	var mine *receiverError
	switch {
	case errors.As(err, &mine):
		return mine.error
	case errors.Is(err, context.Canceled), errors.Is(err, fs.ErrNotExist) && name != "":
		return err
	case errors.Is(err, fs.ErrPermission):
		err = exit.Hint(err, "log in there as the user that the server runs as, or as one of its group where the cluster was made with initdb --allow-group-access")
	case Lost(err) && exit.HintOf(err) == "":
		err = exit.Hint(err, "run the same command again to go on")
	}
	return fmt.Errorf("%s %s on %s: %w", doing, s.path(name), s.at.Host, err)
}

// smallFile bounds what ReadFile returns.
const smallFile = 64 << 20

// ReadFile returns the whole content of a small file.
func (s *Source) ReadFile(ctx context.Context, name string) (data []byte, err error) {
	if err := blockcopy.CheckPath(name); err != nil {
		return nil, err
	}
	err = s.do(ctx, func(c *Session) error {
		return c.Watch(func() (err error) {
			f, err := c.Client.Open(s.path(name))
			if err != nil {
				return err
			}
			defer f.Close()
			data, err = io.ReadAll(io.NewSectionReader(f, 0, smallFile))
			return err
		})
	})
	if err != nil {
		return nil, s.fault("reading", name, err)
	}
	if len(data) == smallFile {
		return nil, fmt.Errorf("reading %s on %s: it has more than %d bytes", s.path(name), s.at.Host, smallFile)
	}
	return data, nil
}

// List returns every file, directory and link of the data directory, behind
// the links that a server follows.
func (s *Source) List(ctx context.Context) (out []blockcopy.Entry, err error) {
	err = s.Each(ctx, func(e blockcopy.Entry) error {
		out = append(out, e)
		return nil
	})
	return out, err
}

// Each calls do for what List returns, one by one.
func (s *Source) Each(ctx context.Context, do func(blockcopy.Entry) error) error {
	err := blockcopy.EachIn(ctx, &folders{ctx: ctx, s: s, listed: map[string]*listing{}}, s.at.Dir, func(e blockcopy.Entry) error {
		if err := blockcopy.CheckPath(e.Path); err != nil {
			return err
		}
		return do(e)
	})
	if err != nil {
		return s.fault("listing", "", err)
	}
	return nil
}
