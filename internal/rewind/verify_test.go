package rewind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
)

// everyMethod makes indexes of every access method, sequences and large values,
// and works on them so that hints of every kind come up.
const everyMethod = `CREATE TABLE m (i int PRIMARY KEY, a int[], p point, s text, big text);
	CREATE INDEX m_hash ON m USING hash (i); CREATE INDEX m_gin ON m USING gin (a); CREATE INDEX m_gist ON m USING gist (p);
	CREATE INDEX m_spgist ON m USING spgist (s); CREATE INDEX m_brin ON m USING brin (i) WITH (autosummarize = off);
	CREATE SEQUENCE seq; CREATE UNLOGGED TABLE un AS SELECT 1 AS i;
	INSERT INTO m SELECT g, ARRAY[g, g % 7], point(g, g), md5(g::text), repeat(md5(g::text), 100) FROM generate_series(1, 3000) g;
	SELECT nextval('seq'), nextval('seq'), nextval('seq');
	UPDATE m SET s = s || 'x' WHERE i % 3 = 0; DELETE FROM m WHERE i % 5 = 0;
	SET enable_seqscan = off; SELECT count(*) FROM m WHERE i < 2000; SELECT count(*) FROM m WHERE a @> '{3}'; SELECT count(*) FROM m WHERE p <@ box '(0,0,1000,1000)';
	VACUUM m; UPDATE m SET s = 'y' WHERE i % 7 = 0; SELECT count(*) FROM m`

// TestStartAndVerify: a rewind ends with the proof that the target follows and
// is a copy, while the source works.
func TestStartAndVerify(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		p.diverge()
		execEach(p.new, everyMethod)
		p.old.Stop()
		stop := p.new.Churn("UPDATE m SET s = s || 'z' WHERE i % 100 = 1", "SELECT nextval('seq')", "INSERT INTO grows SELECT generate_series(1, 1000)", "VACUUM grows", "SELECT pg_sleep(0.05)")
		o := p.options()
		o.Start, o.Verify, o.StartTimeout = true, true, pgtest.Patience
		res := mustRun(t, o)
		stop()
		if s := res.Started; s == nil || s.State != "streaming" || s.Replayed < s.SourceLSN || s.Timeline != 2 || s.SourceTLI != 2 || s.Sender == "" {
			t.Errorf("%+v", s)
		}
		v := res.Verified
		if v == nil || len(v.Differences) > 0 || v.Files < 500 || v.Reread == 0 {
			t.Errorf("%+v", v)
		}
		t.Logf("%+v %+v", res.Started, v)
		// At rest everything can be compared.
		execEach(p.new, everyMethodAgain)
		execEach(p.old, "SELECT count(*) FROM m; SELECT count(*) FROM m WHERE i < 100") // sets hints of its own
		if v, err := Verify(t.Context(), VerifyOptions{Target: p.old.Dir, SourceConn: p.new.ConnInfo()}); err != nil || len(v.Differences) > 0 || v.Unsettled > 0 {
			t.Errorf("%+v %v", v, err)
		}
		if _, err := Verify(t.Context(), VerifyOptions{Target: p.new.Dir, SourceConn: p.new.ConnInfo()}); exit.CodeOf(err) != exit.Refused {
			t.Error(err)
		}
		p.old.Stop()
		p.old.Start()
		p.proveVerifyFinds()
	})
}

const everyMethodAgain = `DELETE FROM m WHERE i % 11 = 0; SELECT count(*) FROM m; SELECT nextval('seq'); SELECT count(*) FROM m WHERE i < 2500; DELETE FROM m WHERE i = 1; VACUUM m`

