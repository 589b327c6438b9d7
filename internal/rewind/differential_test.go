package rewind

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
)

// Read before pgtest clears the environment.
var (
	seedWanted = os.Getenv("TIDEMARK_SEED")  // one seed, to see a failure again
	seedsCount = os.Getenv("TIDEMARK_SEEDS") // how many random ones, 3 a major by default
)

// seeds are what the differential test starts its generators from.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	if seedWanted != "" {
		n, err := strconv.ParseUint(seedWanted, 10, 64)
		if err != nil {
			t.Fatalf("TIDEMARK_SEED=%q: %v", seedWanted, err)
		}
		return []uint64{n}
	}
	count := 3
	if seedsCount != "" {
		var err error
		if count, err = strconv.Atoi(seedsCount); err != nil {
			t.Fatalf("TIDEMARK_SEEDS=%q: %v", seedsCount, err)
		}
	}
	out := make([]uint64, count)
	for i := range out {
		out[i] = rand.Uint64N(1_000_000_000)
	}
	return out
}

// TestDifferential lets random workloads loose before and after the fork, on
// both sides, and rewinds identical copies of the old primary with pg_rewind
// and with this package. Both must start, follow, and hold what the source
// holds. TIDEMARK_SEED repeats one seed, TIDEMARK_SEEDS says how many.
func TestDifferential(t *testing.T) {
	var tally tally
	t.Cleanup(func() { t.Log(tally.String()) })
	pgtest.EachLong(t, func(t *testing.T, major int) {
		for _, seed := range seeds(t) {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				tr := &trial{t: t, seed: seed, major: major, rng: rand.New(rand.NewPCG(seed, 0)), tally: &tally}
				tr.run()
			})
		}
	})
}

// tally counts what happened over all seeds.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *tally) add(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[what]++
}

func (c *tally) String() string { return fmt.Sprint("seeds: ", c.n) }

// trial is one seed.
type trial struct {
	t        *testing.T
	seed     uint64
	major    int
	rng      *rand.Rand
	tally    *tally
	old, new *pgtest.Node
	source   *pgtest.Node // the new primary, or a standby of it
	byDir    bool
	work     [2]*workload // on the old and on the new primary
	phases   strings.Builder
	began    time.Time
}

func (tr *trial) one(in int) bool { return tr.rng.IntN(in) == 0 }

// phase notes how long things take.
func (tr *trial) phase(name string) {
	fmt.Fprintf(&tr.phases, " %s %.1f", name, time.Since(tr.began).Seconds())
	tr.began = time.Now()
}

func (tr *trial) run() {
	tr.began = time.Now()
	defer func() { tr.t.Logf("seconds:%s", tr.phases.String()) }()
	tr.setUp()
	tr.fork()
	tr.diverge()
	peer := tr.copyOld()
	if !tr.rewind() {
		return
	}
	tr.peer(peer)
	tr.prove(peer)
}

// setUp makes a primary with a history, and its standby.
func (tr *trial) setUp() {
	o := pgtest.Options{Major: tr.major, Name: "old", Checksums: !tr.one(4), Config: []string{"shared_buffers = 2MB", "max_prepared_transactions = 10",
		"autovacuum = off", "allow_in_place_tablespaces = on", "wal_keep_size = 300MB", "max_wal_size = 300MB", "hot_standby = on", "wal_retrieve_retry_interval = 100ms"}}
	if !o.Checksums {
		o.Config = append(o.Config, "wal_log_hints = on")
	}
	if tr.one(2) {
		o.WALSegMB = 1
	}
	if tr.one(3) {
		o.Config = append(o.Config, "wal_compression = on")
	}
	if tr.one(3) {
		o.Config = append(o.Config, "bgwriter_delay = 10ms")
	}
	tr.old = pgtest.New(tr.t, o)
	tr.old.ExecIn("template1", "CREATE EXTENSION amcheck")
	tr.old.Exec("CREATE EXTENSION amcheck; CREATE SEQUENCE s0")
	tr.old.Exec("CREATE TABLESPACE sp LOCATION " + postgres.QuoteLiteral(tr.old.TempDir("my space")))
	var tables strings.Builder
	for i := range 6 {
		fmt.Fprintf(&tables, "CREATE TABLE t%d %s; INSERT INTO t%d (v) SELECT md5(g::text) FROM generate_series(1, %d) g;", i, columns, i, 10+tr.rng.IntN(4000))
	}
	tr.old.Exec(tables.String())
	tr.work[0] = newWorkload(tr.t, tr.old, tr.seed, 1)
	tr.work[0].createDatabase()
	tr.work[0].run(10 + tr.rng.IntN(15))
	tr.phase("set up")
	tr.new = tr.old.Standby(pgtest.StandbyOptions{Name: "new"})
	tr.work[0].run(tr.rng.IntN(15))
	if tr.one(2) {
		tr.old.Exec("CHECKPOINT")
		tr.work[0].run(tr.rng.IntN(10))
	}
	tr.new.WaitFor(tr.old)
	tr.source = tr.new
	tr.work[1] = newWorkload(tr.t, tr.new, tr.seed, 2)
}

