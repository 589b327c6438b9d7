// Package test holds the tests that run all five commands together.
package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
)

func TestMain(m *testing.M) {
	mountSmallDisk()
	pgtest.Main(m, "dbbackup", "dbrecover", "dbrewind", "dbrepl", "dbctl")
}

// wrong is a command line that cannot succeed.
type wrong struct {
	name    string
	command string // "dbrewind check -D $NODE"; words are split at spaces, then $NAMES are filled in
	codes   []exit.Code
	message string // has to be in the message
	env     []string
}

// check runs it as text and with --json: one clear error, a hint, the
// documented exit code, no trace of the program's insides.
func (w wrong) check(t *testing.T, names map[string]string) {
	t.Helper()
	var words []string
	for _, word := range strings.Fields(w.command) {
		words = append(words, os.Expand(word, func(n string) string { return names[n] }))
	}
	r := pgtest.RunEnv(t, w.env, words[0], words[1:]...)
	if !w.expects(r.Code) {
		t.Errorf("code %d, want one of %v", r.Code, w.codes)
	}
	lines := strings.Split(strings.TrimRight(r.Stderr, "\n"), "\n")
	errors, hints := 0, 0
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, "hint: "):
			hints++
		case strings.HasPrefix(line, "error: "), strings.HasPrefix(line, "refused: "), strings.HasPrefix(line, "problem: "), strings.HasPrefix(line, "stopped part-way: "):
			errors++
		}
	}
	if errors != 1 || hints == 0 {
		t.Errorf("%d errors and %d hints, want one error and a hint", errors, hints)
	}
	if !strings.Contains(r.Stderr, w.message) {
		t.Errorf("the message lacks %q", w.message)
	}
	for _, inside := range []string{"goroutine ", "panic:", "%!", "runtime error", "<nil>"} {
		if strings.Contains(r.Stderr, inside) {
			t.Errorf("the message shows %q", inside)
		}
	}
	w.checkJSON(t, words)
	if t.Failed() {
		t.Logf("%s\nstdout: %sstderr: %s", strings.Join(words, " "), r.Stdout, r.Stderr)
	}
}

