package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
)

// Patience bounds every wait of this package.
const Patience = 60 * time.Second

// Options shape a node. The zero value is a primary of the first major version
// that the tests run on (see Majors), without checksums, 16 MB segments.
type Options struct {
	Name      string // for messages; default n1, n2, ...
	Major     int
	Checksums bool
	WALSegMB  int
	Config    []string // lines for postgresql.conf: "wal_log_hints = on"
	HBA       []string // lines for pg_hba.conf, before the one that trusts everybody on the socket
	InitArgs  []string // further arguments for initdb
	Fsync     bool     // run with fsync on
	TCP       bool     // listen on 127.0.0.1 too
	Fresh     bool     // a system identifier of its own; otherwise nodes of the same options in one process share it
	NoStart   bool     // leave it stopped
}

// Node is a server that belongs to one test.
type Node struct {
	Name      string
	Major     int
	Dir       string // the data directory
	Port      int
	SocketDir string
	LogFile   string
	Server    *postgres.Server

	t   testing.TB
	tcp bool
}

// Majors returns the major versions to test on: those in TIDEMARK_PG_MAJORS
// ("15,17" or "all"), by default 15 (or the preferred installation) and the
// newest one. It skips the test where no server is installed.
func Majors(t testing.TB) []int {
	t.Helper()
	installed := installed()
	if len(installed) == 0 {
		t.Skip("no PostgreSQL is installed; see scripts/postgres.sh")
	}
	switch list := os.Getenv("TIDEMARK_PG_MAJORS"); list {
	case "all":
		return installed
	case "":
		first := installed[0]
		for _, m := range installed {
			if m == 15 {
				first = 15
			}
		}
		if last := installed[len(installed)-1]; last != first {
			return []int{first, last}
		}
		return []int{first}
	default:
		var majors []int
		for _, word := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
			m, err := strconv.Atoi(word)
			if err != nil {
				t.Fatalf("TIDEMARK_PG_MAJORS=%q: %q is no major version", list, word)
			}
			if _, err := postgres.Find(m, ""); err != nil {
				t.Fatalf("TIDEMARK_PG_MAJORS=%q: %v", list, err)
			}
			majors = append(majors, m)
		}
		return majors
	}
}

// Each runs f as a subtest on every major version that Majors returns.
func Each(t *testing.T, f func(t *testing.T, major int)) {
	t.Helper()
	for _, major := range Majors(t) {
		t.Run("pg"+strconv.Itoa(major), func(t *testing.T) { f(t, major) })
	}
}

// EachLong is Each for tests that take long: unless major versions are asked
// for by name, as the matrix does, it runs on the first one only.
func EachLong(t *testing.T, f func(t *testing.T, major int)) {
	t.Helper()
	if os.Getenv("TIDEMARK_PG_MAJORS") == "" {
		major := Majors(t)[0]
		t.Run("pg"+strconv.Itoa(major), func(t *testing.T) { f(t, major) })
		return
	}
	Each(t, f)
}

// installed returns the supported major versions found on this machine, ascending.
var installed = sync.OnceValue(func() []int {
	var majors []int
	for _, i := range postgres.Installations() {
		if postgres.Supported(i.Major) && i.Has("initdb") && (len(majors) == 0 || majors[len(majors)-1] != i.Major) {
			majors = append(majors, i.Major)
		}
	}
	return majors
})

// Tool returns the path of a client program (pgbench, pg_amcheck, ...), of the
// given major version where it is there, else of any; it skips the test where
// it is nowhere.
func Tool(t testing.TB, major int, program string) string {
	t.Helper()
	for _, i := range postgres.Installations() {
		if i.Major == major && i.Has(program) {
			return i.Path(program)
		}
	}
	var best string
	for _, i := range postgres.Installations() {
		if i.Has(program) {
			best = i.Path(program)
		}
	}
	if best == "" {
		t.Skipf("%s is not installed", program)
	}
	return best
}

var counter atomic.Int64

