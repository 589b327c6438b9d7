package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
)

// observe looks at all nodes at once.
func (c *Cluster) observe(ctx context.Context) []*Facts {
	all := make([]*Facts, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() { all[i] = c.observeNode(ctx, n) })
	}
	wg.Wait()
	for _, f := range all {
		f.Upstream = upstreamName(f, all)
	}
	measureLag(all)
	return all
}

// observeNode never fails: what cannot be learned is left out, and Reason says
// why. The data directory is looked at first, the server second, so that a
// server which stops in between is not taken for a running one.
func (c *Cluster) observeNode(ctx context.Context, n Node) *Facts {
	f := &Facts{Name: n.Name, Conninfo: postgres.Redact(n.Conninfo), DataDir: n.DataDir, Node: n, Role: RoleUnknown, State: StateUnreachable}
	if n.DataDir != "" && isThisMachine(n.Host) {
		c.observeDirectory(f)
	}
	if n.Conninfo == "" {
		f.Node.Conninfo = conninfoOf(n.DataDir)
		f.Conninfo = f.Node.Conninfo
	}
	f.SQLError = postgres.ErrNotRunning
	if f.Node.Conninfo != "" {
		f.SQLError = c.observeServer(ctx, f)
	}
	f.SQL = f.SQLError == nil
	f.settle()
	return f
}

// conninfoOf finds the way to the server that runs on a data directory, empty
// where none does.
func conninfoOf(dir string) string {
	st, err := (&postgres.Server{DataDir: dir}).Status()
	if err != nil || !st.Running {
		return ""
	}
	return st.ConnInfo() + " dbname=postgres"
}

// settle decides role and state from what was seen.
func (f *Facts) settle() {
	switch {
	case f.SQL:
		f.State = StateRunning
		f.LSN = max(f.LSN, f.Receive, f.Replay)
		return
	case f.State == StateMissing:
		return
	case f.processAlive():
		if f.State == StateUnreachable {
			f.State = StateStarting
		}
		f.Reason = fmt.Sprintf("process %d holds the data directory and accepts no sessions", f.PID)
		if f.State != StateStopping && !errors.Is(f.SQLError, postgres.ErrStarting) { // one that stops has no socket at its end
			f.State, f.Reason = StateUnreachable, f.SQLError.Error()
		}
	case f.Control != nil && f.Control.State.Clean():
		f.State, f.Reason = StateStopped, f.Control.State.String()
	case f.Control != nil:
		f.State, f.Reason = StateCrashed, "no process, pg_control says "+f.Control.State.String()
	case f.Reason == "":
		f.Reason = f.SQLError.Error()
	}
	if f.Tombstone != "" && !f.processAlive() {
		f.Reason = f.Tombstone
	}
}

// observeDirectory reads what the data directory says: the process that holds
// it, pg_control, and whether it would start as a standby.
func (c *Cluster) observeDirectory(f *Facts) {
	dir := f.DataDir
	if st, err := os.Stat(dir); err != nil {
		f.State, f.Reason = StateMissing, "no data directory at "+dir
		if !errors.Is(err, fs.ErrNotExist) {
			f.State, f.Reason = StateUnreachable, err.Error()
		}
		return
	} else if !st.IsDir() {
		f.State, f.Reason = StateMissing, dir+" is not a directory"
		return
	}
	if st, err := (&postgres.Server{DataDir: dir}).Status(); err == nil && st.Running {
		f.PID = st.PID
		if path := logOf(st.PID); path != "" {
			c.logs.Store(dir, path)
		}
		if st.Phase == "stopping" {
			f.State = StateStopping
		}
	}
	control, err := volume.ReadControlFS(c.opt.FS, dir)
	if err != nil {
		f.Reason = err.Error()
		return
	}
	f.Control = control
	f.SystemID, f.Major = control.SystemIdentifier, control.Major()
	f.Timeline, f.LSN = control.Timeline(), max(control.CheckPoint, control.MinRecoveryPoint)
	f.HasSignal = fileExists(dir, "standby.signal") || fileExists(dir, "recovery.signal")
	f.Role = RolePrimary
	if f.HasSignal {
		f.Role = RoleStandby
	}
	if t, err := volume.ReadTombstone(c.opt.FS, dir); err == nil {
		f.TombstoneOf = t.Operation
		f.Tombstone = fmt.Sprintf("incomplete: a %s has not ended; run again: %s", t.Operation, t.Command)
	}
}

// logOf returns the file that a server's messages go to, so that it goes on
// there when it is started again; empty where it is no file.
func logOf(pid int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid))
	if err != nil {
		return ""
	}
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	return path
}

func fileExists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil
}

// measureLag compares the standbys with the one primary that runs.
func measureLag(all []*Facts) {
	p := primaries(all)
	if len(p) != 1 {
		return
	}
	for _, f := range all {
		if f == p[0] || !f.running() || f.Role != RoleStandby || f.SystemID != p[0].SystemID {
			continue
		}
		lag := behind(f.Replay, p[0].LSN)
		f.LagBytes = &lag
		if lag == 0 {
			f.LagSeconds = new(float64)
		}
	}
}

// upstreamName names the node that a standby receives from. Nodes are told
// apart by port and, where both are known, host: several nodes may share a
// machine, and one host has many names.
func upstreamName(f *Facts, all []*Facts) string {
	host, port := f.upstreamAddress()
	if port == "" {
		return ""
	}
	for _, g := range all {
		if g != f && g.listensOn(host, port) {
			return g.Name
		}
	}
	return host + ":" + port
}

func (f *Facts) upstreamAddress() (host, port string) {
	if f.Receiver != nil && f.Receiver.Port != 0 {
		return f.Receiver.Host, fmt.Sprint(f.Receiver.Port)
	}
	info, err := postgres.ParseConnInfo(f.Settings["primary_conninfo"])
	if err != nil || len(info) == 0 || f.Role != RoleStandby {
		return "", ""
	}
	return info["host"], orDefault(info["port"], "5432")
}

// listensOn reports whether host and port lead to this node.
func (f *Facts) listensOn(host, port string) bool {
	info, err := postgres.ParseConnInfo(f.Node.Conninfo)
	if err != nil {
		return false
	}
	if p := f.Settings["port"]; p != "" {
		if p != port {
			return false
		}
	} else if orDefault(info["port"], "5432") != port {
		return false
	}
	own := orDefault(info["host"], info["hostaddr"])
	return own == host || isLocalAddress(own) && isLocalAddress(host) || info["hostaddr"] == host
}

// isLocalAddress reports whether a host of a connection string leads to this
// machine for certain.
func isLocalAddress(host string) bool {
	return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || isThisMachine(host)
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}
