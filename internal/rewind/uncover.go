package rewind

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// uncover makes the deleted rows visible on the scratch cluster's pages, where
// they have been read for the last time as they are: "deleted by" is declared
// void on exactly the versions that lost transactions deleted. Where pruning or
// VACUUM has removed them from the page, or another row took their place, the
// page is replaced by an image of it from the WAL that still has them: with
// full_page_writes there is one from the first change after each checkpoint.
// Versions that are in neither are taken out of rows.gone and counted.
func (s *scratch) uncover(ctx context.Context, f wal.RelFile, rows *fileRows, lost xidSet) (unreadable int64, err error) {
	pages := map[uint32][]tidKey{}
	for k := range rows.gone {
		pages[k.block()] = append(pages[k.block()], k)
	}
	for block, keys := range pages {
		page, found, err := s.bestPage(ctx, f, block, keys, rows, lost)
		if err == nil && len(found) > 0 {
			err = s.writePage(f, block, page)
		}
		if err != nil {
			return 0, err
		}
		for _, k := range keys {
			if !found[k] {
				delete(rows.gone, k)
				unreadable++
			}
		}
	}
	return unreadable, nil
}

// bestPage is the version of a page that holds most of the rows, uncovered.
func (s *scratch) bestPage(ctx context.Context, f wal.RelFile, block uint32, keys []tidKey, rows *fileRows, lost xidSet) (best []byte, found map[tidKey]bool, err error) {
	try := func(page []byte, at wal.LSN) {
		if page == nil || volume.ParsePageHeader(page).Validate(len(page)) != nil {
			return
		}
		these := map[tidKey]bool{}
		for _, k := range keys {
			if at >= rows.filled[k] && uncoverRow(page, k.offset(), lost) {
				these[k] = true
			}
		}
		if len(these) > len(found) {
			best, found = page, these
		}
	}
	page, err := s.readPage(f, block)
	if err != nil {
		return nil, nil, err
	}
	try(page, wal.LSN(math.MaxUint64))
	for _, ref := range rows.images[block] {
		if len(found) == len(keys) {
			break
		}
		page, err := s.job.image(ctx, ref)
		if err != nil {
			return nil, nil, err
		}
		try(page, ref.lsn)
	}
	return best, found, nil
}

// image reads a page image from the target's WAL.
func (j *job) image(ctx context.Context, ref imageRef) ([]byte, error) {
	r, err := wal.NewReader(ctx, j.wal, j.walOptions(ref.lsn))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	rec, err := r.ReadAt(ref.lsn)
	if err != nil {
		return nil, j.explainWAL(err, "reading a page image")
	}
	page := make([]byte, j.tc.BlockSize)
	return page, rec.Blocks[ref.block].RestoreImage(page)
}

// readPage reads a page of the scratch cluster, nil where there is none.
func (s *scratch) readPage(f wal.RelFile, block uint32) ([]byte, error) {
	path, at := s.place(f, block)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	page := make([]byte, s.job.tc.BlockSize)
	if _, err := file.ReadAt(page, at); err != nil || volume.IsZero(page) {
		return nil, nil // cut off
	}
	return page, nil
}

func (s *scratch) writePage(f wal.RelFile, block uint32, page []byte) error {
	if s.job.tc.Checksums() {
		binary.LittleEndian.PutUint16(page[8:], volume.Checksum(page, block))
	}
	path, at := s.place(f, block)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the table was dropped, truncated or rewritten
	}
	if err != nil {
		return err
	}
	_, err = file.WriteAt(page, at)
	return errors.Join(err, file.Close())
}

// place is the file of a block, and where in it the block lies.
func (s *scratch) place(f wal.RelFile, block uint32) (path string, at int64) {
	c := s.job.tc
	name := volume.RelSegment{RelFile: f, Segment: block / c.RelSegSize}.Path(c.VersionDir())
	return filepath.Join(s.dir, filepath.FromSlash(name)), int64(block%c.RelSegSize) * int64(c.BlockSize)
}

// uncoverRow declares void that a lost transaction deleted the row.
func uncoverRow(page []byte, offset uint16, lost xidSet) bool {
	const linePointer, normal, headerSize = 4, 1, 23
	at := volume.PageHeaderSize + (int(offset)-1)*linePointer
	if offset == 0 || at+linePointer > int(volume.ParsePageHeader(page).Lower) {
		return false
	}
	line := binary.LittleEndian.Uint32(page[at:])
	begin, size := int(line&0x7FFF), int(line>>17)
	if line>>15&3 != normal || size < headerSize || begin+size > len(page) {
		return false
	}
	row := page[begin : begin+size]
	mask, xmin, xmax := binary.LittleEndian.Uint16(row[volume.TupleInfomask:]), binary.LittleEndian.Uint32(row), binary.LittleEndian.Uint32(row[4:])
	if lost.has(xmin) || xmax != 0 && mask&(volume.HeapXmaxInvalid|volume.HeapXmaxIsMulti|volume.HeapXmaxLockOnly) == 0 && !lost.has(xmax) {
		return false // another row that took its place, or that another transaction had deleted
	}
	mask = mask&^(volume.HeapXmaxCommitted|volume.HeapXmaxIsMulti|volume.HeapXmaxLockOnly) | volume.HeapXmaxInvalid
	binary.LittleEndian.PutUint16(row[volume.TupleInfomask:], mask)
	return true
}
