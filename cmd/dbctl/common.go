package main

import (
	"os"
	"time"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
	"tidemark/internal/exit"
)

// timeoutFlags bound what a role change waits for. Their defaults are the
// library's, shown in the help through vars below.
type timeoutFlags struct {
	StopTimeout    time.Duration `help:"How long the primary may take to shut down; default 1m." placeholder:"TIME"`
	PromoteTimeout time.Duration `help:"How long the promotion may take; default 1m." placeholder:"TIME"`
	FollowTimeout  time.Duration `help:"How long a standby may take until it streams; default 1m." placeholder:"TIME"`
}

func (t timeoutFlags) apply(o *cluster.Options) {
	o.StopTimeout, o.PromoteTimeout, o.FollowTimeout = t.StopTimeout, t.PromoteTimeout, t.FollowTimeout
}

// options are those of the cluster that the configuration names.
func options(e *cli.Env) cluster.Options {
	conf := e.Config()
	o := cluster.Options{
		Name:     conf.Cluster.Name,
		Hooks:    cluster.Hooks{BeforePromote: conf.Hooks.BeforePromote, AfterPromote: conf.Hooks.AfterPromote},
		Progress: e.Progress(),
		Log:      e.Log(),
	}
	for _, n := range conf.Nodes {
		bindir := n.Bindir
		if bindir == "" {
			bindir = conf.Bindir
		}
		o.Nodes = append(o.Nodes, cluster.Node{Name: n.Name, Conninfo: n.Conninfo, DataDir: n.PGData, Host: n.Host, Bindir: bindir})
	}
	return o
}

// open becomes the owner of the data directories and returns the cluster.
// named is the node that the command is about; it must be known before
// anything is looked at.
func open(e *cli.Env, named string, o cluster.Options) (*cluster.Cluster, error) {
	if named != "" {
		if _, err := e.Config().Node(named); err != nil {
			return nil, err
		}
	}
	if err := becomeOwner(o.Nodes); err != nil {
		return nil, err
	}
	return cluster.New(o)
}

// becomeOwner gives up root for the owner of the data directories, which must
// be one user: a process cannot be two.
func becomeOwner(nodes []cluster.Node) error {
	dir, uid := "", uint32(0)
	for _, n := range nodes {
		st, err := os.Stat(n.DataDir)
		if n.DataDir == "" || n.Host != "" || err != nil {
			continue
		}
		if dir == "" {
			dir, uid = n.DataDir, ownerID(st)
		}
		if ownerID(st) != uid && os.Geteuid() == 0 {
			return exit.New(exit.Refused, "give the directories one owner, or name the nodes in separate files (--config)",
				"%s and %s belong to different users", dir, n.DataDir)
		}
	}
	if dir == "" {
		return nil
	}
	return cli.BecomeOwner(dir, "")
}
