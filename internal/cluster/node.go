package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
)

// Node is one member of the cluster as the configuration names it.
type Node struct {
	Name     string
	Conninfo string
	DataDir  string // empty: only what SQL tells is known of it
	Host     string // how to reach its machine; empty: this one
	Bindir   string // the server's programs; empty: found by the data directory's version
}

// The defaults of Options. The help texts are fed from here.
const (
	DefaultConnectTimeout = 5 * time.Second
	DefaultStopTimeout    = 60 * time.Second
	DefaultPromoteTimeout = 60 * time.Second
	DefaultFollowTimeout  = 60 * time.Second
	DefaultMaxLag         = 16 << 20
	DefaultMaxBacklog     = 16
)

// Options are what all operations share. The zero value is usable with Nodes set.
type Options struct {
	Name  string // of the cluster, for messages and hooks
	Nodes []Node

	ConnectTimeout time.Duration // per session; 0 means DefaultConnectTimeout
	StopTimeout    time.Duration // until the primary has written its shutdown checkpoint; 0 means the default
	PromoteTimeout time.Duration // until the candidate has left recovery
	FollowTimeout  time.Duration // until a standby is proven to stream
	MaxLag         int64         // bytes a candidate may be behind before a switchover; 0 means the default, -1 no limit
	MaxBacklog     int           // WAL segments that may wait for the archive; 0 means the default, -1 no limit

	Hooks    Hooks
	FS       volume.FS // through which data directories are changed; nil means the machine's
	Progress progress.Reporter
	Log      *slog.Logger

	// BeforeStep is called before every step of a plan; an error counts as the
	// step's own failure. Tests inject faults with it.
	BeforeStep func(Step) error
}

// Cluster is a set of nodes to work on.
type Cluster struct {
	opt   Options
	nodes []Node
	logs  sync.Map // data directory -> the file that its server writes to
}

// New checks the options.
func New(o Options) (*Cluster, error) {
	if len(o.Nodes) == 0 {
		return nil, exit.New(exit.Usage, "name the nodes in tidemark.toml ([[node]] name, conninfo, pgdata), or say --config FILE",
			"no node is known: no configuration file was found")
	}
	setDefault(&o.ConnectTimeout, DefaultConnectTimeout)
	setDefault(&o.StopTimeout, DefaultStopTimeout)
	setDefault(&o.PromoteTimeout, DefaultPromoteTimeout)
	setDefault(&o.FollowTimeout, DefaultFollowTimeout)
	setDefault(&o.MaxLag, DefaultMaxLag)
	setDefault(&o.MaxBacklog, DefaultMaxBacklog)
	if o.FS == nil {
		o.FS = volume.OS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Progress = progress.Or(o.Progress)
	return &Cluster{opt: o, nodes: o.Nodes}, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// node finds a node by its name.
func (c *Cluster) node(name string) (Node, error) {
	var names []string
	for _, n := range c.nodes {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return Node{}, exit.New(exit.Usage, "the nodes are: "+strings.Join(names, ", "), "there is no node %q", name)
}

// local refuses a cluster with a node whose data directory cannot be reached
// from here: a role change starts, stops and configures servers.
func (c *Cluster) local() error {
	for _, n := range c.nodes {
		if n.Host != "" && !isThisMachine(n.Host) {
			return exit.New(exit.Refused, "run the command where all the nodes are, or leave that node out of the configuration (--config FILE)",
				"node %s is on host %s; changing roles works for nodes on this machine only", n.Name, n.Host)
		}
		if n.DataDir == "" {
			return exit.New(exit.Usage, fmt.Sprintf("add pgdata = \"...\" to node %q in tidemark.toml", n.Name),
				"the data directory of node %s is not known", n.Name)
		}
	}
	return nil
}

func isThisMachine(host string) bool {
	switch host {
	case "", "localhost", "127.0.0.1", "::1":
		return true
	}
	name, err := os.Hostname()
	return err == nil && host == name
}

// connect opens a session on a node. It gives up after the time-out: a server
// that is there but does not answer must not hang a failover.
func (c *Cluster) connect(ctx context.Context, n Node, options ...string) (*pgx.Conn, error) {
	info := n.Conninfo
	if len(options) > 0 {
		var err error
		if info, err = postgres.Append(info, options...); err != nil {
			return nil, err
		}
	}
	tctx, cancel := context.WithTimeoutCause(ctx, c.opt.ConnectTimeout, fmt.Errorf("no answer within %s", c.opt.ConnectTimeout))
	defer cancel()
	conn, err := postgres.Connect(tctx, info)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return conn, err
}

// session runs f with a session on a node.
func (c *Cluster) session(ctx context.Context, n Node, f func(*pgx.Conn) error) error {
	conn, err := c.connect(ctx, n)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	return f(conn)
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn.Close(ctx)
}

// server returns how to start and stop a node: with the programs of its
// version, and the arguments it was last started with.
func (c *Cluster) server(n Node) (*postgres.Server, error) {
	s, err := postgres.NewServer(n.DataDir, n.Bindir)
	if err != nil {
		return nil, err
	}
	s.Args = lastArguments(n.DataDir)
	if path, ok := c.logs.Load(n.DataDir); ok {
		s.LogFile = path.(string)
	}
	s.Log = c.opt.Log
	return s, nil
}
