package repo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tidemark/internal/blockcopy"
)

// A manifest is lines of JSON in the object format, in this order:
//
//	files, directories and links   ordered by path, bytewise
//	packs                          in a block of their own, from block Summary.PackTable on
//	the summary                    in the last block
//
// The text of a section is cut into blocks of at most manifestBlock bytes
// anywhere, and each block is a frame. A reader finds the index at the end of
// the object, the summary in the last frame before it, and then reads the
// sections that it wants.
const (
	manifestBlock = 1 << 20
	maxLine       = 128 << 20
)

// ZeroPack is the pack number of blocks that are all zero and stored nowhere.
const ZeroPack = -1

// Run is a run of consecutive blocks of a file that lie one after another in
// a pack, or are all zero.
type Run struct {
	Count uint32
	Pack  int32  // index into Manifest.Packs, or ZeroPack
	First uint32 // number of the first block in the pack
}

// File is one entry of a manifest: a file, a directory or a link.
type File struct {
	blockcopy.Entry
	Runs []Run // in order, without gaps, for files
	// Digest is the hash of the hashes of the file's blocks, one after
	// another; an all-zero block counts as sixteen zero bytes.
	Digest Hash
}

// Pack is a pack that a manifest names.
type Pack struct {
	Name   string `json:"pack"` // backup id and number: "20261121T225012Z/000001"
	Size   int64  `json:"size"`
	Blocks uint32 `json:"blocks"`
}

// fileLine is the JSON of a File. Part of the format, do not change.
type fileLine struct {
	Path   string `json:"path,omitempty"`
	Path64 []byte `json:"path64,omitempty"` // instead of Path when it is not UTF-8
	Type   string `json:"type,omitempty"`   // "dir", "link"; absent for a file
	Size   int64  `json:"size,omitempty"`
	Mode   string `json:"mode,omitempty"`  // octal
	MTime  string `json:"mtime,omitempty"` // RFC 3339, UTC
	Target string `json:"target,omitempty"`
	Blocks string `json:"blocks,omitempty"` // runs: count@pack:first, or <count>z
	Digest string `json:"digest,omitempty"`
}

// appendFile appends the line of f. It is written by hand because a cluster
// may have a million files.
func appendFile(b []byte, f *File) []byte {
	b = append(b, '{')
	if utf8.ValidString(f.Path) {
		b = append(b, `"path":`...)
		b = appendString(b, f.Path)
	} else {
		b = append(b, `"path64":"`...)
		b = base64.StdEncoding.AppendEncode(b, []byte(f.Path))
		b = append(b, '"')
	}
	switch f.Type {
	case blockcopy.Dir:
		b = append(b, `,"type":"dir"`...)
	case blockcopy.Link:
		b = append(b, `,"type":"link","target":`...)
		b = appendString(b, f.LinkTarget)
	default:
		b = append(b, `,"size":`...)
		b = strconv.AppendInt(b, f.Size, 10)
	}
	if f.Mode != 0 {
		b = append(b, `,"mode":"0`...)
		b = strconv.AppendUint(b, uint64(f.Mode.Perm()), 8)
		b = append(b, '"')
	}
	if !f.ModTime.IsZero() {
		b = append(b, `,"mtime":"`...)
		b = f.ModTime.UTC().AppendFormat(b, time.RFC3339Nano)
		b = append(b, '"')
	}
	if f.Type == blockcopy.File && f.Size > 0 {
		b = append(b, `,"blocks":"`...)
		b = appendRuns(b, f.Runs)
		b = append(b, `","digest":"`...)
		b = append(b, f.Digest.String()...)
		b = append(b, '"')
	}
	return append(b, "}\n"...)
}

func appendString(b []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always marshal
	}
	return append(b, q...)
}

func appendRuns(b []byte, runs []Run) []byte {
	for i, r := range runs {
		if i > 0 {
			b = append(b, ' ')
		}
		b = strconv.AppendUint(b, uint64(r.Count), 10)
		if r.Pack == ZeroPack {
			b = append(b, 'z')
			continue
		}
		b = append(b, '@')
		b = strconv.AppendInt(b, int64(r.Pack), 10)
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(r.First), 10)
	}
	return b
}