// New makes a node and starts it (unless NoStart). It is gone when the test ends.
func New(t testing.TB, o Options) *Node {
	t.Helper()
	if o.Major == 0 {
		o.Major = Majors(t)[0]
	}
	bin := installation(t, o.Major)
	n := newNode(t, o.Name, bin, o.TCP)
	template, err := templateDir(bin, o)
	if err != nil {
		t.Fatal(err)
	}
	if o.Fresh {
		err = initDB(bin, o, n.Dir)
	} else {
		err = CopyTree(template, n.Dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.Configure(append(n.ownConfig(o.Fsync), o.Config...)...)
	if len(o.HBA) > 0 {
		n.PrependHBA(o.HBA...)
	}
	if !o.NoStart {
		n.Start()
	}
	return n
}

func installation(t testing.TB, major int) postgres.Installation {
	t.Helper()
	bin, err := postgres.Find(major, "")
	if err != nil {
		t.Skip(err)
	}
	return bin
}

// newNode makes the directories of a node and sees to its end.
func newNode(t testing.TB, name string, bin postgres.Installation, tcp bool) *Node {
	t.Helper()
	if base == "" {
		t.Fatal("the test package's TestMain does not call pgtest.Main")
	}
	num := counter.Add(1)
	if name == "" {
		name = "n" + strconv.FormatInt(num, 10)
	}
	root := filepath.Join(base, "s", strconv.FormatInt(num, 10)) // short: sockets live here
	for _, dir := range []string{root, filepath.Join(root, "sock")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n := &Node{
		Name: name, Major: bin.Major, Dir: filepath.Join(root, "data"), SocketDir: filepath.Join(root, "sock"),
		LogFile: filepath.Join(root, "log"), Port: freePort(t), t: t, tcp: tcp,
	}
	n.Server = &postgres.Server{DataDir: n.Dir, Bin: bin, LogFile: n.LogFile, DieWithParent: true}
	register(n)
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			n.printLog()
		}
		os.RemoveAll(root)
	})
	return n
}

// ownConfig is what every node needs to live beside others on one machine.
func (n *Node) ownConfig(fsync bool) []string {
	listen := ""
	if n.tcp {
		listen = "127.0.0.1"
	}
	return []string{
		fmt.Sprintf("port = %d", n.Port),
		"listen_addresses = " + postgres.QuoteGUC(listen),
		"unix_socket_directories = " + postgres.QuoteGUC(n.SocketDir),
		fmt.Sprintf("fsync = %t", fsync),
		"shared_buffers = 32MB",
		"max_connections = 60",
		"max_wal_senders = 10",
		"wal_sender_timeout = 10s",
		"log_line_prefix = '%m [%p] %q%a '",
		"logging_collector = off",
		"cluster_name = " + postgres.QuoteGUC(n.Name),
	}
}

// Configure appends lines to postgresql.conf; they count from the next start or Reload.
func (n *Node) Configure(lines ...string) {
	n.t.Helper()
	n.AppendFile("postgresql.conf", strings.Join(lines, "\n")+"\n")
}

