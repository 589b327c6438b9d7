package rewind

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// endsWithin is a pair whose new one was lost with its last segment: the
// archive of the old timeline ends with the .partial file of the promotion,
// and of the new timeline there is more or less.
type endsWithin struct {
	*repoPair
	files []string          // in the archive directory, ascending
	cut   wal.LSN           // a position on the new timeline, between two records
	held  map[string]string // contents there
	end   map[string]string // contents at the end of the archive
}

func newEndsWithin(t *testing.T, major int) *endsWithin {
	t.Helper()
	p := &endsWithin{repoPair: newRepoPair(t, pgtest.Options{Major: major})}
	p.backup(p.old)
	p.old.Exec("CREATE TABLE common AS SELECT 1 AS i") // a backup ends with a segment: the fork shall lie within one
	p.new.WaitFor(p.old)
	p.new.Promote()
	p.new.Exec("CREATE TABLE early AS SELECT generate_series(1, 1000) AS i; CHECKPOINT")
	p.held = p.new.Digest()
	var err error
	if p.cut, err = wal.ParseLSN(p.new.InsertLSN()); err != nil {
		t.Fatal(err)
	}
	p.write()
	p.new.Exec("CREATE TABLE the_end AS SELECT 1 AS i")
	p.old.Stop()
	p.new.SwitchWAL()
	p.new.WaitSQL("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'", "0")
	p.end = p.new.Digest()
	p.new.Stop()
	entries, err := os.ReadDir(p.archive)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		p.files = append(p.files, e.Name())
	}
	if !slices.Contains(p.files, p.forkSegment(p.archive)+".partial") {
		t.Fatal("the promoted server archived no .partial file")
	}
	return p
}

// cutSegment is the number of the segment that the cut lies in.
func (p *endsWithin) cutSegment() wal.SegmentNumber {
	return wal.SegmentSize(1 << 20).NumberBefore(p.cut)
}

// put stores an archived file under a name, with nothing behind the cut where
// it is the segment of the cut.
func (p *endsWithin) put(c *repo.Cluster, file, name string) {
	p.t.Helper()
	data := []byte(readFile(p.t, filepath.Join(p.archive, file)))
	if f, ok := wal.ParseFileName(name); ok && f.Kind == wal.FilePartial {
		size := wal.SegmentSize(1 << 20)
		if n, _ := f.Number(size); n == p.cutSegment() && f.Timeline == 2 {
			at := int(p.cut - size.Start(n))
			at = min(len(data), at+50) // the first bytes of the next record
			clear(data[at:])
		}
	}
	if _, err := c.PushWAL(p.t.Context(), name, bytes.NewReader(data), int64(len(data))); err != nil {
		p.t.Fatal(err)
	}
}

// upTo stores all files of the old timeline and the new one's complete
// segments below a number.
func (p *endsWithin) upTo(c *repo.Cluster, below wal.SegmentNumber, history bool) {
	for _, name := range p.files {
		f, _ := wal.ParseFileName(name)
		n, _ := f.Number(1 << 20)
		if f.Timeline == 1 || f.Kind == wal.FileHistory && history || f.Kind == wal.FileSegment && n < below {
			p.put(c, name, name)
		}
	}
}

func (p *endsWithin) cutName() string { return wal.SegmentName(2, p.cutSegment(), 1<<20) }

// walOnly is a repository with the WAL of the cluster alone.
func (p *endsWithin) walOnly() (*repo.Cluster, string) {
	p.t.Helper()
	r, _, err := repo.Init(p.t.Context(), filepath.Join(p.t.(*testing.T).TempDir(), "walonly"))
	if err != nil {
		p.t.Fatal(err)
	}
	return r.Cluster(p.cluster.SystemID()), r.Location()
}

