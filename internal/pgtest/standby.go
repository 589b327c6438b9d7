package pgtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/postgres"
)

// StandbyOptions shape a standby.
type StandbyOptions struct {
	Name       string
	Config     []string
	NoStart    bool
	NoSlot     bool // do not use a replication slot
	Restricted bool // no primary_conninfo: it replays what a restore_command gives it
}

// Standby makes a streaming standby of the node: a low-level backup under
// pg_backup_start, a slot named after it, and its own port and sockets. Links of
// tablespaces lead to copies of their own.
func (n *Node) Standby(o StandbyOptions) *Node {
	t := n.t
	t.Helper()
	s := newNode(t, o.Name, n.Server.Bin, n.tcp)
	slot := ""
	if !o.NoSlot && !o.Restricted {
		slot = "s_" + s.Name
		n.Exec("SELECT pg_create_physical_replication_slot(" + postgres.QuoteLiteral(slot) + ", true)")
	}
	n.Backup(s.Dir)
	s.Configure(append(s.ownConfig(false), o.Config...)...)
	if !o.Restricted {
		s.Configure("primary_conninfo = "+postgres.QuoteGUC(n.standbyConnInfo(s)), "primary_slot_name = "+postgres.QuoteGUC(slot))
	}
	s.AppendFile("standby.signal", "")
	if !o.NoStart {
		s.Start()
	}
	return s
}

// Follow points a standby at another primary; it counts from the next reload or start.
func (n *Node) Follow(primary *Node) {
	n.t.Helper()
	n.Configure("primary_conninfo = "+postgres.QuoteGUC(primary.standbyConnInfo(n)), "primary_slot_name = ''")
	if n.Running() {
		n.Reload()
	}
}

func (n *Node) standbyConnInfo(standby *Node) string {
	return fmt.Sprintf("host=%s port=%d user=postgres application_name=%s", n.SocketDir, n.Port, standby.Name)
}

// Backup copies the running node into an empty directory by the low-level
// interface and writes its backup_label, so that it can be started there.
func (n *Node) Backup(dir string) {
	t := n.t
	t.Helper()
	conn := n.Conn()
	defer conn.Close(context.Background())
	ctx, cancel := n.Context()
	defer cancel()
	start, stop := "SELECT pg_backup_start('pgtest', true)::text", "SELECT labelfile FROM pg_backup_stop(false)"
	if n.Major < 15 {
		start, stop = "SELECT pg_start_backup('pgtest', true, false)::text", "SELECT labelfile FROM pg_stop_backup(false, false)"
	}
	var lsn, label string
	if err := conn.QueryRow(ctx, start).Scan(&lsn); err != nil {
		t.Fatal(err)
	}
	if err := CopyTree(n.Dir, dir); err != nil {
		t.Fatal(err)
	}
	ownTablespaces(n, dir)
	if err := conn.QueryRow(ctx, stop).Scan(&label); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "postgresql.auto.conf"} {
		os.Remove(filepath.Join(dir, name))
	}
	if slots, err := filepath.Glob(filepath.Join(dir, "pg_replslot", "*")); err == nil {
		for _, slot := range slots {
			os.RemoveAll(slot)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "backup_label"), []byte(label), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ownTablespaces replaces the links of tablespaces by links to copies.
func ownTablespaces(n *Node, dir string) {
	t := n.t
	links, err := os.ReadDir(filepath.Join(dir, "pg_tblspc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range links {
		link := filepath.Join(dir, "pg_tblspc", e.Name())
		from, err := os.Readlink(link)
		if err != nil {
			continue // a directory: an in-place tablespace
		}
		to := dir + ".ts" + e.Name()
		if err := CopyTree(from, to); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
}

// TempDir makes an empty directory with a short path beside the node's data
// directory, for tablespaces and the like.
func (n *Node) TempDir(name string) string {
	n.t.Helper()
	dir := filepath.Join(filepath.Dir(n.Dir), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// Attach takes a data directory that a test made otherwise (a restore, a seed)
// as a node: it gets a port and sockets of its own through postgresql.conf.
func Attach(t testing.TB, name, dir string, config ...string) *Node {
	t.Helper()
	major, err := postgres.DataDirMajor(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, name, installation(t, major), false)
	n.Dir, n.Server.DataDir = dir, dir
	n.Configure(append(n.ownConfig(false), config...)...)
	// Settings copied with a data directory would win over those just made.
	path := filepath.Join(dir, "postgresql.auto.conf")
	if b, err := os.ReadFile(path); err == nil {
		var kept []string
		for _, line := range strings.Split(string(b), "\n") {
			if !strings.HasPrefix(line, "port") && !strings.HasPrefix(line, "unix_socket_directories") {
				kept = append(kept, line)
			}
		}
		if err := os.WriteFile(path, []byte(strings.Join(kept, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return n
}