func (w wrong) checkJSON(t *testing.T, words []string) {
	t.Helper()
	r := pgtest.RunEnv(t, w.env, words[0], append(words[1:], "--json")...)
	var doc struct {
		Error struct {
			Code                int
			Name, Message, Hint string
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil {
		t.Errorf("--json: %v: %q", err, r.Stdout)
	}
	if doc.Error.Code != r.Code || doc.Error.Name == "" || doc.Error.Message == "" || doc.Error.Hint == "" {
		t.Errorf("--json ended with %d and the error %+v", r.Code, doc.Error)
	}
}

func (w wrong) expects(code int) bool {
	for _, c := range w.codes {
		if int(c) == code {
			return true
		}
	}
	return false
}

func only(codes ...exit.Code) []exit.Code { return codes }

// state describes a tree, to see that a failed command left it alone: every
// path with its size and the time of its last change.
func state(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		fmt.Fprintln(&b, path, info.Size(), info.Mode(), info.ModTime().UnixNano())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// overwrite changes bytes of a file.
func overwrite(t *testing.T, path string, offset int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, offset); err != nil {
		t.Fatal(err)
	}
}

// TestNoSuchThing names what is not there or is something else.
func TestNoSuchThing(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	notes := filepath.Join(dir, "notes")
	for _, d := range []string{empty, notes} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(notes, "letter.txt"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	node := pgtest.New(t, pgtest.Options{})
	names := map[string]string{
		"EMPTY": empty, "NOTES": notes, "NOWHERE": filepath.Join(dir, "nowhere"), "NEW": filepath.Join(dir, "new"),
		"DSN": node.ConnInfo(), "NODE": node.Dir, "DEAD": "host=" + dir + " port=1 connect_timeout=2",
		"SEG": filepath.Join(node.Dir, "pg_wal", "000000010000000000000001"),
	}
	names["REPO"] = filepath.Join(dir, "repo")
	pgtest.MustRun(t, "dbbackup", "init", "--repo", names["REPO"])
	// A connection string has spaces; it goes in whole, through the names.
	failed := only(exit.Failed, exit.Refused, exit.Usage)
	before := state(t, notes)
	for _, w := range []wrong{
		{name: "backup: no repository", command: "dbbackup create -d $DSN --repo $NOWHERE/deep", codes: failed, message: "nowhere"},
		{name: "backup: not said where", command: "dbbackup create -d $DSN", codes: only(exit.Usage), message: "--repo"},
		{name: "backup: a directory that is something else", command: "dbbackup list --repo $NOTES", codes: failed, message: "notes"},
		{name: "backup: no server", command: "dbbackup create -d $DEAD --repo $REPO", codes: failed, message: "connect"},
		{name: "push: no repository", command: "dbbackup push $SEG -D $NODE --repo $NOWHERE", codes: failed, message: "nowhere"},
		{name: "restore: no repository", command: "dbrecover restore -D $NEW --repo $NOWHERE", codes: failed, message: "nowhere"},
		{name: "restore: into something else", command: "dbrecover restore -D $NOTES --repo $EMPTY", codes: failed},
		{name: "recover: no cluster", command: "dbrecover run -D $EMPTY", codes: failed, message: "empty"},
		{name: "recover: nothing there", command: "dbrecover run -D $NOWHERE", codes: failed, message: "nowhere"},
		{name: "check: no cluster", command: "dbrewind check -D $NOTES --source-server $DSN", codes: failed, message: "notes"},
		{name: "check: nothing there", command: "dbrewind check -D $NOWHERE --source-server $DSN", codes: failed, message: "nowhere"},
		{name: "check: no source", command: "dbrewind check -D $NODE --source-pgdata $NOWHERE", codes: failed},
		{name: "rewind: no cluster", command: "dbrewind run -D $NOTES --source-server $DSN", codes: failed, message: "notes"},
		{name: "seed: no server", command: "dbrepl seed -D $NEW -d $DEAD", codes: failed, message: "connect"},
		{name: "seed: into something else", command: "dbrepl seed -D $NOTES -d $DSN", codes: failed, message: "notes"},
		{name: "start: no cluster", command: "dbrepl start -D $NOTES", codes: failed, message: "notes"},
		{name: "stop: no cluster", command: "dbrepl stop -D $NOTES", codes: failed, message: "notes"},
		{name: "cluster: no configuration", command: "dbctl switchover --to bravo --yes", codes: failed},
		{name: "cluster: no such file", command: "dbctl status --config $NOWHERE/tidemark.toml", codes: only(exit.Usage), message: "nowhere"},
	} {
		t.Run(w.name, func(t *testing.T) { w.check(t, names) })
	}
	if after := state(t, notes); after != before {
		t.Errorf("a directory that is no cluster was changed:\n%s\n%s", before, after)
	}
	for _, name := range []string{"nowhere", "new"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s was created by a command that failed", name)
		}
	}
}

// TestRunningServer works on a data directory that is in use.
func TestRunningServer(t *testing.T) {
	node := pgtest.New(t, pgtest.Options{Checksums: true})
	other := pgtest.New(t, pgtest.Options{Checksums: true, Fresh: true})
	repo := t.TempDir()
	names := map[string]string{"NODE": node.Dir, "DSN": node.ConnInfo(), "OTHER": other.ConnInfo(), "OTHERDIR": other.Dir, "REPO": repo}
	for _, w := range []wrong{
		{name: "rewind", command: "dbrewind run -D $NODE --source-server $OTHER", codes: only(exit.Refused), message: "run"},
		{name: "rewind from a running directory", command: "dbrewind run -D $OTHERDIR --source-pgdata $NODE", codes: only(exit.Refused), message: "run"},
		{name: "recover", command: "dbrecover run -D $NODE", codes: only(exit.Refused, exit.Failed), message: "run"},
		{name: "restore over it", command: "dbrecover restore -D $NODE --repo $REPO", codes: only(exit.Refused, exit.Failed)},
		{name: "seed over it", command: "dbrepl seed -D $NODE -d $OTHER", codes: only(exit.Refused, exit.Failed)},
	} {
		t.Run(w.name, func(t *testing.T) { w.check(t, names) })
	}
	if got := node.SQL("SELECT 1"); got != "1" {
		t.Errorf("the server does not answer any more: %q", got)
	}
}

// TestStrangers compares clusters that have nothing to do with each other.
func TestStrangers(t *testing.T) {
	node := pgtest.New(t, pgtest.Options{Checksums: true})
	other := pgtest.New(t, pgtest.Options{Checksums: true, Fresh: true})
	node.Stop()
	before := state(t, node.Dir)
	names := map[string]string{"NODE": node.Dir, "OTHER": other.ConnInfo()}
	for _, w := range []wrong{
		{name: "check", command: "dbrewind check -D $NODE --source-server $OTHER", codes: only(exit.Refused, exit.Failed, exit.Problem), message: "system"},
		{name: "rewind", command: "dbrewind run -D $NODE --source-server $OTHER", codes: only(exit.Refused, exit.Failed), message: "system"},
	} {
		t.Run(w.name, func(t *testing.T) { w.check(t, names) })
	}
	if after := state(t, node.Dir); after != before {
		t.Error("the directory was changed")
	}
}

// TestDamagedCluster breaks the files that say what a directory is.
func TestDamagedCluster(t *testing.T) {
	source := pgtest.New(t, pgtest.Options{Checksums: true})
	for _, damage := range []struct {
		name    string
		do      func(t *testing.T, dir string)
		message string
	}{
		{"a version of the future", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "PG_VERSION"), []byte("99\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "99"},
		{"a torn control file", func(t *testing.T, dir string) {
			overwrite(t, filepath.Join(dir, "global", "pg_control"), 60, []byte{0xde, 0xad, 0xbe, 0xef})
		}, "pg_control"},
		{"an unknown control version", func(t *testing.T, dir string) {
			overwrite(t, filepath.Join(dir, "global", "pg_control"), 8, []byte{0xff, 0xff})
		}, "pg_control"},
		{"a short control file", func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "global", "pg_control"), 100); err != nil {
				t.Fatal(err)
			}
		}, "pg_control"},
	} {
		t.Run(damage.name, func(t *testing.T) {
			node := pgtest.New(t, pgtest.Options{Checksums: true})
			node.Stop()
			damage.do(t, node.Dir)
			before := state(t, node.Dir)
			names := map[string]string{"NODE": node.Dir, "DSN": source.ConnInfo()}
			for _, w := range []wrong{
				{name: "check", command: "dbrewind check -D $NODE --source-server $DSN"},
				{name: "rewind", command: "dbrewind run -D $NODE --source-server $DSN"},
				{name: "recover", command: "dbrecover run -D $NODE"},
				{name: "start", command: "dbrepl start -D $NODE"},
			} {
				w.codes, w.message = only(exit.Failed, exit.Refused), damage.message
				if w.name == "recover" {
					w.message = "" // it may say that the directory was not restored
				}
				t.Run(w.name, func(t *testing.T) { w.check(t, names) })
			}
			if after := state(t, node.Dir); after != before {
				t.Error("the directory was changed")
			}
		})
	}
}

