package backup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

// Retention is which backups are kept. A backup is kept if any rule keeps it.
// Days, weeks, months and years are those of UTC; of each the last backup counts.
type Retention struct {
	Last    int // the newest so many
	Within  Age // those that are younger
	Daily   int // the last one of each of so many days that have one
	Weekly  int
	Monthly int
	Yearly  int
	// WAL is how far back any moment shall be recoverable. Older backups that
	// are kept then keep only the WAL that makes them consistent. Where it is
	// empty, any moment from the oldest kept backup on stays recoverable.
	WAL Age
}

// empty tells whether there is no rule that keeps backups.
func (r Retention) empty() bool {
	return r.Last == 0 && r.Within.zero() && r.Daily == 0 && r.Weekly == 0 && r.Monthly == 0 && r.Yearly == 0
}

// Age is a span of calendar time: 36h, 14d, 8w, 6m, 7y.
type Age struct{ hours, days, months int }

func (a Age) zero() bool { return a == Age{} }

// before returns the moment that lies the span before t.
func (a Age) before(t time.Time) time.Time {
	return t.AddDate(0, -a.months, -a.days).Add(-time.Duration(a.hours) * time.Hour)
}

// After returns the moment that lies the span after t.
func (a Age) After(t time.Time) time.Time {
	return t.AddDate(0, a.months, a.days).Add(time.Duration(a.hours) * time.Hour)
}

// ParseAge reads a span.
func ParseAge(s string) (Age, error) {
	var a Age
	if s == "" {
		return a, nil
	}
	n, err := strconv.Atoi(s[:len(s)-1])
	if err != nil || n <= 0 || n > 1e6 {
		return a, badAge(s)
	}
	switch s[len(s)-1] {
	case 'h':
		a.hours = n
	case 'd':
		a.days = n
	case 'w':
		a.days = 7 * n
	case 'm':
		a.months = n
	case 'y':
		a.months = 12 * n
	default:
		return a, badAge(s)
	}
	return a, nil
}

func badAge(s string) error {
	return exit.New(exit.Usage, "write 36h, 14d, 8w, 6m or 7y", "%q is not a span of time", s)
}

// ParseMoment reads a date, a time (RFC 3339), or a span from now on.
func ParseMoment(s string, now time.Time) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	if a, err := ParseAge(s); err == nil {
		t := a.After(now).UTC().Truncate(time.Second)
		return &t, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			t = t.UTC()
			return &t, nil
		}
	}
	return nil, exit.New(exit.Usage, "write 2027-12-31, a time with its zone such as 2027-12-31T12:00:00Z, or a span such as 90d", "%q is not a date", s)
}

// choice is what is to become of one backup.
type choice struct {
	s       *repo.Summary
	reasons []string // why it is kept; none: it goes
	whole   bool     // WAL is kept from its start on without a gap
}

// choose applies the policy to complete backups, the oldest first. lacking are
// those that cannot be restored, for WAL is missing: they count for nothing, and
// are left to the operator. The newest sound backup is kept by every policy.
func (r Retention) choose(all []*repo.Summary, pins map[string]repo.Pin, lacking map[string]bool, now time.Time) []choice {
	out := make([]choice, len(all))
	var rule []*choice // what the rules are for, the newest first
	newest := false
	for i := len(all) - 1; i >= 0; i-- {
		c := &out[i]
		c.s = all[i]
		if p := pins[c.s.ID]; p.Holds(now) {
			c.keep("pinned" + until(p.Until))
		}
		if lacking[c.s.ID] {
			c.keep("lacks WAL, see dbbackup show")
			continue
		}
		if !newest {
			newest = true
			c.keep("the newest")
		}
		if e := c.s.Expires; e != nil {
			if now.Before(*e) {
				c.keep("kept" + until(e))
			}
			continue
		}
		rule = append(rule, c)
	}
	for i, c := range rule {
		if i < r.Last {
			c.keep("one of the last " + strconv.Itoa(r.Last))
		}
		if !r.Within.zero() && c.s.Finished.After(r.Within.before(now)) {
			c.keep("young")
		}
	}
	for _, p := range []struct {
		count int
		name  string
		key   func(time.Time) string
	}{
		{r.Daily, "daily", func(t time.Time) string { return t.Format(time.DateOnly) }},
		{r.Weekly, "weekly", func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprint(y, "-", w) }},
		{r.Monthly, "monthly", func(t time.Time) string { return t.Format("2006-01") }},
		{r.Yearly, "yearly", func(t time.Time) string { return t.Format("2006") }},
	} {
		last, n := "", 0
		for _, c := range rule {
			key := p.key(c.s.Finished.UTC())
			if n < p.count && key != last {
				last = key
				n++
				c.keep(p.name)
			}
		}
	}
	r.windows(out, now)
	return out
}

func until(t *time.Time) string {
	if t == nil {
		return ""
	}
	return " until " + t.UTC().Format(time.RFC3339)
}

func (c *choice) keep(why string) {
	if !slices.Contains(c.reasons, why) {
		c.reasons = append(c.reasons, why)
	}
}

func (c *choice) kept() bool { return len(c.reasons) > 0 }

// windows decides from which of the kept backups on all WAL is kept: from those
// in the window, and the last one before it.
func (r Retention) windows(all []choice, now time.Time) {
	for i := len(all) - 1; i >= 0; i-- {
		c := &all[i]
		if !c.kept() {
			continue
		}
		c.whole = true
		if !r.WAL.zero() && !c.s.Finished.After(r.WAL.before(now)) && !strings.HasPrefix(c.reasons[0], "lacks") {
			return
		}
	}
}