// proveVerifyFinds plants differences into the running standby's files.
func (p *pair) proveVerifyFinds() {
	t := p.t
	t.Helper()
	p.old.WaitFor(p.new)
	row, block := p.new.SQL("SELECT i FROM t WHERE ctid = '(7,1)'"), int64(7)
	heap, index := p.new.SQL("SELECT pg_relation_filepath('t')"), p.new.SQL("SELECT pg_relation_filepath('both_truncate')")
	vm := p.new.SQL("SELECT pg_relation_filepath('m') || '_vm'")
	p.old.Stop()
	c, err := volume.ReadControl(p.old.Dir)
	if err != nil {
		t.Fatal(err)
	}
	// One byte of one row, with a checksum that fits.
	edit(t, filepath.Join(p.old.Dir, heap), block, func(page []byte) {
		page[len(page)-10]++
		sum := volume.Checksum(page, uint32(block))
		page[8], page[9] = byte(sum), byte(sum>>8)
	})
	edit(t, filepath.Join(p.old.Dir, heap), 9, func(page []byte) { page[5000]++ })
	// Bits that say "all visible" and are not.
	edit(t, filepath.Join(p.old.Dir, vm), 0, func(page []byte) {
		for i := 24; i < 26; i++ {
			page[i] = 0xFF
		}
		sum := volume.Checksum(page, 0)
		page[8], page[9] = byte(sum), byte(sum>>8)
	})
	if err := os.Remove(filepath.Join(p.old.Dir, index)); err != nil {
		t.Fatal(err)
	}
	p.old.Start()
	v, err := Verify(t.Context(), VerifyOptions{Target: p.old.Dir, SourceConn: p.new.ConnInfo()})
	if err != nil {
		t.Fatal(err)
	}
	if exit.CodeOf(v.Err()) != exit.Problem {
		t.Errorf("%v", v.Err())
	}
	var found []string
	for _, d := range v.Differences {
		found = append(found, d.String())
	}
	all := strings.Join(found, "\n")
	t.Logf("row %s of t:\n%s", row, all)
	want := []string{"public.t of database postgres, block 7: the contents differ, at the same LSN", "public.m of database postgres (vm), block 0",
		"public.both_truncate of database postgres, block 0: it is missing here"}
	if c.Checksums() {
		want = append(want, "public.t of database postgres, block 9: the page here is damaged")
	}
	for _, w := range want {
		if !strings.Contains(all, w) {
			t.Errorf("not found: %s", w)
		}
	}
	if len(found) != len(want) {
		t.Errorf("found %d differences, planted %d", len(found), len(want))
	}
}

func edit(t testing.TB, name string, block int64, change func(page []byte)) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	change(data[block*8192 : (block+1)*8192])
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyWithoutChecksums: hint bits differ everywhere, and nothing is wrong.
func TestVerifyWithoutChecksums(t *testing.T) {
	p := comparePair(t, pgtest.Options{})
	execEach(p.old, everyMethod)
	execEach(p.old, everyMethodAgain)
	p.new.WaitFor(p.old)
	execEach(p.new, "SELECT count(*) FROM m; SELECT count(*) FROM t")
	v, err := Verify(t.Context(), VerifyOptions{Target: p.new.Dir, SourceConn: p.old.ConnInfo()})
	if err != nil || len(v.Differences) > 0 || v.Unsettled > 0 || v.Reread == 0 {
		t.Errorf("%+v %v", v, err)
	}
	t.Logf("%+v", v)
}

// TestStartRefusals: what cannot be started as a standby is refused before
// anything is done; a server that does not start says why.
func TestStartRefusals(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.diverge()
	p.old.Stop()
	before := tree(t, p.old.Dir)
	o := p.options()
	o.Start, o.WriteRecoveryConf = true, false
	if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "second primary") {
		t.Error(err)
	}
	sameTree(t, before, p.old.Dir)
	o.WriteRecoveryConf, o.StartTimeout = true, 20*time.Second
	p.old.AppendFile("pg_hba.conf", "nonsense\n")
	if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Partial || !strings.Contains(exit.HintOf(err), "pg_hba.conf") {
		t.Errorf("code %d: %v, hint %s", exit.CodeOf(err), err, exit.HintOf(err))
	}
	hba := readFile(t, filepath.Join(p.old.Dir, "pg_hba.conf"))
	if err := os.WriteFile(filepath.Join(p.old.Dir, "pg_hba.conf"), []byte(strings.ReplaceAll(hba, "nonsense\n", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	// The same command goes on. Nobody sends WAL to it: it says so, and runs.
	conf := p.old.Dir + "/postgresql.conf"
	p.new.PrependHBA("local replication all reject")
	p.new.Reload()
	o.StartTimeout = 3 * time.Second
	res, err := Run(t.Context(), o)
	if exit.CodeOf(err) != exit.Problem || res == nil || res.Started == nil && !strings.Contains(err.Error(), "caught up") {
		t.Errorf("%s: code %d: %v, %+v", conf, exit.CodeOf(err), err, res)
	}
	if !p.old.Running() {
		t.Error("it does not run")
	}
	p.old.Stop()
}
