package main

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark/bench/scratch"
	"tidemark/pkg/wal"
)

//go:embed workload.sql
var workload string

const segmentSize = wal.SegmentSize(1 << 20)

// fixture is what fixture.json says of a major version's files.
type fixture struct {
	Major       int             `json:"major"`
	Server      string          `json:"server"`
	SegmentSize wal.SegmentSize `json:"segment_size"`
	SystemID    uint64          `json:"system_id,string"`
	Timelines   []timelineRange `json:"timelines"`
	CutOff      wal.LSN         `json:"cut_off"` // the record that a crash left incomplete
}

// timelineRange is the WAL of one timeline: from a segment's start to the end
// of its last record.
type timelineRange struct {
	Timeline wal.TimelineID `json:"timeline"`
	Start    wal.LSN        `json:"start"`
	End      wal.LSN        `json:"end"`
	Records  int            `json:"records"`
}

const config = `
max_wal_size = 1GB
wal_keep_size = 1GB
max_prepared_transactions = 5
track_commit_timestamp = on
wal_level = %s
`

func newServer(major int) (*scratch.Server, error) {
	level := "logical"
	if major == 14 {
		level = "replica" // see the package comment
	}
	return scratch.New(scratch.Options{Major: major, SegmentMB: 1, Checksums: true, Config: fmt.Sprintf(config, level)})
}

// generate runs the workload on a server of the major version and stores what it wrote.
func generate(ctx context.Context, major int, out string, oracles oracleSet) error {
	s, err := newServer(major)
	if err != nil {
		return err
	}
	defer s.Remove()
	g := &generator{Server: s, out: filepath.Join(out, fmt.Sprint(major)), oracles: oracles}
	g.fixture.Major, g.fixture.SegmentSize = major, segmentSize
	if err := os.RemoveAll(g.out); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(g.out, "wal"), 0o755); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		g.work, g.inspect, g.crash, g.restart, g.promote, g.store,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

type generator struct {
	*scratch.Server
	out     string
	oracles oracleSet
	fixture fixture
	start   wal.LSN // of timeline 1's range
}

// work runs the workload from the start of a fresh segment.
func (g *generator) work(ctx context.Context) error {
	if err := os.Mkdir(filepath.Join(g.Dir, "ts"), 0o700); err != nil {
		return err
	}
	if err := errors.Join(g.Chown(filepath.Join(g.Dir, "ts")), g.Start()); err != nil {
		return err
	}
	err := g.With(ctx, func(c *pgx.Conn) error {
		q := `select current_setting('server_version'), (select system_identifier from pg_control_system())`
		var id int64
		if err := c.QueryRow(ctx, q).Scan(&g.fixture.Server, &id); err != nil {
			return err
		}
		g.fixture.SystemID = uint64(id)
		_, err := c.Exec(ctx, "select pg_switch_wal()")
		return err
	})
	if err != nil {
		return err
	}
	at, err := g.Text(ctx, "select pg_current_wal_insert_lsn()::text")
	if err != nil {
		return err
	}
	lsn, err := wal.ParseLSN(at)
	if err != nil {
		return err
	}
	g.start = segmentSize.Start(segmentSize.Number(lsn))
	if err := g.control("running"); err != nil {
		return err
	}
	return runScript(ctx, g.Server, workload)
}

// crash leaves a record over several pages without its end, as a loss of power
// does, so that the next start writes an overwrite record in its place.
func (g *generator) crash(ctx context.Context) error {
	err := g.Exec(ctx,
		"select pg_logical_emit_message(false, 'tidemark', 'before')",
		"select pg_logical_emit_message(false, 'tidemark', repeat('cut off ', 4000))",
		"select pg_switch_wal()") // so that it is written out
	if err != nil {
		return err
	}
	if err := g.Stop("immediate"); err != nil {
		return err
	}
	if err := g.control("crashed"); err != nil {
		return err
	}
	return g.cut(ctx)
}

