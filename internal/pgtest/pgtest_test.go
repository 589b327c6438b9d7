package pgtest_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestPrimaryAndStandby(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		t.Parallel()
		primary := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		if os.Geteuid() == 0 {
			t.Fatal("the test runs as root")
		}
		if got := primary.SQL("SHOW data_checksums"); got != "on" {
			t.Errorf("data_checksums = %s", got)
		}
		writer := pgtest.StartWriter(t, primary, "rows")
		writer.WaitRows(t, 10)
		standby := primary.Standby(pgtest.StandbyOptions{})
		writer.WaitRows(t, 10)
		acked := writer.Stop()
		standby.WaitFor(primary)
		if lost := writer.Lost(t, standby); len(lost) > 0 {
			t.Errorf("%d of %d rows are missing on the standby", len(lost), len(acked))
		}
		if diff := cmp.Diff(primary.Digest(), standby.Digest()); diff != "" {
			t.Error(diff)
		}
		primary.Kill()
		if primary.Running() {
			t.Error("the primary survived")
		}
		standby.Promote()
		standby.Exec("CREATE TABLE after_promotion ()")
		primary.Start()
		if got := primary.SQL("SELECT count(*) FROM rows"); got == "0" {
			t.Error("crash recovery lost the rows")
		}
	})
}

func TestTCPNodes(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{TCP: true, WALSegMB: 1})
	if got := n.SQL("SHOW wal_segment_size"); got != "1MB" {
		t.Errorf("wal_segment_size = %s", got)
	}
	if !strings.HasSuffix(n.SQL("SHOW listen_addresses"), "127.0.0.1") {
		t.Error("does not listen on TCP")
	}
}