// fork promotes the standby; a third node may follow it.
func (tr *trial) fork() {
	if tr.one(3) {
		tr.new.Exec("CHECKPOINT") // a restart point
	}
	if tr.one(6) {
		tr.source = tr.old.Standby(pgtest.StandbyOptions{Name: "third", NoSlot: true})
		tr.source.WaitFor(tr.old)
		tr.source.Follow(tr.new)
	}
	tr.phase("standby")
	tr.new.Promote()
	tr.phase("promote")
}

// diverge lets both write at the same time, and stops the old one.
func (tr *trial) diverge() {
	steps := [2]int{tr.rng.IntN(40), tr.rng.IntN(40)}
	var wg sync.WaitGroup
	for i, w := range tr.work {
		w.left = 2
		wg.Go(func() { w.run(steps[i]) })
	}
	wg.Wait()
	if tr.one(4) {
		tr.old.Kill()
	} else {
		tr.old.Stop()
	}
	switch tr.rng.IntN(5) {
	case 0, 1:
		tr.new.Exec("CHECKPOINT")
	case 2:
		tr.byDir = tr.source == tr.new
	}
	if tr.source != tr.new {
		tr.source.WaitFor(tr.new)
	}
	if tr.byDir {
		tr.new.Stop()
	}
	tr.phase("work")
}

// copyOld makes the copy that pg_rewind gets, "" where there is no pg_rewind.
func (tr *trial) copyOld() string {
	if pgRewind(tr.old) == "" {
		return ""
	}
	dir := filepath.Join(tr.old.TempDir("peer"), "data")
	copyCluster(tr.t, tr.old.Dir, dir)
	tr.phase("copy")
	return dir
}

// copyCluster copies a stopped cluster; its tablespaces get copies of their own.
func copyCluster(t testing.TB, from, to string) {
	t.Helper()
	if err := pgtest.CopyTree(from, to); err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob(filepath.Join(to, "pg_tblspc", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		place, err := os.Readlink(link)
		if err != nil {
			continue // in place
		}
		own := to + ".ts" + filepath.Base(link)
		if err := errors.Join(pgtest.CopyTree(place, own), os.Remove(link), os.Symlink(own, link)); err != nil {
			t.Fatal(err)
		}
	}
}

func pgRewind(n *pgtest.Node) string {
	if n.Server.Bin.Has("pg_rewind") {
		return n.Server.Bin.Path("pg_rewind")
	}
	return ""
}

func (tr *trial) options() Options {
	o := Options{Target: tr.old.Dir, SourceConn: tr.source.ConnInfo(), WriteRecoveryConf: true, Command: "dbrewind ...", NoSync: tr.one(2)}
	if tr.byDir {
		o.SourceConn, o.SourceDir, o.WriteRecoveryConf = "", tr.new.Dir, false
	}
	return o
}

// rewind runs this package, now and then interrupted, undone, or with the
// source at work. It returns false where the run was rightly refused.
func (tr *trial) rewind() bool {
	o := tr.options()
	stop := func() {}
	if !tr.byDir && tr.one(2) {
		stop = tr.keepWriting()
	}
	var before map[string]string
	if tr.one(3) {
		before = tr.interrupted(o)
	}
	res, err := Run(tr.t.Context(), o)
	stop()
	tr.phase("dbrewind")
	if err != nil {
		return tr.refused(err, before)
	}
	what := "rewound"
	if !res.Diverged {
		what = "nothing to rewind"
	}
	tr.tally.add(what)
	tr.t.Logf("%s: %d of %d bytes; %s", what, res.Bytes, tr.sourceBytes(res), res.Reason)
	if o.WriteRecoveryConf && tr.source == tr.new {
		return true
	}
	if tr.byDir {
		tr.new.Start()
	}
	tr.old.Follow(tr.new)
	tr.old.AppendFile("standby.signal", "")
	return true
}

func (tr *trial) sourceBytes(res *Result) int64 {
	if res.Totals == nil {
		return 0
	}
	return res.Totals.SourceBytes
}

// keepWriting has the source written to until the returned function is called.
func (tr *trial) keepWriting() func() {
	ctx, cancel := context.WithCancel(tr.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			tr.work[1].step()
		}
		tr.work[1].close()
	}()
	return func() { cancel(); <-done }
}