// TestRepositoryPartialOfOldTimeline: the .partial file that a promotion leaves
// is WAL of the old timeline, whatever else there is, and nothing of the new one.
func TestRepositoryPartialOfOldTimeline(t *testing.T) {
	p := newEndsWithin(t, 0)
	fork := p.forkSegment(p.archive)
	begin := mustNumber(t, fork)
	first := wal.SegmentName(2, begin, 1<<20)
	before := tree(t, p.old.Dir)
	p.upTo(p.cluster, begin, true)
	// The history tells the fork; of the new timeline there is no WAL.
	refused(t, p.options(), exit.Refused, "the archived WAL of timeline 2 ends at")
	rep, err := Check(t.Context(), p.options())
	if err != nil || !rep.Diverged || rep.Fork.Timeline != 1 || rep.Source.Timeline != 2 || rep.Source.End != rep.Fork.LSN || rep.Lost.Len() == 0 || rep.Plan != nil {
		t.Fatalf("%+v, %v", rep, err)
	}
	if !strings.Contains(strings.Join(rep.Warnings, "\n"), "would be refused") {
		t.Error(rep.Warnings)
	}
	// Its file under the new timeline's name does not change that.
	c, location := p.walOnly()
	p.upTo(c, begin, true)
	p.put(c, fork+".partial", first+".partial")
	o := p.options()
	o.SourceRepo = location
	again, err := Check(t.Context(), o)
	if err != nil || again.Source.End != rep.Fork.LSN || !strings.Contains(strings.Join(again.Warnings, "\n"), "holds no WAL of timeline 2") {
		t.Errorf("%+v, %v", again, err)
	}
	// Without the history file the archive ends where the old timeline's file does.
	c, location = p.walOnly()
	p.upTo(c, begin, false)
	o.SourceRepo = location
	p.withoutSegment(c, fork)
	blind, err := Check(t.Context(), o)
	if err != nil || blind.Diverged || !strings.Contains(strings.Join(blind.Warnings, "\n"), "the history file of the new timeline is missing") {
		t.Errorf("%+v, %v", blind, err)
	}
	p.put(c, first, first+".partial")
	refused(t, o, exit.Failed, "has no history file of it")
	sameTree(t, before, p.old.Dir)
	t.Run("ignored", p.ignored)
}

// withoutSegment removes what the old one itself archived from the fork on.
func (p *endsWithin) withoutSegment(c *repo.Cluster, fork string) {
	p.t.Helper()
	for _, name := range p.files {
		if f, _ := wal.ParseFileName(name); f.Kind != wal.FileSegment || f.Timeline != 1 || name < fork {
			continue
		}
		path := filepath.Join(c.Repository().Location(), c.WALName(name))
		if err := os.Remove(path); err != nil {
			p.t.Fatal(err)
		}
	}
}

func mustNumber(t *testing.T, name string) wal.SegmentNumber {
	t.Helper()
	f, _ := wal.ParseFileName(name)
	n, ok := f.Number(1 << 20)
	if !ok {
		t.Fatal(name)
	}
	return n
}

// TestRepositoryPartialOfNewTimeline: of the new timeline's last segment there
// is a .partial file alone. It counts as far as its records are valid: a
// primary comes up there; a standby goes on when the archive does.
func TestRepositoryPartialOfNewTimeline(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newEndsWithin(t, major)
		p.upTo(p.cluster, p.cutSegment(), true)
		p.put(p.cluster, p.cutName(), p.cutName()+".partial")
		before := tree(t, p.old.Dir)
		rep, err := Check(t.Context(), p.options())
		if err != nil || !rep.Diverged || rep.Plan == nil || rep.Source.End != p.cut || len(rep.Missing) > 0 {
			t.Fatalf("the archive ends at %s; %+v, %v", p.cut, rep, err)
		}
		if last := rep.WAL.Replay[len(rep.WAL.Replay)-1].Last; last != p.cutName()+".partial" {
			t.Errorf("replay ends with %s", last)
		}
		mustRun(t, p.options())
		if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
			t.Fatal(err)
		}
		sameTree(t, before, p.old.Dir)

		t.Run("primary", func(t *testing.T) {
			dir := p.old.TempDir("copy")
			if err := pgtest.CopyTree(p.old.Dir, dir); err != nil {
				t.Fatal(err)
			}
			o := p.options()
			o.Target = dir
			mustRun(t, o)
			n := pgtest.Attach(t, "copy", dir, "archive_command = 'test %f != "+p.cutName()+"'")
			n.Start()
			n.WaitSQL("SELECT pg_is_in_recovery()", "f")
			if d := cmp.Diff(p.held, n.Digest()); d != "" {
				t.Errorf("contents differ:\n%s", d)
			}
			amcheck(t, n)
			n.SwitchWAL()
			n.WaitSQL("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'", "0") // the segment itself never goes there
			n.Stop()
			checksums(t, n)
		})
		t.Run("standby", func(t *testing.T) {
			o := p.options()
			o.WriteRecoveryConf = true
			mustRun(t, o)
			p.old.Start()
			p.old.WaitSQL("SELECT pg_last_wal_replay_lsn() >= '"+p.cut.String()+"'", "t")
			if d := cmp.Diff(p.held, p.old.Digest()); d != "" {
				t.Errorf("contents differ:\n%s", d)
			}
			for _, name := range p.files {
				if strings.HasPrefix(name, "00000002") {
					p.put(p.cluster, name, name)
				}
			}
			p.old.WaitSQL("SELECT count(*) FROM pg_class WHERE relname = 'the_end'", "1")
			p.prove(t, p.end, "t")
		})
	})
}

