package backup

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
)

// A tar backup is laid out as the server's own tools do it: base.tar is the
// data directory with its WAL and a tablespace_map, <number>.tar is what a
// tablespace's link leads to, backup_manifest lies beside them. Every file has
// another name until all are complete and durable.
const (
	baseTar     = "base.tar"
	unfinished  = ".partial"
	tarBuffer   = 1 << 20
	tarTask     = 4 << 20 // what a worker reads at once
	tarAhead    = 2       // tasks per worker that wait to be written
	tarFileMode = 0o600
	tarDirMode  = 0o700
)

// CreateTar takes a backup into tar files in a directory, which must be missing
// or empty. Unpacked, tablespaces where the map says, a server starts on it.
func CreateTar(ctx context.Context, dir string, o Options) (*PlainResult, error) {
	o = o.withDefaults()
	s, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.close()
	left, err := clearTar(dir)
	if err != nil {
		return nil, err
	}
	if left {
		o.Progress.Note("what an interrupted backup left in %s is removed", dir)
	}
	made, err := makeDirectory(dir)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		res, err := tarOnce(ctx, s, dir, o)
		if err == nil {
			return res, nil
		}
		again, perr := s.again(ctx, err, try, o.Progress.Note)
		if !again || perr != nil {
			if made {
				os.Remove(dir) // it is empty again
			}
			return nil, cmp.Or(perr, err)
		}
	}
}

// taring is an attempt at a tar backup.
type taring struct {
	plain
	files    map[string]*tarFile // by link, "" for base.tar
	manifest *os.File
	lines    *volume.ManifestWriter
	buffer   *bufio.Writer // of the manifest
}

func tarOnce(ctx context.Context, s *server, dir string, o Options) (*PlainResult, error) {
	t := &taring{plain: plain{job: &job{Options: o, server: s, began: time.Now().UTC()}, dir: dir}, files: map[string]*tarFile{}}
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	defer t.src.Close()
	var err error
	if t.links, err = placeSpaces(t.job.files.tablespaces, o.Tablespaces); err == nil {
		err = t.write(ctx)
	}
	if err != nil {
		return nil, errors.Join(t.why(ctx, err), t.abandon())
	}
	return t.result, nil
}

func (t *taring) write(ctx context.Context) error {
	if err := t.open(); err != nil {
		return err
	}
	t.Progress.Phase("copying", t.job.files.bytes, progress.Bytes)
	if err := t.entries(ctx); err != nil {
		return err
	}
	fin, err := t.finish(ctx)
	if err != nil {
		return err
	}
	for _, a := range fin.Late {
		if err := t.segment(ctx, a); err != nil {
			return err
		}
	}
	special := []blockcopy.FinalFile{{Path: "backup_label", Data: fin.Label}, {Path: volume.ControlPath, Data: fin.Control}}
	if len(t.links) > 0 {
		special = append([]blockcopy.FinalFile{{Path: "tablespace_map", Data: spacesMap(t.links)}}, special...)
	}
	for _, f := range special {
		sum, err := t.files[""].small(f, time.Now())
		if err != nil {
			return err
		}
		if err := t.line(f.Path, int64(len(f.Data)), sum, time.Now()); err != nil {
			return err
		}
	}
	return t.complete()
}

// finish waits for the WAL and lists it.
func (t *taring) finish(ctx context.Context) (*blockcopy.Finish, error) {
	f, err := t.ended(ctx)
	for _, a := range f.Late {
		t.result.WALBytes += a.Size
	}
	return f, err
}

