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
	"sync"

	"tidemark/internal/blockcopy"
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

	// Segments below fork hold common WAL: those that the target recycled
	// are read from the source. 0 as long as the fork is not known.
	fork   wal.SegmentNumber
	source *source
	common *timeline.History
	mu     sync.Mutex
	loaned map[wal.SegmentNumber]*os.File // fetched from the source, unlinked
}

// close gives back what was fetched.
func (t *targetWAL) close() {
	for _, f := range t.loaned {
		f.Close()
	}
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
	if n < t.fork {
		if f, err := t.borrow(ctx, n); f != nil || err != nil {
			return loan{f}, err
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("segment %d is on no timeline of the target: %w", n, wal.ErrNoSegment)
	}
	return nil, fmt.Errorf("%s: %w", names[0], wal.ErrNoSegment)
}

// loan is a borrowed segment: it stays open until the end.
type loan struct{ *os.File }

func (loan) Close() error { return nil }

// borrow fetches a segment of common WAL from the source into a file without a
// name; nil where the source lacks it, too.
func (t *targetWAL) borrow(ctx context.Context, n wal.SegmentNumber) (*os.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.loaned[n]; f != nil {
		return f, nil
	}
	for _, name := range candidates(t.common, t.size, n) {
		f, err := t.download(ctx, "pg_wal/"+name)
		if err != nil || f != nil {
			t.loaned[n] = f
			return f, err
		}
	}
	return nil, nil
}

func (t *targetWAL) download(ctx context.Context, path string) (*os.File, error) {
	f, err := os.CreateTemp("", "dbrewind-wal-")
	if err != nil {
		return nil, err
	}
	missing := false
	err = errors.Join(os.Remove(f.Name()), t.source.Fetch(ctx, []blockcopy.Range{{Path: path, Length: int64(t.size)}},
		func(piece blockcopy.Range, data []byte, gone bool) error {
			missing = missing || gone || int64(len(data)) < piece.Length
			_, err := f.WriteAt(data, piece.Offset)
			return err
		}))
	if err != nil || missing {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
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
