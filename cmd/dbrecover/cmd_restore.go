package main

import (
	"context"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/cli"
	"tidemark/internal/recovery"
)

type restoreCmd struct {
	cli.ReposFlag
	cli.IdentityFlag
	cli.DataDirFlag
	targetFlags
	Then string `name:"then" enum:"promote,pause,shutdown" default:"promote" placeholder:"promote|pause|shutdown" help:"What the server does at the target; promote is the default."`
	cli.JobsFlag
	cli.DryRunFlag
	cli.OwnerFlag
}

func (restoreCmd) Examples() string {
	return `dbrecover restore --repo /srv/backup -D /srv/pg                            # all that is archived
dbrecover restore -D /srv/pg --to-time '2026-11-21 22:50:01+00'            # the repository is named in tidemark.toml
dbrecover restore -D /srv/pg --to-lsn 0/5000148 --exclusive --dry-run      # what would be done
dbrecover restore -D /srv/pg --tablespace fast=/ssd/fast --archive off     # a copy beside the original`
}

func (c *restoreCmd) Run(ctx context.Context, e *cli.Env) error {
	begun := time.Now()
	if err := dataDir(c.PGData, c.Owner); err != nil {
		return err
	}
	r, err := c.prepare(ctx, e)
	if err != nil {
		return err
	}
	res := recovery.RestoreResult{DataDir: c.PGData, DryRun: c.DryRun, Resolution: r.Resolution}
	if c.DryRun {
		res.Plan = r.Plan
		return e.Render(res, func(t *cli.Text) {
			t.Line("Nothing is changed. The restore would:")
			t.KV(append(resolutionPairs(r.Resolution),
				"copy", cli.Bytes(r.Plan.Totals.Bytes)+" in "+cli.Plural(r.Plan.Totals.Copied, "file", "files"), "into", c.PGData)...)
		})
	}
	done, err := r.Run(ctx)
	if err != nil {
		return err
	}
	res.Copy, res.Took = &done, time.Since(begun).Seconds()
	return e.Render(res, func(t *cli.Text) {
		t.Line("%s is restored and waits for its recovery.", c.PGData)
		t.KV(append(resolutionPairs(r.Resolution), copyPairs(&done)...)...)
		t.Blank()
		t.Line("Next, to replay and to see it stop at the target:")
		t.Line("    dbrecover run -D %s", recovery.ShellQuote(c.PGData))
		t.Line("or start the server as usual.")
	})
}

func (c *restoreCmd) prepare(ctx context.Context, e *cli.Env) (*recovery.Restore, error) {
	o, err := c.options(ctx, e, c.Repos, c.Identity, c.PGData, c.Jobs, recovery.Then(c.Then))
	if err != nil {
		return nil, err
	}
	return recovery.PrepareRestore(ctx, o)
}

// resolutionPairs are the keys and values that tell of a resolution.
func resolutionPairs(r *recovery.Resolution) []any {
	stop := ""
	if r.Stop != nil && !r.Stop.Time.IsZero() {
		stop = "after " + r.Stop.LSN.String()
		if r.Stop.Before {
			stop = "before " + r.Stop.LSN.String()
		}
		stop += ", a record of " + r.Stop.Time.UTC().Format("2006-01-02 15:04:05.999999Z07:00")
	}
	pairs := []any{"backup", r.Backup + ", ended " + cli.Time(r.BackupEnd),
		"target", r.Target.String() + " on timeline " + r.Timeline.String(),
		"stop", stop,
		"replay", r.From.String() + " to " + r.To.String() + " (" + cli.Bytes(r.ReplayBytes()) + ")",
		"WAL", r.FirstWAL + " to " + r.LastWAL + " (" + cli.Plural(r.Segments, "segment", "segments") + ", all archived)"}
	for _, b := range r.Branches {
		pairs = append(pairs, "not followed", "timeline "+b.Timeline.String()+" behind "+b.Left.String()+
			" ("+cli.Plural(b.Segments, "segment", "segments")+")")
	}
	return pairs
}

func copyPairs(done *blockcopy.Result) []any {
	resumed := ""
	if done.Resumed {
		resumed = cli.Bytes(done.SkippedBytes) + " were there already"
	}
	return []any{"copied", cli.Bytes(done.FetchedBytes) + " in " + cli.Duration(done.Elapsed) + ", " + cli.Rate(done.FetchedBytes, done.Elapsed),
		"resumed", resumed}
}
