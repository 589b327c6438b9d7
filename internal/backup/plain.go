package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// PlainResult describes a plain backup.
type PlainResult struct {
	Directory    string         `json:"directory"`          // where it is
	Tar          bool           `json:"tar,omitempty"`      // as base.tar and one tar file for each tablespace
	SystemID     repo.SystemID  `json:"system_identifier"`  // of the cluster
	Server       string         `json:"server_version"`     // of the server it was taken from
	Start        repo.Point     `json:"start"`              // where replay begins
	Stop         repo.Point     `json:"stop"`               // where it has made the copy consistent
	Began        time.Time      `json:"began"`              // when the backup began
	Finished     time.Time      `json:"finished"`           // when it was complete
	Files        int            `json:"files"`              // in the directory, without WAL
	SizeBytes    int64          `json:"size_bytes"`         // of those files
	WALBytes     int64          `json:"wal_bytes"`          // of the segments in pg_wal
	FindingCount int64          `json:"finding_count"`      // blocks whose checksum was wrong
	Findings     []repo.Finding `json:"findings,omitempty"` // at most 1000 of them
}

// CreatePlain takes a backup into a directory that a server starts on as it
// is, and that pg_verifybackup accepts. The directory must be missing or
// empty, and so must be those that tablespaces go to.
func CreatePlain(ctx context.Context, dir string, o Options) (*PlainResult, error) {
	o = o.withDefaults()
	s, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.close()
	for try := 1; ; try++ {
		res, filled, err := plainOnce(ctx, s, dir, o)
		again, perr := s.again(ctx, err, try, o.Progress.Note)
		if perr != nil {
			return nil, perr
		}
		if !again && len(filled) > 0 && err != nil {
			return nil, incomplete(dir, err)
		}
		if !again {
			return res, err
		}
		for _, d := range filled {
			if err := emptyDirectory(d); err != nil {
				return nil, err
			}
		}
	}
}

// plain is an attempt at a plain backup.
type plain struct {
	*job
	dir    string
	links  map[string]string // where tablespaces go
	stop   wal.LSN
	result *PlainResult
}

// plainOnce is one attempt. It returns the directories that it put files into.
func plainOnce(ctx context.Context, s *server, dir string, o Options) (res *PlainResult, filled []string, err error) {
	made, err := makeDirectory(dir)
	if err != nil {
		return nil, nil, err
	}
	p := &plain{job: &job{Options: o, server: s, began: time.Now().UTC()}, dir: dir}
	if err = p.begin(ctx); err == nil {
		defer p.src.Close()
		if p.links, err = placeSpaces(p.files.tablespaces, o.Tablespaces); err == nil {
			err = emptySpaces(p.links)
		}
	}
	if err != nil {
		if made {
			os.Remove(dir)
		}
		return nil, nil, err
	}
	filled = append(slices.Collect(maps.Values(p.links)), dir)
	plan := p.plan(dir)
	// Only a source that hands its pages past the checker is read.
	_, err = blockcopy.Run(ctx, blockcopy.Options{Target: dir, Source: &checkedSource{throttle(p.src, o.Rate), p.pages}, Plan: plan, Jobs: o.Jobs,
		Finish: p.finish, Progress: o.Progress, Log: o.Log})
	if err != nil {
		return nil, filled, p.why(ctx, err)
	}
	return p.result, filled, nil
}

// why is the reason behind an attempt's failure: a standby that is promoted
// loses files that the copy still wants, its last segment for one.
func (p *plain) why(ctx context.Context, err error) error {
	if !p.server.inRecovery || ctx.Err() != nil || errors.Is(err, errPromoted) {
		return err
	}
	var recovery bool
	if postgres.Query(ctx, p.server.conn, "SELECT pg_is_in_recovery()", nil, &recovery) == nil && !recovery {
		return promoted()
	}
	return err
}

// incomplete says what is left of an attempt that failed. It is tombstoned,
// and it cannot be gone on with: the WAL is no longer held back.
func incomplete(dir string, err error) error {
	code := exit.CodeOf(err)
	if code == exit.Partial {
		code = exit.Failed
	}
	if errors.Is(err, context.Canceled) {
		code = exit.Interrupted
	}
	hint := "the directory " + dir + " is incomplete and refuses to start: remove it, and take the backup again"
	if cause := causeHint(err); cause != "" {
		hint = cause + "\n" + hint
	}
	return exit.Wrap(lastCause(err), code, hint, "the backup is not complete")
}

