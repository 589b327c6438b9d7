package rewind

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/pgtest"
)

// TestAgainstPgRewind rewinds identical copies of an old primary with
// pg_rewind and with this package: both must end up equal to the source.
func TestAgainstPgRewind(t *testing.T) {
	p := newPair(t, pgtest.Options{Major: 15})
	if !p.old.Server.Bin.Has("pg_rewind") {
		t.Fatal("PostgreSQL 15 is installed without pg_rewind")
	}
	p.old.PgbenchInit(5)
	p.new.WaitFor(p.old)
	p.diverge()
	p.old.Stop()
	p.new.Exec("CHECKPOINT")
	dir := filepath.Join(p.old.TempDir("peer"), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := pgtest.CopyTree(p.old.Dir, dir); err != nil {
		t.Fatal(err)
	}

	begin := time.Now()
	out, err := exec.Command(p.old.Server.Bin.Path("pg_rewind"), "-D", dir, "--source-server", p.new.ConnInfo("dbname=postgres"), "-P", "-R").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	took := time.Since(begin)
	res := mustRun(t, p.options())
	t.Logf("pg_rewind: %s, %.2f s", regexp.MustCompile(`need to copy.*`).Find(out), took.Seconds())
	t.Logf("dbrewind: %d of %d bytes, %.2f s", res.Bytes, res.Totals.SourceBytes, res.Seconds)

	peer := pgtest.Attach(t, "peer", dir, "primary_slot_name = ''")
	peer.Start()
	p.proveEqual(p.new)
	peer.WaitFor(p.new)
	if d := cmp.Diff(p.new.Digest(), peer.Digest()); d != "" {
		t.Errorf("pg_rewind's result differs:\n%s", d)
	}
}
