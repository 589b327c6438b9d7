package main

import (
	"testing"

	"tidemark/internal/rewind"
)

func TestWALText(t *testing.T) {
	for want, list := range map[string][]rewind.WALRun{
		"none needed":                            nil,
		"1 segment in A":                         {{First: "1", Last: "1", Segments: 1, FoundIn: "A"}},
		"4 segments in A, 2 segments in B":       {{Segments: 3, FoundIn: "A"}, {Segments: 2, FoundIn: "B"}, {Segments: 1, FoundIn: "A"}},
		"missing: 3 segments (1, 2 to 3)":        {{First: "1", Last: "1", Segments: 1}, {First: "2", Last: "3", Segments: 2}},
		"1 segment in A; missing: 1 segment (1)": {{Segments: 1, FoundIn: "A"}, {First: "1", Last: "1", Segments: 1}},
	} {
		if got := walText(list); got != want {
			t.Errorf("%q, wanted %q", got, want)
		}
	}
}
