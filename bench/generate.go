package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/bench/scratch"
	"tidemark/pkg/wal"
)

const (
	major       = 15
	segmentSize = wal.DefaultSegmentSize
)

// workload is a range of WAL to read.
type workload struct {
	Name       string
	Dir        string
	Start, End wal.LSN
}

const config = `
max_wal_size = 20GB
wal_keep_size = 20GB
shared_buffers = 1GB
synchronous_commit = off
`

// The two kinds of WAL: one is nearly all page images, the other many small
// records of an insert, an update and a delete.
var scripts = []struct {
	name       string
	statements []string
}{
	{"page images", []string{
		"create table pages (id int, filler text) with (fillfactor = 50)",
		"insert into pages select g, repeat('x', 700) from generate_series(1, 280000) g",
		"create index on pages (id)",
		"checkpoint", "*", // from here on
		"update pages set id = id where id % 5 = 0",
		"checkpoint",
		"update pages set id = id where id % 5 = 1",
		"checkpoint",
		"update pages set id = id where id % 5 = 2",
	}},
	{"small records", []string{
		"create table small (id int primary key, v int)",
		"checkpoint", "*",
		"insert into small select g, g from generate_series(1, 2000000) g",
		"update small set v = v + 1 where id % 2 = 0",
		"delete from small where id % 3 = 0",
	}},
}

// prepare returns the ranges to read, writing the WAL first if it is not there.
func prepare(ctx context.Context, dir string) ([]workload, error) {
	index := filepath.Join(dir, "index.json")
	b, err := os.ReadFile(index)
	if err == nil {
		var list []workload
		return list, json.Unmarshal(b, &list)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fmt.Printf("writing WAL with PostgreSQL %d into %s ...\n", major, dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s, err := scratch.New(scratch.Options{Major: major, SegmentMB: 16, Config: config})
	if err != nil {
		return nil, err
	}
	defer s.Remove()
	if err := s.Start(); err != nil {
		return nil, err
	}
	var list []workload
	for _, script := range scripts {
		w, err := write(ctx, s, script.statements)
		if err != nil {
			return nil, err
		}
		w.Name, w.Dir = script.name, dir
		list = append(list, w)
	}
	if err := s.Stop("fast"); err != nil {
		return nil, err
	}
	if err := keep(s, dir, list); err != nil {
		return nil, err
	}
	b, err = json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, err
	}
	return list, os.WriteFile(index, b, 0o644)
}

// write runs the statements. The range begins at the "*" and ends with a whole
// segment, so that nothing else is in it.
func write(ctx context.Context, s *scratch.Server, statements []string) (w workload, err error) {
	for _, q := range append(statements, "*") {
		if q != "*" {
			if err := s.Exec(ctx, q); err != nil {
				return w, err
			}
			continue
		}
		w.Start = w.End
		text, err := s.Text(ctx, "select pg_switch_wal()::text")
		if err != nil {
			return w, err
		}
		at, err := wal.ParseLSN(text)
		if err != nil {
			return w, err
		}
		w.End = segmentSize.End(segmentSize.NumberBefore(at))
	}
	return w, nil
}

// keep copies the segments of the ranges, and one more that pg_waldump wants
// to look into at the end.
func keep(s *scratch.Server, dir string, list []workload) error {
	for _, w := range list {
		for n := segmentSize.Number(w.Start); n <= segmentSize.Number(w.End); n++ {
			name := wal.SegmentName(1, n, segmentSize)
			b, err := os.ReadFile(filepath.Join(s.Data, "pg_wal", name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