// ignored: a .partial file of a segment that was archived whole since says
// nothing, and one behind a gap does not bridge it.
func (p *endsWithin) ignored(t *testing.T) {
	push(t, p.cluster, p.archive)
	want, err := Check(t.Context(), p.options())
	if err != nil || len(want.Missing) > 0 {
		t.Fatal(want, err)
	}
	p.put(p.cluster, p.cutName(), p.cutName()+".partial")
	got, err := Check(t.Context(), p.options())
	if err != nil || got.Source.End != want.Source.End || len(got.Warnings) != len(want.Warnings) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, r := range got.WAL.Replay {
		if strings.HasSuffix(r.Last, ".partial") {
			t.Errorf("%+v", r)
		}
	}
	last := ""
	for _, name := range p.files {
		if f, _ := wal.ParseFileName(name); f.Kind == wal.FileSegment && f.Timeline == 2 {
			last = name
		}
	}
	previous := wal.SegmentName(2, mustNumber(t, last)-1, 1<<20)
	for _, name := range []string{last, previous} {
		if err := os.Remove(filepath.Join(p.repo.Location(), p.cluster.WALName(name))); err != nil {
			t.Fatal(err)
		}
	}
	p.put(p.cluster, last, last+".partial")
	refused(t, p.options(), exit.Refused, previous)
}

// TestRepositoryTailInBackup: the backup of a standby whose primary was lost
// before it archived another segment holds the end of the timeline itself.
func TestRepositoryTailInBackup(t *testing.T) {
	p := newRepoPair(t, pgtest.Options{})
	p.new.Promote()
	third := p.new.Standby(pgtest.StandbyOptions{Name: "third"})
	p.write()
	p.old.Stop()
	want := p.new.Digest() // which writes hint bits
	p.new.SwitchWAL()
	p.new.Exec("CREATE TABLE the_end AS SELECT 1 AS i")
	want["postgres.public.the_end"] = p.new.Digest()["postgres.public.the_end"]
	p.new.Exec("CHECKPOINT")
	third.WaitFor(p.new)
	p.new.WaitSQL("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'", "0")
	push(t, p.cluster, p.archive)
	third.Exec("CHECKPOINT")
	id := p.backup(third)
	p.new.Kill()
	src, err := p.cluster.OpenSource(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	tail := src.Summary().Tail
	if tail == "" || !strings.HasPrefix(tail, "00000002") {
		t.Fatalf("the backup ends in %q", tail)
	}
	rep, err := Check(t.Context(), p.options())
	if err != nil || !rep.Diverged || rep.Plan == nil || rep.Source.End != src.Summary().Stop.LSN || len(rep.Missing) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if last := rep.WAL.Replay[len(rep.WAL.Replay)-1]; last.Last != tail || !strings.Contains(last.FoundIn, id) {
		t.Errorf("replay ends with %+v", last)
	}
	mustRun(t, p.options())
	p.prove(t, want, "f")
}
