package rewind

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"tidemark/internal/progress"
	"tidemark/pkg/wal"
)

// readLost reads the target's WAL from start to end and collects what the
// transactions did that committed after the fork.
func (j *job) readLost(ctx context.Context, start, fork, end wal.LSN) (*lostWork, error) {
	j.Progress.Phase("collecting lost transactions", int64(end-start), progress.Bytes)
	s := lostScan{src: j.wal, opt: j.walOptions(start), fork: fork, size: lostPiece, workers: runtime.GOMAXPROCS(0), read: j.Progress.Add}
	s.opt.End = end
	w, err := s.parallel(ctx)
	if w == nil && err == nil {
		w, err = s.serial(func(fn func(*wal.Record) error) error { return j.eachRecord(ctx, start, end, fn) })
	}
	if err != nil {
		return nil, err
	}
	for xid, e := range w.prepared {
		if e.lsn < fork {
			delete(w.prepared, xid) // the source has it, too
		}
	}
	return w, nil
}

// eachRecord calls fn for every record of the target's WAL between start and end.
func (j *job) eachRecord(ctx context.Context, start, end wal.LSN, fn func(*wal.Record) error) error {
	o := j.walOptions(start)
	o.FindFirst = true
	o.End = end
	r, err := wal.NewReader(ctx, j.wal, o)
	if err != nil {
		return err
	}
	defer r.Close()
	for r.Next() {
		if err := fn(r.Record()); err != nil {
			return err
		}
	}
	var torn *wal.TornTail
	if err := r.Err(); err != nil && !(j.crashed && errors.As(err, &torn)) {
		return j.explainWAL(err, "reading the target's transactions")
	}
	var stopped *wal.EndOfLog
	if errors.As(r.End(), &stopped) && errors.Is(stopped, wal.ErrNoSegment) && r.Position() < end {
		return j.explainWAL(stopped, "reading the target's transactions")
	}
	return nil
}

// lostPiece is the part of the WAL that one worker reads at a time, cut at
// multiples of it.
const lostPiece = 16 << 20

// lostScan is one reading of the target's WAL. It is cut into pieces, which
// workers read ahead of time; what they found is merged in the order of the WAL.
type lostScan struct {
	src     wal.Source
	opt     wal.Options // with the range to read
	fork    wal.LSN
	size    wal.LSN // of a piece
	workers int
	read    func(bytes int64) // is told of progress
}

func (s *lostScan) newWork() *lostWork {
	return &lostWork{prepared: map[uint32]*ended{}, files: map[wal.RelFile]bool{}, commits: xidSet{}, begun: s.opt.Start}
}

// serial reads from front to back.
func (s *lostScan) serial(each func(func(*wal.Record) error) error) (*lostWork, error) {
	m := newMerger(s.newWork(), s.fork)
	c := newCollector(s.fork)
	next := s.cut(s.opt.Start)
	err := each(func(r *wal.Record) error {
		if r.LSN >= next {
			m.merge(c)
			c.reset()
			s.read(int64(s.size))
			next = s.cut(r.LSN)
		}
		return c.record(r)
	})
	m.merge(c)
	return m.out, err
}

// cut returns where the piece with lsn in it ends.
func (s *lostScan) cut(lsn wal.LSN) wal.LSN { return lsn - lsn%s.size + s.size }

// walPiece is a part of the WAL and what a worker found in it.
type walPiece struct {
	start, end  wal.LSN
	done        chan struct{}
	found       *collector
	first, last wal.LSN // records; 0 where none begins in the piece
	prev        wal.LSN // back link of the first
	timelines   [2]wal.TimelineID
	whole       bool // read without a fault
}

