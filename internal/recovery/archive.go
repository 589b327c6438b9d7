package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// archive is the archived WAL as a server sees it that recovers along one
// timeline's line of descent.
type archive struct {
	cluster  *repo.Cluster
	size     wal.SegmentSize
	spans    []timeline.Span
	history  *timeline.History
	coverage map[timeline.ID]*repo.WALCoverage
}

// catalog is what the repository holds of the cluster, listed once.
type catalog struct {
	cluster  *repo.Cluster
	size     wal.SegmentSize
	backups  []*repo.Summary // the oldest first
	damaged  []repo.Damaged
	coverage map[timeline.ID]*repo.WALCoverage
}

func openCatalog(ctx context.Context, c *repo.Cluster) (*catalog, error) {
	list, err := c.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	if len(list.Backups) == 0 {
		hint := "take one with: dbbackup create --repo " + c.Repository().Location()
		if len(list.Damaged) > 0 {
			hint = fmt.Sprintf("%d manifests cannot be read, the first: %v", len(list.Damaged), list.Damaged[0].Err)
		}
		return nil, exit.New(exit.Failed, hint, "%s holds no complete backup", c.Repository().Location())
	}
	size := wal.SegmentSize(list.Backups[len(list.Backups)-1].WALSegmentSize)
	all, err := c.WALCoverage(ctx, size)
	if err != nil {
		return nil, err
	}
	k := &catalog{cluster: c, size: size, backups: list.Backups, damaged: list.Damaged,
		coverage: map[timeline.ID]*repo.WALCoverage{}}
	for _, w := range all {
		k.coverage[w.Timeline] = w
	}
	return k, nil
}

// backup returns the backup of that name, "" or "latest" being the newest.
func (k *catalog) backup(id string) (*repo.Summary, error) {
	if id == "" || id == "latest" {
		return k.backups[len(k.backups)-1], nil
	}
	for _, b := range k.backups {
		if b.ID == id {
			return b, nil
		}
	}
	for _, d := range k.damaged {
		if d.ID == id {
			return nil, fmt.Errorf("the manifest of backup %s cannot be read: %w", id, d.Err)
		}
	}
	return nil, exit.New(exit.Failed, "dbbackup list shows what there is", "there is no backup %s in %s", id, k.cluster.Repository().Location())
}

// along returns the archive as seen along the line of descent of a timeline.
func (k *catalog) along(ctx context.Context, id timeline.ID) (*archive, error) {
	h := timeline.Root(id)
	if id > 1 {
		var err error
		if h, err = readHistory(ctx, k.cluster, id); err != nil {
			return nil, err
		}
	}
	return &archive{cluster: k.cluster, size: k.size, spans: h.Spans(), history: h, coverage: k.coverage}, nil
}

func readHistory(ctx context.Context, c *repo.Cluster, id timeline.ID) (*timeline.History, error) {
	var b bytes.Buffer
	_, err := c.FetchWAL(ctx, wal.HistoryName(id), &b)
	if errors.Is(err, repo.ErrNotArchived) {
		return nil, exit.New(exit.Refused, "copy the file from the pg_wal of a server that has it and push it:\n"+
			"    dbbackup push --repo "+c.Repository().Location()+" PATH/"+wal.HistoryName(id),
			"the archive lacks %s, without which no server finds timeline %d", wal.HistoryName(id), id)
	}
	if err != nil {
		return nil, err
	}
	return timeline.Parse(id, b.Bytes())
}

// name returns the file that holds segment n on this line of descent: that of
// the newest timeline that had begun by then, and in the segment where it
// began its parent's too, which has all the WAL up to the switch.
func (a *archive) name(n wal.SegmentNumber) (string, bool) {
	for i := len(a.spans) - 1; i >= 0; i-- {
		s := a.spans[i]
		if a.size.Number(s.Begin) > n || s.End != 0 && n > a.size.Number(s.End) {
			continue
		}
		if w := a.coverage[s.Timeline]; w != nil && w.Has(n) {
			return wal.SegmentName(s.Timeline, n, a.size), true
		}
	}
	return "", false
}

// wanted returns the name that the archive should hold for segment n.
func (a *archive) wanted(n wal.SegmentNumber) string {
	for i := len(a.spans) - 1; i >= 0; i-- {
		if a.size.Number(a.spans[i].Begin) <= n {
			return wal.SegmentName(a.spans[i].Timeline, n, a.size)
		}
	}
	return ""
}

// lastFrom returns the last segment of the unbroken run that begins with n,
// and false where n itself is missing.
func (a *archive) lastFrom(n wal.SegmentNumber) (wal.SegmentNumber, bool) {
	if _, ok := a.name(n); !ok {
		return 0, false
	}
	for {
		if _, ok := a.name(n + 1); !ok {
			return n, true
		}
		n++
	}
}

// nextAfter returns the first segment behind n that is there, and false where
// there is none: n ends the archive and not just a run.
func (a *archive) nextAfter(n wal.SegmentNumber) (wal.SegmentNumber, bool) {
	best, found := wal.SegmentNumber(0), false
	for _, s := range a.spans {
		w := a.coverage[s.Timeline]
		if w == nil {
			continue
		}
		for _, r := range w.Runs {
			m := max(r.First, n+1, a.size.Number(s.Begin))
			inSpan := s.End == 0 || m <= a.size.Number(s.End)
			if m <= r.Last && inSpan && (!found || m < best) {
				best, found = m, true
			}
		}
	}
	return best, found
}

// branches returns what the archive holds of ancestors behind the points where
// this line of descent left them.
func (a *archive) branches() []Branch {
	var list []Branch
	for _, s := range a.spans[:len(a.spans)-1] {
		b := Branch{Timeline: s.Timeline, Left: s.End}
		if w := a.coverage[s.Timeline]; w != nil {
			for _, run := range w.Runs {
				if first := max(run.First, a.size.Number(s.End)+1); first <= run.Last {
					b.Segments += int(run.Last-first) + 1
				}
			}
		}
		if b.Segments > 0 {
			list = append(list, b)
		}
	}
	return list
}

// OpenSegment makes the archive a wal.Source.
func (a *archive) OpenSegment(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
	name, ok := a.name(n)
	if !ok {
		return nil, fmt.Errorf("%s: %w", a.wanted(n), wal.ErrNoSegment)
	}
	f, err := a.cluster.OpenWAL(ctx, name)
	if errors.Is(err, repo.ErrNotArchived) {
		return nil, fmt.Errorf("%s: %w", name, wal.ErrNoSegment)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}
