package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/rewind"
)

func TestRescueNeedsOut(t *testing.T) {
	if _, stderr, code := run(t, "rescue", "-D", t.TempDir(), "--source-pgdata", "/nowhere"); code != int(exit.Usage) || !strings.Contains(stderr, "--out") {
		t.Errorf("%d %s", code, stderr)
	}
	out := filepath.Join(t.TempDir(), "out")
	if _, stderr, code := run(t, "rescue", "-D", t.TempDir(), "--source-pgdata", "/nowhere", "--out", out); code != int(exit.Failed) {
		t.Errorf("%d %s", code, stderr)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("the directory was made")
	}
}

// TestRescueThenRewind is the operator's way: look, save, rewind, load.
func TestRescueThenRewind(t *testing.T) {
	old := pgtest.New(t, pgtest.Options{Name: "old", Checksums: true, Config: []string{"wal_keep_size = 128MB"}})
	old.Exec(`CREATE TABLE orders (id int PRIMARY KEY, customer text, total numeric(10,2));
		INSERT INTO orders SELECT g, 'customer ' || g, g * 1.5 FROM generate_series(1, 1000) g; CREATE TABLE log (line text)`)
	one := old.Standby(pgtest.StandbyOptions{Name: "one"})
	one.WaitFor(old)
	one.Promote()
	old.Exec("INSERT INTO orders VALUES (1001, 'late', 99.90), (1002, 'later', 12.00)")
	old.Exec("UPDATE orders SET total = 0 WHERE id = 7")
	old.Exec("DELETE FROM orders WHERE id IN (3, 5)")
	old.Exec("TRUNCATE log")
	old.Stop()
	args := []string{"-D", old.Dir, "--source-server", one.ConnInfo()}
	out := filepath.Join(old.TempDir("out"), "lost")
	t.Log(pgtest.Run(t, "dbrewind", append([]string{"check"}, args...)...).Stdout)
	text := pgtest.Run(t, "dbrewind", append([]string{"rescue", "--out", out}, args...)...)
	t.Log(text.Stdout, text.Stderr)
	if text.Code != int(exit.Problem) || !strings.Contains(text.Stdout, "postgres.public.log") || !strings.Contains(text.Stdout, "Saved 5 rows of 4 lost transactions") {
		t.Errorf("exit %d", text.Code)
	}
	var res rewind.RescueResult
	data, err := os.ReadFile(filepath.Join(out, "rescue.json"))
	if err != nil || json.Unmarshal(data, &res) != nil || res.Rows != 5 || len(res.Tables) != 1 {
		t.Fatal(err, string(data))
	}
	got := map[string]string{}
	for _, f := range res.Tables[0].Files {
		rows, err := os.ReadFile(filepath.Join(out, f.Path))
		if err != nil {
			t.Fatal(err)
		}
		got[f.Change] = string(rows)
	}
	for change, want := range map[string]string{"inserted": "1001\tlate\t99.90\n1002\tlater\t12.00\n", "updated": "7\tcustomer 7\t0.00\n", "deleted": "3\n5\n"} {
		if got[change] != want {
			t.Errorf("%s: %q", change, got[change])
		}
	}
	pgtest.MustRun(t, "dbrewind", append([]string{"run", "-R"}, args...)...)
	again := pgtest.Run(t, "dbrewind", append([]string{"rescue", "--out", out + "2"}, args...)...)
	if again.Code != int(exit.Refused) || !strings.Contains(again.Stderr, "undo") {
		t.Errorf("after the rewind: %+v", again)
	}
}
