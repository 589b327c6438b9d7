package rewind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tidemark/internal/exit"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// targetWAL finds the target's segments along its history: the file of the
// newest timeline that reaches into a segment holds the older ones' part too.
type targetWAL struct {
	target  string
	history *timeline.History
	size    wal.SegmentSize
	restore *restorer // nil: what is not there is missing
}

// candidates are the names under which segment n may lie, the best first.
func candidates(h *timeline.History, size wal.SegmentSize, n wal.SegmentNumber) []string {
	var names []string
	spans := h.Spans()
	for i := len(spans) - 1; i >= 0; i-- {
		s := spans[i]
		if s.Begin < size.End(n) && (s.End == 0 || s.End > size.Start(n)) {
			names = append(names, wal.SegmentName(s.Timeline, n, size))
		}
	}
	return names
}

// OpenSegment opens a segment in pg_wal, or has it restored.
func (t *targetWAL) OpenSegment(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
	names := candidates(t.history, t.size, n)
	for _, name := range names {
		f, err := os.Open(filepath.Join(t.target, "pg_wal", name))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	if t.restore != nil {
		for _, name := range names {
			path, err := t.restore.fetch(ctx, name)
			if err != nil {
				return nil, err
			}
			if path != "" {
				return os.Open(path)
			}
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("segment %d is on no timeline of the target: %w", n, wal.ErrNoSegment)
	}
	return nil, fmt.Errorf("%s: %w", names[0], wal.ErrNoSegment)
}

// explain gives an error about the target's WAL a hint.
func (t *targetWAL) explain(err error, doing string) error {
	if err == nil {
		return nil
	}
	hint := "copy it from the WAL archive into the target's pg_wal, or use -c (--restore-target-wal)"
	if t.restore != nil {
		hint = "neither pg_wal nor restore_command has it; copy it into the target's pg_wal, or seed the node anew"
	}
	if !errors.Is(err, wal.ErrNoSegment) {
		hint = "the target's WAL cannot be trusted from there on: seed the node anew (dbrepl seed)"
	}
	return exit.Wrap(err, exit.Failed, hint, "%s", doing)
}

// restorer fetches WAL by the target's restore_command. Where a run changes
// the target anyway the files go into pg_wal, otherwise into a scratch
// directory.
type restorer struct {
	command string
	dir     string
	missing map[string]bool
	log     *slog.Logger
}

// fetch returns the path of the restored file, "" where the archive lacks it.
func (r *restorer) fetch(ctx context.Context, name string) (string, error) {
	path := filepath.Join(r.dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if r.missing[name] {
		return "", nil
	}
	tmp := path + volume.TempSuffix
	command := strings.NewReplacer("%%", "%", "%p", tmp, "%f", name, "%r", wal.SegmentName(1, 0, wal.DefaultSegmentSize)).Replace(r.command)
	r.log.Info("restoring WAL of the target", "file", name)
	out, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput()
	var status *exec.ExitError
	if errors.As(err, &status) && status.ExitCode() > 0 && status.ExitCode() <= 125 {
		r.missing[name] = true
		return "", ignoreMissing(os.Remove(tmp))
	}
	if err != nil {
		return "", exit.Wrap(err, exit.Failed, strings.TrimSpace(string(out)), "restore_command failed for %s", name)
	}
	if err := volume.SyncFile(volume.OS, tmp); err != nil {
		return "", exit.Wrap(err, exit.Failed, "", "restore_command succeeded and left no %s", name)
	}
	return path, volume.RenameDurable(volume.OS, tmp, path)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