// interrupted stops a run at a random operation, and half of the time takes
// back what it did. It returns what the target was, where no run changed it
// but by recovering it.
func (tr *trial) interrupted(o Options) map[string]string {
	recovered := tr.old.Server.DataDir
	c, err := volume.ReadControl(recovered)
	if err != nil {
		tr.t.Fatal(err)
	}
	var before map[string]string
	if c.State.Clean() {
		before = tree(tr.t, tr.old.Dir)
	}
	o.fs = faultfs.Wrap(volume.OS, faultfs.StopAt(20+tr.rng.IntN(1500)))
	o.NoSync = false
	if _, err := Run(tr.t.Context(), o); err == nil {
		tr.t.Log("interrupted: it was quicker")
	} else if exit.CodeOf(err) != exit.Partial && exit.CodeOf(err) != exit.Failed && exit.CodeOf(err) != exit.Refused {
		tr.t.Fatalf("interrupted: %v", err)
	}
	tr.tally.add("interrupted")
	if tr.one(2) {
		_, err := Undo(tr.t.Context(), UndoOptions{Target: tr.old.Dir, Command: "undo"})
		if err != nil && !strings.Contains(err.Error(), "nothing to undo") {
			tr.t.Fatalf("undo: %v", err)
		}
		tr.tally.add("undone")
		if before != nil {
			sameTree(tr.t, before, tr.old.Dir)
		}
	}
	return before
}

// refused judges an error: a database of the source that was made by copying
// files may be something that replay cannot make again. It says so before
// anything is written, or where it happened meanwhile undo brings the target back.
func (tr *trial) refused(err error, before map[string]string) bool {
	tr.t.Helper()
	var unsafe *unsafeReplay
	if !errors.As(err, &unsafe) || exit.CodeOf(err) != exit.Refused {
		tr.t.Fatalf("dbrewind: %v\n%s", err, exit.HintOf(err))
	}
	tr.tally.add("refused")
	tr.t.Logf("refused: %v", err)
	pending, err := blockcopy.Pending(volume.OS, tr.old.Dir)
	if err != nil {
		tr.t.Fatal(err)
	}
	if pending != nil {
		tr.tally.add("refused at the end")
		if _, err := Undo(tr.t.Context(), UndoOptions{Target: tr.old.Dir, Command: "undo"}); err != nil {
			tr.t.Fatal(err)
		}
	}
	if before != nil {
		sameTree(tr.t, before, tr.old.Dir)
	}
	return false
}

// knownFailures are what pg_rewind cannot do, by what it says.
var knownFailures = []struct {
	name  string
	until int // the last major that has it, 0 for all
	words *regexp.Regexp
}{
	{"tablespaces in place", 16, regexp.MustCompile(`could not read symbolic link "pg_tblspc|could not create directory ".*pg_tblspc|pg_tblspc/\d+" is of different type`)},
	{"a source that changes while it is read", 0, regexp.MustCompile(`unexpected page modifications|could not fetch remote file`)},
}

// peer runs pg_rewind on its copy.
func (tr *trial) peer(dir string) {
	if dir == "" {
		return
	}
	args := []string{"-D", dir, "--no-sync"}
	if tr.byDir {
		tr.new.Stop()
		args = append(args, "--source-pgdata", tr.new.Dir)
	} else {
		// The source's control file must tell the new timeline.
		tr.new.Exec("CHECKPOINT")
		if tr.source != tr.new {
			tr.source.WaitFor(tr.new)
			tr.source.Exec("CHECKPOINT")
		}
		args = append(args, "--source-server", tr.source.ConnInfo())
	}
	out, err := exec.Command(pgRewind(tr.old), args...).CombinedOutput()
	if tr.byDir {
		tr.new.Start()
	}
	tr.phase("pg_rewind")
	if err == nil {
		return
	}
	for _, k := range knownFailures {
		if (k.until == 0 || tr.major <= k.until) && k.words.Match(out) {
			tr.t.Logf("pg_rewind fails (%s): %s", k.name, out)
			tr.tally.add("pg_rewind fails: " + k.name)
			if err := os.RemoveAll(dir); err != nil {
				tr.t.Fatal(err)
			}
			return
		}
	}
	tr.t.Errorf("pg_rewind fails in a way that is not known: %v\n%s", err, out)
	os.RemoveAll(dir)
}

