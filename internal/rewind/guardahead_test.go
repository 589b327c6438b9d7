package rewind

import (
	"strings"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
)

// TestFileCopyShortLived: a database that the source made by copying files and
// dropped again is no reason to refuse; one under the number of a database that
// the target made, too, is seen before anything is written.
func TestFileCopyShortLived(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.old.Exec("CREATE DATABASE tmpl")
	p.old.ExecIn("tmpl", "CREATE TABLE y AS SELECT g AS i, 'before' AS v FROM generate_series(1, 5000) g")
	p.old.Exec("CHECKPOINT")
	p.new.WaitFor(p.old)
	p.new.Exec("CHECKPOINT")
	p.new.Promote()
	sameNumber := ""
	if p.old.Major >= 15 { // where a number can be asked for
		sameNumber = " OID 50000"
		p.old.Exec("CREATE DATABASE mine STRATEGY wal_log" + sameNumber)
	}
	p.old.ExecIn("tmpl", "UPDATE y SET v = 'lost' WHERE i % 10 = 0")
	p.old.Stop()
	p.new.Exec(fileCopy(p.new, "made", "tmpl"))
	p.new.ExecIn("tmpl", "UPDATE y SET v = 'after'")
	p.new.Exec("DROP DATABASE made")
	p.new.Exec("CHECKPOINT")
	mustRun(t, p.options())
	if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
		t.Fatal(err)
	}
	if sameNumber != "" {
		p.new.Exec(fileCopy(p.new, "theirs", "tmpl") + sameNumber)
		p.new.ExecIn("tmpl", "UPDATE y SET v = 'once more'")
		p.new.Exec("CHECKPOINT")
		refused(t, p.options(), exit.Refused, "by copying the files")
		p.new.Exec("DROP DATABASE theirs")
	}
	mustRun(t, p.options())
	p.proveEqual(p.new)
}

// TestFullPageWritesOffAtPrimaryOfSource: the source is a standby; that its
// primary had switched full_page_writes off only the WAL tells.
func TestFullPageWritesOffAtPrimaryOfSource(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	third := p.new.Standby(pgtest.StandbyOptions{Name: "third"})
	p.new.Promote()
	p.old.Exec("CREATE TABLE lost AS SELECT 1 AS i")
	p.old.Stop()
	for _, value := range []string{"off", "on"} {
		p.new.Exec("ALTER SYSTEM SET full_page_writes = " + value)
		p.new.Reload()
		p.new.WaitSQL("SHOW full_page_writes", value)
		p.new.Exec("UPDATE t SET v = 'torn' WHERE i < 100")
		p.new.WaitSQL("SELECT pg_current_wal_flush_lsn() = pg_current_wal_insert_lsn()", "t")
	}
	third.WaitFor(p.new)
	o := p.options()
	o.SourceConn = third.ConnInfo()
	refused(t, o, exit.Refused, "nothing was changed: replay of the source's WAL would not give what the source has")
	p.new.Exec("CHECKPOINT")
	third.WaitFor(p.new)
	third.Exec("CHECKPOINT")
	mustRun(t, o)
}

// TestOtherPlaces: a tablespace that both sides have, each in a place of its own.
func TestOtherPlaces(t *testing.T) {
	link := func(to string) map[string]blockcopy.Entry {
		return map[string]blockcopy.Entry{"pg_tblspc/16500": {Path: "pg_tblspc/16500", Type: blockcopy.Link, LinkTarget: to}}
	}
	for _, c := range []struct {
		source, target map[string]blockcopy.Entry
		dirs           []blockcopy.Action
		want           bool
	}{
		{link("/a"), link("/a"), nil, false},
		{link("/a"), link("/b"), nil, true},
		{link("/a"), nil, nil, false}, // its link is an action then
		{link("/a"), nil, []blockcopy.Action{{Kind: blockcopy.CreateLink, Path: "pg_tblspc/16500"}}, true},
	} {
		p := planner{job: &job{sc: &volume.Control{}}, source: c.source, target: c.target, dirs: c.dirs}
		if got := p.otherPlaces(); got != c.want {
			t.Errorf("%s: %v", strings.Join([]string{c.source["pg_tblspc/16500"].LinkTarget, c.target["pg_tblspc/16500"].LinkTarget}, " "), got)
		}
	}
}
