package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tidemark/internal/pgtest"
)

const rewindRunbook = "../docs/runbooks/rewind.md"

// transcript is a command that a document shows, with what it printed. A block
// without a command is a file that the text before it names.
type transcript struct {
	line    int
	command string
	output  []string
}

// transcripts reads the fenced blocks of a document.
func transcripts(t *testing.T, path string) (list []transcript) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fenced, begun := false, false
	for i, line := range strings.Split(string(data), "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			fenced, begun = !fenced, false
		case !fenced:
		case strings.HasPrefix(line, "$ "):
			list = append(list, transcript{line: i + 1, command: line[2:]})
			begun = true
		case !begun:
			list = append(list, transcript{line: i + 1, output: []string{line}})
			begun = true
		default:
			last := &list[len(list)-1]
			last.output = append(last.output, line)
		}
	}
	return list
}

// masks take out of a line what differs from cluster to cluster and from day
// to day, and leave its wording.
var masks = []struct {
	find *regexp.Regexp
	put  string
}{
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d( UTC|Z)`), "DATE"},
	{regexp.MustCompile(`\b(base|global)(/\d+)+`), "RELATION"},
	{regexp.MustCompile(`\b[0-9A-F]{24}\b`), "SEGMENT"},
	{regexp.MustCompile(`\b[0-9A-F]{8}\.history`), "HISTORY"},
	{regexp.MustCompile(`\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b`), "LSN"},
	{regexp.MustCompile(`\b\d[\d.,]* [KMG]?i?B\b`), "SIZE"},
	{regexp.MustCompile(`\b\d[\d.,]* (ms|s|min)\b`), "TIME"},
	{regexp.MustCompile(`\b\d[\d,]*\b`), "N"},
	{regexp.MustCompile(`\bN (segment|block|file|row|transaction)s?\b( (is|are)\b)?`), "N $1"},
	{regexp.MustCompile(`\.{2,}`), ".."},
	{regexp.MustCompile(`-{2,}`), "--"},
	{regexp.MustCompile(`\s+`), " "},
}

// shape is what of an output does not depend on the cluster: its distinct
// lines, masked, in the order in which they first come.
func shape(lines []string) (out []string) {
	for _, line := range lines {
		for _, m := range masks {
			line = m.find.ReplaceAllString(line, m.put)
		}
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}

// compareShapes complains about lines that only one of the two has, and about
// another order. Those that match perhaps may be missing on either side.
func compareShapes(t *testing.T, want, got []string, perhaps *regexp.Regexp) {
	t.Helper()
	drop := func(s string) bool { return perhaps != nil && perhaps.MatchString(s) }
	want, got = slices.DeleteFunc(slices.Clone(want), drop), slices.DeleteFunc(slices.Clone(got), drop)
	if slices.Equal(want, got) {
		return
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("the document shows, and nothing printed:  %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("printed, and the document does not show:  %s", line)
		}
	}
	if !t.Failed() {
		t.Errorf("the order differs; the document:\n  %s\nprinted:\n  %s", strings.Join(want, "\n  "), strings.Join(got, "\n  "))
	}
}

// stage is where a runbook is played: a directory that stands for /srv, with
// the data directories db1 and db2 in it, and two servers.
type stage struct {
	t        *testing.T
	dir      string
	old, new *pgtest.Node
	saved    string // db1 as it was after the failover
}

// step is what has to be so before a command of the document, and the lines of
// its output that depend on the data.
type step struct {
	command string
	before  func()
	perhaps *regexp.Regexp
}

func newStage(t *testing.T) *stage {
	t.Helper()
	old := pgtest.New(t, pgtest.Options{Name: "db1", Checksums: true, Config: []string{"wal_keep_size = 256MB", "logging_collector = on", "autovacuum = off", "cluster_name = ''"}})
	s := &stage{t: t, old: old, dir: old.TempDir("srv")}
	old.Exec("CREATE DATABASE shop")
	old.PgbenchIn("shop", "-i", "-q", "-s", "1")
	old.ExecIn("shop", `CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders SELECT g, repeat('goods ', 30) FROM generate_series(1, 1000) g;
		CREATE TABLE carts (id int PRIMARY KEY, what text); INSERT INTO carts SELECT g, 'cart' FROM generate_series(1, 100) g`)
	old.ExecIn("shop", "VACUUM")
	s.new = old.Standby(pgtest.StandbyOptions{Name: "db2"})
	old.SwitchWAL() // what either side writes from here on fits into one segment
	old.Exec("CHECKPOINT")
	s.new.WaitFor(old)
	s.new.Promote()
	for _, sql := range []string{"INSERT INTO orders VALUES (2001, 'lost'), (2002, 'lost')", "UPDATE orders SET what = 'lost' WHERE id < 4", "DELETE FROM carts WHERE id <= 5"} {
		old.ExecIn("shop", sql)
	}
	old.PgbenchIn("shop", "-n", "-t", "300")
	s.new.PgbenchIn("shop", "-n", "-t", "50")
	old.Stop()
	for name, n := range map[string]*pgtest.Node{"db1": old, "db2": s.new} {
		if err := os.Symlink(n.Dir, filepath.Join(s.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.saved = filepath.Join(s.dir, "saved")
	if err := pgtest.CopyTree(old.Dir, s.saved); err != nil {
		t.Fatal(err)
	}
	return s
}

// afresh stops db1 and makes it what it was after the failover.
func (s *stage) afresh() {
	s.t.Helper()
	s.stop()
	if err := os.RemoveAll(s.old.Dir); err != nil {
		s.t.Fatal(err)
	}
	if err := pgtest.CopyTree(s.saved, s.old.Dir); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) stop() {
	s.t.Helper()
	if s.old.Running() {
		s.old.Stop()
	}
}

func (s *stage) rewound() {
	s.t.Helper()
	s.afresh()
	s.must("dbrewind run -D db1 --source-server 'host=/run/postgresql port=5542' -R")
}

// here puts the stage's own names into a command of the document.
func (s *stage) here(command string) string {
	return strings.NewReplacer(
		"host=/run/postgresql port=5542", fmt.Sprintf("host=%s port=%d", s.new.SocketDir, s.new.Port),
		"-p 5542", "-p "+strconv.Itoa(s.new.Port), "/srv/", s.dir+"/").Replace(command)
}

// there puts the document's names into what was printed.
func (s *stage) there(output string) string {
	return strings.NewReplacer(fmt.Sprintf("host=%s port=%d", s.new.SocketDir, s.new.Port), "host=/run/postgresql port=5542",
		s.dir+"/", "/srv/").Replace(output)
}

// cmd is a command of the document, whose output goes to a file: a server that
// it starts keeps that open.
func (s *stage) cmd(command string) (cmd *exec.Cmd, output func() string) {
	s.t.Helper()
	f, err := os.Create(filepath.Join(s.t.TempDir(), "output"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	cmd = exec.CommandContext(s.t.Context(), "sh", "-c", "exec "+s.here(command))
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, f, f
	cmd.Env = append(os.Environ(), "PGUSER=postgres", "PGDATABASE=postgres", "PGHOST="+s.new.SocketDir,
		"PATH="+pgtest.BinDir()+":"+filepath.Dir(s.old.Server.Bin.Path("pg_ctl"))+":"+filepath.Dir(pgtest.Tool(s.t, s.old.Major, "psql"))+":"+os.Getenv("PATH"))
	return cmd, func() string {
		data, err := os.ReadFile(f.Name())
		if err != nil {
			s.t.Fatal(err)
		}
		return string(data)
	}
}

// serverLine is a line of a server's own log, before its collector runs.
var serverLine = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ .*(LOG|HINT): .*\n`)