// open makes the files. A tablespace may be empty.
func (t *taring) open() (err error) {
	t.result = t.newResult()
	t.result.Tar = true
	if t.manifest, err = os.OpenFile(filepath.Join(t.dir, volume.ManifestFileName+unfinished), os.O_CREATE|os.O_EXCL|os.O_WRONLY, tarFileMode); err != nil {
		return err
	}
	if err = lockTar(t.manifest); err != nil {
		err = errors.Join(err, t.manifest.Close())
		t.manifest = nil // it is another's
		return err
	}
	t.buffer = bufio.NewWriterSize(t.manifest, tarBuffer)
	t.lines = volume.NewManifestWriter(t.buffer, volume.ManifestVersion(t.control.Major()), t.control.SystemIdentifier)
	names := map[string]string{"": baseTar}
	for link := range t.links {
		names[link] = strings.TrimPrefix(link, "pg_tblspc/") + ".tar"
	}
	for link, name := range names {
		if t.files[link], err = createTar(filepath.Join(t.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// line notes a file in the manifest.
func (t *taring) line(path string, size int64, sum []byte, at time.Time) error {
	t.result.Files++
	t.result.SizeBytes += size
	return t.lines.AddFile(volume.ManifestFile{Path: path, Size: size, ModTime: at, Algorithm: volume.ChecksumCRC32C, Checksum: sum})
}

// entries writes what was listed, in that order.
func (t *taring) entries(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	in := t.inOrder(ctx)
	defer in.readers.Wait()
	defer cancel()
	for _, e := range t.job.files.all() {
		link, name := spaceOf(t.links, e)
		out := t.files[link]
		switch e.Type {
		case blockcopy.Dir:
			if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: tarDirMode, ModTime: e.ModTime}); err != nil {
				return err
			}
		case blockcopy.Link:
			if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: t.links[e.Path], Mode: 0o777, ModTime: e.ModTime}); err != nil {
				return err
			}
		default:
			sum, gone, err := out.copy(e, name, in)
			if err != nil {
				return err
			}
			t.Progress.Add(e.Size)
			if gone {
				continue
			}
			if err := t.line(e.Path, e.Size, sum, e.ModTime); err != nil {
				return err
			}
		}
	}
	return nil
}

// segment copies a WAL file of the server. The manifest does not list those.
func (t *taring) segment(ctx context.Context, a blockcopy.Action) error {
	f, err := openServerFile(ctx, t.src, a.Path, a.Size)
	if err != nil {
		return err
	}
	out := t.files[""]
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: a.Path, Size: a.Size, Mode: tarFileMode, ModTime: time.Now()}); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, io.NewSectionReader(f, 0, a.Size), make([]byte, serverWindow))
	return err
}

// complete makes everything durable and gives it its names, the manifest last.
func (t *taring) complete() error {
	if err := t.lines.AddRange(volume.ManifestRange{Timeline: t.start.Timeline, Start: t.start.Redo, End: t.stop}); err != nil {
		return err
	}
	if err := errors.Join(t.lines.Close(), t.buffer.Flush(), t.manifest.Sync()); err != nil {
		return err
	}
	for _, f := range t.files {
		if err := f.close(); err != nil {
			return err
		}
	}
	for _, f := range t.files {
		if err := volume.RenameDurable(volume.OS, f.path+unfinished, f.path); err != nil {
			return err
		}
	}
	name := filepath.Join(t.dir, volume.ManifestFileName)
	if err := volume.RenameDurable(volume.OS, name+unfinished, name); err != nil {
		return err
	}
	t.result.Finished = time.Now().UTC().Truncate(time.Millisecond)
	return t.manifest.Close() // its lock is held up to here
}

// abandon removes what there is.
func (t *taring) abandon() error {
	var err error
	for _, f := range t.files {
		if f != nil {
			f.file.Close()
			err = errors.Join(err, remove(f.path+unfinished), remove(f.path))
		}
	}
	if t.manifest != nil {
		t.manifest.Close()
		err = errors.Join(err, remove(t.manifest.Name()))
	}
	return err
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// tarFile is one archive.
type tarFile struct {
	*tar.Writer
	path   string
	file   *os.File
	buffer *bufio.Writer
}

func createTar(path string) (*tarFile, error) {
	f, err := os.OpenFile(path+unfinished, os.O_CREATE|os.O_EXCL|os.O_WRONLY, tarFileMode)
	if err != nil {
		return nil, err
	}
	b := bufio.NewWriterSize(f, tarBuffer)
	return &tarFile{tar.NewWriter(b), path, f, b}, nil
}

func (f *tarFile) close() error {
	return errors.Join(f.Writer.Close(), f.buffer.Flush(), f.file.Sync(), f.file.Close())
}

// small writes a file whose content is known, and returns its checksum.
func (f *tarFile) small(file blockcopy.FinalFile, at time.Time) ([]byte, error) {
	h, err := volume.ChecksumCRC32C.New()
	if err != nil {
		return nil, err
	}
	h.Write(file.Data)
	err = f.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file.Path, Size: int64(len(file.Data)), Mode: tarFileMode, ModTime: at})
	if err == nil {
		_, err = f.Write(file.Data)
	}
	return h.Sum(nil), err
}

