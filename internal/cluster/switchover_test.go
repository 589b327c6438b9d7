package cluster

import (
	"testing"
	"time"

	"tidemark/internal/pgtest"
)

func TestSwitchoverUnderLoad(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		tc := newClusterWith(t, major, nil, "bravo", "charlie") // retries after 5 s, as by default
		w := tc.startWriter()
		for _, to := range []string{"bravo", "alpha"} {
			before := len(w.acked)
			pgtest.Wait(t, func() bool { return len(w.acked) > before+50 })
			r := tc.mustSwitchover(to)
			if r.WriteGap == nil || *r.WriteGap <= 0 || *r.WriteGap > 20 {
				t.Errorf("write gap %v", r.WriteGap)
			}
			if r.Proof == nil || r.Proof.Replayed < r.Proof.End {
				t.Errorf("proof %+v", r.Proof)
			}
			t.Logf("to %s: gap %.3f s, took %.3f s\n%s", to, *r.WriteGap, r.Took, describe(r))
		}
		time.Sleep(100 * time.Millisecond)
		acked, missing := w.finish(tc.nodes["alpha"])
		if missing > 0 || acked < 100 {
			t.Errorf("%d of %d acknowledged rows are missing", missing, acked)
		}
		tc.wantPrimary("alpha")
	})
}