// cut erases the log from the second page of the last long record on.
func (g *generator) cut(ctx context.Context) error {
	r, err := wal.NewReader(ctx, g.source(1), wal.Options{Start: g.start, SegmentSize: segmentSize})
	if err != nil {
		return err
	}
	defer r.Close()
	var last, end wal.LSN
	for r.Next() {
		if rec := r.Record(); rec.RMID == wal.RmLogicalMessage && rec.TotalLen > 3*wal.DefaultPageSize {
			last = rec.LSN
		}
		end = r.Record().End
	}
	g.fixture.CutOff = last
	from := (last + wal.DefaultPageSize) &^ (wal.DefaultPageSize - 1)
	for n := segmentSize.Number(from); n <= segmentSize.Number(end); n++ {
		name := filepath.Join(g.Data, "pg_wal", wal.SegmentName(1, n, segmentSize))
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		clear(b[max(from, segmentSize.Start(n))-segmentSize.Start(n):])
		if err := os.WriteFile(name, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// restart recovers from the crash and changes a setting that standbys follow.
func (g *generator) restart(ctx context.Context) error {
	if err := g.Configure("max_connections = 60\nmax_locks_per_transaction = 70\n"); err != nil {
		return err
	}
	if err := g.Start(); err != nil {
		return err
	}
	if err := g.Exec(ctx, "insert into t values (6001, 'after the crash')"); err != nil {
		return err
	}
	return errors.Join(g.Stop("fast"), g.control(""))
}

// promote starts the server as a standby without a primary, and promotes it:
// a new timeline begins with an end-of-recovery record.
func (g *generator) promote(ctx context.Context) error {
	signal := filepath.Join(g.Data, "standby.signal")
	if err := errors.Join(os.WriteFile(signal, nil, 0o600), g.Chown(signal)); err != nil {
		return err
	}
	if err := g.Start(); err != nil {
		return err
	}
	if err := g.control("standby"); err != nil {
		return err
	}
	if err := g.Run("pg_ctl", "-D", g.Data, "-w", "promote"); err != nil {
		return err
	}
	if err := g.Exec(ctx, "insert into t values (7001, 'on a new timeline')", "checkpoint"); err != nil {
		return err
	}
	return errors.Join(g.Stop("fast"), g.control("promoted"))
}

// control stores the control file as it is now. The plain name is the one of a
// cleanly stopped server.
func (g *generator) control(state string) error {
	b, err := os.ReadFile(filepath.Join(g.Data, "global", "pg_control"))
	if err != nil {
		return err
	}
	suffix := ""
	if state != "" {
		suffix = "." + state
	}
	text, err := g.oracles.controlData(g.Major, g.Data)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(g.out, "pg_control"+suffix), b, 0o644),
		os.WriteFile(filepath.Join(g.out, "pg_controldata"+suffix+".txt"), text, 0o644))
}

// source reads the server's pg_wal on one timeline, going back to timeline 1
// where a later one has no such segment.
func (g *generator) source(tli wal.TimelineID) wal.Source {
	return wal.SourceFunc(func(_ context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		f, err := os.Open(filepath.Join(g.Data, "pg_wal", wal.SegmentName(tli, n, segmentSize)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, wal.ErrNoSegment
		}
		return f, err
	})
}

// store writes the segments, the oracle's answers and fixture.json.
func (g *generator) store(ctx context.Context) error {
	start := g.start
	for tli := wal.TimelineID(1); tli <= 2; tli++ {
		r, err := g.storeTimeline(tli, start)
		if err != nil {
			return err
		}
		g.fixture.Timelines = append(g.fixture.Timelines, r)
		start = segmentSize.Start(segmentSize.NumberBefore(r.End))
	}
	history, err := os.ReadFile(filepath.Join(g.Data, "pg_wal", wal.HistoryName(2)))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(g.out, "wal", wal.HistoryName(2)), history, 0o644); err != nil {
		return err
	}
	b, err := json.MarshalIndent(g.fixture, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(g.out, "fixture.json"), append(b, '\n'), 0o644)
}

func (g *generator) storeTimeline(tli wal.TimelineID, start wal.LSN) (timelineRange, error) {
	r := timelineRange{Timeline: tli, Start: start}
	records, err := g.oracles.records(g.Major, filepath.Join(g.Data, "pg_wal"), tli, start)
	if err != nil {
		return r, err
	}
	r.Records, r.End = len(records.lines), records.end
	if err := writeGzip(filepath.Join(g.out, fmt.Sprintf("records.%d.tsv.gz", tli)), []byte(strings.Join(records.lines, "\n")+"\n")); err != nil {
		return r, err
	}
	for n := segmentSize.Number(start); n <= segmentSize.NumberBefore(r.End); n++ {
		name := wal.SegmentName(tli, n, segmentSize)
		b, err := os.ReadFile(filepath.Join(g.Data, "pg_wal", name))
		if err != nil {
			return r, err
		}
		if err := writeGzip(filepath.Join(g.out, "wal", name+".gz"), b); err != nil {
			return r, err
		}
	}
	return r, nil
}

func writeGzip(name string, b []byte) error {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(b); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(name, out.Bytes(), 0o644)
}