// copy writes an entry as long as it was listed: what was cut off meanwhile is
// zero, for replay cuts it off again. gone says that it vanished and was left out.
func (f *tarFile) copy(e blockcopy.Entry, name string, in *inOrder) (sum []byte, gone bool, err error) {
	h, err := volume.ChecksumCRC32C.New()
	if err != nil {
		return nil, false, err
	}
	for at := int64(0); at == 0 || at < e.Size; {
		var p fetchedRange
		if e.Size > 0 {
			if p, err = in.next(e.Path, at); err != nil {
				return nil, false, err
			}
		}
		if at == 0 {
			gone = p.gone
		}
		if at == 0 && !gone {
			if err := f.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: e.Size, Mode: tarFileMode, ModTime: e.ModTime}); err != nil {
				return nil, false, err
			}
		}
		if !gone {
			if err := f.put(h, p); err != nil {
				return nil, false, err
			}
		}
		if at += p.Length; e.Size == 0 {
			break
		}
	}
	return h.Sum(nil), gone, nil
}

func (f *tarFile) put(h hash.Hash, p fetchedRange) error {
	data := p.data
	if missing := p.Length - int64(len(data)); missing > 0 {
		data = append(data, make([]byte, missing)...)
	}
	h.Write(data)
	_, err := f.Write(data)
	return err
}

// inOrder reads ranges with several workers and hands them out in order.
type inOrder struct {
	tasks   chan chan fetchedTask
	rest    []fetchedRange
	readers sync.WaitGroup
}

type fetchedRange struct {
	blockcopy.Range
	data []byte
	gone bool
}

type fetchedTask struct {
	ranges []fetchedRange
	err    error
}

// inOrder begins to read; it ends with the context.
func (t *taring) inOrder(ctx context.Context) *inOrder {
	src := &checkedSource{throttle(t.src, t.Rate), t.pages}
	in := &inOrder{tasks: make(chan chan fetchedTask, t.Jobs*tarAhead)}
	work := make(chan func(), t.Jobs*tarAhead)
	for range t.Jobs {
		in.readers.Go(func() {
			for do := range work {
				do()
			}
		})
	}
	in.readers.Go(func() {
		defer close(in.tasks)
		defer close(work)
		for ranges := range t.job.files.ranges() {
			for _, task := range blockcopy.SplitTasks(ranges, tarTask) {
				out := make(chan fetchedTask, 1)
				select {
				case in.tasks <- out:
					work <- func() { out <- fetchTask(ctx, src, task) }
				case <-ctx.Done():
					return
				}
			}
		}
	})
	return in
}

// fetchTask reads a task whole.
func fetchTask(ctx context.Context, src blockcopy.Source, task blockcopy.Task) fetchedTask {
	out := fetchedTask{ranges: make([]fetchedRange, len(task.Ranges))}
	for i, r := range task.Ranges {
		out.ranges[i].Range = r
	}
	i := 0
	out.err = src.Fetch(ctx, task.Ranges, func(p blockcopy.Range, data []byte, gone bool) error {
		for out.ranges[i].Path != p.Path || p.Offset >= out.ranges[i].End() {
			i++
		}
		r := &out.ranges[i]
		r.gone = gone
		if r.data == nil {
			r.data = make([]byte, 0, r.Length)
		}
		r.data = append(r.data, data...)
		return nil
	})
	return out
}

// next returns what was read of a file from a place on.
func (n *inOrder) next(path string, at int64) (fetchedRange, error) {
	for len(n.rest) == 0 {
		out, ok := <-n.tasks
		if !ok {
			return fetchedRange{}, exit.New(exit.Interrupted, "", "the copy was interrupted")
		}
		t := <-out
		if t.err != nil {
			return fetchedRange{}, t.err
		}
		n.rest = t.ranges
	}
	r := n.rest[0]
	n.rest = n.rest[1:]
	if r.Path != path || r.Offset != at {
		return r, fmt.Errorf("read %s where %s from %d on was to be written", r.Range, path, at)
	}
	return r, nil
}
