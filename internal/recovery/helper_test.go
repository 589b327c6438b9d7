package recovery_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/pgtest"
	"tidemark/internal/recovery"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

func TestMain(m *testing.M) { pgtest.Main(m, "dbrecover") }

// site is a primary with a repository that it does not know of: the tests put
// into it what they want to be there.
type site struct {
	*pgtest.Node
	t       *testing.T
	dir     string // of the repository
	cluster *repo.Cluster
}

func newSite(t *testing.T, o pgtest.Options) *site {
	t.Helper()
	o.Config = append(o.Config, "archive_mode = on", "archive_command = '/bin/true'", "wal_keep_size = 1GB")
	s := &site{Node: pgtest.New(t, o), t: t, dir: filepath.Join(t.TempDir(), "repo")}
	r, _, err := repo.Init(t.Context(), s.dir)
	s.must(err)
	c, err := volume.ReadControl(s.Dir)
	s.must(err)
	s.cluster = r.Cluster(c.SystemIdentifier)
	return s
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// backup takes a backup of the running node.
func (s *site) backup() *repo.Summary {
	s.t.Helper()
	ctx, cancel := s.Context()
	defer cancel()
	start, stop := "SELECT pg_backup_start('test', true)", "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)"
	if s.Major < 15 {
		start, stop = "SELECT pg_start_backup('test', true, false)", "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
	}
	began := time.Now()
	conn := s.Conn()
	_, err := conn.Exec(ctx, start)
	s.must(err)
	w, err := s.cluster.NewBackup(ctx, repo.WriterOptions{Tool: "test", BlockSize: 8192, PackBytes: 4 << 20})
	s.must(err)
	s.copyTo(ctx, w)
	control, err := volume.ReadControl(s.Dir)
	s.must(err)
	var lsn, label, spaces string
	s.must(conn.QueryRow(ctx, stop).Scan(&lsn, &label, &spaces))
	l, err := volume.ParseBackupLabel([]byte(label))
	s.must(err)
	end, err := wal.ParseLSN(lsn)
	s.must(err)
	sum := &repo.Summary{Major: s.Major, ControlVersion: control.PgControlVersion, CatalogVersion: control.CatalogVersionNo,
		SystemID: repo.SystemID(control.SystemIdentifier), BlockSize: 8192, WALSegmentSize: uint32(control.XLogSegSize),
		Start: repo.Point{LSN: l.StartWAL, Timeline: l.Timeline()}, Checkpoint: l.Checkpoint,
		Stop: repo.Point{LSN: end, Timeline: l.Timeline()}, Began: began, Finished: time.Now(),
		Source:  repo.Origin{Role: "primary", Access: "files", Server: "test"},
		Control: control.Encode(), BackupLabel: label, TablespaceMap: spaces}
	links, err := volume.ParseTablespaceMap([]byte(strings.TrimSuffix(spaces, "\n") + "\n"))
	s.must(err)
	for _, link := range links {
		name := s.SQL("SELECT spcname FROM pg_tablespace WHERE oid = " + wal.TimelineID(link.Oid).String())
		sum.Tablespaces = append(sum.Tablespaces, repo.Tablespace{OID: link.Oid, Path: link.Path, Name: name})
	}
	size := control.XLogSegSize
	name := func(at wal.LSN) string { return wal.SegmentName(l.Timeline(), size.NumberBefore(at), size) }
	sum.WAL = []repo.WALRange{{Timeline: l.Timeline(), First: l.WALFile, Last: name(end)}}
	s.must(w.Commit(sum))
	return sum
}

func (s *site) copyTo(ctx context.Context, w *repo.BackupWriter) {
	s.t.Helper()
	src := blockcopy.NewDirSource(s.Dir, false)
	entries, err := src.List(ctx)
	s.must(err)
	slices.SortFunc(entries, func(a, b blockcopy.Entry) int { return strings.Compare(a.Path, b.Path) })
	for _, e := range entries {
		class := volume.Classify(e.Path)
		if e.Type == blockcopy.Dir {
			class = volume.ClassifyDir(e.Path)
		}
		switch class {
		case volume.ClassSkip, volume.ClassControl, volume.ClassLabel, volume.ClassWAL:
			continue
		}
		f, err := w.File(e)
		s.must(err)
		if e.Type != blockcopy.File {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.Dir, e.Path))
		if err != nil {
			s.must(f.Close(0, true))
			continue
		}
		s.must(f.Write(0, data))
		s.must(f.Close(int64(len(data)), false))
	}
}

// archive completes the segment that is written to and pushes all WAL that is
// complete, but for the files that skip names.
func (s *site) archive(skip ...string) (last string) {
	s.t.Helper()
	last = s.SwitchWAL()
	entries, err := os.ReadDir(filepath.Join(s.Dir, "pg_wal"))
	s.must(err)
	for _, e := range entries {
		f, ok := wal.ParseFileName(e.Name())
		if !ok || f.Kind == wal.FileSegment && e.Name() > last || slices.Contains(skip, e.Name()) {
			continue
		}
		s.push(e.Name())
	}
	return last
}

func (s *site) push(name string) {
	s.t.Helper()
	f, err := os.Open(filepath.Join(s.Dir, "pg_wal", name))
	s.must(err)
	defer f.Close()
	fi, err := f.Stat()
	s.must(err)
	_, err = s.cluster.PushWAL(s.t.Context(), name, f, fi.Size())
	s.must(err)
}

// object returns the path of an archived WAL file in the repository.
func (s *site) object(name string) string {
	s.t.Helper()
	found := ""
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), name+".") {
			found = path
		}
		return err
	})
	s.must(err)
	if found == "" {
		s.t.Fatalf("%s is not in the repository", name)
	}
	return found
}

// now returns the server's clock, between two transactions.
func (s *site) now() time.Time {
	s.t.Helper()
	at, err := recovery.ParseTime(s.SQL("SELECT clock_timestamp()"))
	s.must(err)
	return at
}

func (s *site) lsn() wal.LSN {
	s.t.Helper()
	at, err := wal.ParseLSN(s.SQL("SELECT pg_current_wal_insert_lsn()"))
	s.must(err)
	return at
}

// resolve is Resolve for a target, along the latest timeline.
func (s *site) resolve(t recovery.Target) (*recovery.Resolution, error) {
	return recovery.Resolve(s.t.Context(), s.cluster, recovery.Request{Target: t, Timeline: "latest"})
}

// target returns a directory name for a restore.
func (s *site) target(name string) string { return filepath.Join(s.TempDir(name), "data") }

// rows returns what a recovered cluster holds in table t.
func rows(t *testing.T, dir string) string {
	t.Helper()
	n := pgtest.Attach(t, filepath.Base(filepath.Dir(dir)), dir, "archive_mode = off")
	n.Start()
	defer n.Stop()
	return n.SQL("SELECT count(*), coalesce(max(i), 0) FROM t")
}
