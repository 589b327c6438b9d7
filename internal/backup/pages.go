package backup

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/postgres"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// pageChecker verifies the checksums of relation pages as they pass.
//
// A page may be caught while the server writes it. So a page that does not
// verify is read once more; and one whose LSN is at or after the start of the
// copy is excused, since replay makes it anew from its image in the WAL. That
// excuse ends at the stop position: a page LSN beyond it was not written by
// this server, and is judged when the stop is known.
type pageChecker struct {
	src       blockcopy.Source // nil: nothing is read again
	start     wal.LSN
	blockSize int
	relSeg    uint32
	log       *slog.Logger

	mu      sync.Mutex
	found   []repo.Finding
	count   int64
	excused []repo.Finding
}

// newPageChecker returns nil for a cluster without checksums.
func newPageChecker(src blockcopy.Source, start wal.LSN, c *volume.Control, log *slog.Logger) *pageChecker {
	if !c.Checksums() {
		return nil
	}
	return &pageChecker{src: src, start: start, blockSize: int(c.BlockSize), relSeg: c.RelSegSize, log: log}
}

// check verifies the whole pages of data, which lies at an offset of a file.
// A page that is better on second reading is replaced in data.
func (p *pageChecker) check(ctx context.Context, path string, offset int64, data []byte) error {
	if p == nil || offset%int64(p.blockSize) != 0 {
		return nil
	}
	seg, ok := volume.ParseRelPath(path)
	if !ok {
		return nil
	}
	first := seg.FirstBlock(p.relSeg) + uint32(offset/int64(p.blockSize))
	for i := 0; i+p.blockSize <= len(data); i += p.blockSize {
		page := data[i : i+p.blockSize]
		blkno := first + uint32(i/p.blockSize)
		if volume.CheckPage(page, blkno).OK() {
			continue
		}
		if err := p.again(ctx, path, offset+int64(i), blkno, page); err != nil {
			return err
		}
	}
	return nil
}

// again reads a page that did not verify once more, and judges it.
func (p *pageChecker) again(ctx context.Context, path string, offset int64, blkno uint32, page []byte) error {
	if p.src == nil { // the server has read it twice
		p.judge(path, blkno, page)
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Millisecond): // a write of one page takes less
	}
	second := slices.Clone(page)
	whole := false
	err := p.src.Fetch(ctx, []blockcopy.Range{{Path: path, Offset: offset, Length: int64(p.blockSize)}},
		func(_ blockcopy.Range, data []byte, gone bool) error {
			whole = !gone && len(data) == p.blockSize
			copy(second, data)
			return nil
		})
	if err != nil {
		return err
	}
	if !whole {
		return nil // the file was truncated or removed: replay does the same
	}
	copy(page, second)
	if volume.CheckPage(page, blkno).OK() {
		return nil
	}
	p.judge(path, blkno, page)
	return nil
}

// judge notes a page that does not verify.
func (p *pageChecker) judge(path string, blkno uint32, page []byte) {
	f := repo.Finding{Path: path, Block: blkno, LSN: volume.PageLSN(page),
		Found: binary.LittleEndian.Uint16(page[8:]), Expected: volume.Checksum(page, blkno)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.LSN >= p.start && len(p.excused) < repo.MaxFindings {
		p.excused = append(p.excused, f)
		return
	}
	p.add(f)
}

func (p *pageChecker) add(f repo.Finding) {
	p.count++
	if len(p.found) < repo.MaxFindings {
		p.found = append(p.found, f)
	}
}

// findings judges what was excused and returns what is wrong, by file and block.
func (p *pageChecker) findings(stop wal.LSN) ([]repo.Finding, int64) {
	if p == nil {
		return nil, 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.excused {
		if f.LSN > stop {
			p.add(f)
		}
	}
	p.excused = nil
	slices.SortFunc(p.found, func(a, b repo.Finding) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return int(int64(a.Block) - int64(b.Block))
	})
	return p.found, p.count
}

// nameLimit bounds how many findings are looked up in the catalog.
const nameLimit = 100

// nameRelations fills in the relations of findings, as far as the catalogs can
// be read.
func nameRelations(ctx context.Context, s *server, findings []repo.Finding) {
	type key struct{ space, rel uint32 }
	byDatabase := map[uint32]map[key][]int{}
	for i, f := range findings[:min(len(findings), nameLimit)] {
		seg, ok := volume.ParseRelPath(f.Path)
		if !ok {
			continue
		}
		if byDatabase[seg.Database] == nil {
			byDatabase[seg.Database] = map[key][]int{}
		}
		k := key{seg.Tablespace, seg.Relation}
		if k.space == volume.DefaultTablespace {
			k.space = 0
		}
		byDatabase[seg.Database][k] = append(byDatabase[seg.Database][k], i)
	}
	for db, relations := range byDatabase {
		err := s.inDatabase(ctx, db, func(name func(space, rel uint32) (string, error)) error {
			for k, at := range relations {
				rel, err := name(k.space, k.rel)
				if err != nil {
					return err
				}
				for _, i := range at {
					findings[i].Relation = rel
				}
			}
			return nil
		})
		if err != nil {
			s.log.Debug("the names of damaged relations are not known", "database", db, "error", err)
		}
	}
}

// inDatabase opens a session in a database, by its number (0: any), and gives
// do a function that names relations in it.
func (s *server) inDatabase(ctx context.Context, db uint32, do func(name func(space, rel uint32) (string, error)) error) error {
	var database string
	err := s.conn.QueryRow(ctx, "SELECT datname FROM pg_database WHERE oid = $1 OR $1 = 0 AND datname = current_database()", db).Scan(&database)
	if err != nil {
		return err
	}
	info, err := postgres.ParseConnInfo(s.conninfo)
	if err != nil {
		return err
	}
	conn, err := postgres.Connect(ctx, info.With("dbname", database).String())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return do(func(space, rel uint32) (string, error) {
		var name *string
		err := conn.QueryRow(ctx, `SELECT format('%I.%I.%I', current_database(), n.nspname, c.relname) FROM pg_class c
			JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_filenode_relation($1, $2)`, space, rel).Scan(&name)
		if err != nil || name == nil {
			return "", fmt.Errorf("relation %d: %w", rel, err)
		}
		return *name, nil
	})
}