// TestBadSegments hands WAL to push that must not enter an archive.
func TestBadSegments(t *testing.T) {
	node := pgtest.New(t, pgtest.Options{})
	repo := filepath.Join(t.TempDir(), "repo")
	pgtest.MustRun(t, "dbbackup", "init", "--repo", repo)
	name := node.SwitchWAL()
	good, err := os.ReadFile(filepath.Join(node.Dir, "pg_wal", name))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, name)
	put := func(data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := map[string]string{"SEG": path, "REPO": repo, "NODE": node.Dir}
	for _, damage := range []struct {
		name string
		data func() []byte
	}{
		{"truncated", func() []byte { return good[:len(good)/2] }},
		{"empty", func() []byte { return nil }},
		{"another magic", func() []byte { return flip(good, 0) }},
		{"another system", func() []byte { return flip(good, 24) }},
		{"another address", func() []byte { return flip(good, 10) }},
	} {
		t.Run(damage.name, func(t *testing.T) {
			put(damage.data())
			wrong{command: "dbbackup push $SEG -D $NODE --repo $REPO", codes: only(exit.Failed, exit.Refused, exit.Problem)}.check(t, names)
		})
	}
	put(good)
	if r := pgtest.Run(t, "dbbackup", "push", path, "-D", node.Dir, "--repo", repo); r.Code != 0 {
		t.Errorf("the good segment is refused: %s", r.Stderr)
	}
	if r := pgtest.Run(t, "dbbackup", "push", path, "-D", node.Dir, "--repo", repo); r.Code != 0 {
		t.Errorf("the same content again is refused: %s", r.Stderr)
	}
	t.Run("other content under the same name", func(t *testing.T) {
		put(flip(good, len(good)-1))
		wrong{command: "dbbackup push $SEG -D $NODE --repo $REPO", codes: only(exit.Failed, exit.Refused, exit.Problem), message: name}.check(t, names)
	})
}

