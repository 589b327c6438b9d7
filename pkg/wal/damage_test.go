package wal

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// excerpt is a short log of a few pages, cut from a fixture at a segment's start.
type excerpt struct {
	src     MemorySource
	seg     []byte
	opt     Options
	records []excerptRecord
	end     LSN // of the last whole record
	buf     []byte
}

type excerptRecord struct {
	lsn, end LSN
	raw      []byte
}

// newExcerpt takes the first pages of a segment of a major version's fixture.
func newExcerpt(t testing.TB, major int, segment, pages int) *excerpt {
	t.Helper()
	f := loadFixture(t, major)
	n := f.SegmentSize.Number(f.Timelines[0].Start) + SegmentNumber(segment)
	e := &excerpt{seg: slices.Clone(f.sources[0][n][:pages*DefaultPageSize])}
	e.src = MemorySource{n: e.seg}
	e.opt = Options{Start: f.SegmentSize.Start(n), FindFirst: true, SegmentSize: f.SegmentSize}
	e.records, _ = e.read(t)
	if n := len(e.records); n > 0 {
		e.end = e.records[n-1].end
	}
	return e
}

// read reads the excerpt from its start with one reader after another.
func (e *excerpt) read(t testing.TB) (list []excerptRecord, end error) {
	r, err := NewReader(context.Background(), e.src, e.opt)
	if err != nil {
		t.Fatal(err)
	}
	r.buf = e.buf // not a new one each time
	defer func() { e.buf = r.buf }()
	for r.Next() {
		rec := r.Record()
		if _, err := Decode(rec); err != nil {
			t.Fatalf("a record whose checksum matches does not decode: %v", err)
		}
		list = append(list, excerptRecord{rec.LSN, rec.End, slices.Clone(r.raw)})
	}
	return list, r.End()
}

// stopOf returns the common part of the three typed results.
func stopOf(err error) (s Stop, kind string) {
	var e *EndOfLog
	var torn *TornTail
	var c *Corruption
	switch {
	case errors.As(err, &e):
		return e.Stop, "end"
	case errors.As(err, &torn):
		return torn.Stop, "torn"
	case errors.As(err, &c):
		return c.Stop, "corrupt"
	}
	return Stop{}, ""
}

// Every single flipped bit in a record is found: what is read before it is
// unchanged, nothing is read from it on, and the result is never a clean end.
// A flipped bit between records (padding, page headers) is found or changes nothing.
func TestEveryFlippedBit(t *testing.T) {
	for _, major := range []int{13, 18} {
		e := newExcerpt(t, major, 1, 2)
		base := e.opt.Start
		inRecord := make([]int, len(e.seg)) // 1 + index of the record that owns the byte
		for i, rec := range e.records {
			at := int(rec.lsn - base)
			for left := len(rec.raw); left > 0; at++ {
				if at%DefaultPageSize == 0 {
					at += ShortHeaderSize
				}
				inRecord[at] = i + 1
				left--
			}
		}
		limit := int(e.end - base)
		step := 1
		if major != 18 || testing.Short() {
			step = 11 // the newest format gets every bit
		}
		for bit := 0; bit < limit*8; bit += step {
			e.seg[bit/8] ^= 1 << (bit % 8)
			e.checkFlip(t, bit, inRecord[bit/8]-1)
			e.seg[bit/8] ^= 1 << (bit % 8)
			if t.Failed() {
				return
			}
		}
	}
}

// checkFlip reads the excerpt with one bit flipped in the record of the given
// index, or outside of records when it is -1. What lies well before the bit
// need not be read again.
func (e *excerpt) checkFlip(t *testing.T, bit, owner int) {
	t.Helper()
	saved, first := e.opt, 0
	if owner > 0 {
		first = owner - 1
		e.opt.Start, e.opt.FindFirst = e.records[first].lsn, false
	}
	got, err := e.read(t)
	e.opt = saved
	s, kind := stopOf(err)
	if kind == "" && !errors.Is(err, ErrUnknownVersion) {
		t.Errorf("bit %d: untyped result %v", bit, err)
	}
	for i, rec := range got {
		if i += first; i >= len(e.records) || rec.lsn != e.records[i].lsn || !slices.Equal(rec.raw, e.records[i].raw) {
			t.Errorf("bit %d: record %d was read at %s, which nobody wrote", bit, i, rec.lsn)
			return
		}
	}
	if owner < 0 {
		return
	}
	if first+len(got) != owner || kind == "end" {
		t.Errorf("bit %d of record %d: read as far as record %d: %v", bit, owner, first+len(got), err)
	}
	if len(got) > 0 && s.End != got[len(got)-1].end && s.End != e.records[owner].lsn {
		t.Errorf("bit %d: stopped at %s, the last record ends at %s", bit, s.End, got[len(got)-1].end)
	}
}

