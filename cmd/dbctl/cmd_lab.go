package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
	"tidemark/internal/exit"
)

type labCmd struct {
	Up   labUpCmd   `cmd:"" help:"Make a scratch cluster and start it."`
	Down labDownCmd `cmd:"" help:"Stop a scratch cluster and remove what lab up made."`
}

type labUpCmd struct {
	Dir   string `arg:"" type:"path" help:"A new or empty directory."`
	Nodes int    `placeholder:"N" help:"How many nodes, 1 to 8; default 3."`
	Major int    `placeholder:"N" help:"Major version of the server; default the newest that is installed."`
	cli.BindirFlag
	cli.OwnerFlag
}

// Examples are printed with --help.
func (labUpCmd) Examples() string {
	return `dbctl lab up /tmp/lab                        # three nodes, WAL archived into /tmp/lab/repo
dbctl lab up /tmp/lab15 --nodes 2 --major 15
export TIDEMARK_CONFIG=/tmp/lab/tidemark.toml
dbctl status`
}

// Run makes a lab.
func (l *labUpCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := l.prepare(); err != nil {
		return err
	}
	o := cluster.LabOptions{Dir: l.Dir, Nodes: l.Nodes, Major: l.Major, Bindir: l.Bindir, Progress: e.Progress()}
	if err := l.archive(ctx, &o); err != nil {
		return err
	}
	lab, err := cluster.LabUp(ctx, o)
	if err != nil {
		return err
	}
	if lab.Repo == "" {
		e.Note("dbbackup and dbrecover are not beside dbctl: WAL is not archived")
	}
	return e.Render(lab, func(t *cli.Text) {
		t.Line("%s of PostgreSQL %d in %s", cli.Plural(len(lab.Nodes), "node", "nodes"), lab.Major, lab.Dir)
		t.Blank()
		tab := cli.NewTable("node", "connect with")
		for _, n := range lab.Nodes {
			tab.Row(n.Name, fmt.Sprintf("psql -h %s -p %d -U postgres", filepath.Join(lab.Dir, "run"), n.Port))
		}
		t.Table(tab)
		t.Blank()
		t.Line("export TIDEMARK_CONFIG=%s", lab.Config)
		t.Line("dbctl status")
	})
}

// prepare makes the directory and gives up root: servers do not run as root,
// and below a directory of root's the lab belongs to user postgres.
func (l *labUpCmd) prepare() error {
	if os.Geteuid() != 0 {
		return nil
	}
	if _, err := os.Stat(l.Dir); err == nil {
		return cli.BecomeOwner(l.Dir, l.Owner)
	}
	owner := l.Owner
	if owner == "" {
		owner = "postgres"
	}
	uid, gid, err := userIDs(owner)
	if err != nil {
		return exit.Wrap(err, exit.Usage, "name an unprivileged user with --owner", "servers do not run as root")
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return err
	}
	if err := os.Chown(l.Dir, uid, gid); err != nil {
		return err
	}
	return cli.BecomeOwner(l.Dir, "")
}

// archive sets up the repository with the commands that stand beside this one.
func (l *labUpCmd) archive(ctx context.Context, o *cluster.LabOptions) error {
	push, fetch := beside("dbbackup"), beside("dbrecover")
	if push == "" || fetch == "" {
		return nil
	}
	o.Repo = filepath.Join(l.Dir, "repo")
	o.Archive = fmt.Sprintf(`"%s" push --repo "%s" --quiet "%%p"`, push, o.Repo)
	o.Restore = fmt.Sprintf(`"%s" fetch --repo "%s" --quiet "%%f" "%%p"`, fetch, o.Repo)
	o.InitRepo = func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, push, "init", "--repo", o.Repo).CombinedOutput()
		if err != nil {
			return fmt.Errorf("making the repository: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	return nil
}

// beside finds another of the five commands: next to this one, else on PATH.
// A command that the lab's user may not run is as good as none.
func beside(command string) string {
	self, err := os.Executable()
	if err == nil {
		path := filepath.Join(filepath.Dir(self), command)
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	found, err := exec.LookPath(command)
	if err != nil {
		return ""
	}
	return found
}

type labDownCmd struct {
	Dir string `arg:"" type:"path" help:"The directory that was given to lab up."`
}

// Examples are printed with --help.
func (labDownCmd) Examples() string {
	return `dbctl lab down /tmp/lab`
}

// Run removes a lab.
func (l *labDownCmd) Run(ctx context.Context, e *cli.Env) error {
	lab, err := cluster.ReadLab(l.Dir)
	if err != nil {
		return err
	}
	if err := e.Confirm("Stop %s and remove %s?", cli.Plural(len(lab.Nodes), "server", "servers"), l.Dir); err != nil {
		return err
	}
	if err := cluster.LabDown(ctx, l.Dir, e.Progress()); err != nil {
		return err
	}
	return e.Render(lab, func(t *cli.Text) { t.Line("the lab in %s is gone", l.Dir) })
}
