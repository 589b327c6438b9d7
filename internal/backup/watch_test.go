package backup

import (
	"context"
	"testing"

	"tidemark/pkg/wal"
)

// TestWatchEndsBetweenQuestions: when the copy ends while the keeper asks the
// server for its position, that question is not cancelled. A cancelled query
// closes the session, which owns the slot and is needed to the end.
func TestWatchEndsBetweenQuestions(t *testing.T) {
	k := &walKeeper{size: 16 << 20, next: 5}
	copied := make(chan struct{})
	asked := 0
	err := k.watch(t.Context(), copied, func(ctx context.Context) (wal.LSN, error) {
		asked++
		close(copied)
		return k.size.Start(5), ctx.Err()
	})
	if err != nil || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}
