// Package progress is the one interface through which long work tells how far
// it has come. Libraries report to it; only internal/cli draws it.
package progress

// Reporter receives the phases of one operation. All methods may be called
// from several goroutines at once.
type Reporter interface {
	// Phase begins a phase. name is a short verb phrase ("copying files");
	// total is the number of units to come, or 0 where it is not known.
	Phase(name string, total int64, unit Unit)
	// Grow adds to the running phase's total (files may grow while copied).
	Grow(delta int64)
	// Add says that n more units of the running phase are done.
	Add(n int64)
	// Note prints one line about something worth knowing, above the progress.
	Note(format string, args ...any)
}

// Unit is what a phase counts.
type Unit int

// The units.
const (
	Bytes Unit = iota
	Items
)

// Nop discards everything; it is what a nil Reporter stands for.
type Nop struct{}

func (Nop) Phase(string, int64, Unit) {}
func (Nop) Grow(int64)                {}
func (Nop) Add(int64)                 {}
func (Nop) Note(string, ...any)       {}

// Or returns r, or Nop where r is nil.
func Or(r Reporter) Reporter {
	if r == nil {
		return Nop{}
	}
	return r
}
