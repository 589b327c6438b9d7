package cli

import "tidemark/internal/exit"

// DefaultNice is how far work that can wait stands back behind a server, as
// nice(1) counts: a tenth of its share where both want the same processor, and
// all of what the server leaves.
const DefaultNice = 10

// NiceFlag says how far a command stands back.
type NiceFlag struct {
	Nice *int `placeholder:"N" help:"Stand back for the server, as by nice -n N, from 0 to 19; 10 by default, 0: not at all."`
}

// StandBack lowers the priority of the process for good, where that can be
// done; a command that was started further back stays there.
func (f NiceFlag) StandBack(e *Env) error {
	n := DefaultNice
	if f.Nice != nil {
		n = *f.Nice
	}
	if n < 0 || n > 19 {
		return exit.New(exit.Usage, "leave it out for 10, or say --nice 0 to run as any other process", "--nice goes from 0 to 19, not %d", n)
	}
	if n == 0 {
		return nil
	}
	if err := standBack(n); err != nil {
		e.Log().Debug("the priority stays as it is", "error", err)
	}
	return nil
}
