package rewind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// finish makes what the end of a run needs, after the last copied byte is
// durable: replay must reach the position that the source has now.
func (j *job) finish(ctx context.Context, m meta, plan *blockcopy.Plan) (blockcopy.Finish, error) {
	var f blockcopy.Finish
	if j.source.repo != nil {
		m.Recovery = j.WriteRecoveryConf
		return j.finishFromRepository(m, plan)
	}
	sc, err := j.source.control(ctx)
	if err != nil {
		return f, err
	}
	if err := j.source.checkLive(ctx); err != nil {
		return f, err
	}
	end, tli, err := j.source.position(ctx, sc)
	if err != nil {
		return f, err
	}
	history, err := readHistory(j.source.heading(ctx, sc, tli), "the source", j.source.read(ctx))
	if err != nil {
		return f, err
	}
	if !m.onCommonHistory(history) || !history.Contains(m.SourceTLI, min(m.SourceEnd, end)) {
		return f, exit.New(exit.Refused, "the source is no longer on the history that was copied from; rewind to a server that is",
			"the source went over to another history while it was copied (timeline %d)", tli)
	}
	if f.Late, err = j.lateWAL(ctx, m, history, end, sc); err != nil {
		return f, err
	}
	onDisk, err := j.source.onDisk(ctx, sc, end)
	if err != nil {
		return f, err
	}
	f.Check = func(ctx context.Context) error { return j.guard(ctx, m, plan, sc, history, onDisk) }
	f.Control = newControl(sc, end, tli)
	f.Label = newLabel(m.Divergence.Start, sc.XLogSegSize)
	f.Files, err = j.finalFiles(ctx, m)
	return f, err
}

// onCommonHistory tells whether a history holds what the copy began with: the
// fork, or where no fork is known the checkpoint that replay begins with.
func (m meta) onCommonHistory(h *timeline.History) bool {
	if m.Divergence.Fork == nil {
		return h.Contains(m.Divergence.Start.Timeline, m.Divergence.Start.Redo)
	}
	return h.Contains(m.Divergence.Fork.Timeline, m.Divergence.Fork.LSN)
}

// newControl is the source's pg_control, as of a server that recovers and is
// not consistent before end.
func newControl(sc *volume.Control, end wal.LSN, tli timeline.ID) []byte {
	c := sc.Clone()
	c.State = volume.StateInArchiveRecovery
	c.MinRecoveryPoint, c.MinRecoveryPointTLI = end, tli
	c.Time = time.Now()
	return c.Encode()
}

func newLabel(start *Checkpoint, size wal.SegmentSize) []byte {
	l := volume.BackupLabel{StartWAL: start.Redo, WALFile: wal.SegmentName(start.Timeline, size.Number(start.Redo), size),
		Checkpoint: start.LSN, Method: volume.MethodRewind, From: volume.FromStandby, StartTime: volume.LabelTime(time.Now())}
	return l.Format()
}

// lateWAL plans the WAL that the source wrote since the plan was made, and its
// history files once more where it was promoted meanwhile. What it recycled
// already has to come from its archive: that is worth a warning.
func (j *job) lateWAL(ctx context.Context, m meta, h *timeline.History, end wal.LSN, sc *volume.Control) ([]blockcopy.Action, error) {
	size := sc.XLogSegSize
	if m.SourceDir && end <= m.SourceEnd {
		return nil, nil
	}
	choices := lateSegments(h, size, m.SourceEnd, end)
	var names []string
	for _, c := range choices {
		for _, name := range c {
			names = append(names, "pg_wal/"+name)
		}
	}
	found, err := j.source.has(ctx, names)
	if err != nil {
		return nil, err
	}
	var late []blockcopy.Action
	for i, c := range choices {
		n := len(late)
		for _, name := range c {
			if found["pg_wal/"+name] {
				late = append(late, runningSegment(name, size.Number(m.SourceEnd)+wal.SegmentNumber(i), end, sc))
				break
			}
		}
		if len(late) == n && len(c) > 0 {
			name, _ := wal.ParseFileName(c[0])
			number, _ := name.Number(size)
			where, err := j.locate(ctx, m.Divergence.Target.Spans, m.forkSegment(size), number, c[0])
			if err != nil {
				return nil, err
			}
			if where == "" && m.Compared {
				return nil, recycledMeanwhile(c[:1], exit.Partial, j.hold != nil)
			}
			if where == "" {
				j.warn("the source no longer has WAL segment %s: the target needs it from the WAL archive (restore_command)", c[0])
				continue
			}
			j.source.restored[c[0]] = true
			late = append(late, runningSegment(c[0], number, end, sc))
		}
	}
	if h.Timeline != m.SourceTLI {
		data := h.Format()
		late = append(late, blockcopy.Action{Kind: blockcopy.Copy, Path: "pg_wal/" + wal.HistoryName(h.Timeline), Size: int64(len(data))})
	}
	return late, nil
}

// runningSegment copies segment n as far as it is written: up to the end of
// the page with the WAL's end in it.
func runningSegment(name string, n wal.SegmentNumber, end wal.LSN, sc *volume.Control) blockcopy.Action {
	size, page := int64(sc.XLogSegSize), int64(sc.XLogBlockSize)
	used := min(size, (int64(end-sc.XLogSegSize.Start(n))+page-1)/page*page)
	return blockcopy.Action{Kind: blockcopy.Copy, Path: "pg_wal/" + name, Size: used, Zeros: size - used, Required: true}
}

// finalFiles are the settings and signals that must be durable before the
// target can start.
func (j *job) finalFiles(ctx context.Context, m meta) ([]blockcopy.FinalFile, error) {
	var files []blockcopy.FinalFile
	if j.WriteRecoveryConf {
		recovery, err := j.recoverySettings()
		if err != nil {
			return nil, err
		}
		files = append(files, recovery...)
	} else if _, err := j.source.ReadFile(ctx, "standby.signal"); err == nil {
		// The copy of a standby must not come up as a second primary.
		files = append(files, blockcopy.FinalFile{Path: "standby.signal"})
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, name := range m.Done {
		files = append(files, blockcopy.FinalFile{Path: "pg_wal/archive_status/" + name + ".done"})
	}
	return files, nil
}

// recoverySettings are standby.signal and postgresql.auto.conf with the
// connection to the source at its end.
func (j *job) recoverySettings() ([]blockcopy.FinalFile, error) {
	const name = "postgresql.auto.conf"
	info, err := postgres.ForStandby(j.SourceConn)
	if err != nil {
		return nil, err
	}
	line := fmt.Appendf(nil, "primary_conninfo = %s\n", postgres.QuoteGUC(info.String()))
	conf, err := os.ReadFile(filepath.Join(j.Target, name))
	if ignoreMissing(err) != nil {
		return nil, err
	}
	if !bytes.HasSuffix(conf, line) {
		if len(conf) > 0 && !bytes.HasSuffix(conf, []byte("\n")) {
			conf = append(conf, '\n')
		}
		conf = append(conf, line...)
	}
	return []blockcopy.FinalFile{{Path: name, Data: conf}, {Path: "standby.signal"}}, nil
}

// setUpStandby writes the recovery settings where nothing else is to be done.
func (j *job) setUpStandby() error {
	settings := j.recoverySettings
	if j.source.repo != nil {
		settings = func() ([]blockcopy.FinalFile, error) { return j.archiveRecovery(true) }
	}
	files, err := settings()
	if err != nil {
		return err
	}
	fi, err := os.Stat(filepath.Join(j.Target, volume.ControlPath))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := volume.WriteFile(volume.OS, filepath.Join(j.Target, f.Path), f.Data, fi.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}
