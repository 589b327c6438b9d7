package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
)

// pieceSize is the part of the log that one worker scans at a time, cut at
// multiples of it: one segment of the usual size, several small ones, or a
// part of a large one.
const pieceSize = 16 << 20

// ScanOptions tell ScanMap how to work.
type ScanOptions struct {
	Options
	// Workers is the number of goroutines; 0 means GOMAXPROCS. The result does
	// not depend on it.
	Workers int
	// Progress, when set, is told from time to time how many bytes of log more
	// have been scanned. It is called by one goroutine at a time.
	Progress func(bytes int64)
}

// ScanMap reads the log from Options.Start and returns its map. end is what a
// Reader's End would be: nil at Options.End, otherwise *EndOfLog, *TornTail or
// *Corruption; the map then covers everything before it. err is an error of the
// source, of ctx or of the options.
func ScanMap(ctx context.Context, src Source, opt ScanOptions) (m *Map, end error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := newScan(ctx, src, opt, pieceSize)
	if err != nil {
		return nil, nil, err
	}
	defer s.serial.Close()
	s.run(cancel)
	if isEnd(s.why) {
		return s.m, s.why, nil
	}
	return s.m, nil, s.why
}

func newScan(ctx context.Context, src Source, opt ScanOptions, size LSN) (*scan, error) {
	checked, err := opt.Options.withDefaults()
	if err != nil {
		return nil, err
	}
	opt.Options = checked
	if opt.Workers <= 0 {
		opt.Workers = runtime.GOMAXPROCS(0)
	}
	s := &scan{ctx: ctx, src: src, opt: opt, size: size, m: newMap()}
	s.m.End = opt.Start
	s.serial, err = s.reader(opt.Start, opt.End, opt.FindFirst)
	return s, err
}

// isEnd reports whether err says something about the log rather than about the
// way to it.
func isEnd(err error) bool {
	var e *EndOfLog
	var t *TornTail
	var c *Corruption
	return errors.As(err, &e) || errors.As(err, &t) || errors.As(err, &c)
}

// scan is one run of ScanMap. The log is cut into pieces, which workers scan
// ahead of time; their maps are merged in log order. A worker has to guess where
// the first record of its piece begins and what came before it. A piece whose
// guess does not agree with the piece before it is scanned again from where the
// log really goes on, so the result is always that of reading from front to back.
type scan struct {
	ctx    context.Context
	src    Source
	opt    ScanOptions
	size   LSN     // of a piece
	serial *Reader // stands at the end of what is in m whenever it is used
	m      *Map
	done   bool
	why    error // of done; nil at the end of the range
}

// piece is a part of the log and what a worker found in it.
type piece struct {
	start, end LSN
	ready      chan struct{}

	r           *Reader // as the worker left it
	m           *Map
	first, prev LSN        // start and back link of the first record
	timeline    TimelineID // of the first page
	why         error
}

func (s *scan) reader(start, end LSN, find bool) (*Reader, error) {
	opt := s.opt.Options
	opt.Start, opt.End, opt.FindFirst = start, end, find
	return NewReader(s.ctx, s.src, opt)
}

// nextEnd returns where the piece that begins at start ends.
func (s *scan) nextEnd(start LSN) LSN {
	end := start - start%s.size + s.size
	if s.opt.End != 0 {
		end = min(end, s.opt.End)
	}
	return end
}

// run reads the first piece in line, while workers are already at the next ones.
func (s *scan) run(cancel func()) {
	next := s.nextEnd(s.opt.Start)
	if s.opt.Workers == 1 {
		for s.readTo(next); !s.done; s.readTo(next) {
			next = s.nextEnd(next)
		}
		return
	}
	work := make(chan *piece, 2*s.opt.Workers)
	var wg sync.WaitGroup
	for range s.opt.Workers {
		wg.Go(func() { s.work(work) })
	}
	var ahead []*piece // handed out and not merged, in log order
	for first := next; !s.done; {
		for len(ahead) < cap(work) && (s.opt.End == 0 || next < s.opt.End) {
			p := &piece{start: next, end: s.nextEnd(next), ready: make(chan struct{})}
			ahead, next = append(ahead, p), p.end
			work <- p
		}
		if first != 0 {
			s.readTo(first)
			first = 0
			continue
		}
		<-ahead[0].ready
		s.take(ahead[0])
		ahead = ahead[1:]
	}
	cancel()
	close(work)
	wg.Wait()
}

// work scans pieces until there are no more, all with the same buffer.
func (s *scan) work(pieces <-chan *piece) {
	var buf []byte
	for p := range pieces {
		buf = p.scan(s, buf)
		close(p.ready)
	}
}

func (p *piece) scan(s *scan, buf []byte) []byte {
	r, err := s.reader(p.start, p.end, true)
	if err != nil {
		p.why = err
		return buf
	}
	defer r.Close()
	r.buf = buf
	p.r, p.m = r, newMap()
	p.why = p.m.read(r, func() {
		p.first, p.prev, p.timeline = r.start, LSN(binary.LittleEndian.Uint64(r.raw[8:])), r.tli
	})
	return r.buf
}

// take merges a piece, or scans it again when it does not fit.
func (s *scan) take(p *piece) {
	if s.serial.position() >= p.end {
		s.finish(p.end, nil) // a record that began earlier covers all of it
		return
	}
	if !s.fits(p) {
		s.readTo(p.end)
		return
	}
	s.progress(p.r.position())
	s.m.merge(p.m)
	s.serial.continueFrom(p.r)
	s.finish(p.end, p.why)
}

// fits reports whether the piece begins exactly where the log before it ended.
func (s *scan) fits(p *piece) bool {
	if p.first == 0 || s.serial.aborted != 0 || p.why != nil && !isEnd(p.why) {
		return false
	}
	at := s.serial.position()
	if at%LSN(s.opt.PageSize) == 0 {
		at += ShortHeaderSize
		if s.opt.SegmentSize.Offset(at) == ShortHeaderSize {
			at += LongHeaderSize - ShortHeaderSize
		}
	}
	known, found := s.serial, p.r
	return p.first == at && (known.prev == 0 || p.prev == known.prev) &&
		p.timeline >= known.timeline && known.format == found.format &&
		(known.systemID == 0 || found.systemID == 0 || known.systemID == found.systemID)
}

// continueFrom puts r where o stopped reading.
func (r *Reader) continueFrom(o *Reader) {
	r.seek(o.position())
	r.begun, r.prev, r.timeline, r.aborted = true, o.prev, o.timeline, o.aborted
	if o.systemID != 0 {
		r.systemID = o.systemID
	}
}

// readTo reads on in line up to end.
func (s *scan) readTo(end LSN) {
	from := s.serial.position()
	s.serial.extend(end)
	why := s.m.read(s.serial, nil)
	s.report(int64(s.serial.position() - from))
	s.finish(end, why)
}

// extend moves the end of the range.
func (r *Reader) extend(end LSN) {
	r.setEnd(end)
	r.reached, r.stopped = false, false
}

func (s *scan) finish(end LSN, why error) {
	if why != nil || s.opt.End != 0 && end >= s.opt.End {
		s.done, s.why = true, why
	}
}

func (s *scan) progress(to LSN) { s.report(int64(to - s.serial.position())) }

func (s *scan) report(n int64) {
	if s.opt.Progress != nil && n > 0 {
		s.opt.Progress(n)
	}
}