// parallel reads with several workers. The work is nil where a piece is not as
// it should be: reading from front to back says best what that means.
func (s *lostScan) parallel(ctx context.Context) (*lostWork, error) {
	if s.workers < 2 || s.cut(s.opt.Start) >= s.opt.End {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	todo, free := make(chan *walPiece, 2*s.workers), make(chan *collector, 4*s.workers)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(todo)
	defer cancel()
	for range s.workers {
		workers.Go(func() { s.work(ctx, todo, free) })
	}
	m := newMerger(s.newWork(), s.fork)
	var ahead []*walPiece // handed out and not merged
	var before walPiece   // the last one in which a record begins
	for next := s.opt.Start; ; {
		for len(ahead) < cap(todo) && next < s.opt.End {
			p := &walPiece{start: next, end: min(s.cut(next), s.opt.End), done: make(chan struct{})}
			ahead, next = append(ahead, p), p.end
			todo <- p
		}
		if len(ahead) == 0 {
			return m.out, nil
		}
		p := ahead[0]
		ahead = ahead[1:]
		<-p.done
		if !p.whole || !p.follows(&before) {
			return nil, context.Cause(ctx)
		}
		m.merge(p.found)
		s.read(int64(p.end - p.start))
		free <- p.found
		if p.found = nil; p.first != 0 {
			before = *p
		}
	}
}

// follows tells whether the piece begins with the record behind the last one before it.
func (p *walPiece) follows(before *walPiece) bool {
	return p.first == 0 || before.first == 0 || p.prev == before.last && p.timelines[0] >= before.timelines[1]
}

func (s *lostScan) work(ctx context.Context, todo <-chan *walPiece, free <-chan *collector) {
	for p := range todo {
		select {
		case p.found = <-free:
			p.found.reset()
		default:
			p.found = newCollector(s.fork)
		}
		p.whole = p.read(ctx, s)
		close(p.done)
	}
}

// read reads the piece and reports whether it could be read to its end.
func (p *walPiece) read(ctx context.Context, s *lostScan) bool {
	o := s.opt
	o.Start, o.End, o.FindFirst = p.start, p.end, true
	r, err := wal.NewReader(ctx, s.src, o)
	if err != nil {
		return false
	}
	defer r.Close()
	for r.Next() {
		rec := r.Record()
		if p.first == 0 {
			p.first, p.prev, p.timelines[0] = rec.LSN, rec.Prev, rec.Timeline
		}
		p.last, p.timelines[1] = rec.LSN, rec.Timeline
		if p.found.record(rec) != nil {
			return false
		}
	}
	return r.End() == nil
}

// merger puts together what was found in the pieces of the WAL, in their order.
type merger struct {
	fork wal.LSN
	open map[uint32]*txn // by the number of the transaction or subtransaction
	pool txnPool
	out  *lostWork
}

func newMerger(out *lostWork, fork wal.LSN) *merger {
	return &merger{fork: fork, open: map[uint32]*txn{}, pool: newTxnPool(), out: out}
}

// merge takes a piece in: the ends of transactions take along what was open
// before the piece, and what the piece left open stays so.
func (m *merger) merge(c *collector) {
	same := map[*txn]*txn{}
	for i := range c.ends {
		e := &c.ends[i]
		switch e.how {
		case committed:
			m.commit(e, m.workOf(e, same))
		case prepared:
			m.out.prepared[e.xid] = &ended{xid: e.xid, lsn: e.lsn, time: e.time, work: m.workOf(e, same), details: e.details}
		case aborted:
			m.take(e.xid, e.subs, nil)
			delete(m.out.prepared, e.xid)
		}
	}
	for xid, t := range c.open {
		if o := m.open[xid]; o != nil {
			o.add(t)
		} else {
			m.open[xid] = t.clone()
		}
	}
	for f := range c.files {
		m.out.files[f] = true
	}
}

// workOf is what an ended transaction did in all pieces.
func (m *merger) workOf(e *ending, same map[*txn]*txn) *txn {
	if before := m.take(e.xid, e.subs, nil); before != nil {
		before.add(e.work)
		return m.pool.keep(before)
	}
	kept := same[e.work]
	if kept == nil {
		kept = m.pool.keep(e.work)
		same[e.work] = kept
	}
	return kept
}

// take takes what a transaction and its subtransactions did out of the open
// ones, and adds it to t. It returns nil where that is nothing.
func (m *merger) take(xid uint32, subs []uint32, t *txn) *txn {
	if len(m.open) == 0 {
		return t
	}
	one := func(xid uint32) {
		o := m.open[xid]
		if o == nil {
			return
		}
		delete(m.open, xid)
		if t == nil {
			t = o
		} else {
			t.add(o)
		}
	}
	one(xid)
	for _, sub := range subs {
		one(sub)
	}
	return t
}

// commit takes a commit in. One without a transaction id removed files only.
func (m *merger) commit(e *ending, work *txn) {
	out := ended{xid: e.xid, lsn: e.lsn, time: e.time, work: work, details: e.details}
	if p := m.out.prepared[e.xid]; e.twoPhase && p != nil {
		both := work.clone()
		both.add(p.work)
		out.work = m.pool.keep(both)
		if e.gid == "" && p.gid != "" {
			d := *e.details
			d.gid = p.gid
			out.details = &d
		}
		delete(m.out.prepared, e.xid)
	}
	m.out.commits.add(e.xid)
	for _, sub := range e.subs {
		m.out.commits.add(sub)
	}
	if e.lsn >= m.fork && (e.xid != 0 || len(e.dropped) > 0) {
		m.out.committed.add(out)
	}
}

// decodeFault says at which record decoding failed.
func decodeFault(r *wal.Record, err error) error {
	return fmt.Errorf("the record at %s: %w", r.LSN, err)
}
