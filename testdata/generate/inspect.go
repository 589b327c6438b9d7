package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark/pkg/wal"
)

// inspect compares what pkg/wal reads of the workload with what the server
// itself says through pg_walinspect (15+): for 16 this is the only tool of its
// own version.
func (g *generator) inspect(ctx context.Context) error {
	if g.Major < 15 {
		return nil
	}
	return g.With(ctx, func(c *pgx.Conn) error {
		var end string
		if err := c.QueryRow(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&end); err != nil {
			return err
		}
		if _, err := c.Exec(ctx, "create extension pg_walinspect"); err != nil {
			return err
		}
		last, err := wal.ParseLSN(end)
		if err != nil {
			return err
		}
		r, err := wal.NewReader(ctx, g.source(1), wal.Options{Start: g.start, End: last, SegmentSize: segmentSize})
		if err != nil {
			return err
		}
		defer r.Close()
		rows, err := c.Query(ctx, `select start_lsn::text, prev_lsn::text, xid::text, resource_manager, record_length, coalesce(block_ref, '')
			from pg_get_wal_records_info($1, $2)`, g.start.String(), end)
		if err != nil {
			return err
		}
		defer rows.Close()
		return compareRows(rows, r, last)
	})
}

var inspectRef = regexp.MustCompile(`blkref #(\d+): rel (\d+/\d+/\d+) fork (\w+) blk (\d+)( \(FPW)?`)

func compareRows(rows pgx.Rows, r *wal.Reader, end wal.LSN) error {
	n := 0
	for ; rows.Next(); n++ {
		var lsn, prev, xid, rmgr, refs string
		var length int64
		if err := rows.Scan(&lsn, &prev, &xid, &rmgr, &length, &refs); err != nil {
			return err
		}
		if !r.Next() {
			return fmt.Errorf("pg_walinspect has a record at %s, the reader ends: %v", lsn, r.End())
		}
		rec := r.Record()
		var theirs, ours []string
		for _, m := range inspectRef.FindAllStringSubmatch(refs, -1) {
			theirs = append(theirs, fmt.Sprint(m[1], m[2], m[3], m[4], m[5] != ""))
		}
		for i := range rec.Blocks {
			b := &rec.Blocks[i]
			rel := fmt.Sprintf("%d/%d/%d", b.File.Tablespace, b.File.Database, b.File.Relation)
			ours = append(ours, fmt.Sprint(fmt.Sprint(b.ID), rel, b.File.Fork, fmt.Sprint(b.Block), b.HasImage))
		}
		got := fmt.Sprint(rec.LSN, rec.Prev, rec.XID, rec.RMID, rec.TotalLen, ours)
		want := fmt.Sprint(lsn, prev, xid, rmgr, length, theirs)
		if norm(got) != norm(want) {
			return fmt.Errorf("pg_walinspect says\n%s\nthe reader\n%s", want, got)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if n == 0 || r.Next() && r.Record().End <= end { // what is flushed may end inside a record
		return fmt.Errorf("pg_walinspect has %d records, the reader one more at %s", n, r.Record().LSN)
	}
	fmt.Printf("%d records equal pg_walinspect's\n", n)
	return nil
}

// norm drops the spaces that Sprint puts between some operands and not others.
func norm(s string) string { return strings.ReplaceAll(s, " ", "") }
