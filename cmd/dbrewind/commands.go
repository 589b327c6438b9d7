package main

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/rewind"
	"tidemark/pkg/timeline"
)

const description = "Timeline divergence and block-level rewind of PostgreSQL.\n\n" +
	"Without a verb it takes pg_rewind's own options (-D/--target-pgdata, --source-pgdata, --source-server, -R, -c, -n, -N, -P, " +
	"--config-file, --no-ensure-shutdown, --sync-method, --debug) and exits with 0 or 1 as pg_rewind does; " +
	"`dbrewind run --help` explains them."

// commands is the grammar. The command without a verb stands in for pg_rewind.
type commands struct {
	DropIn dropInCmd `cmd:"" default:"withargs" hidden:"" help:"Rewind, with pg_rewind's options and exit codes."`
	Check  checkCmd  `cmd:"" help:"Did it diverge, where, and which transactions would be lost?"`
	Rescue rescueCmd `cmd:"" help:"Save the rows that a rewind would lose, before it does."`
	Run    runCmd    `cmd:"" help:"Rewind, or go on with an interrupted rewind."`
	Verify verifyCmd `cmd:"" help:"Is a running standby a copy of its source, block by block?"`
	Undo   undoCmd   `cmd:"" help:"Bring the target back to what it was before a rewind."`
}

// Examples shows the whole command at work.
func (commands) Examples() string {
	return `dbrewind check -D /srv/pg --source-server 'host=db2 user=postgres'    # look first
dbrewind rescue -D /srv/pg --source-server host=db2 --out /srv/lost   # save the lost rows
dbrewind run -D /srv/pg --source-server 'host=db2 user=postgres' -R   # rewind, follow db2
dbrewind undo -D /srv/pg                                              # as it was before
dbrewind --target-pgdata=/srv/pg --source-pgdata=/srv/pg-new          # as pg_rewind`
}

// Status gives the command without a verb pg_rewind's exit codes: every
// failure is 1.
func (dropInCmd) Status(code exit.Code) int {
	if code == exit.OK {
		return 0
	}
	return 1
}

// pairFlags name the target and its source.
type pairFlags struct {
	Target       string `name:"target-pgdata" short:"D" placeholder:"DIR" type:"path" required:"" help:"Data directory of the target, its server stopped."`
	SourceDir    string `name:"source-pgdata" placeholder:"DIR" type:"path" help:"Source: the data directory of a stopped server."`
	SourceServer string `name:"source-server" placeholder:"CONNINFO" help:"Source: a live server, primary or standby."`
	SourceRepo   string `name:"source-repo" placeholder:"REPO" type:"repository" help:"Source: a repository with a backup and the archived WAL of the new primary, while no server is up."`
	Backup       string `name:"source-backup" placeholder:"ID" help:"With --source-repo: this backup; by default the newest that leads to the timeline."`
	Timeline     uint32 `name:"source-timeline" placeholder:"N" help:"With --source-repo: rewind to this timeline; by default the only one that goes on."`
	ConfigFile   string `name:"config-file" placeholder:"FILE" type:"path" help:"The target's postgresql.conf where it lies elsewhere."`
	Restore      bool   `name:"restore-target-wal" short:"c" help:"Fetch missing WAL by the restore_command of the target, or of the source; --repo looks into repositories."`
	Debug        bool   `name:"debug" help:"As --verbose, and more."`
	cli.ReposFlag
	cli.BindirFlag
	cli.JobsFlag
}

// compareFlag is for the verbs that can do without the target's WAL.
type compareFlag struct {
	Compare bool `name:"compare" help:"Find differing blocks by hashes on both sides: without the target's WAL, and without checksums or wal_log_hints."`
}

