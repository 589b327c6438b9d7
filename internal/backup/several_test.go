package backup_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"tidemark/internal/pgtest"
	"tidemark/internal/repo/storetest"
)

// inSeveral is what create prints.
type inSeveral struct {
	created
	Repository string
	Others     []struct {
		Repository, ID, Type string
		Old                  int64 `json:"old_blocks"`
		New                  int64 `json:"new_blocks"`
	}
}

func createInto(t *testing.T, n *pgtest.Node, repos []string, args ...string) (inSeveral, pgtest.Result) {
	t.Helper()
	all := append([]string{"create", "--json", "-d", n.ConnInfo()}, args...)
	r := pgtest.Run(t, "dbbackup", append(all, named(repos)...)...)
	var c inSeveral
	if err := json.Unmarshal([]byte(r.Stdout), &c); err != nil {
		t.Fatalf("%v in %+v", err, r)
	}
	return c, r
}

// named are the flags that name repositories.
func named(repos []string) []string {
	var out []string
	for _, r := range repos {
		out = append(out, "--repo", r)
	}
	return out
}

// TestSeveralRepositories: one backup in a directory, in an encrypted one, in a
// bucket and on another host. The cluster is read once; each compares with its
// own previous backup; one that is away takes nothing from the others; each
// restores alone.
func TestSeveralRepositories(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	t.Setenv("TIDEMARK_STATE", filepath.Join(base, "state"))
	key := filepath.Join(base, "key.txt")
	if err := os.WriteFile(key, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s3, host := storetest.NewS3(t, false), storetest.NewSFTP(t)
	here, sealed := filepath.Join(base, "here"), filepath.Join(base, "sealed")
	repos := []string{here, s3.Location("pg", "attempts=1"), host.Location("/pg", "attempts=1", "timeout=5s"), sealed}
	pgtest.MustRun(t, "dbbackup", append([]string{"init"}, named(repos[:3])...)...)
	pgtest.MustRun(t, "dbbackup", "init", "--repo", sealed, "--recipient", id.Recipient().String())
	n := pgtest.New(t, pgtest.Options{Checksums: true, Config: []string{"archive_mode = on",
		fmt.Sprintf("archive_command = 'AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s %s push %s %%p'", storetest.AccessKey, storetest.SecretKey,
			pgtest.Bin("dbbackup"), `"`+strings.Join(named(repos), `" "`)+`"`)}})
	n.PgbenchInit(1)

	first, _ := createInto(t, n, repos[:1])
	stop := n.Pgbench("-c", "2", "-R", "40") // each segment is pushed to four
	second, r := createInto(t, n, repos)     // the others have none yet
	stop()
	if r.Code != 0 || second.Type != "incremental" || second.OldBlocks == 0 || len(second.Others) != 3 || second.Repository != here {
		t.Fatalf("%+v", r)
	}
	for i, o := range second.Others {
		if o.ID != second.ID || o.Type != "full" || o.Old != 0 || o.Repository != repos[i+1] {
			t.Errorf("%+v", o)
		}
	}
	host.Stop()
	n.Exec("CREATE TABLE later AS SELECT generate_series(1, 20000) AS id")
	third, r := createInto(t, n, repos, "--timeout", "20s")
	if r.Code != 4 || len(third.Others) != 2 || !strings.Contains(r.Stdout, `"error"`) || !strings.Contains(r.Stdout, "sftp://") {
		t.Fatalf("with one away: %+v", r)
	}
	host.Start(t)
	want := n.Digest()
	last, r := createInto(t, n, repos)
	if r.Code != 0 || len(last.Others) != 3 || last.Read >= second.Read {
		t.Errorf("%+v", r)
	}
	n.Stop()

	var l struct {
		Repositories []struct {
			Clusters []struct{ Backups []struct{ ID string } }
		}
	}
	out := pgtest.MustRun(t, "dbbackup", append([]string{"list", "--json"}, named(repos)...)...)
	if err := json.Unmarshal([]byte(out), &l); err != nil || len(l.Repositories) != 4 {
		t.Fatal(err, out)
	}
	for i, want := range []string{first.ID + second.ID + third.ID + last.ID, second.ID + third.ID + last.ID, second.ID + last.ID, second.ID + third.ID + last.ID} {
		got := ""
		for _, b := range l.Repositories[i].Clusters[0].Backups {
			got += b.ID
		}
		if got != want {
			t.Errorf("%s holds %s, want %s", repos[i], got, want)
		}
	}
	pgtest.MustRun(t, "dbbackup", append([]string{"verify", "--deep", "--identity", key}, named(repos)...)...)
	for i, where := range repos {
		target := filepath.Join(base, fmt.Sprint("restored", i))
		args := []string{"restore", "--repo", where, "-D", target, "--backup", last.ID, "--to", "immediate", "--archive", "off"}
		if where == sealed {
			args = append(args, "--identity", key)
		}
		pgtest.MustRun(t, "dbrecover", args...)
		if i == 2 { // the others are proved by verify
			m := pgtest.Attach(t, "restored", target)
			m.Start()
			pgtest.Wait(t, func() bool { return m.SQL("SELECT pg_is_in_recovery()") == "f" })
			sameContents(t, m.Digest(), want)
			m.Stop()
		}
	}
	// The first of them lacks that one.
	r = pgtest.Run(t, "dbrecover", "restore", "--repo", repos[2], "--repo", here, "-D", filepath.Join(base, "first"), "--backup", first.ID, "--to", "immediate", "--dry-run")
	if r.Code != 0 || !strings.Contains(r.Stderr, "no backup "+first.ID) {
		t.Errorf("restore from the one that has it: %+v", r)
	}
	several(t, repos[:3], first.ID, last.ID)
}

// several tries the verbs that look after repositories.
func several(t *testing.T, repos []string, first, last string) {
	t.Helper()
	pgtest.MustRun(t, "dbbackup", append([]string{"pin", last}, named(repos)...)...)
	if r := pgtest.Run(t, "dbbackup", append([]string{"show", first}, named(repos)...)...); r.Code != 0 || !strings.Contains(r.Stderr, "no backup "+first) {
		t.Errorf("show of a backup that one has: %+v", r)
	}
	if r := pgtest.Run(t, "dbbackup", append([]string{"show", "20200101T000000Z"}, named(repos)...)...); r.Code != 1 {
		t.Errorf("show of a backup that none has: %+v", r)
	}
	if r := pgtest.Run(t, "dbbackup", append([]string{"delete", "--yes", first}, named(repos)...)...); r.Code != 64 {
		t.Errorf("delete from all of them: %+v", r)
	}
	if r := pgtest.Run(t, "dbbackup", append([]string{"log"}, named(repos)...)...); r.Code != 0 || strings.Count(r.Stdout, "WAL of cluster") != 3 {
		t.Errorf("log: %+v", r)
	}
	r := pgtest.Run(t, "dbbackup", append([]string{"expire", "--keep-last", "1", "--repo", "/nowhere"}, named(repos)...)...)
	if r.Code != 1 || strings.Count(r.Stdout, "pinned") != 3 || !strings.Contains(r.Stderr, "/nowhere") {
		t.Errorf("expire, one of which is away: %+v", r)
	}
}

// TestSeveralNoneLeft: each says why.
func TestSeveralNoneLeft(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{})
	a, b := newRepo(t), newRepo(t)
	for _, dir := range []string{a, b} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	r := pgtest.Run(t, "dbbackup", append([]string{"create", "-d", n.ConnInfo()}, named([]string{a, b})...)...)
	if r.Code != 1 || !strings.Contains(r.Stderr, a) || !strings.Contains(r.Stderr, b) || r.Stdout != "" {
		t.Errorf("%+v", r)
	}
}