// lastCause drops the engine's wrapping, which speaks of resuming.
func lastCause(err error) error {
	var e *exit.Error
	if errors.As(err, &e) && e.Code == exit.Partial && e.Err != nil {
		return e.Err
	}
	return err
}

func causeHint(err error) string { return exit.HintOf(lastCause(err)) }

func makeDirectory(dir string) (made bool, err error) {
	err = os.Mkdir(dir, 0o700)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return false, exit.Wrap(err, exit.Failed, "its parent directory must exist and be writable", "cannot make the directory")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	if len(entries) > 0 {
		return false, exit.New(exit.Refused, "give a directory that is empty or does not exist", "%s is not empty: it holds %s", dir, entries[0].Name())
	}
	return false, os.Chmod(dir, 0o700)
}

func emptyDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// plan copies everything.
func (p *plain) plan(dir string) *blockcopy.Plan {
	plan := &blockcopy.Plan{Operation: "backup", Command: "dbbackup create --plain " + dir, Source: p.src.Name()}
	for _, e := range p.files.all() {
		switch e.Type {
		case blockcopy.Dir:
			plan.Actions = append(plan.Actions, blockcopy.Action{Kind: blockcopy.CreateDir, Path: e.Path})
		case blockcopy.Link:
			plan.Actions = append(plan.Actions, blockcopy.Action{Kind: blockcopy.CreateLink, Path: e.Path, LinkTarget: p.links[e.Path]})
		case blockcopy.File:
			plan.Actions = append(plan.Actions, blockcopy.Action{Kind: blockcopy.Copy, Path: e.Path, Size: e.Size})
			plan.Totals.SourceBytes += e.Size
		}
	}
	return plan
}

// ended is what can be known only after the last block: the stop position and
// the WAL. It fills that into the result.
func (p *plain) ended(ctx context.Context) (*blockcopy.Finish, error) {
	f := &blockcopy.Finish{}
	stop, control, err := p.server.end(ctx, p.src, p.start)
	if err != nil {
		return f, err
	}
	p.stop = stop
	p.result.Stop = repo.Point{LSN: stop, Timeline: p.start.Timeline}
	p.result.Findings, p.result.FindingCount = p.pages.findings(stop)
	nameRelations(ctx, p.server, p.result.Findings)
	p.Progress.Phase("waiting for the WAL", 0, progress.Items)
	if err := p.waitComplete(ctx, stop); err != nil {
		return f, err
	}
	p.Progress.Phase("checking the WAL", 0, progress.Items)
	if err := guard(ctx, live(p.src, p.start.Timeline, p.keeper.size), p.walOptions(), stop); err != nil {
		return f, err
	}
	f.Control, f.Label = control.Encode(), p.label().Format()
	f.Late, err = p.late(ctx, stop)
	return f, err
}

// finish ends the copy with the WAL and the manifest.
func (p *plain) finish(ctx context.Context) (blockcopy.Finish, error) {
	p.result = p.newResult()
	f, err := p.ended(ctx)
	if err != nil {
		return *f, err
	}
	p.Progress.Phase("writing the manifest", 0, progress.Items)
	manifest, err := p.manifest(ctx, f)
	if err != nil {
		return *f, err
	}
	f.Files = append(f.Files, blockcopy.FinalFile{Path: volume.ManifestFileName, Data: manifest})
	return *f, nil
}

