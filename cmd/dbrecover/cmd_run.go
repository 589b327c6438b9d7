package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/recovery"
	"tidemark/pkg/volume"
)

type runCmd struct {
	cli.ReposFlag
	cli.IdentityFlag
	cli.DataDirFlag
	targetFlags
	Then       string `name:"then" enum:",promote,pause,shutdown" default:"" placeholder:"promote|pause|shutdown" help:"At the target: promote (the default); pause, and leave the server up to be looked at; shutdown, and leave it recoverable further."`
	Start      bool   `name:"start" help:"Leave the promoted server running, as its configuration says."`
	ConfigFile string `name:"config-file" placeholder:"FILE" type:"path" help:"postgresql.conf, where it lies outside the data directory."`
	cli.BindirFlag
	cli.JobsFlag
	cli.OwnerFlag
}

func (runCmd) Examples() string {
	return `dbrecover run --repo /srv/backup -D /srv/pg --to-time '2026-11-21 22:50:01+00'
dbrecover run -D /srv/pg                       # go on with what was restored, or was interrupted
dbrecover run -D /srv/pg --to-name before_upgrade --then pause
dbrecover run -D /srv/pg --start               # and leave the server running`
}

func (c *runCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := dataDir(c.PGData, c.Owner); err != nil {
		return err
	}
	var res recovery.RunResult
	restored, err := c.restored()
	if err != nil {
		return err
	}
	if !restored {
		if res.Restore, err = c.restore(ctx, e); err != nil {
			return err
		}
	}
	res.Recovery, err = recovery.Replay(ctx, recovery.ReplayOptions{DataDir: c.PGData, Bindir: c.Bindir,
		ConfigFile: c.ConfigFile, Then: recovery.Then(c.Then), Start: c.Start, Progress: e.Progress(), Log: e.Log()})
	if err != nil {
		return err
	}
	return e.Render(res, func(t *cli.Text) { renderOutcome(t, &res) })
}

// restored tells whether the directory waits for its recovery already. A
// directory that is empty, missing or half restored is restored first.
func (c *runCmd) restored() (bool, error) {
	record, err := recovery.ReadRecord(volume.OS, c.PGData)
	_, stone := volume.ReadTombstone(volume.OS, c.PGData)
	switch {
	case stone == nil:
		return false, nil
	case err == nil:
		return true, c.sameTarget(record)
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	entries, err := os.ReadDir(c.PGData)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	empty := len(entries) == 0
	if empty && len(c.Repos) == 0 {
		return false, exit.New(exit.Usage, "say --repo DIR, set TIDEMARK_REPO, or name it in tidemark.toml",
			"%s is empty, and there is no repository to restore it from", c.PGData)
	}
	return !empty, nil
}

// sameTarget refuses to go on to another target than the one restored for.
func (c *runCmd) sameTarget(record *recovery.Record) error {
	if !c.given() {
		return nil
	}
	target, err := c.target()
	if err != nil {
		return err
	}
	asked := recovery.Request{Backup: c.Backup, Target: target, Timeline: c.Timeline}
	if asked.Equal(record.Request) {
		return nil
	}
	return exit.New(exit.Refused, "run it without a target to go on, or restore into another directory",
		"%s was restored for %s", c.PGData, record.Request.Target)
}

func (c *runCmd) restore(ctx context.Context, e *cli.Env) (*recovery.RestoreResult, error) {
	o, err := c.options(ctx, e, c.Repos, c.Identity, c.PGData, c.Jobs, recovery.Then(c.Then))
	if err != nil {
		return nil, err
	}
	r, err := recovery.PrepareRestore(ctx, o)
	if err != nil {
		return nil, err
	}
	done, err := r.Run(ctx)
	if err != nil {
		return nil, err
	}
	return &recovery.RestoreResult{DataDir: c.PGData, Resolution: r.Resolution, Copy: &done, Took: done.Elapsed.Seconds()}, nil
}

func renderOutcome(t *cli.Text, res *recovery.RunResult) {
	o := res.Recovery
	switch {
	case o.Running && o.State == "paused":
		t.Line("%s has reached its target and is paused there.", o.DataDir)
	case o.Running:
		t.Line("%s is recovered and runs.", o.DataDir)
	default:
		t.Line("%s is recovered; the server is stopped.", o.DataDir)
	}
	var pairs []any
	if res.Restore != nil {
		pairs = append(resolutionPairs(res.Restore.Resolution), copyPairs(res.Restore.Copy)...)
	}
	last := ""
	if !o.LastCommit.IsZero() {
		last = o.LastCommit.UTC().Format("2006-01-02 15:04:05.999999Z07:00")
	}
	t.KV(append(pairs, "replayed to", o.ReplayedTo.String(), "last transaction", last, "proof", o.Evidence, "state", o.State,
		"timeline", o.Timeline.String(), "connect", o.ConnInfo)...)
	if o.State == "paused" {
		t.Blank()
		t.Line("Look at it, then end it by SELECT pg_wal_replay_resume() (it is promoted) or stop the server.")
	}
}
