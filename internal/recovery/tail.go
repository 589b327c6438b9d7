package recovery

import (
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// reach returns the last segment that a server restored from a backup can
// replay without a gap, and false where it has not even the first. inside says
// that this is the segment which the backup holds itself, up to its stop
// position, since the archive lacks it.
func (r *resolver) reach(b *repo.Summary) (last wal.SegmentNumber, inside, ok bool) {
	first := r.size.Number(b.Start.LSN)
	last, ok = r.archive.lastFrom(first)
	if b.Tail == "" {
		return last, false, ok
	}
	n := b.TailNumber()
	if !ok && n == first || ok && last+1 == n {
		return n, true, true
	}
	return last, false, ok
}

// lastName is the file that replay needs last.
func (r *resolver) lastName() string {
	if name, ok := r.archive.name(r.last); ok || r.backup.Tail == "" {
		return name
	}
	return r.backup.Tail
}
