package rewind

import "tidemark/internal/blockcopy"

// What an estimate assumes where nothing was measured: a rewind writes, syncs
// and keeps for the undo what it fetches.
const (
	assumedRate    = 150e6 // bytes per second
	assumedSeconds = 1.0   // connections, lists, the end of the run
	seedingShare   = 0.7   // of the source's size: from there on a copy of all of it is no slower
)

// Estimate says what a rewind would take. It is a rule of thumb: disks and
// networks differ by a factor of ten.
type Estimate struct {
	Seconds        float64 `json:"seconds"`                         // at the assumed rate
	Rate           int64   `json:"assumed_bytes_per_second"`        // fetched, written and synced
	Share          float64 `json:"share_of_source"`                 // bytes that travel, of the source's size: 0 to 1, or above
	SeedingCheaper bool    `json:"seeding_afresh_would_be_cheaper"` // so much differs that copying everything is no slower
}

// estimate sums up what a plan costs, with a warning where it costs too much.
func (j *job) estimate(p *planner) *Estimate {
	e := estimate(&p.plan.Totals, p.lateBytes())
	if e.SeedingCheaper {
		j.warn("%.0f %% of the source's size would travel: seeding the node afresh (dbrepl seed) is no slower", 100*e.Share)
	}
	return e
}

// estimate is made of a plan's sums and of what is copied at its end.
func estimate(t *blockcopy.Totals, late int64) *Estimate {
	bytes := float64(t.Bytes + late)
	e := &Estimate{Seconds: assumedSeconds + bytes/assumedRate, Rate: assumedRate}
	if t.SourceBytes > 0 {
		e.Share = bytes / float64(t.SourceBytes)
		e.SeedingCheaper = e.Share > seedingShare
	}
	return e
}