var errBadRuns = errors.New("malformed block list")

// parseRuns reads what appendRuns wrote. packs bounds the pack numbers, and
// blocks is how many blocks there have to be in all.
func parseRuns(s string, packs []Pack, blocks int64) ([]Run, error) {
	runs := make([]Run, 0, min(strings.Count(s, " ")+1, 1<<16))
	var total int64
	for len(s) > 0 {
		var item string
		item, s, _ = strings.Cut(s, " ")
		r := Run{Pack: ZeroPack}
		count, place, stored := strings.Cut(item, "@")
		if !stored {
			var ok bool
			if count, ok = strings.CutSuffix(item, "z"); !ok {
				return nil, errBadRuns
			}
		}
		n, err := strconv.ParseUint(count, 10, 32)
		if err != nil || n == 0 {
			return nil, errBadRuns
		}
		r.Count = uint32(n)
		if stored {
			pack, first, _ := strings.Cut(place, ":")
			p, err1 := strconv.ParseInt(pack, 10, 31)
			f, err2 := strconv.ParseUint(first, 10, 32)
			if err1 != nil || err2 != nil || p < 0 || p >= int64(len(packs)) || f+n > uint64(packs[p].Blocks) {
				return nil, errBadRuns
			}
			r.Pack, r.First = int32(p), uint32(f)
		}
		total += int64(n)
		runs = append(runs, r)
	}
	if total != blocks {
		return nil, fmt.Errorf("the block list covers %d blocks of %d", total, blocks)
	}
	return runs, nil
}

// blockCount is the number of blocks of a file, the last of which may be short.
func blockCount(size int64, blockSize uint32) int64 {
	return (size + int64(blockSize) - 1) / int64(blockSize)
}

