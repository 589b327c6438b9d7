package backup

import (
	"context"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
)

// throttled is a source that gives at most so many bytes per second, to all
// who read from it together.
type throttled struct {
	blockcopy.Source
	rate int64

	mu   sync.Mutex
	free time.Time // when the next byte may be read
}

// throttle bounds what is read from src to rate bytes per second, 0 for no bound.
func throttle(src blockcopy.Source, rate int64) blockcopy.Source {
	if rate <= 0 {
		return src
	}
	return &throttled{Source: src, rate: rate}
}

// Fetch reads the ranges, with a pause after each piece.
func (t *throttled) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	return t.Source.Fetch(ctx, ranges, func(piece blockcopy.Range, data []byte, gone bool) error {
		if err := deliver(piece, data, gone); err != nil {
			return err
		}
		return t.pause(ctx, int64(len(data)))
	})
}

// pause takes the time for n bytes out of the common budget and waits until it
// has passed. Time that nobody used is not saved up.
func (t *throttled) pause(ctx context.Context, n int64) error {
	t.mu.Lock()
	now := time.Now()
	if t.free.Before(now) {
		t.free = now
	}
	t.free = t.free.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	wait := t.free.Sub(now)
	t.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
