package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"tidemark/internal/cli"
)

// TestPushStatus: the server takes an archive command that ends above 125 for
// killed, and its archiver ends without a word in pg_stat_archiver.
func TestPushStatus(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{
		{"push", "--repo", t.TempDir(), "-D", t.TempDir(), "pg_wal/000000010000000000000001"},
		{"push", "--repo", "/nowhere", "pg_wal/000000010000000000000001"},
		{"push", "--nonsense"},
	} {
		var out, err bytes.Buffer
		code := cli.Run(ctx, "dbbackup", "", &commands{}, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &err}, args)
		if code < 1 || code > 125 {
			t.Errorf("%q: exit code %d\n%s", args, code, &err)
		}
	}
}