// flip returns a copy with one byte changed.
func flip(data []byte, at int) []byte {
	out := append([]byte(nil), data...)
	out[at] ^= 0x41
	return out
}

// TestWrongPassword is turned away by the server, and nowhere is the password printed.
func TestWrongPassword(t *testing.T) {
	node := pgtest.New(t, pgtest.Options{Checksums: true, HBA: []string{"local all locked scram-sha-256", "local replication locked scram-sha-256"}})
	node.Exec("SET password_encryption = 'scram-sha-256'; CREATE ROLE locked SUPERUSER REPLICATION LOGIN PASSWORD 'right'")
	target := pgtest.New(t, pgtest.Options{Checksums: true})
	target.Stop()
	dir := t.TempDir()
	names := map[string]string{"DSN": node.ConnInfo("user=locked"), "TARGET": target.Dir, "NEW": filepath.Join(dir, "new"), "REPO": filepath.Join(dir, "repo")}
	pgtest.MustRun(t, "dbbackup", "init", "--repo", names["REPO"])
	env := []string{"PGPASSWORD=wr0ng-secret"}
	for _, w := range []wrong{
		{name: "backup", command: "dbbackup create -d $DSN --repo $REPO"},
		{name: "seed", command: "dbrepl seed -D $NEW -d $DSN"},
		{name: "check", command: "dbrewind check -D $TARGET --source-server $DSN"},
		{name: "rewind", command: "dbrewind run -D $TARGET --source-server $DSN"},
	} {
		w.codes, w.message, w.env = only(exit.Failed), "password authentication failed", env
		t.Run(w.name, func(t *testing.T) {
			w.check(t, names)
			words := strings.Fields(w.command)
			for i := range words {
				words[i] = os.Expand(words[i], func(n string) string { return names[n] })
			}
			r := pgtest.RunEnv(t, env, words[0], append(words[1:], "-v")...)
			if strings.Contains(r.Stdout+r.Stderr, "wr0ng-secret") {
				t.Error("the password is printed")
			}
		})
	}
	if _, err := os.Stat(names["NEW"]); err == nil {
		t.Error("seed left a directory behind though it never got in")
	}
}

// cutter forwards connections to a server until so many bytes have come from
// it; then it cuts them all and lets nobody in: a source that dies in the middle.
type cutter struct {
	socket string
	addr   *net.TCPAddr
	left   atomic.Int64
}

func cutAfter(t *testing.T, node *pgtest.Node, bytes int64) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{socket: fmt.Sprintf("%s/.s.PGSQL.%d", node.SocketDir, node.Port), addr: l.Addr().(*net.TCPAddr)}
	c.left.Store(bytes)
	c.serve(t, l)
	return c
}

func (c *cutter) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", c.addr.Port)
}

// revive lets everything through again, at the same address.
func (c *cutter) revive(t *testing.T) {
	t.Helper()
	l, err := net.ListenTCP("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	c.left.Store(1 << 40)
	c.serve(t, l)
}

func (c *cutter) serve(t *testing.T, l net.Listener) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go c.forward(client, l)
		}
	}()
}

