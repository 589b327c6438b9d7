package ssh_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/repo/storetest"
	"tidemark/internal/ssh"
)

// tree makes what a data directory may hold, and returns its files' contents.
func tree(t *testing.T, s *storetest.SFTP) (string, map[string][]byte) {
	t.Helper()
	s.MakeDir(t, "data")
	dir := filepath.Join(s.Dir, "data")
	files := map[string][]byte{"PG_VERSION": []byte("15\n"), "empty": nil, "odd 'name\" ünd % ?.txt": []byte("odd"), "global/pg_control": []byte("c")}
	big := make([]byte, 3<<20+1234)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range big {
		big[i] = byte(r.Uint32())
	}
	files["base/5/1259"] = big
	for i := range 500 {
		files[fmt.Sprintf("base/5/%d", 20000+i)] = big[i : i+100+i]
	}
	write := func(name string, data []byte) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range files {
		write(filepath.Join(dir, name), data)
	}
	elsewhere := filepath.Join(s.Dir, "else where")
	for name, data := range map[string]string{"wal/000000010000000000000001": "w", "space/PG_15_1/5/9": "spc", "logs/server.log": "l", "conf/p.conf": "conf"} {
		write(filepath.Join(elsewhere, name), []byte(data))
	}
	if err := os.MkdirAll(filepath.Join(dir, "pg_tblspc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"pg_wal": "wal", "pg_tblspc/77": "space", "log": "logs", "postgresql.conf": "conf/p.conf"} {
		if err := os.Symlink(filepath.Join(elsewhere, target), filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	files["pg_wal/000000010000000000000001"], files["pg_tblspc/77/PG_15_1/5/9"], files["postgresql.conf"] = []byte("w"), []byte("spc"), []byte("conf")
	return dir, files
}

func open(t *testing.T, location string) *ssh.Source {
	t.Helper()
	at, err := ssh.ParseLocation(location)
	if err != nil {
		t.Fatal(err)
	}
	src, err := ssh.OpenSource(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// fetchAll reads every file whole, with two workers, as a backup does.
func fetchAll(t *testing.T, src blockcopy.Source) map[string][]byte {
	t.Helper()
	entries, err := src.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ranges []blockcopy.Range
	out := map[string][]byte{}
	for _, e := range entries {
		if e.Type == blockcopy.File {
			out[e.Path] = nil
			ranges = append(ranges, blockcopy.Range{Path: e.Path, Length: e.Size})
		}
	}
	var mu sync.Mutex
	err = blockcopy.Fetch(t.Context(), src, ranges, blockcopy.FetchOptions{Jobs: 2, TaskBytes: 1 << 20}, func(p blockcopy.Range, data []byte, gone bool) error {
		mu.Lock()
		defer mu.Unlock()
		if gone || int64(len(data)) != p.Length {
			return fmt.Errorf("%s: %d bytes, gone: %v", p, len(data), gone)
		}
		all := out[p.Path]
		if need := int(p.End()); need > len(all) {
			all = append(all, make([]byte, need-len(all))...)
		}
		copy(all[p.Offset:], data)
		out[p.Path] = all
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t *testing.T, want, got map[string][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d files, not %d", len(got), len(want))
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s: %d bytes, or others, not %d", name, len(got[name]), len(want[name]))
		}
	}
}

// TestSource: another host's directory reads as the same directory does here.
func TestSource(t *testing.T) {
	s := storetest.NewSFTP(t)
	dir, files := tree(t, s)
	here := blockcopy.NewDirSource(dir, false)
	there := open(t, s.Location("data"))
	var lists [2][]string
	for i, src := range []blockcopy.Source{here, there} {
		entries, err := src.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			lists[i] = append(lists[i], fmt.Sprintf("%s %s %d %s %d %s", e.Path, e.Type, e.Size, e.Mode, e.ModTime.Unix(), e.LinkTarget))
		}
		same(t, files, fetchAll(t, src))
	}
	if d := cmp.Diff(lists[0], lists[1]); d != "" {
		t.Error(d)
	}

	big := files["base/5/1259"]
	ranges := []blockcopy.Range{{Path: "base/5/1259", Offset: 5, Length: int64(len(big))}, {Path: "base/5/1259", Offset: 8192, Length: 8192},
		{Path: "base/5/4711", Length: 3 << 20}, {Path: "PG_VERSION", Length: 3}, {Path: "PG_VERSION", Offset: 9, Length: 4}, {Path: "PG_VERSION/x", Length: 1}}
	for _, src := range []blockcopy.Source{here, there} {
		got := make([][]byte, len(ranges))
		gone := make([]int, len(ranges))
		at := -1
		err := src.Fetch(t.Context(), ranges, func(p blockcopy.Range, data []byte, missing bool) error {
			if at < 0 || ranges[at].Path != p.Path || p.Offset != ranges[at].Offset+int64(len(got[at])) {
				at++
			}
			if missing {
				gone[at]++
			}
			got[at] = append(got[at], data...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := [][]byte{big[5:], big[8192:16384], nil, files["PG_VERSION"], nil, nil}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("%s: %s: %d bytes, not %d", src.Name(), ranges[i], len(got[i]), len(want[i]))
			}
		}
		if d := cmp.Diff([]int{0, 0, 1, 0, 0, 1}, gone); d != "" {
			t.Errorf("%s: gone: %s", src.Name(), d)
		}
		stop := errors.New("stop")
		if err := src.Fetch(t.Context(), ranges, func(blockcopy.Range, []byte, bool) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("%s: an error of the receiver: %v", src.Name(), err)
		}
		if _, err := src.ReadFile(t.Context(), "no/such/file"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a missing file: %v", src.Name(), err)
		}
		if data, err := src.ReadFile(t.Context(), "PG_VERSION"); err != nil || string(data) != "15\n" {
			t.Errorf("%s: %q, %v", src.Name(), data, err)
		}
	}
	if _, err := there.ReadFile(t.Context(), "../else where/conf/p.conf"); err == nil {
		t.Error("a name outside the directory was read")
	}
}

// TestSourceCut cuts the connections ever later: the reading goes on, and what
// comes is right. A host that stays away is an error that says to go on.
func TestSourceCut(t *testing.T) {
	s := storetest.NewSFTP(t)
	_, files := tree(t, s)
	for at := int64(4000); at < 60_000; at *= 2 {
		relay := storetest.NewRelay(t, s.Port(), at, at+3000, at+9000)
		s.Trust(t, relay.Port)
		same(t, files, fetchAll(t, open(t, s.At(relay.Port, "data"))))
		if n := relay.Connections(); n < 2 && at < 20_000 {
			t.Errorf("cut after %d bytes: %d connections", at, n)
		}
	}
	relay := storetest.NewRelay(t, s.Port(), 6000, 0, 0)
	s.Trust(t, relay.Port)
	src := open(t, s.At(relay.Port, "data", "attempts=2"))
	err := src.Fetch(t.Context(), []blockcopy.Range{{Path: "base/5/1259", Length: int64(len(files["base/5/1259"]))}, {Path: "base/5/1259", Length: 3 << 20}, {Path: "base/5/1259", Length: 3 << 20}},
		func(blockcopy.Range, []byte, bool) error { return nil })
	if err == nil || !strings.Contains(exit.HintOf(err), "run the same command again") {
		t.Errorf("the host stays away: %v, %q", err, exit.HintOf(err))
	}
}

func TestOpenSourceRefused(t *testing.T) {
	s := storetest.NewSFTP(t)
	s.MakeDir(t, "data")
	for what, tt := range map[string]struct{ location, want, hint string }{
		"a missing directory": {s.Location("nope"), "file does not exist", ""},
		"another key":         {s.Location("data") + "&identity=/nonexistent", "", ""},
		"a strange host":      {strings.Replace(s.Location("data"), "127.0.0.1", "localhost", 1), "Host key verification failed", "known_hosts"},
		"nobody there":        {s.At(1, "data", "attempts=1"), "", "sshd"},
	} {
		at, err := ssh.ParseLocation(tt.location)
		if err != nil {
			t.Fatal(err)
		}
		src, err := ssh.OpenSource(t.Context(), at)
		if err == nil {
			src.Close()
			if what == "another key" { // the configuration names the right one as well
				continue
			}
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(exit.HintOf(err), tt.hint) {
			t.Errorf("%s: %v, hint %q", what, err, exit.HintOf(err))
		}
	}
	for _, text := range []string{"sftp://", "sftp://host", "sftp://host/", "sftp://-oProxyCommand=x/data", "sftp://user:secret@host/data", "sftp://host/data?x=1",
		"sftp://host/data?timeout=0", "sftp://host/data?attempts=0", "sftp://host:99999/data"} {
		if _, err := ssh.ParseLocation(text); err == nil || exit.CodeOf(err) != exit.Usage || exit.HintOf(err) == "" || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if at, err := ssh.ParseLocation("sftp://me@host:22/~/pg?identity=/k&config=/c&timeout=5s&attempts=2"); err != nil || at.Dir != "pg" || at.User != "me" || at.Host != "host" || at.Port != 22 {
		t.Errorf("%+v, %v", at, err)
	}
}
