package repo

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/blockcopy"
)

// Damage is something in the repository that is not as it was written.
type Damage struct {
	Object string `json:"object"`         // name in the repository
	Part   string `json:"part,omitempty"` // which part of it; absent: all of it
	Reason string `json:"reason"`         // what is wrong
	// Files are the blocks of backups that are hit, at most MaxDamagedFiles.
	Files []DamagedFile `json:"files,omitempty"`

	bad *badBlocks
}

// DamagedFile is a run of blocks of a file that a damage hits.
type DamagedFile struct {
	Backup string `json:"backup"` // of which backup
	Path   string `json:"path"`   // file, relative to the data directory
	Block  int64  `json:"block"`  // first block, in the file
	Count  int64  `json:"count"`  // how many
}

// MaxDamagedFiles bounds the list of what one damage hits.
const MaxDamagedFiles = 100

// VerifyOptions say what is verified, and how.
type VerifyOptions struct {
	Backups []string // nil: all
	Deep    bool     // decode every frame and hash every block
	Sample  float64  // percent of the frames that Deep looks at, 0 for all
	Seed    uint64   // which ones
	Jobs    int
	// Page judges a block of a file and returns what is wrong with it, "" for
	// nothing. It is called once for each block of a deep verification, by
	// several goroutines.
	Page func(s *Summary, path string, block int64, page []byte) string
	// Total is told of how many stored bytes are to be read, Add of progress.
	Total func(bytes int64)
	Add   func(bytes int64)
}

// Verification is what was found.
type Verification struct {
	Damages []Damage
	Objects int64 // looked at
	Blocks  int64 // decoded and hashed
	Bytes   int64 // of stored frames that were read
	Locked  bool  // without a secret key: stored bytes were checked, content was not
}

// verifier does one verification.
type verifier struct {
	c      *Cluster
	o      VerifyOptions
	there  map[string]int64 // packs in the store
	frames *frameCache

	mu   sync.Mutex
	v    *Verification
	seen map[string]*packSeen
	told map[string]bool // damages, by object and part
}

// packSeen says which blocks of a pack were looked at.
type packSeen struct {
	pack   Pack
	size   uint32 // largest block
	blocks []uint64
	gone   bool
}

// badBlocks is a run of blocks of a pack that cannot be read.
type badBlocks struct {
	pack        string
	first, last uint32
}