func (c *cutter) forward(client net.Conn, l net.Listener) {
	defer client.Close()
	server, err := net.Dial("unix", c.socket)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer server.Close()
		_, _ = io.Copy(server, client)
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := server.Read(buf)
		if c.left.Add(int64(-n)) <= 0 {
			l.Close()
			return
		}
		if n > 0 {
			client.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// TestSourceDies lets the source die in the middle: what was begun must not
// start, and the same command finishes it.
func TestSourceDies(t *testing.T) {
	node := pgtest.New(t, pgtest.Options{Checksums: true, Config: []string{"wal_keep_size = 1GB"}})
	node.PgbenchInit(3)
	dir := t.TempDir()
	t.Run("seed", func(t *testing.T) {
		target := filepath.Join(dir, "standby")
		source := cutAfter(t, node, 12<<20)
		r := pgtest.Run(t, "dbrepl", "seed", "-D", target, "-d", source.conninfo())
		if r.Code != int(exit.Partial) || !strings.Contains(r.Stderr, "hint: ") {
			t.Fatalf("code %d, want %d: %s", r.Code, exit.Partial, r.Stderr)
		}
		cannotStart(t, target)
		source.revive(t)
		pgtest.MustRun(t, "dbrepl", "seed", "-D", target, "-d", source.conninfo())
		standby := pgtest.Attach(t, "standby", target)
		standby.Start()
		standby.WaitFor(node)
	})
	t.Run("rewind", func(t *testing.T) {
		old := node.Standby(pgtest.StandbyOptions{})
		old.WaitFor(node)
		old.Promote()
		old.Exec("UPDATE pgbench_accounts SET abalance = 1")
		node.Exec("UPDATE pgbench_accounts SET abalance = 2")
		// Settings that were read after the last checkpoint have the rewind look
		// through the source's WAL beforehand; it is to die in the copying.
		node.WaitSQL("SELECT extract(epoch FROM clock_timestamp() - pg_conf_load_time()) > 2", "t")
		node.Exec("CHECKPOINT")
		old.Stop()
		source := cutAfter(t, node, 12<<20)
		r := pgtest.Run(t, "dbrewind", "run", "-D", old.Dir, "--source-server", source.conninfo())
		if r.Code != int(exit.Partial) || !strings.Contains(r.Stderr, "hint: ") {
			t.Fatalf("code %d, want %d: %s", r.Code, exit.Partial, r.Stderr)
		}
		cannotStart(t, old.Dir)
		source.revive(t)
		pgtest.MustRun(t, "dbrewind", "run", "-D", old.Dir, "--source-server", source.conninfo())
		old.Start()
		if got := old.SQL("SELECT DISTINCT abalance FROM pgbench_accounts"); got != "2" {
			t.Errorf("after the rewind the accounts hold %q", got)
		}
	})
}

// cannotStart expects a directory that a server refuses: there is no control
// file yet, or the tombstone stands in it.
func cannotStart(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err != nil {
		return
	}
	if _, err := volume.ReadTombstone(volume.OS, dir); err != nil {
		t.Errorf("a server would start on what is half done: %v", err)
	}
}

// TestUsage gives every command one wrong argument.
func TestUsage(t *testing.T) {
	for _, command := range []string{"dbbackup", "dbrecover", "dbrewind", "dbrepl", "dbctl"} {
		codes := only(exit.Usage)
		if command == "dbrewind" {
			codes = only(exit.Failed) // without a verb it ends as pg_rewind does
		}
		wrong{command: command + " --nonsense", codes: codes, message: "nonsense"}.check(t, nil)
		r := pgtest.Run(t, command, "--help")
		if r.Code != 0 || r.Stderr != "" || !strings.Contains(r.Stdout, "Exit codes:") {
			t.Errorf("%s --help: %+v", command, r)
		}
		for _, line := range strings.Split(r.Stdout, "\n") {
			if len([]rune(line)) > 95 {
				t.Errorf("%s --help: a line of %d characters: %s", command, len(line), line)
			}
		}
		if r := pgtest.Run(t, command, "--version"); r.Code != 0 || !strings.HasPrefix(r.Stdout, command+" (Tidemark) ") {
			t.Errorf("%s --version: %+v", command, r)
		}
	}
}
