package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/pgtest"
	"tidemark/internal/repo/storetest"
)

// TestCompressedTunnel rewinds over the compressing tunnel that
// docs/guides/rewind-proof.md shows for slow networks.
func TestCompressedTunnel(t *testing.T) {
	old := pgtest.New(t, pgtest.Options{Name: "old", Checksums: true, Config: []string{"wal_keep_size = 256MB", "autovacuum = off"}})
	old.Exec("CREATE TABLE t AS SELECT i, repeat('x', 100) AS v FROM generate_series(1, 20000) i")
	primary := old.Standby(pgtest.StandbyOptions{Name: "new"})
	primary.WaitFor(old)
	primary.Promote()
	old.Exec("UPDATE t SET v = 'lost'")
	primary.Exec("UPDATE t SET v = 'kept' WHERE i % 10 = 0")
	old.Stop()

	tunnel := openTunnel(t, storetest.NewSFTP(t), fmt.Sprintf("%s/.s.PGSQL.%d", primary.SocketDir, primary.Port))
	pgtest.MustRun(t, "dbrewind", "run", "-D", old.Dir, "--source-server", fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", tunnel.dir, primary.Port))
	if raw, packed := tunnel.close(t); raw < 4<<20 || packed > raw/2 {
		t.Errorf("%d bytes came as %d", raw, packed)
	}
	old.Follow(primary)
	old.AppendFile("standby.signal", "")
	old.Start()
	old.WaitFor(primary)
	const content = "SELECT count(*) || '/' || sum(hashtext(t::text)::bigint) FROM t"
	if got, want := old.SQL(content), primary.SQL(content); got != want {
		t.Errorf("after the rewind %s, want %s", got, want)
	}
}

// tunnel leads a socket in dir to a server's.
type tunnel struct {
	dir  string
	ssh  *exec.Cmd
	said bytes.Buffer
	done chan error
}

func openTunnel(t *testing.T, host *storetest.SFTP, to string) *tunnel {
	dir, err := os.MkdirTemp("", "tm") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	u := &tunnel{dir: dir, done: make(chan error, 1)}
	here := filepath.Join(dir, filepath.Base(to))
	u.ssh = exec.Command("ssh", "-v", "-C", "-N", "-F", host.File("ssh_config"), "-p", strconv.Itoa(host.Port()), "-L", here+":"+to, "127.0.0.1")
	u.ssh.Stderr = &u.said
	if err := u.ssh.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { u.done <- u.ssh.Wait() }()
	t.Cleanup(func() { u.ssh.Process.Kill() })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(here); err == nil {
			return u
		}
		select {
		case err := <-u.done:
			t.Fatalf("ssh: %v\n%s", err, u.said.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("no tunnel after 20 s")
		}
	}
}

var packedBytes = regexp.MustCompile(`(?m)compress incoming: raw data (\d+), compressed (\d+)`)

// close ends the tunnel, and says how many bytes came through it, and as how many.
func (u *tunnel) close(t *testing.T) (raw, packed int64) {
	t.Helper()
	if err := u.ssh.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-u.done
	m := packedBytes.FindStringSubmatch(u.said.String())
	if m == nil {
		t.Fatalf("ssh does not say what it compressed:\n%s", u.said.String())
	}
	raw, _ = strconv.ParseInt(m[1], 10, 64)
	packed, _ = strconv.ParseInt(m[2], 10, 64)
	return raw, packed
}