// Damage with whole pages behind it is corruption, and says where the log goes on.
func TestFlippedBitInside(t *testing.T) {
	e := newExcerpt(t, 17, 1, 4)
	for _, i := range []int{0, 3, len(e.records) / 2} {
		rec := e.records[i]
		if rec.lsn > e.end-2*DefaultPageSize {
			t.Fatalf("record %d lies on the last pages", i)
		}
		at := rec.lsn - e.opt.Start + 9 // in xl_prev
		e.seg[at] ^= 0x10
		_, err := e.read(t)
		var c *Corruption
		cause := ErrPrevLink
		if i == 0 {
			cause = ErrCRC // nothing is known that it would have to point to
		}
		if !errors.As(err, &c) || c.Fault != rec.lsn || c.Resumes <= rec.lsn || !errors.Is(err, cause) {
			t.Errorf("record %d at %s: %v", i, rec.lsn, err)
		}
		e.seg[at] ^= 0x10
	}
}

// A log cut at any place, by the file's end or by zeros, gives the records
// before the cut and a clean end or a torn tail.
func TestTruncatedAnywhere(t *testing.T) {
	for _, zeros := range []bool{true, false} {
		e := newExcerpt(t, 15, 1, 3)
		whole := slices.Clone(e.seg)
		n := e.opt.SegmentSize.Number(e.opt.Start)
		for cut := int(e.end - e.opt.Start); cut >= 0; cut -= 3 {
			if zeros {
				clear(e.seg[cut:])
			} else {
				e.src[n] = whole[:cut]
			}
			e.checkCut(t, cut, zeros)
		}
	}
}

func (e *excerpt) checkCut(t *testing.T, cut int, zeros bool) {
	t.Helper()
	got, err := e.read(t)
	s, kind := stopOf(err)
	if inHeader := cut%DefaultPageSize > 0 && cut%DefaultPageSize < ShortHeaderSize; inHeader && zeros {
		return // disks do not write that little; half a header may well look damaged
	}
	if kind != "end" && kind != "torn" {
		t.Fatalf("cut at %d: %v", cut, err)
	}
	at := e.opt.Start + LSN(cut)
	want := 0
	for want < len(e.records) && e.records[want].lsn+8 <= e.records[want].end && lastByte(e.records[want]) < at {
		want++
	}
	if !zeros { // a file that ends inside a page has not got the page
		at -= at % DefaultPageSize
		for want = 0; want < len(e.records) && lastByte(e.records[want]) < at; {
			want++
		}
	}
	// Zeros may stand for bytes that were zero anyway.
	if len(got) < want || len(got) > want && !zeros {
		t.Fatalf("cut at %d: %d records, want %d: %v", cut, len(got), want, err)
	}
	if len(got) > 0 && kind == "end" && s.End != got[len(got)-1].end {
		t.Fatalf("cut at %d: clean end at %s, the last record ends at %s", cut, s.End, got[len(got)-1].end)
	}
}

// lastByte returns the position of the record's last byte.
func lastByte(r excerptRecord) LSN {
	end := r.end
	if end%DefaultPageSize == 0 {
		return end - 1
	}
	return end - 1 - LSN((8-len(r.raw)%8)%8)
}