// waitComplete waits until the server has all WAL before stop in pg_wal. The
// last segment need not be full: what follows stop is not replayed for long.
func (p *plain) waitComplete(ctx context.Context, stop wal.LSN) error {
	deadline := time.Now().Add(p.Timeout)
	for {
		lsn, err := p.server.current(ctx)
		if err != nil {
			return err
		}
		if lsn >= stop {
			return nil
		}
		if time.Now().After(deadline) {
			return exit.New(exit.Failed, "", "the server's WAL did not reach %s within %s: it is at %s", stop, p.Timeout, lsn)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// late lists the WAL that belongs into the copy's pg_wal.
func (p *plain) late(ctx context.Context, stop wal.LSN) ([]blockcopy.Action, error) {
	size := p.keeper.size
	var out []blockcopy.Action
	add := func(name string, bytes int64) {
		out = append(out, blockcopy.Action{Kind: blockcopy.Copy, Path: "pg_wal/" + name, Size: bytes, Required: true})
	}
	for n := size.Number(p.start.Redo); n <= size.NumberBefore(stop); n++ {
		add(wal.SegmentName(p.start.Timeline, n, size), int64(size))
	}
	entries, err := p.src.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Path, "pg_wal/")
		if f, known := wal.ParseFileName(name); ok && known && f.Kind == wal.FileHistory && f.Timeline <= p.start.Timeline {
			add(name, e.Size)
		}
	}
	return out, nil
}

// newResult begins the description of a plain backup.
func (p *plain) newResult() *PlainResult {
	return &PlainResult{Directory: p.dir, SystemID: repo.SystemID(p.control.SystemIdentifier), Server: p.server.version,
		Start: repo.Point{LSN: p.start.Redo, Timeline: p.start.Timeline}, Began: p.began.Truncate(time.Millisecond)}
}

// manifest writes the backup_manifest: a checksum of every file as it is in
// the copy now, and of those that the engine writes last.
func (p *plain) manifest(ctx context.Context, f *blockcopy.Finish) ([]byte, error) {
	type sum struct {
		size int64
		crc  []byte
		time time.Time
		gone bool
	}
	sums := make([]sum, len(p.files.entries))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.Jobs)
	for i, e := range p.files.all() {
		if e.Type != blockcopy.File {
			continue
		}
		g.Go(func() (err error) {
			s := &sums[i]
			s.size, s.crc, s.time, err = fileSum(ctx, filepath.Join(p.dir, filepath.FromSlash(e.Path)))
			if errors.Is(err, fs.ErrNotExist) {
				s.gone, err = true, nil // it vanished while it was copied
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	m := volume.NewManifestWriter(&out, volume.ManifestVersion(p.control.Major()), p.control.SystemIdentifier)
	res := p.result
	add := func(path string, size int64, crc []byte, at time.Time) error {
		res.Files++
		res.SizeBytes += size
		return m.AddFile(volume.ManifestFile{Path: path, Size: size, ModTime: at, Algorithm: volume.ChecksumCRC32C, Checksum: crc})
	}
	for i, e := range p.files.all() {
		if s := &sums[i]; e.Type == blockcopy.File && !s.gone {
			if err := add(e.Path, s.size, s.crc, s.time); err != nil {
				return nil, err
			}
		}
	}
	for path, data := range map[string][]byte{volume.ControlPath: f.Control, "backup_label": f.Label} {
		h, err := volume.ChecksumCRC32C.New()
		if err != nil {
			return nil, err
		}
		h.Write(data)
		if err := add(path, int64(len(data)), h.Sum(nil), time.Now()); err != nil {
			return nil, err
		}
	}
	if err := m.AddRange(volume.ManifestRange{Timeline: p.start.Timeline, Start: p.start.Redo, End: p.stop}); err != nil {
		return nil, err
	}
	if err := m.Close(); err != nil {
		return nil, err
	}
	for _, a := range f.Late {
		res.WALBytes += a.Size
	}
	res.Finished = time.Now().UTC().Truncate(time.Millisecond)
	return out.Bytes(), nil
}

func fileSum(ctx context.Context, name string) (size int64, crc []byte, mtime time.Time, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, nil, mtime, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, nil, mtime, err
	}
	h, err := volume.ChecksumCRC32C.New()
	if err != nil {
		return 0, nil, mtime, err
	}
	if err := ctx.Err(); err != nil {
		return 0, nil, mtime, err
	}
	size, err = io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 256<<10))
	return size, h.Sum(nil), st.ModTime(), err
}

// checkedSource passes the pages of a source through a checker.
type checkedSource struct {
	blockcopy.Source
	pages *pageChecker
}

func (s *checkedSource) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	return s.Source.Fetch(ctx, ranges, func(piece blockcopy.Range, data []byte, gone bool) error {
		if err := s.pages.check(ctx, piece.Path, piece.Offset, data); err != nil {
			return err
		}
		return deliver(piece, data, gone)
	})
}
