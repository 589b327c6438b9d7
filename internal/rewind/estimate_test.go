package rewind

import (
	"math"
	"testing"

	"tidemark/internal/blockcopy"
)

func TestEstimate(t *testing.T) {
	for _, c := range []struct {
		bytes, late, source int64
		seconds             float64
		cheaper             bool
	}{
		{0, 0, 0, 1, false},
		{150e6, 0, 3e9, 2, false},
		{1500e6, 16e6, 3e9, 11.1, false},
		{2090e6, 16e6, 3e9, 15.0, true},
		{4000e6, 0, 3e9, 27.7, true},
	} {
		e := estimate(&blockcopy.Totals{Bytes: c.bytes, SourceBytes: c.source}, c.late)
		if math.Abs(e.Seconds-c.seconds) > 0.1 || e.SeedingCheaper != c.cheaper || e.Rate <= 0 {
			t.Errorf("%+v: %+v", c, e)
		}
	}
}