func TestCauses(t *testing.T) {
	e := newExcerpt(t, 16, 1, 4)
	page := func(n int) []byte { return e.seg[n*DefaultPageSize : (n+1)*DefaultPageSize] }
	last := func() { clear(e.seg[2*DefaultPageSize:]) } // page 1 becomes the last one
	tests := []struct {
		name  string
		spoil func()
		opt   func(*Options)
		kind  string
		cause error
	}{
		{"recycled page", func() { last(); copy(page(2), page(0)); page(2)[8], page(2)[2] = 0, 0 }, nil, "torn", ErrRecycledPage},
		{"no page", last, nil, "torn", ErrNoPage},
		{"other version", func() { page(1)[0] = 0x10 }, nil, "corrupt", ErrOtherVersion},
		{"garbage magic", func() { page(1)[1] = 0x77 }, nil, "corrupt", ErrPageHeader},
		{"garbage on the last page", func() { last(); page(1)[1] = 0x77 }, nil, "torn", ErrPageHeader},
		{"older timeline", func() { page(0)[4] = 9 }, nil, "", ErrPageHeader},
		{"remaining length", func() { page(1)[16]++ }, nil, "corrupt", ErrContinuation},
		{"another cluster", func() {}, func(o *Options) { o.SystemID = 7 }, "corrupt", ErrOtherCluster},
		{"another major", func() {}, func(o *Options) { o.Major = 13 }, "corrupt", ErrOtherVersion},
		{"unknown version", func() { page(0)[0] = 0x99 }, nil, "", ErrUnknownVersion},
		{"segment size", func() {}, func(o *Options) { o.SegmentSize *= 2; o.Start += 0 }, "", nil},
	}
	for _, test := range tests {
		saved, opt := slices.Clone(e.seg), e.opt
		test.spoil()
		if test.opt != nil {
			test.opt(&e.opt)
		}
		_, err := e.read(t)
		_, kind := stopOf(err)
		if test.cause != nil && !errors.Is(err, test.cause) || test.kind != "" && kind != test.kind {
			t.Errorf("%s: %v, want %s because %v", test.name, err, test.kind, test.cause)
		}
		copy(e.seg, saved)
		e.opt = opt
	}
}

// A segment that is missing while the next one is there is a gap, not the end.
func TestGap(t *testing.T) {
	f := loadFixture(t, 18)
	src := f.sources[0].clone()
	n := f.SegmentSize.Number(f.Timelines[0].Start) + 4
	delete(src, n)
	r := newTestReader(t, src, f.options(0))
	for r.Next() {
	}
	var c *Corruption
	if !errors.As(r.Err(), &c) || !errors.Is(c, ErrNoSegment) || c.Segment != n || c.Offset != 0 || c.Resumes != f.SegmentSize.Start(n+1) {
		t.Errorf("a missing segment %d gives %v", n, r.Err())
	}
	clear(src)
	r = newTestReader(t, src, f.options(0))
	var end *EndOfLog
	if r.Next() || !errors.As(r.End(), &end) || !errors.Is(end, ErrNoSegment) || r.Err() != nil {
		t.Errorf("no segment at all gives %v", r.End())
	}
	if _, err := r.ReadAt(f.records[0][0].LSN); !errors.Is(err, ErrNoSegment) {
		t.Errorf("reading a record of a missing segment gives %v", err)
	}
}

// An error of the source is not taken for anything about the log.
func TestSourceErrors(t *testing.T) {
	f := loadFixture(t, 15)
	broken := errors.New("the disk is on fire")
	first := f.SegmentSize.Number(f.Timelines[0].Start)
	for name, src := range map[string]Source{
		"open": SourceFunc(func(ctx context.Context, n SegmentNumber) (Segment, error) {
			if n == first+2 {
				return nil, broken
			}
			return f.sources[0].OpenSegment(ctx, n)
		}),
		"read": SourceFunc(func(ctx context.Context, n SegmentNumber) (Segment, error) {
			if n == first+2 {
				return failing{broken}, nil
			}
			return f.sources[0].OpenSegment(ctx, n)
		}),
	} {
		r := newTestReader(t, src, f.options(0))
		for r.Next() {
		}
		if _, kind := stopOf(r.Err()); kind != "" || !errors.Is(r.Err(), broken) {
			t.Errorf("%s: %v", name, r.Err())
		}
		for _, workers := range []int{1, 3} {
			m, end, err := ScanMap(context.Background(), src, ScanOptions{Options: f.options(0), Workers: workers})
			if m == nil || end != nil || !errors.Is(err, broken) {
				t.Errorf("%s, %d workers: end %v, error %v", name, workers, end, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := ScanMap(ctx, f.sources[0], ScanOptions{Options: f.options(0)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled scan: %v", err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }
func (failing) Close() error                        { return nil }
