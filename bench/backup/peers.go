package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// program is one that takes backups.
type program struct {
	name   string
	checks bool   // page checksums on the way
	base   bool   // pg_basebackup, or what it sends
	why    string // why it is not run
	dir    string // of its repository

	prepare     func(dir string) error    // makes the repository
	full        func(dir string) []string // command lines
	incremental func(dir string) []string // nil: it has none

	fullRuns, incrRuns runs
}

// runs are the rounds of one program.
type runs struct {
	walls, cpus []time.Duration
	rss         int64 // the highest, bytes
	size        int64 // what the last backup added to the repository
}

func (b *bench) programs() []*program {
	return append([]*program{b.ours(), b.pgbackrest()}, append(b.basebackups(), b.walg())...)
}

func (b *bench) ours() *program {
	create := func(dir string) []string {
		return append([]string{b.dbbackup, "create", "--repo", dir, "-d", b.server.Conninfo(), "--json"}, b.commandFlags()...)
	}
	return &program{name: "dbbackup", checks: true, full: create, incremental: create,
		prepare: func(dir string) error { return b.run(b.dbbackup, "init", "--repo", dir) }}
}

// pgbackrest with zst level 3, two processes, bundles, and blocks where it has them.
func (b *bench) pgbackrest() *program {
	p := &program{name: "pgbackrest", checks: true}
	path, err := exec.LookPath("pgbackrest")
	if err != nil {
		p.why = "not installed"
		return p
	}
	blocks := exec.Command(path, "backup", "--stanza=b", "--repo1-block", "--version").Run() == nil
	if !blocks {
		p.name += " (no block)"
	}
	backup := func(kind string) func(dir string) []string {
		return func(dir string) []string {
			args := append(b.online(path, dir), "--type="+kind, "--no-archive-check", "--start-fast", "--process-max=2", "--compress-type=zst", "--compress-level=3", "--repo1-bundle")
			if blocks {
				args = append(args, "--repo1-block")
			}
			return append(args, "backup")
		}
	}
	p.full, p.incremental = backup("full"), backup("incr")
	p.prepare = func(dir string) error { return b.stanza(path, dir) }
	return p
}

func (b *bench) stanza(path, dir string) error {
	args := append(b.online(path, dir), "stanza-create")
	return b.run(args...)
}

// backrest are the options that every command of pgbackrest takes.
func (b *bench) backrest(path, dir, data string) []string {
	return []string{path, "--no-config", "--stanza=b", "--repo1-path=" + dir, "--pg1-path=" + data,
		"--log-level-file=off", "--log-level-console=warn", "--lock-path=" + filepath.Join(b.place.Dir, "pgbackrest.lock")}
}

// online are those for a connection to the server besides.
func (b *bench) online(path, dir string) []string {
	return append(b.backrest(path, dir, b.server.Data), "--pg1-socket-path="+b.server.Dir, fmt.Sprintf("--pg1-port=%d", b.server.Port))
}

// basebackups are pg_basebackup's ways to compress with zstd, and its
// incremental backups. Each backup is a directory of its own.
func (b *bench) basebackups() []*program {
	var out []*program
	run := func(method string) func(dir string) []string {
		return func(dir string) []string {
			return []string{b.place.Bin.Path("pg_basebackup"), "-h", b.server.Dir, "-p", fmt.Sprint(b.server.Port), "-U", "postgres", "-c", "fast",
				"-Ft", "--compress=" + method, "-D", filepath.Join(dir, "full")}
		}
	}
	for _, method := range []string{"client-zstd:3", "server-zstd:3"} {
		p := &program{name: "pg_basebackup " + strings.TrimSuffix(method, ":3"), checks: true, base: true, full: run(method)}
		switch {
		case !b.place.Bin.Has("pg_basebackup"):
			p.why = "not installed"
		case b.major < 15:
			p.why = "has no zstd before 15"
		case b.major >= 17:
			p.incremental = func(dir string) []string {
				args := run(method)(dir)
				args[len(args)-1] = filepath.Join(dir, "incremental")
				return append(args, "--incremental="+filepath.Join(dir, "full", "backup_manifest"))
			}
		}
		out = append(out, p)
	}
	return out
}

// walg is run with page checks, which it leaves out by default.
func (b *bench) walg() *program {
	p := &program{name: "wal-g --verify", checks: true}
	path, err := exec.LookPath("wal-g")
	if err != nil {
		p.why = "not installed"
		return p
	}
	push := func(full bool) func(dir string) []string {
		return func(dir string) []string {
			args := []string{"env", "WALG_FILE_PREFIX=" + dir, "WALG_COMPRESSION_METHOD=zstd", "WALG_DELTA_MAX_STEPS=7", "PGHOST=" + b.server.Dir,
				fmt.Sprintf("PGPORT=%d", b.server.Port), "PGUSER=postgres", "PGDATABASE=postgres", path, "backup-push", b.server.Data, "--verify"}
			if full {
				args = append(args, "--full")
			}
			return args
		}
	}
	p.full, p.incremental = push(true), push(false)
	return p
}

func (p *program) path(b *bench) string {
	name := strings.NewReplacer(" ", "-", "(", "", ")", "").Replace(p.name)
	return "repo-" + name
}

// remove deletes the program's repository.
func (p *program) remove() { os.RemoveAll(p.dir) }
