package backup

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/ssh"
	"tidemark/pkg/volume"
)

// openRemote opens the server's data directory on another host.
func (s *server) openRemote(ctx context.Context, where string, start point) (blockcopy.Source, error) {
	at, err := ssh.ParseLocation(where)
	if err != nil {
		return nil, err
	}
	src, err := ssh.OpenSource(ctx, at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exit.Wrap(err, exit.Refused, "-D names the data directory", "%s is not a cluster's data directory", where)
	}
	if err != nil {
		return nil, err
	}
	if err := s.proveRemote(ctx, src, start); err != nil {
		src.Close()
		return nil, err
	}
	return src, nil
}

// proveRemote proves that the files are those of the server that is connected
// to. Its pg_control shows the server's checkpoint; but a copy may show the same
// one, on a standby for long. So the lock file has to be
// that of a server which started when this one says it did, and the directory
// has to hold the replication slot that was made a moment ago, whose name
// nobody could know.
func (s *server) proveRemote(ctx context.Context, src blockcopy.Source, start point) error {
	control, err := postgres.ReadControl(ctx, src)
	if errors.Is(err, fs.ErrNotExist) {
		return exit.Wrap(err, exit.Refused, "-D names the data directory", "%s is not a cluster's data directory", src.Name())
	}
	if err != nil {
		return err
	}
	if err := s.sameCluster(control, start, src.Name()); err != nil {
		return err
	}
	data, err := src.ReadFile(ctx, volume.PostmasterPIDFile)
	if errors.Is(err, fs.ErrNotExist) {
		return wrongDirectory(src.Name(), "no server runs on it")
	}
	if err != nil {
		return err
	}
	pid, err := volume.ParsePostmasterPID(data)
	if err != nil {
		return err
	}
	if d := s.started.Sub(pid.Started); d < -startSlack || d > startSlack {
		return wrongDirectory(src.Name(), "its server started at %s, the one connected to at %s",
			pid.Started.Format(time.RFC3339), s.started.UTC().Format(time.RFC3339))
	}
	if s.slot == "" {
		return nil
	}
	_, err = src.ReadFile(ctx, "pg_replslot/"+s.slot+"/state")
	if errors.Is(err, fs.ErrNotExist) {
		return wrongDirectory(src.Name(), "it lacks the replication slot %s, which the server has: it is a copy", s.slot)
	}
	return err
}