// Verify compares the repository's objects with what they should be. Damage is
// not an error: it is in the result.
func (c *Cluster) Verify(ctx context.Context, o VerifyOptions) (*Verification, error) {
	v := &verifier{c: c, o: o, v: &Verification{Damages: []Damage{}}, seen: map[string]*packSeen{}, told: map[string]bool{},
		frames: newFrameCache(c.driver, DefaultCacheBytes)}
	v.v.Locked = o.Deep && !c.repo.Unlocked()
	var err error
	if v.there, err = c.listPacks(ctx, ""); err != nil {
		return nil, err
	}
	manifests, err := v.manifests(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.quick(ctx, manifests); err != nil {
		return nil, err
	}
	if o.Deep {
		if err := v.deep(ctx, manifests); err != nil {
			return nil, err
		}
	}
	if err := v.nameFiles(ctx, manifests); err != nil {
		return nil, err
	}
	slices.SortFunc(v.v.Damages, func(a, b Damage) int {
		if c := strings.Compare(a.Object, b.Object); c != 0 {
			return c
		}
		return strings.Compare(a.Part, b.Part)
	})
	return v.v, nil
}

// damaged records err if it says that something is damaged or missing, and
// returns it otherwise.
func (v *verifier) damaged(err error, bad *badBlocks) error {
	var ce *CorruptError
	d := Damage{bad: bad}
	switch {
	case errors.As(err, &ce):
		d.Object, d.Part = ce.Object, ce.Part
		why := *ce
		why.Object, why.Part = "", ""
		d.Reason = strings.TrimLeft(strings.TrimPrefix(why.Error(), "corrupt object"), " :,")
	case errors.Is(err, ErrNotExist) && bad != nil:
		d.Object, d.Reason = v.c.packHeader(bad.pack, 0).Name, "it is missing"
	default:
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if key := d.Object + "\x00" + d.Part; !v.told[key] {
		v.told[key] = true
		v.v.Damages = append(v.v.Damages, d)
	}
	return nil
}

// manifests opens those of the chosen backups; the notes beside them are read
// as well.
func (v *verifier) manifests(ctx context.Context) ([]*Manifest, error) {
	list, err := v.c.listBackups(ctx)
	if err != nil {
		return nil, err
	}
	var out []*Manifest
	ids := v.o.Backups
	if ids == nil {
		for id := range list {
			ids = append(ids, id)
		}
		slices.Sort(ids)
	}
	for _, id := range ids {
		l := list[id]
		if l == nil {
			return nil, noBackup(v.c, id, ErrNotExist)
		}
		if err := v.notes(ctx, id, l, list); err != nil {
			return nil, err
		}
		if !l.manifest {
			continue
		}
		m, err := v.c.OpenManifest(ctx, id)
		if err == nil {
			err = m.idx.checkHeader(ctx, v.c.driver)
		}
		if err != nil {
			if errors.Is(err, ErrNotExist) {
				continue // deleted just now
			}
			if err := v.damaged(err, nil); err != nil {
				return nil, err
			}
			continue
		}
		v.v.Objects++
		out = append(out, m)
	}
	return out, nil
}

// notes reads the small objects beside a manifest.
func (v *verifier) notes(ctx context.Context, id string, l *listed, list listing) error {
	check := func(there bool, read func() error) error {
		if !there {
			return nil
		}
		v.v.Objects++
		err := read()
		if err == nil || errors.Is(err, ErrNotExist) {
			return nil
		}
		return v.damaged(err, nil)
	}
	err := check(l.started, func() error { _, err := v.c.readStarted(ctx, id, list); return err })
	if err == nil {
		err = check(l.pinned, func() error { _, err := v.c.readPin(ctx, id); return err })
	}
	if err == nil {
		err = check(l.stopped, func() error { return getNote(ctx, v.c.driver, v.c.stoppedName(id), new(stoppedNote)) })
	}
	for n := 1; n <= l.parts && err == nil && !l.manifest; n++ {
		err = check(true, func() error {
			m, err := v.c.openPart(ctx, id, n)
			if err != nil {
				return err
			}
			return m.idx.checkAll(ctx, v.c.driver, nil)
		})
	}
	return err
}

// quick reads the file lists and looks whether every pack is there in its size.
func (v *verifier) quick(ctx context.Context, manifests []*Manifest) error {
	for _, m := range manifests {
		for _, p := range m.Packs {
			if v.seen[p.Name] != nil {
				continue
			}
			v.v.Objects++
			s := &packSeen{pack: p, size: m.BlockSize, blocks: make([]uint64, (p.Blocks+63)/64)}
			v.seen[p.Name] = s
			size, ok := v.there[p.Name]
			var err error
			switch {
			case !ok:
				err = ErrNotExist
			case size != p.Size:
				err = &CorruptError{Object: v.c.packHeader(p.Name, 0).Name, Offset: -1, Reason: fmt.Sprintf("it has %d bytes instead of %d", size, p.Size)}
			default:
				continue
			}
			s.gone = true
			if err := v.damaged(err, &badBlocks{p.Name, 0, p.Blocks - 1}); err != nil {
				return err
			}
		}
		files := m.Files(ctx)
		for {
			_, err := files.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				if err := v.damaged(err, nil); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// piece is a run of blocks of a file that was not looked at yet.
type piece struct {
	m     *Manifest
	path  string
	size  int64 // of the file
	block int64 // in the file
	pack  int32
	first uint32
	count uint32
}

const pieceBlocks = 256

// deep decodes each block once, as a block of the oldest backup that has it.
func (v *verifier) deep(ctx context.Context, manifests []*Manifest) error {
	if v.o.Total != nil {
		n := int64(0)
		for _, s := range v.seen {
			n += s.pack.Size
		}
		v.o.Total(n)
	}
	g, gctx := errgroup.WithContext(ctx)
	work := make(chan piece, 64)
	g.Go(func() error {
		defer close(work)
		for _, m := range manifests {
			if err := v.pieces(gctx, m, work); err != nil {
				return err
			}
		}
		return nil
	})
	for range max(v.o.Jobs, 1) {
		g.Go(func() error {
			for p := range work {
				if err := v.piece(gctx, p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return v.rest(ctx)
}

// pieces sends what of a backup was not looked at yet.
func (v *verifier) pieces(ctx context.Context, m *Manifest, work chan<- piece) error {
	files := m.Files(ctx)
	for {
		f, err := files.Next()
		if errors.Is(err, io.EOF) || isCorrupt(err) { // said by quick
			return nil
		}
		if err != nil {
			return err
		}
		if f.Type != blockcopy.File {
			continue
		}
		at := int64(0)
		for _, r := range f.Runs {
			if r.Pack == ZeroPack {
				at += int64(r.Count)
				continue
			}
			s := v.seen[m.Packs[r.Pack].Name]
			for n := uint32(0); n < r.Count; {
				p := piece{m: m, path: f.Path, size: f.Size, block: at + int64(n), pack: r.Pack, first: r.First + n}
				for n < r.Count && p.count < pieceBlocks && s.take(r.First+n) {
					p.count++
					n++
				}
				if p.count == 0 {
					n++
					continue
				}
				select {
				case work <- p:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			at += int64(r.Count)
		}
	}
}

// take marks a block as looked at and tells whether it was not before.
func (s *packSeen) take(block uint32) bool {
	if s.gone || s.blocks[block/64]&(1<<(block%64)) != 0 {
		return false
	}
	s.blocks[block/64] |= 1 << (block % 64)
	return true
}

// chosen tells whether a frame is in the sample.
func (v *verifier) chosen(object string, frame int) bool {
	if v.o.Sample <= 0 {
		return true
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %d", v.o.Seed, object, frame)
	return float64(h.Sum64()%1e6) < v.o.Sample*1e4
}

// piece looks at one piece.
func (v *verifier) piece(ctx context.Context, p piece) error {
	name := p.m.Packs[p.pack].Name
	idx, err := p.m.packIndex(ctx, p.pack)
	if err != nil {
		return v.damaged(err, &badBlocks{name, 0, p.m.Packs[p.pack].Blocks - 1})
	}
	for n := uint32(0); n < p.count; {
		i := idx.frameOf(p.first + n)
		fr := idx.frames[i]
		take := min(p.count-n, fr.first+fr.blocks-(p.first+n))
		if v.chosen(idx.path, i) {
			raw, err := v.frame(ctx, idx, i)
			if err != nil {
				if err := v.damaged(err, &badBlocks{name, fr.first, fr.first + fr.blocks - 1}); err != nil {
					return err
				}
			} else if raw != nil {
				v.judge(p, idx, raw, fr, n, take)
			}
		}
		n += take
	}
	return nil
}

// frame decodes a frame, or checks its stored bytes where there is no key; then
// it returns nil.
func (v *verifier) frame(ctx context.Context, idx *objectIndex, i int) ([]byte, error) {
	if v.v.Locked {
		return nil, idx.checkFrame(ctx, v.c.driver, i)
	}
	return v.frames.get(ctx, idx, i)
}

// judge hands the blocks of a piece that lie in a frame to Page.
func (v *verifier) judge(p piece, idx *objectIndex, raw []byte, fr frameInfo, n, take uint32) {
	bs := int64(p.m.BlockSize)
	pos := 0
	for b := fr.first; b < p.first+n; b++ {
		pos += int(idx.blocks[b].length)
	}
	for k := range take {
		b := p.first + n + k
		length := int(idx.blocks[b].length)
		block := p.block + int64(n+k)
		reason := ""
		if want := min(bs, p.size-block*bs); int64(length) != want {
			reason = fmt.Sprintf("the block has %d bytes, the file needs %d", length, want)
		} else if v.o.Page != nil {
			reason = v.o.Page(&p.m.Summary, p.path, block, raw[pos:pos+length])
		}
		pos += length
		if reason != "" {
			v.mu.Lock()
			v.v.Damages = append(v.v.Damages, Damage{Object: idx.path, Part: fmt.Sprintf("block %d", b), Reason: reason,
				bad: &badBlocks{p.m.Packs[p.pack].Name, b, b}})
			v.mu.Unlock()
		}
	}
	v.mu.Lock()
	v.v.Blocks += int64(take)
	v.mu.Unlock()
}

// rest looks at what no file led to: the header of each pack and, where all
// backups are verified, frames that hold only blocks of backups that are gone.
func (v *verifier) rest(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(v.o.Jobs, 1))
	for _, s := range v.seen {
		if s.gone {
			continue
		}
		g.Go(func() error { return v.restOf(ctx, s) })
	}
	return g.Wait()
}

func (v *verifier) restOf(ctx context.Context, s *packSeen) error {
	defer func() {
		v.mu.Lock()
		v.v.Bytes += s.pack.Size
		v.mu.Unlock()
		if v.o.Add != nil {
			v.o.Add(s.pack.Size)
		}
	}()
	idx, err := v.c.readIndex(ctx, v.c.packHeader(s.pack.Name, s.size))
	if err != nil {
		return v.damaged(err, &badBlocks{s.pack.Name, 0, s.pack.Blocks - 1})
	}
	if err := idx.checkHeader(ctx, v.c.driver); err != nil {
		if err := v.damaged(err, nil); err != nil {
			return err
		}
	}
	if v.o.Backups != nil || v.o.Sample > 0 {
		return nil
	}
	for i, fr := range idx.frames {
		used := false
		for b := fr.first; b < fr.first+fr.blocks && !used && b < s.pack.Blocks; b++ {
			used = s.blocks[b/64]&(1<<(b%64)) != 0
		}
		if used {
			continue
		}
		if _, err := v.frame(ctx, idx, i); err != nil {
			if err := v.damaged(err, &badBlocks{s.pack.Name, fr.first, fr.first + fr.blocks - 1}); err != nil {
				return err
			}
		}
	}
	return nil
}
