package main

import (
	"fmt"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/rewind"
)

// walText sums up where WAL lies: "9 segments in the target's pg_wal, 2
// segments in the repository /srv/backup; missing: 1 segment
// (000000010000000000000004)".
func walText(list []rewind.WALRun) string {
	if len(list) == 0 {
		return "none needed"
	}
	var places, missing []string
	count := map[string]int{}
	lost := 0
	for _, r := range list {
		if r.FoundIn == "" {
			lost += r.Segments
			missing = append(missing, runText(r))
			continue
		}
		if count[r.FoundIn] == 0 {
			places = append(places, r.FoundIn)
		}
		count[r.FoundIn] += r.Segments
	}
	for i, place := range places {
		places[i] = fmt.Sprintf("%s in %s", cli.Plural(count[place], "segment", "segments"), place)
	}
	text := strings.Join(places, ", ")
	if lost > 0 {
		text = strings.TrimPrefix(text+"; ", "; ") + fmt.Sprintf("missing: %s (%s)", cli.Plural(lost, "segment", "segments"), strings.Join(missing, ", "))
	}
	return text
}

func runText(r rewind.WALRun) string {
	if r.Segments == 1 {
		return r.First
	}
	return r.First + " to " + r.Last
}
