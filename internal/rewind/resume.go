package rewind

import (
	"context"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
)

// sameUnderAnotherName lets a run go on with a source that is called otherwise
// now (a socket then, an address today), where it can be proved that what was
// copied before is no younger than what this source tells of itself:
//
//   - the same run of the same server;
//   - a primary then and a primary now, on one timeline: there is one of those;
//   - a stopped server's directory whose WAL ends where it ended then.
func (j *job) sameUnderAnotherName(ctx context.Context, m meta, sc *volume.Control, name string) error {
	end, tli, err := j.source.position(ctx, sc)
	if err != nil {
		return err
	}
	primary := volume.StateInProduction.String()
	switch {
	case m.SourceDir != !j.source.live():
	case m.SourceDir && end == m.SourceEnd && tli == m.SourceTLI:
		return nil
	case !m.SourceDir && m.Instance != "" && m.Instance == j.source.instance(ctx):
		return nil
	case !m.SourceDir && m.Divergence.Source.State == primary && sc.State.String() == primary && tli == m.SourceTLI && end >= m.SourceEnd:
		return nil
	}
	return exit.New(exit.Refused, "name the same source as before; if it is gone for good, undo the rewind or seed the node anew (dbrepl seed)",
		"the unfinished rewind copied from %s, and %s is not provably the same server", name, j.source.Name())
}

// instance names a run of a live server, however it is reached; "" where it
// does not tell.
func (s *source) instance(ctx context.Context) string {
	if !s.live() {
		return ""
	}
	conn, err := postgres.Connect(ctx, s.conn)
	if err != nil {
		return ""
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var id string
	err = postgres.Query(ctx, conn, "SELECT extract(epoch FROM pg_postmaster_start_time())::text || '/' || current_setting('port')", nil, &id)
	if err != nil {
		return ""
	}
	return id
}