// parseFile reads a line.
func parseFile(line []byte, packs []Pack, blockSize uint32) (*File, error) {
	var l fileLine
	if err := json.Unmarshal(line, &l); err != nil {
		return nil, err
	}
	f := &File{Entry: blockcopy.Entry{Path: l.Path, Size: l.Size, LinkTarget: l.Target}}
	if l.Path64 != nil {
		f.Path = string(l.Path64)
	}
	if err := blockcopy.CheckPath(f.Path); err != nil {
		return nil, err
	}
	switch l.Type {
	case "":
		f.Type = blockcopy.File
	case "dir":
		f.Type = blockcopy.Dir
	case "link":
		f.Type = blockcopy.Link
	default:
		return nil, fmt.Errorf("%s: unknown type %q", f.Path, l.Type)
	}
	if l.Mode != "" {
		m, err := strconv.ParseUint(l.Mode, 8, 9)
		if err != nil {
			return nil, fmt.Errorf("%s: mode %q", f.Path, l.Mode)
		}
		f.Mode = fs.FileMode(m)
	}
	if l.MTime != "" {
		t, err := time.Parse(time.RFC3339Nano, l.MTime)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		f.ModTime = t
	}
	if f.Type != blockcopy.File {
		return f, nil
	}
	if f.Size < 0 {
		return nil, fmt.Errorf("%s: size %d", f.Path, f.Size)
	}
	runs, err := parseRuns(l.Blocks, packs, blockCount(f.Size, blockSize))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	f.Runs = runs
	if f.Size > 0 {
		if err := f.Digest.UnmarshalText([]byte(l.Digest)); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return f, nil
}

// manifestWriter writes a manifest's lines.
type manifestWriter struct {
	obj *objectWriter
	buf []byte // text that is not in a frame yet
	z   []byte
}

func newManifestWriter(w io.Writer, h header) (*manifestWriter, error) {
	obj, err := newObjectWriter(w, h)
	return &manifestWriter{obj: obj}, err
}

// line appends one line, which ends in a newline.
func (m *manifestWriter) line(b []byte) error {
	m.buf = append(m.buf, b...)
	for len(m.buf) >= manifestBlock {
		if err := m.frame(m.buf[:manifestBlock]); err != nil {
			return err
		}
		m.buf = m.buf[:copy(m.buf, m.buf[manifestBlock:])]
	}
	return nil
}

// section ends a section: the next line begins a block, whose number it returns.
func (m *manifestWriter) section() (uint32, error) {
	if len(m.buf) > 0 {
		if err := m.frame(m.buf); err != nil {
			return 0, err
		}
		m.buf = m.buf[:0]
	}
	return uint32(len(m.obj.blocks)), nil
}

func (m *manifestWriter) frame(text []byte) error {
	m.z = compress(LevelGood, text, m.z[:0])
	return m.obj.add(m.z, []blockInfo{{uint32(len(text)), HashBlock(text)}})
}

// finish writes the packs, the summary and the index.
func (m *manifestWriter) finish(packs []Pack, s *Summary) error {
	var err error
	if s.PackTable, err = m.section(); err != nil {
		return err
	}
	for i := range packs {
		b, err := json.Marshal(&packs[i])
		if err != nil {
			return err
		}
		if err := m.line(append(b, '\n')); err != nil {
			return err
		}
	}
	if _, err := m.section(); err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := m.line(append(b, '\n')); err != nil {
		return err
	}
	if _, err := m.section(); err != nil {
		return err
	}
	return m.obj.finish()
}

func (c *Cluster) manifestHeader(id string) header {
	return header{Kind: kindManifest, SystemID: c.systemID, MaxBlock: manifestBlock, Name: c.prefix + "backups/" + id + "/manifest.zst"}
}

// Manifest is an open manifest. Files read it from its beginning.
type Manifest struct {
	Summary
	Packs []Pack

	cluster *Cluster
	idx     *objectIndex
}

// readSummary reads a manifest's index and its last block.
func (c *Cluster) readSummary(ctx context.Context, id string) (*Summary, *objectIndex, error) {
	idx, err := readIndex(ctx, c.driver, c.manifestHeader(id), 0)
	if err != nil {
		return nil, nil, err
	}
	corrupt := func(err error) error {
		return &CorruptError{Object: idx.path, Offset: -1, Part: "summary", Err: err}
	}
	if len(idx.frames) == 0 || len(idx.frames) != len(idx.blocks) {
		return nil, nil, corrupt(errors.New("missing"))
	}
	// The summary is the last line, and begins a block; it may need several.
	last := len(idx.frames) - 1
	raw, err := idx.readFrame(ctx, c.driver, last, nil)
	if err != nil {
		return nil, nil, err
	}
	for first := last; !bytes.HasPrefix(raw, []byte(`{"format":`)); {
		if first == 0 || len(raw) > 32<<20 {
			return nil, nil, corrupt(errors.New("missing"))
		}
		first--
		more, err := idx.readFrame(ctx, c.driver, first, nil)
		if err != nil {
			return nil, nil, err
		}
		raw = append(more, raw...)
	}
	s := new(Summary)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, nil, corrupt(err)
	}
	if err := s.Validate(); err != nil {
		return nil, nil, corrupt(err)
	}
	if s.ID != id || uint64(s.SystemID) != c.systemID || int64(s.PackTable) > int64(last) {
		return nil, nil, corrupt(errors.New("it does not fit the object"))
	}
	s.ManifestSize = idx.size
	return s, idx, nil
}