// run runs a command and returns what it printed, as the document has it.
func (s *stage) run(command string) (output string, code int) {
	s.t.Helper()
	cmd, printed := s.cmd(command)
	_ = cmd.Run() // the code tells
	output, code = s.there(serverLine.ReplaceAllString(printed(), "")), cmd.ProcessState.ExitCode()
	if code != 0 {
		output += fmt.Sprintf("(exit %d)\n", code)
	}
	return output, code
}

func (s *stage) must(command string) {
	s.t.Helper()
	if output, code := s.run(command); code != 0 {
		s.t.Fatalf("%s: %s", command, output)
	}
}

// killed leaves db1 with a tombstone, by a rewind that is killed in the middle.
func (s *stage) killed() {
	s.t.Helper()
	label := filepath.Join(s.old.Dir, "backup_label")
	for range 50 {
		s.afresh()
		cmd, _ := s.cmd("dbrewind run -D db1 --source-server 'host=/run/postgresql port=5542' -R -j 1")
		if err := cmd.Start(); err != nil {
			s.t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		pgtest.Wait(s.t, func() bool {
			_, err := os.Stat(label)
			return err == nil || len(done) > 0
		})
		_ = cmd.Process.Kill()
		<-done
		if data, err := os.ReadFile(label); err == nil && strings.Contains(string(data), "do not start") {
			return
		}
	}
	s.t.Fatal("no rewind was killed in the middle")
}

// damage overwrites the middle of block 7 of the table orders in db1.
func (s *stage) damage() {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.old.Dir, s.old.SQLIn("shop", "SELECT pg_relation_filepath('orders')")), os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), 7*8192+5000); err != nil {
		s.t.Fatal(err)
	}
}