// AppendFile appends text to a file in the data directory.
func (n *Node) AppendFile(name, text string) {
	n.t.Helper()
	f, err := os.OpenFile(filepath.Join(n.Dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		n.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		n.t.Fatal(err)
	}
}

// PrependHBA puts lines before the others of pg_hba.conf.
func (n *Node) PrependHBA(lines ...string) {
	n.t.Helper()
	path := filepath.Join(n.Dir, "pg_hba.conf")
	old, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"+string(old)), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// ConnInfo returns the connection string of the node's superuser, with further
// options ("user=replicator").
func (n *Node) ConnInfo(options ...string) string {
	c := fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", n.SocketDir, n.Port)
	if len(options) > 0 {
		c += " " + strings.Join(options, " ")
	}
	return c
}

// TCPConnInfo is ConnInfo over TCP, for nodes that listen there.
func (n *Node) TCPConnInfo(options ...string) string {
	return strings.Replace(n.ConnInfo(options...), "host="+n.SocketDir, "host=127.0.0.1", 1)
}

// Env returns libpq's variables for the node, for commands that read them.
func (n *Node) Env() []string {
	return []string{"PGHOST=" + n.SocketDir, "PGPORT=" + strconv.Itoa(n.Port), "PGUSER=postgres", "PGDATABASE=postgres"}
}

// Context returns the test's context, bounded by Patience.
func (n *Node) Context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(n.t.Context(), Patience)
}

// Start starts the node and fails the test where it does not come up.
func (n *Node) Start() {
	n.t.Helper()
	if err := n.TryStart(); err != nil {
		n.t.Fatalf("starting %s: %v\n%s", n.Name, err, tail(n.LogFile, 20))
	}
}

// TryStart starts the node and returns why it did not come up. A port that
// another process took meanwhile is replaced.
func (n *Node) TryStart() error {
	ctx, cancel := n.Context()
	defer cancel()
	for try := 0; ; try++ {
		err := n.Server.Start(ctx)
		if err == nil || try == 3 || !n.tcp || !strings.Contains(tail(n.LogFile, 5), "Address already in use") {
			return err
		}
		n.Port = freePort(n.t)
		n.Configure(fmt.Sprintf("port = %d", n.Port))
	}
}

// Stop stops the node fast.
func (n *Node) Stop() { n.t.Helper(); n.StopMode(postgres.StopFast) }

// StopMode stops the node as told.
func (n *Node) StopMode(mode postgres.StopMode) {
	n.t.Helper()
	ctx, cancel := n.Context()
	defer cancel()
	if err := n.Server.Stop(ctx, mode); err != nil {
		n.t.Fatalf("stopping %s: %v", n.Name, err)
	}
}

// Restart stops and starts the node.
func (n *Node) Restart() { n.t.Helper(); n.Stop(); n.Start() }

// Reload makes the node read its configuration again.
func (n *Node) Reload() {
	n.t.Helper()
	if err := n.Server.Reload(); err != nil {
		n.t.Fatal(err)
	}
}

// Running reports whether the node runs.
func (n *Node) Running() bool {
	running, _ := postgres.IsRunning(n.Dir)
	return running
}

// Kill ends every process of the node with SIGKILL, as a power failure would.
func (n *Node) Kill() {
	n.t.Helper()
	if !n.kill() {
		n.t.Fatalf("%s: its processes do not end", n.Name)
	}
}

// kill ends the postmaster and its children at once. The postmaster is stopped
// first, so that it starts no more of them.
func (n *Node) kill() bool {
	st, err := n.Server.Status()
	if err != nil || !st.Running {
		return true
	}
	syscall.Kill(st.PID, syscall.SIGSTOP)
	all := append(children(st.PID), st.PID)
	for _, pid := range all {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	deadline := time.Now().Add(Patience)
	for _, pid := range all {
		for processAlive(pid) {
			if time.Now().After(deadline) {
				return false
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	n.dropStaleLock(st.PID)
	return true
}

// dropStaleLock removes postmaster.pid and the socket's lock where the killed
// process still has its entry in the process table: one that a command under
// test started belongs to the system's first process, which in a container may
// never collect it, and the server takes the entry for a living one.
func (n *Node) dropStaleLock(pid int) {
	for deadline := time.Now().Add(time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			os.Remove(filepath.Join(n.Dir, "postmaster.pid"))
			os.Remove(filepath.Join(n.SocketDir, fmt.Sprintf(".s.PGSQL.%d.lock", n.Port)))
			return
		}
	}
}

// processAlive reports whether a process runs; one that only waits to be
// collected does not.
func processAlive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// children returns the processes whose parent is pid.
func children(pid int) []int {
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		out, _ = exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	}
	var pids []int
	for _, word := range strings.Fields(string(out)) {
		if n, err := strconv.Atoi(word); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// Log returns what the node's server has written.
func (n *Node) Log() string {
	b, _ := os.ReadFile(n.LogFile)
	return string(b)
}

func (n *Node) printLog() {
	n.t.Logf("the log of %s (PostgreSQL %d) ends with:\n%s", n.Name, n.Major, tail(n.LogFile, 60))
}

func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "(no log)"
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// freePort asks the kernel for a port nobody listens on.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Conn opens a session, closed with the test. Its search_path is the server's default.
func (n *Node) Conn(options ...string) *pgx.Conn {
	n.t.Helper()
	conn, err := n.connect(options...)
	if err != nil {
		n.t.Fatalf("connecting to %s: %v", n.Name, err)
	}
	n.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (n *Node) connect(options ...string) (*pgx.Conn, error) {
	ctx, cancel := n.Context()
	defer cancel()
	return pgx.Connect(ctx, n.ConnInfo(append([]string{"default_query_exec_mode=exec"}, options...)...))
}

// Exec runs statements (several may be separated by semicolons).
func (n *Node) Exec(sql string) { n.t.Helper(); n.ExecIn("postgres", sql) }

// ExecIn is Exec in another database.
func (n *Node) ExecIn(database, sql string) {
	n.t.Helper()
	if err := n.TryExec(database, sql); err != nil {
		n.t.Fatalf("%s: %s: %v", n.Name, sql, err)
	}
}

// TryExec is ExecIn for statements that may fail.
func (n *Node) TryExec(database, sql string) error {
	conn, err := n.connect("dbname=" + database)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	ctx, cancel := n.Context()
	defer cancel()
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// SQL runs a query and returns its rows as text: columns divided by |, rows by
// a newline, as `psql -At` prints them.
func (n *Node) SQL(sql string) string { n.t.Helper(); return n.SQLIn("postgres", sql) }

// SQLIn is SQL in another database.
func (n *Node) SQLIn(database, sql string) string {
	n.t.Helper()
	out, err := n.TrySQL(database, sql)
	if err != nil {
		n.t.Fatalf("%s: %s: %v", n.Name, sql, err)
	}
	return out
}

// TrySQL is SQLIn for queries that may fail.
func (n *Node) TrySQL(database, sql string) (string, error) {
	conn, err := n.connect("dbname=" + database)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.Background())
	ctx, cancel := n.Context()
	defer cancel()
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	var lines []string
	for _, r := range results {
		for _, row := range r.Rows {
			var cells []string
			for _, cell := range row {
				cells = append(cells, string(cell))
			}
			lines = append(lines, strings.Join(cells, "|"))
		}
	}
	return strings.Join(lines, "\n"), nil
}

// WaitSQL waits until a query's result is want. Errors count as "not yet".
func (n *Node) WaitSQL(sql, want string) {
	n.t.Helper()
	var got string
	var err error
	ok := Wait(n.t, func() bool {
		got, err = n.TrySQL("postgres", sql)
		return err == nil && got == want
	})
	if !ok {
		n.t.Fatalf("%s: %s: got %q (%v), waited for %q", n.Name, sql, got, err, want)
	}
}

// Wait waits until f returns true; it returns false after Patience.
func Wait(t testing.TB, f func() bool) bool {
	deadline := time.Now().Add(Patience)
	for !f() {
		if time.Now().After(deadline) || t.Context().Err() != nil {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

// Promote promotes a standby and waits until it is a primary.
func (n *Node) Promote() {
	n.t.Helper()
	ctx, cancel := n.Context()
	defer cancel()
	conn, err := postgres.Connect(ctx, n.ConnInfo())
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := postgres.Promote(ctx, conn); err != nil {
		n.t.Fatal(err)
	}
}

// LSN returns up to where a primary's WAL is durable. Unlike the insert
// position, which may lie behind the header of a page not begun yet, it is
// reached by every reader of the WAL.
func (n *Node) LSN() string { n.t.Helper(); return n.SQL("SELECT pg_current_wal_flush_lsn()") }

// InsertLSN returns a primary's insert position.
func (n *Node) InsertLSN() string { n.t.Helper(); return n.SQL("SELECT pg_current_wal_insert_lsn()") }

// SwitchWAL completes the current segment and returns its name.
func (n *Node) SwitchWAL() string {
	n.t.Helper()
	n.Exec("SELECT pg_logical_emit_message(false, 'pgtest', 'x')") // an empty segment is not switched
	return n.SQL("SELECT pg_walfile_name(pg_switch_wal())")
}

// WaitFor waits until a standby has replayed what a primary has written so far.
func (n *Node) WaitFor(primary *Node) {
	n.t.Helper()
	n.WaitSQL("SELECT pg_last_wal_replay_lsn() >= '"+primary.SQL("SELECT pg_current_wal_lsn()")+"'::pg_lsn", "t")
}

var templates struct {
	sync.Mutex
	dirs map[string]string
}

// templateDir returns a cluster that initdb made once for these options.
func templateDir(bin postgres.Installation, o Options) (string, error) {
	key := fmt.Sprintf("%d-%t-%d-%s", bin.Major, o.Checksums, o.WALSegMB, strings.Join(o.InitArgs, " "))
	templates.Lock()
	defer templates.Unlock()
	if dir, ok := templates.dirs[key]; ok {
		return dir, nil
	}
	if templates.dirs == nil {
		templates.dirs = map[string]string{}
	}
	dir := filepath.Join(base, "tmpl", strconv.Itoa(len(templates.dirs)))
	if err := initDB(bin, o, dir); err != nil {
		return "", err
	}
	templates.dirs[key] = dir
	return dir, nil
}

func initDB(bin postgres.Installation, o Options, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return bin.InitDB(ctx, dir, postgres.InitOptions{Checksums: o.Checksums, WALSegmentMB: o.WALSegMB, Args: append([]string{"--no-sync"}, o.InitArgs...)})
}

// CopyTree copies a directory tree as it is; symbolic links stay links. Files
// that vanish meanwhile are passed over, so that it may be used on a running
// server in backup mode.
func CopyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			info, err := d.Info()
			if err != nil {
				return ignoreMissing(err)
			}
			return os.MkdirAll(target, info.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return ignoreMissing(err)
			}
			return os.Symlink(link, target)
		case d.Type().IsRegular():
			return ignoreMissing(copyFile(path, target))
		}
		return nil
	})
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
