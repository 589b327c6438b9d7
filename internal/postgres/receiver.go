package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tidemark/internal/exit"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// PartialSuffix ends the name of a segment that is still being received.
const PartialSuffix = ".partial"

// ReceiveOptions say what a Receiver receives and where to.
type ReceiveOptions struct {
	ConnInfo string
	Conn     *ReplConn // a session to use first, which may own the slot; closed when Run returns
	Slot     string    // physical replication slot; empty for none
	Dir      string    // segments and history files go here; it must exist
	FS       volume.FS
	Perm     fs.FileMode // of new files, default 0600

	// SystemID, where not 0, must be the server's.
	SystemID uint64
	// Start and Timeline are where to begin in an empty directory: the start
	// of the segment that holds Start. Where the directory holds segments
	// already, receiving goes on after the last complete one. Start 0 means
	// the server's current position.
	Start    wal.LSN
	Timeline wal.TimelineID

	// PgWAL makes the directory fit to be a server's pg_wal: segments have
	// their final names from the first byte on (padded with zeros, as the
	// server's own), and complete ones are marked as archived.
	PgWAL bool

	// StatusInterval is the longest time between two reports to the server,
	// default 10 s. What a report calls flushed was synced before.
	StatusInterval time.Duration
	// Progress, where set, is told the number of bytes received, now and then.
	Progress func(bytes int64)
	Log      *slog.Logger
}

// Position is how far a Receiver has come.
type Position struct {
	Timeline  wal.TimelineID `json:"timeline"`
	Written   wal.LSN        `json:"written"`
	Flushed   wal.LSN        `json:"flushed"`    // durable here
	ServerEnd wal.LSN        `json:"server_end"` // how far the server's WAL went when it last told
	Segment   string         `json:"segment,omitempty"`
}

// Receiver streams WAL from a server into a directory.
//
//	segment n   created as <name>.partial at its full size, filled from its
//	            start, synced, renamed to <name>, directory synced
//	history     <timeline>.history, written durably before the first segment
//	            of that timeline
//	switch      the old timeline's last segment stays .partial (with PgWAL it
//	            keeps its name); the new timeline begins with the same segment
//
// Nothing is reported to the server as flushed that was not synced. After a
// crash the last segment is received anew from its start.
type Receiver struct {
	o    ReceiveOptions
	conn *ReplConn
	size wal.SegmentSize

	file    volume.File
	segment wal.SegmentNumber
	synced  bool // nothing was written since the last sync

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when pos changes
	pos     Position
	stopAt  wal.LSN
	stop    bool
}

// NewReceiver returns a receiver; Run starts it.
func NewReceiver(o ReceiveOptions) *Receiver {
	if o.FS == nil {
		o.FS = volume.OS
	}
	if o.Perm == 0 {
		o.Perm = 0o600
	}
	if o.StatusInterval == 0 {
		o.StatusInterval = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Receiver{o: o, synced: true, changed: make(chan struct{})}
}

// Position tells how far it has come.
func (r *Receiver) Position() Position {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pos
}

// StopAt makes Run end once everything before lsn is durable.
func (r *Receiver) StopAt(lsn wal.LSN) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stop, r.stopAt = true, lsn
}

// stopped reports whether the position to stop at is durable.
func (r *Receiver) stopped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stop && r.pos.Flushed >= r.stopAt
}

// wantsSync reports whether syncing now would let Run end.
func (r *Receiver) wantsSync() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stop && r.pos.Written >= r.stopAt && !r.synced
}

func (r *Receiver) update(f func(*Position)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.pos)
	close(r.changed)
	r.changed = make(chan struct{})
}