// TestRewindRunbook plays docs/runbooks/rewind.md: each command that it shows
// runs, in the document's order, and prints what the document says.
func TestRewindRunbook(t *testing.T) {
	s := newStage(t)
	const source = " --source-server 'host=/run/postgresql port=5542'"
	other := filepath.Join(s.dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	actions := regexp.MustCompile(`^(copy|copy-blocks|truncate|remove|copy-tail) |^and N more|^durable from before`)
	steps := []step{
		{command: "dbrewind check -D db1" + source},
		{command: "dbrewind run -D db1" + source + " --dry-run", perhaps: actions},
		{command: "", before: s.killed}, // what stands in backup_label
		{command: "dbrewind run -D db1" + source + " -R"},
		{command: "pg_ctl -D db1 -w start"},
		{command: "psql -p 5542 -c 'select application_name, state from pg_stat_replication'", before: func() { s.old.WaitFor(s.new) }},
		{command: "dbrewind verify -D db1" + source},
		{command: "dbrewind verify -D db1" + source, before: s.damage},
		{command: "dbrewind check -D db1" + source, before: s.stop},
		{command: "dbrewind run -D db1" + source + " -R --compare"},
		{command: "dbrewind run -D db1" + source + " -R", before: s.afresh},
		{command: "dbrewind undo -D db1"},
		{command: "dbrewind undo -D db1", before: func() { s.rewound(); s.old.Start(); s.old.Stop() }},
		{command: "dbrewind undo -D db1 --discard"},
		{command: "dbrewind run -D db1" + source, before: s.old.Start},
		{command: "dbrewind run -D db1 --source-pgdata db2", before: s.stop},
		{command: "dbrewind run -D /srv/other" + source},
	}
	list := transcripts(t, rewindRunbook)
	for i, shown := range list {
		t.Run(fmt.Sprintf("line %d", shown.line), func(t *testing.T) {
			if i >= len(steps) || steps[i].command != shown.command {
				t.Fatalf("the document shows %q here: add a step for it", shown.command)
			}
			s.t = t
			defer func() { s.t = nil }()
			if steps[i].before != nil {
				steps[i].before()
			}
			var output string
			if shown.command == "" {
				data, err := os.ReadFile(filepath.Join(s.old.Dir, "backup_label"))
				if err != nil {
					t.Fatal(err)
				}
				output, _, _ = strings.Cut(s.there(string(data)), "-- tidemark tombstone") // which programs read
			} else {
				output, _ = s.run(shown.command)
			}
			compareShapes(t, shape(shown.output), shape(strings.Split(output, "\n")), steps[i].perhaps)
		})
	}
	if len(list) != len(steps) {
		t.Errorf("the document shows %d commands, the test has %d", len(list), len(steps))
	}
}
