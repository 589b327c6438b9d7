package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/repo/storetest"
)

// keyFile writes the store's keys where only the repository's name says: the
// server that archives has another environment.
func keyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", storetest.AccessKey, storetest.SecretKey)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRemoteRepository: on each kind of store, from nothing to a cluster that
// was brought back, with the commands and the server's own archiver.
func TestRemoteRepository(t *testing.T) {
	t.Run("s3", func(t *testing.T) {
		s := storetest.NewS3(t, false)
		t.Setenv("AWS_ACCESS_KEY_ID", "")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		thereAndBack(t, s.Location("pg", "credentials="+keyFile(t)))
	})
	t.Run("sftp", func(t *testing.T) {
		thereAndBack(t, storetest.NewSFTP(t).Location("pg"))
	})
}

func thereAndBack(t *testing.T, at string) {
	pgtest.MustRun(t, "dbbackup", "init", "--repo", at)
	n := pgtest.New(t, pgtest.Options{Checksums: true, Config: archivingTo(at)})
	n.Exec("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 50000) i")
	pgtest.MustRun(t, "dbbackup", "create", "--repo", at, "-d", n.ConnInfo())
	n.Exec("UPDATE t SET md5 = 'changed' WHERE i % 100 = 0")
	pgtest.MustRun(t, "dbbackup", "create", "--repo", at, "-d", n.ConnInfo())
	n.Exec("DELETE FROM t WHERE i <= 1000")
	want := n.SQL("SELECT count(*) || '/' || sum(hashtext(t::text)::bigint) FROM t")
	last := n.SwitchWAL()
	n.WaitSQL("SELECT (last_archived_wal >= '"+last+"')::text FROM pg_stat_archiver", "true")

	var list struct {
		Clusters []struct {
			Backups []struct {
				Type    string
				Missing []string `json:"wal_missing"`
			}
		}
	}
	if err := json.Unmarshal([]byte(pgtest.MustRun(t, "dbbackup", "list", "--repo", at, "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Clusters) != 1 || len(list.Clusters[0].Backups) != 2 || list.Clusters[0].Backups[1].Type != "incremental" || len(list.Clusters[0].Backups[1].Missing) > 0 {
		t.Errorf("listed %+v", list)
	}
	dir := filepath.Join(t.TempDir(), "restored")
	pgtest.MustRun(t, "dbrecover", "run", "--repo", at, "-D", dir, "--archive", "off", "--bindir", n.Server.Bin.BinDir)
	back := pgtest.Attach(t, "restored", dir, "archive_mode = off")
	if !back.Running() {
		back.Start()
	}
	if got := back.SQL("SELECT count(*) || '/' || sum(hashtext(t::text)::bigint) FROM t"); got != want {
		t.Errorf("restored %s, want %s", got, want)
	}
}

func archivingTo(locations ...string) []string {
	command := pgtest.Bin("dbbackup") + " push"
	for _, l := range locations {
		command += ` --repo "` + l + `"`
	}
	return []string{"archive_mode = on", "archive_command = '" + command + ` "%p"'`}
}

// TestSeveralRepositories: a push is done when each repository has the file,
// and one that is away does not keep the others from getting it; a fetch takes
// the first that has it, and nobody lacks it while one cannot be asked.
func TestSeveralRepositories(t *testing.T) {
	s := storetest.NewS3(t, false)
	dir := filepath.Join(t.TempDir(), "repo")
	remote, away := s.Location("pg"), s.At("http://127.0.0.1:1", "pg", "attempts=1")
	for _, at := range []string{dir, remote} {
		pgtest.MustRun(t, "dbbackup", "init", "--repo", at)
	}
	n := pgtest.New(t, pgtest.Options{Config: []string{"archive_mode = on", "archive_command = '/bin/true'", "wal_keep_size = 1GB"}})
	segment := filepath.Join("pg_wal", n.SwitchWAL())
	name := filepath.Base(segment)
	push := func(want int, repos ...string) pgtest.Result {
		t.Helper()
		return expect(t, want, "dbbackup", append([]string{"push", "-D", n.Dir, "-v"}, append(each(repos), segment)...)...)
	}
	fetch := func(want int, name string, repos ...string) {
		t.Helper()
		system := n.SQL("SELECT system_identifier FROM pg_control_system()")
		path := filepath.Join(t.TempDir(), "got")
		expect(t, want, "dbrecover", append(append([]string{"fetch", "--cluster", system}, each(repos)...), name, path)...)
		if _, err := os.Stat(path); (err == nil) != (want == 0) {
			t.Errorf("fetch of %s from %q: %v", name, repos, err)
		}
	}
	r := push(int(exit.Failed), away, dir)
	if !strings.Contains(r.Stderr, "nothing listens") || !strings.Contains(r.Stderr, "1 repository of 2") {
		t.Errorf("a push with one away says %s", r.Stderr)
	}
	fetch(0, name, dir)
	fetch(0, name, away, dir)
	fetch(0, name, remote, dir) // the first does not have it
	fetch(200, name, away, remote)
	r = push(0, dir, remote)
	if !strings.Contains(r.Stdout, "already") || !strings.Contains(r.Stdout, "archived in s3://") {
		t.Errorf("the push again says %s", r.Stdout)
	}
	fetch(0, name, remote)
	missing := "0000000100000000000000FF"
	fetch(1, missing, dir, remote)
	fetch(200, missing, dir, away)
}

func each(repos []string) []string {
	var args []string
	for _, r := range repos {
		args = append(args, "--repo", r)
	}
	return args
}

func expect(t *testing.T, code int, command string, args ...string) pgtest.Result {
	t.Helper()
	r := pgtest.Run(t, command, args...)
	if r.Code != code {
		t.Fatalf("%s %s: exit code %d, want %d\n%s%s", command, strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	return r
}
