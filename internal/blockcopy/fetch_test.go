package blockcopy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitTasksCutsOnBlockBoundaries(t *testing.T) {
	const k = 1 << 10
	in := []Range{{"a", 0, 100}, {"b", 8 * k, 100 * k}, {"c", 0, 0}, {"d", 0, 5}}
	tasks := SplitTasks(in, 64*k)
	var all []Range
	for i, task := range tasks {
		if task.Index != i || task.Bytes() > 64*k || len(task.Ranges) == 0 {
			t.Errorf("task %d: %+v", i, task)
		}
		for _, r := range task.Ranges {
			if n := len(all); n > 0 && all[n-1].Path == r.Path {
				if r.Offset%taskAlign != 0 || all[n-1].End() != r.Offset {
					t.Errorf("cut at %d", r.Offset)
				}
				all[n-1].Length += r.Length
				continue
			}
			all = append(all, r)
		}
	}
	want := []Range{{"a", 0, 100}, {"b", 8 * k, 100 * k}, {"d", 0, 5}}
	if d := cmp.Diff(want, all); d != "" {
		t.Error(d)
	}
	// an unaligned start at the smallest task size must come to an end
	if got := SplitTasks([]Range{{"x", 1, 200 * k}}, 1); len(got) < 6 {
		t.Errorf("%d tasks", len(got))
	}
}

func TestMergeRanges(t *testing.T) {
	in := []Range{{"b", 16, 8}, {"a", 8, 8}, {"a", 0, 8}, {"b", 0, 8}, {"a", 4, 2}}
	if d := cmp.Diff([]Range{{"a", 0, 16}, {"b", 0, 8}, {"b", 16, 8}}, MergeRanges(in, 0)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Range{{"a", 0, 16}, {"b", 0, 24}}, MergeRanges(in, 8)); d != "" {
		t.Error(d)
	}
}