// prove starts both, has them follow the new primary, and compares.
func (tr *trial) prove(peer string) {
	t := tr.t
	nodes := []*pgtest.Node{tr.old}
	if _, err := os.Stat(filepath.Join(peer, volume.ControlPath)); peer != "" && err == nil {
		p := pgtest.Attach(t, "peer", peer, "shared_buffers = 2MB", "restart_after_crash = off")
		p.Follow(tr.new)
		p.AppendFile("standby.signal", "")
		nodes = append(nodes, p)
	}
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := n.TryStart(); err != nil {
				t.Errorf("starting %s: %v", n.Name, err)
			}
		})
	}
	tr.work[1].run(tr.rng.IntN(10))
	wg.Wait()
	if t.Failed() {
		return
	}
	tr.new.Exec("CREATE TABLE after_rewind AS SELECT 1 AS i")
	want := contents(t, tr.new)
	prepared := tr.new.SQL("SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_prepared_xacts")
	for _, n := range nodes {
		n.WaitFor(tr.new)
		sequences(t, tr.new, n)
		if d := cmp.Diff(want, contents(t, n)); d != "" {
			t.Errorf("%s: contents differ from the source's:\n%s", n.Name, d)
		}
	}
	tr.phase("compare")
	amcheck(t, tr.old)
	tr.phase("amcheck")
	if tr.one(2) {
		tr.asPrimary(prepared)
	}
	tr.old.Stop()
	checksums(t, tr.old)
	tr.phase("checksums")
}

// asPrimary promotes the rewound node: what only a primary shows must be right too.
func (tr *trial) asPrimary(prepared string) {
	t := tr.t
	tr.new.Stop()
	tr.old.Promote()
	if got := tr.old.SQL("SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_prepared_xacts"); got != prepared {
		t.Errorf("prepared transactions: %q, wanted %q", got, prepared)
	}
	for _, u := range strings.Fields(tr.old.SQL("SELECT string_agg(oid::regclass::text, ' ') FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'")) {
		if got := tr.old.SQL("SELECT count(*) FROM " + u); got != "0" {
			t.Errorf("unlogged %s has %s rows", u, got)
		}
	}
	w := newWorkload(t, tr.old, tr.seed, 3)
	w.run(10)
	amcheck(t, tr.old)
	tr.phase("as primary")
}

// sequences compares the sequences: the WAL tells of each only every 32nd
// value, so a standby's may be ahead; after SET LOGGED it may be behind.
func sequences(t testing.TB, source, standby *pgtest.Node) {
	t.Helper()
	for _, s := range strings.Fields(source.SQL("SELECT string_agg(oid::regclass::text, ' ') FROM pg_class WHERE relkind = 'S' AND relpersistence = 'p'")) {
		q := "SELECT last_value * sign(seqincrement), seqincrement FROM " + s + ", pg_sequence WHERE seqrelid = '" + s + "'::regclass"
		var want, got, step int64
		fmt.Sscanf(source.SQL(q), "%d|%d", &want, &step)
		fmt.Sscanf(standby.SQL(q), "%d|%d", &got, &step)
		if far := 40 * 20 * max(step, -step); got < want-far || got > want+far {
			t.Errorf("%s: sequence %s is at %d, the source's at %d", standby.Name, s, got, want)
		}
	}
}

// contents is a hash of every relation with rows of its own, catalogs and
// TOAST too, of every database.
func contents(t testing.TB, n *pgtest.Node) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, db := range strings.Fields(n.SQL("SELECT string_agg(datname, ' ') FROM pg_database WHERE datallowconn")) {
		conn := n.Conn("dbname=" + db)
		var sql string
		const build = `SELECT string_agg(format('SELECT %L, count(*)::text || '' '' || coalesce(sum(hashtextextended(%s::text, 0)::numeric), 0) FROM %s x',
				c.oid::regclass, CASE relkind WHEN 't' THEN '(chunk_id, chunk_seq, chunk_data)' ELSE 'x' END, c.oid::regclass), ' UNION ALL ')
			FROM pg_class c WHERE relkind IN ('r', 'm', 't') AND relpersistence = 'p'`
		if _, err := conn.Exec(t.Context(), "SET search_path = ''; SET jit = off; SET max_parallel_workers_per_gather = 0"); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), build).Scan(&sql); err != nil {
			t.Fatal(n.Name, err)
		}
		rows, err := conn.Query(t.Context(), sql)
		if err != nil {
			t.Fatal(n.Name, err)
		}
		for rows.Next() {
			var name, sum string
			if err := rows.Scan(&name, &sum); err != nil {
				t.Fatal(n.Name, err)
			}
			all[db+": "+name] = sum
		}
		if err := rows.Err(); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		conn.Close(t.Context())
	}
	return all
}