// WaitFlushed waits until everything before lsn is durable here.
func (r *Receiver) WaitFlushed(ctx context.Context, lsn wal.LSN) error {
	for {
		r.mu.Lock()
		pos, changed := r.pos, r.changed
		r.mu.Unlock()
		if pos.Flushed >= lsn {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// Run receives until StopAt's position is durable, the context ends (then it
// returns the context's error, with what was received synced) or the stream
// breaks. After a break it may be called again; it goes on where it was.
func (r *Receiver) Run(ctx context.Context) (err error) {
	conn := r.o.Conn
	if r.o.Conn = nil; conn == nil {
		if conn, err = ConnectReplication(ctx, r.o.ConnInfo); err != nil {
			return err
		}
	}
	r.conn = conn
	defer conn.Close()
	system, err := conn.IdentifySystem(ctx)
	if err != nil {
		return err
	}
	if r.o.SystemID != 0 && system.ID != r.o.SystemID {
		return exit.New(exit.Refused, "connect to a server of the same cluster",
			"%s belongs to another cluster: system identifier %d, expected %d", conn.name, system.ID, r.o.SystemID)
	}
	if r.size, err = conn.SegmentSize(ctx); err != nil {
		return err
	}
	history, err := r.history(ctx, system.Timeline)
	if err != nil {
		return err
	}
	start, tli, err := r.resume(history, system)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.closeSegment()) }()
	for {
		end, err := r.stream(ctx, start, tli)
		if err != nil || end == nil {
			return err
		}
		if start, tli, err = r.nextTimeline(ctx, tli, end); err != nil {
			return err
		}
	}
}

// history fetches the history of a timeline and stores its file.
func (r *Receiver) history(ctx context.Context, tli wal.TimelineID) (*timeline.History, error) {
	if tli <= 1 {
		return timeline.Root(1), nil
	}
	data, err := r.conn.TimelineHistory(ctx, tli)
	if err != nil {
		return nil, err
	}
	h, err := timeline.Parse(tli, data)
	if err != nil {
		return nil, fmt.Errorf("the history of timeline %d from %s: %w", tli, r.conn.name, err)
	}
	return h, r.storeHistory(tli, data)
}

func (r *Receiver) storeHistory(tli wal.TimelineID, data []byte) error {
	path := filepath.Join(r.o.Dir, wal.HistoryName(tli))
	old, err := volume.ReadFile(r.o.FS, path, 0)
	switch {
	case err == nil && string(old) == string(data):
		return nil
	case err == nil:
		return exit.New(exit.Refused, "the directory holds WAL of another line of descent: receive into an empty one",
			"%s is there with other content than the server's", path)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := volume.WriteFile(r.o.FS, path, data, r.o.Perm); err != nil {
		return err
	}
	return r.markArchived(wal.HistoryName(tli))
}

// resume finds where to go on: after the last complete segment that is there,
// or at the start that was asked for.
func (r *Receiver) resume(history *timeline.History, system System) (wal.LSN, wal.TimelineID, error) {
	entries, err := r.o.FS.ReadDir(r.o.Dir)
	if err != nil {
		return 0, 0, err
	}
	var last, lastPartial wal.FileName
	var lastNumber, partialNumber wal.SegmentNumber
	for _, e := range entries {
		name, ok := wal.ParseFileName(e.Name())
		if !ok {
			continue
		}
		n, ok := name.Number(r.size)
		if !ok {
			continue
		}
		later := func(than wal.FileName, number wal.SegmentNumber) bool {
			return than.Timeline == 0 || name.Timeline > than.Timeline || (name.Timeline == than.Timeline && n > number)
		}
		switch name.Kind {
		case wal.FileSegment:
			if later(last, lastNumber) {
				last, lastNumber = name, n
			}
		case wal.FilePartial:
			if later(lastPartial, partialNumber) {
				lastPartial, partialNumber = name, n
			}
		}
	}
	switch {
	case last.Timeline == 0 && lastPartial.Timeline == 0:
		start, tli := r.o.Start, r.o.Timeline
		if start == 0 {
			start, tli = system.Flush, system.Timeline
		}
		if tli == 0 {
			tli = history.TimelineAt(start)
		}
		return r.size.Start(r.size.Number(start)), tli, nil
	case r.o.PgWAL:
		// The last one may be half received, under its final name.
		return r.size.Start(lastNumber), last.Timeline, nil
	case lastPartial.Timeline > last.Timeline || last.Timeline == 0:
		return r.size.Start(partialNumber), lastPartial.Timeline, nil
	}
	return r.size.End(lastNumber), last.Timeline, nil
}

// nextTimeline prepares for the timeline that the server has switched to: its
// history file, and the segment that holds the switch point.
func (r *Receiver) nextTimeline(ctx context.Context, tli wal.TimelineID, end *EndOfTimeline) (wal.LSN, wal.TimelineID, error) {
	if end.Next <= tli {
		return 0, 0, fmt.Errorf("%s ended timeline %d and named %d as the next", r.conn.name, tli, end.Next)
	}
	if err := r.closeSegment(); err != nil {
		return 0, 0, err
	}
	if _, err := r.history(ctx, end.Next); err != nil {
		return 0, 0, err
	}
	r.o.Log.Info("the server switched timelines", "from", tli, "to", end.Next, "at", end.Switch)
	return r.size.Start(r.size.Number(end.Switch)), end.Next, nil
}

const (
	quiet       = 100 * time.Millisecond // the stream is called dry after that, and what it brought is synced
	syncAtLeast = time.Second            // a stream that never runs dry is synced that often
)

// stream receives one timeline from start on. It returns end where the server
// ended the timeline, and neither where StopAt was reached.
func (r *Receiver) stream(ctx context.Context, start wal.LSN, tli wal.TimelineID) (end *EndOfTimeline, err error) {
	if end, err = r.conn.StartReplication(ctx, r.o.Slot, start, tli); err != nil || end != nil {
		return end, err
	}
	r.update(func(p *Position) { p.Timeline, p.Written, p.Flushed, p.Segment = tli, start, start, "" })
	lastSync, lastReport := time.Now(), time.Now()
	for {
		if r.wantsSync() {
			if err := r.sync(); err != nil {
				return nil, err
			}
		}
		if r.stopped() {
			if err := r.report(); err != nil {
				return nil, err
			}
			return nil, r.conn.StopStream(ctx)
		}
		m, end, err := r.conn.Next(ctx, quiet)
		switch {
		case ctx.Err() != nil:
			return nil, errors.Join(ctx.Err(), r.sync(), r.report())
		case errors.Is(err, errNothing):
			if r.synced && time.Since(lastReport) < r.o.StatusInterval {
				continue
			}
			m.Reply = true // nothing comes: a good moment to sync
		case err != nil:
			return nil, errors.Join(err, r.sync())
		case end != nil:
			return end, r.sync()
		case m.Data != nil:
			if err := r.write(tli, m.Start, m.Data); err != nil {
				return nil, err
			}
		}
		if m.ServerEnd != 0 {
			r.update(func(p *Position) { p.ServerEnd = max(p.ServerEnd, m.ServerEnd) })
		}
		if m.Reply || time.Since(lastSync) >= syncAtLeast || time.Since(lastReport) >= r.o.StatusInterval {
			if err := r.sync(); err != nil {
				return nil, err
			}
			if err := r.report(); err != nil {
				return nil, err
			}
			lastSync, lastReport = time.Now(), time.Now()
		}
	}
}

func (r *Receiver) report() error {
	p := r.Position()
	if err := r.conn.SendStatus(p.Written, p.Flushed, 0); err != nil {
		return fmt.Errorf("reporting to %s: %w", r.conn.name, err)
	}
	return nil
}

// write puts WAL into its segments.
func (r *Receiver) write(tli wal.TimelineID, start wal.LSN, data []byte) error {
	pos := r.Position()
	if start != pos.Written {
		return fmt.Errorf("%s sent WAL from %s on, expected %s", r.conn.name, start, pos.Written)
	}
	for len(data) > 0 {
		if r.file == nil {
			if err := r.openSegment(tli, r.size.Number(start)); err != nil {
				return r.writeFault(err)
			}
		}
		offset := r.size.Offset(start)
		n := min(len(data), int(uint32(r.size)-offset))
		if _, err := r.file.WriteAt(data[:n], int64(offset)); err != nil {
			return r.writeFault(err)
		}
		start += wal.LSN(n)
		data = data[n:]
		r.setSynced(false)
		r.update(func(p *Position) { p.Written = start })
		if r.o.Progress != nil {
			r.o.Progress(int64(n))
		}
		if r.size.Offset(start) == 0 {
			if err := r.completeSegment(tli); err != nil {
				return r.writeFault(err)
			}
		}
	}
	return nil
}

func (r *Receiver) writeFault(err error) error {
	return exit.Wrap(err, exit.Partial, "make room there (or mend the disk) and run the same command again", "writing WAL into %s", r.o.Dir)
}

func (r *Receiver) segmentPath(tli wal.TimelineID) string {
	name := wal.SegmentName(tli, r.segment, r.size)
	if !r.o.PgWAL {
		name += PartialSuffix
	}
	return filepath.Join(r.o.Dir, name)
}

// openSegment opens the file of a segment at its full size.
func (r *Receiver) openSegment(tli wal.TimelineID, n wal.SegmentNumber) error {
	r.segment = n
	file, err := r.o.FS.OpenFile(r.segmentPath(tli), os.O_CREATE|os.O_RDWR, r.o.Perm)
	if err != nil {
		return err
	}
	if err := file.Truncate(int64(r.size)); err != nil {
		return errors.Join(err, file.Close())
	}
	r.file = file
	r.update(func(p *Position) { p.Segment = filepath.Base(r.segmentPath(tli)) })
	return r.o.FS.SyncDir(r.o.Dir)
}

// completeSegment makes a full segment durable under its final name.
func (r *Receiver) completeSegment(tli wal.TimelineID) error {
	if err := r.sync(); err != nil {
		return err
	}
	if err := r.closeSegment(); err != nil {
		return err
	}
	name := wal.SegmentName(tli, r.segment, r.size)
	if r.o.PgWAL {
		return r.markArchived(name)
	}
	return volume.RenameDurable(r.o.FS, r.segmentPath(tli), filepath.Join(r.o.Dir, name))
}

// markArchived keeps the server from archiving a file of its pg_wal once more.
func (r *Receiver) markArchived(name string) error {
	if !r.o.PgWAL {
		return nil
	}
	dir := filepath.Join(r.o.Dir, "archive_status")
	if _, err := volume.MkdirAll(r.o.FS, dir, r.o.Perm|(r.o.Perm>>2)&0o111); err != nil {
		return err
	}
	f, err := r.o.FS.OpenFile(filepath.Join(dir, name+".done"), os.O_CREATE|os.O_WRONLY, r.o.Perm)
	if err != nil {
		return err
	}
	return f.Close()
}

func (r *Receiver) setSynced(v bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced = v
}

// sync makes what was written durable, and only then calls it flushed.
func (r *Receiver) sync() error {
	if r.file == nil || r.synced {
		return nil
	}
	if err := r.file.Sync(); err != nil {
		return r.writeFault(err)
	}
	r.setSynced(true)
	r.update(func(p *Position) { p.Flushed = p.Written })
	return nil
}

// closeSegment closes the open file; what is in it was synced.
func (r *Receiver) closeSegment() error {
	if r.file == nil {
		return nil
	}
	err := errors.Join(r.sync(), r.file.Close())
	r.file = nil
	return err
}
