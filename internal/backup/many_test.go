package backup

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/pkg/volume"
)

// manyFiles is a source that lists so many small relations, and a directory
// for each thousand.
type manyFiles struct {
	blockcopy.Source
	count int
}

func (m manyFiles) Each(_ context.Context, do func(blockcopy.Entry) error) error {
	for i := range m.count {
		db := 16384 + i/1000
		if i%1000 == 0 {
			if err := do(blockcopy.Entry{Path: fmt.Sprintf("base/%d", db), Type: blockcopy.Dir}); err != nil {
				return err
			}
		}
		if err := do(blockcopy.Entry{Path: fmt.Sprintf("base/%d/%d", db, 100000+i), Size: 8192, Mode: 0o600, ModTime: time.Unix(1700000000+int64(i), 0)}); err != nil {
			return err
		}
	}
	return nil
}

// heap is how much memory is in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestManyFiles: what is kept of each file while a backup runs is bounded.
func TestManyFiles(t *testing.T) {
	count := 100_000
	if testing.Short() {
		count = 10_000
	}
	before := heap()
	begin := time.Now()
	c, err := choose(t.Context(), manyFiles{count: count})
	if err != nil {
		t.Fatal(err)
	}
	listed := heap()
	j := &job{files: c, control: &volume.Control{BlockSize: 8192}}
	p := newPacking(j, nil)
	most, files := listed, 0
	for ranges := range c.ranges() {
		tasks := blockcopy.SplitTasks(ranges, 0)
		most = max(most, heap())
		files += len(ranges)
		runtime.KeepAlive(tasks)
	}
	t.Logf("%d files: the list takes %d bytes a file, what is to be read %d at most, in %s", count, (listed-before)/int64(count), most-listed, time.Since(begin))
	if files != count || (listed-before)/int64(count) > 88 || most-listed > 16<<20 {
		t.Errorf("%d files: the list takes %d bytes, what is to be read %d", files, listed-before, most-listed)
	}
	for _, path := range []string{"base/16384/100000", fmt.Sprintf("base/%d/%d", 16384+(count-1)/1000, 100000+count-1)} {
		if i, ok := c.find(path); !ok || c.entry(i).Path != path || c.entry(i).ModTime.Unix() < 1700000000 {
			t.Errorf("%s is not found", path)
		}
	}
	runtime.KeepAlive(p)
	runtime.KeepAlive(c)
}

// TestReadTogether: files that are read at the same time lie close together,
// for all that lie between wait in memory.
func TestReadTogether(t *testing.T) {
	const count = 100_000
	c, err := choose(t.Context(), manyFiles{count: count})
	if err != nil {
		t.Fatal(err)
	}
	c.parts, c.read = make([]bool, len(c.entries)), map[int][]blockcopy.Range{}
	for i := range c.entries {
		if c.parts[i] = true; i%100 == 7 {
			c.read[i] = []blockcopy.Range{{Path: c.entries[i].path, Length: 8192}}
		}
	}
	groups := 0
	for ranges := range c.ranges() {
		groups++
		first, ok1 := c.find(ranges[0].Path)
		last, ok2 := c.find(ranges[len(ranges)-1].Path)
		if !ok1 || !ok2 || last-first > entriesAtOnce {
			t.Errorf("entries %d to %d are read together", first, last)
		}
	}
	if groups < count/entriesAtOnce {
		t.Errorf("%d groups", groups)
	}
}