// rewindFlags are pg_rewind's further options, and ours.
type rewindFlags struct {
	pairFlags
	compareFlag
	cli.DryRunFlag
	Recovery    bool              `name:"write-recovery-conf" short:"R" help:"Make the target a standby of the source server; with --source-repo, one that follows the archive."`
	NoSync      bool              `name:"no-sync" short:"N" help:"Do not wait for data to be on disk."`
	NoShutdown  bool              `name:"no-ensure-shutdown" help:"Refuse a crashed target instead of recovering it."`
	SyncMethod  string            `name:"sync-method" placeholder:"METHOD" enum:"fsync,syncfs" default:"fsync" help:"Accepted, and changes nothing: fsync or syncfs, each file that is written is fsynced by itself, nothing else."`
	NoUndo      bool              `name:"no-undo" help:"Keep nothing for 'dbrewind undo': saves the space."`
	TakeConfig  bool              `name:"take-config" help:"Take the source's configuration files too."`
	Start       bool              `name:"start" help:"Afterwards start the server, and wait until it streams and has caught up with the source."`
	StartWait   time.Duration     `name:"start-timeout" placeholder:"DURATION" help:"How long that may take; default 10m."`
	Verify      bool              `name:"verify" help:"With --start: compare every block with the source then. Needs CHECKPOINT there."`
	Tablespaces map[string]string `name:"tablespace-mapping" placeholder:"OLD=NEW" help:"Keep the source's tablespace at OLD in NEW."`
}

func (f *pairFlags) options(e *cli.Env) rewind.Options {
	o := rewind.Options{Target: f.Target, SourceDir: f.SourceDir, SourceConn: f.SourceServer, ConfigFile: f.ConfigFile,
		RestoreTargetWAL: f.Restore, Repositories: f.Repos, Bindir: f.Bindir, Jobs: f.Jobs, Progress: e.Progress(), Log: e.Log(), Command: commandLine(os.Args)}
	o.SourceRepo, o.SourceBackup, o.SourceTimeline = f.SourceRepo, f.Backup, timeline.ID(f.Timeline)
	if f.SourceRepo != "" {
		o.FetchProgram = findProgram("dbrecover")
	}
	if f.Debug {
		o.Log = slog.New(slog.NewTextHandler(e.Stderr(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return o
}

// findProgram returns the path of another program of the family: beside this
// one, or in the PATH; empty where it is not found.
func findProgram(name string) string {
	if self, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(self), name); exec.Command(path, "--version").Run() == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return ""
	}
	return path
}

// becomeOwner is for root. A target that does not exist has no owner; the
// library says so.
func (f *pairFlags) becomeOwner() error {
	if _, err := os.Stat(f.Target); err != nil {
		return nil
	}
	return cli.BecomeOwner(f.Target, "")
}

func (f *rewindFlags) run(ctx context.Context, e *cli.Env) error {
	if err := f.becomeOwner(); err != nil {
		return err
	}
	o := f.options(e)
	o.Compare = f.Compare
	o.DryRun, o.WriteRecoveryConf, o.NoSync, o.NoEnsureShutdown = f.DryRun, f.Recovery, f.NoSync, f.NoShutdown
	o.TakeConfig, o.TablespaceMap = f.TakeConfig, f.Tablespaces
	o.Start, o.StartTimeout, o.Verify = f.Start, f.StartWait, f.Verify
	if f.Verify && !f.Start {
		return exit.New(exit.Usage, "add --start, or use dbrewind verify on a standby that runs", "--verify needs --start")
	}
	o.NoUndo, o.UndoCommand = f.NoUndo, undoCommand(f.Target)
	res, err := rewind.Run(ctx, o)
	if res == nil {
		return err
	}
	if rerr := e.Render(res, func(t *cli.Text) { renderResult(t, res, err) }); rerr != nil && err == nil {
		return rerr
	}
	return err
}

// commandLine is how the shell takes this command again, without passwords.
func commandLine(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		if name, value, ok := strings.Cut(a, "="); ok && name == "--source-server" {
			a = name + "=" + cli.Redact(value)
		} else if i > 0 && args[i-1] == "--source-server" {
			a = cli.Redact(a)
		}
		words[i] = quote(a)
	}
	return strings.Join(words, " ")
}

func quote(word string) string {
	if word != "" && !strings.ContainsAny(word, " \t\n'\"\\$`*?[]{}()<>|&;#~!") {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
