package pgtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
		"dynamic_shared_memory_type = mmap", // in the data directory: nothing is left of a killed server
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