// OpenManifest opens the manifest of a backup: its summary and its packs. The
// files are read with Files.
func (c *Cluster) OpenManifest(ctx context.Context, id string) (*Manifest, error) {
	s, idx, err := c.readSummary(ctx, id)
	if err != nil {
		if errors.Is(err, ErrNotExist) {
			return nil, noBackup(c, id, err)
		}
		return nil, err
	}
	m := &Manifest{Summary: *s, cluster: c, idx: idx}
	if err := m.readPacks(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) readPacks(ctx context.Context) error {
	lr := newLineReader(ctx, m.cluster.driver, m.idx, int(m.PackTable), len(m.idx.frames))
	corrupt := func(err error) error {
		return &CorruptError{Object: m.idx.path, Offset: -1, Part: "pack table", Err: err}
	}
	if m.PackCount < 0 || m.PackCount > 1<<24 {
		return corrupt(fmt.Errorf("%d packs", m.PackCount))
	}
	for range m.PackCount {
		line, _, err := lr.next()
		if err != nil {
			return corrupt(err)
		}
		var p Pack
		if err := json.Unmarshal(line, &p); err != nil {
			return corrupt(err)
		}
		if !ValidName(p.Name) || p.Blocks > maxBlocks {
			return corrupt(fmt.Errorf("pack %q", p.Name))
		}
		m.Packs = append(m.Packs, p)
	}
	return nil
}

// Files returns a reader of the manifest's files from the first on. Memory
// does not grow with the number of files.
func (m *Manifest) Files(ctx context.Context) *FileReader {
	return &FileReader{m: m, lr: newLineReader(ctx, m.cluster.driver, m.idx, 0, int(m.PackTable))}
}

// FileReader reads the files of a manifest, in order.
type FileReader struct {
	m    *Manifest
	lr   *lineReader
	prev string
}

// Next returns the next file, io.EOF after the last one.
func (r *FileReader) Next() (*File, error) {
	f, _, err := r.next()
	return f, err
}

// next returns the next file and where its line begins.
func (r *FileReader) next() (*File, int64, error) {
	line, at, err := r.lr.next()
	if err != nil {
		return nil, 0, err
	}
	f, err := parseFile(line, r.m.Packs, r.m.BlockSize)
	if err == nil && f.Path <= r.prev {
		err = fmt.Errorf("%s follows %s", f.Path, r.prev)
	}
	if err != nil {
		return nil, 0, &CorruptError{Object: r.m.idx.path, Offset: -1, Part: "file list", Err: err}
	}
	r.prev = f.Path
	return f, at, nil
}

// lineReader reads the lines in a range of a manifest's frames. Positions count
// bytes of text from the manifest's beginning.
type lineReader struct {
	br  *bufio.Reader
	pos int64
	buf []byte
}

func newLineReader(ctx context.Context, d Driver, idx *objectIndex, from, to int) *lineReader {
	return &lineReader{br: bufio.NewReaderSize(&frameReader{ctx: ctx, d: d, idx: idx, next: from, end: to}, 64<<10)}
}

// next returns the next line without its newline, valid until the next call,
// and where it begins (in text from the lineReader's start).
func (r *lineReader) next() ([]byte, int64, error) {
	at := r.pos
	r.buf = r.buf[:0]
	for {
		part, err := r.br.ReadSlice('\n')
		r.pos += int64(len(part))
		if err == nil && len(r.buf) == 0 {
			return part[:len(part)-1], at, nil
		}
		r.buf = append(r.buf, part...)
		switch {
		case err == nil:
			return r.buf[:len(r.buf)-1], at, nil
		case errors.Is(err, bufio.ErrBufferFull):
			if len(r.buf) > maxLine {
				return nil, 0, fmt.Errorf("a line is longer than %d bytes", maxLine)
			}
		case errors.Is(err, io.EOF) && len(r.buf) > 0:
			return nil, 0, io.ErrUnexpectedEOF
		default:
			return nil, 0, err
		}
	}
}

// frameReader reads the content of frames next to end-1 as a stream.
type frameReader struct {
	ctx       context.Context
	d         Driver
	idx       *objectIndex
	next, end int
	raw, rest []byte
}

func (r *frameReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.next >= r.end {
			return 0, io.EOF
		}
		raw, err := r.idx.readFrame(r.ctx, r.d, r.next, r.raw)
		if err != nil {
			return 0, err
		}
		r.next++
		r.raw, r.rest = raw, raw
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
