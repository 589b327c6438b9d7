package volume

import (
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"testing"
)

// manyNames is a file system with one directory of so many files.
type manyNames struct {
	FS
	dir  fs.FileInfo
	file fs.FileInfo
	n    int
}

func (m manyNames) Stat(string) (fs.FileInfo, error) { return m.dir, nil }

func (m manyNames) Lstat(name string) (fs.FileInfo, error) {
	if strings.HasSuffix(name, "base") {
		return m.dir, nil
	}
	return m.file, nil
}

func (m manyNames) ReadNames(dir string) ([]string, error) {
	if !strings.HasSuffix(dir, "base") {
		return []string{"base"}, nil
	}
	names := make([]string, m.n)
	for i := range names {
		names[i] = fmt.Sprint(100_000 + (i*7919)%m.n)
	}
	return names, nil
}

// TestWalkMany: of a directory with many files a walk keeps their names, and
// nothing else.
func TestWalkMany(t *testing.T) {
	file, err := OS.Stat("walk.go")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := OS.Stat(".")
	if err != nil {
		t.Fatal(err)
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const count = 200_000
	before, most, seen, last := heap(), int64(0), 0, ""
	err = Walk(manyNames{OS, dir, file, count}, "/data", func(e WalkEntry) error {
		if seen++; seen%50_000 == 2 {
			most = max(most, heap())
		}
		if e.Path <= last {
			t.Fatalf("%s comes after %s", e.Path, last)
		}
		last = e.Path
		return nil
	})
	if err != nil || seen != count+1 {
		t.Fatal(seen, err)
	}
	t.Logf("%d bytes for each of %d files", (most-before)/count, count)
	if most-before > 40*count {
		t.Errorf("a walk of %d files keeps %d bytes", count, most-before)
	}
}
