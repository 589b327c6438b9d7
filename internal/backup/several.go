package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/blockcopy"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// One backup may go into several repositories. The cluster is read once. What
// is delivered goes to each of them, which compares it with its own previous
// backup, compresses and encrypts it under its own keys; what none of them has
// to read is not read. One that fails drops out, and the others go on: it
// keeps what it has for the next time. The slowest sets the pace.
//
//	source --> check pages --> packing --+--> writer of the first
//	                                     +--> writer of the second ...

// Taken is what became of a backup in one repository.
type Taken struct {
	Repository *repo.Repository
	Summary    *repo.Summary // nil where there is none
	Err        error         // why not
}

// destination is a repository that a backup goes into. Its job is a view of
// the attempt's: the same server, files and start, but its own repository, and
// what that one proves not to have changed.
type destination struct {
	*job
	writer  *repo.BackupWriter
	resumed []string
	summary *repo.Summary
	tail    *tail // of a standby's last segment, where nobody has completed it

	mu  sync.Mutex
	err error // why it dropped out
}

func (d *destination) failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

func (d *destination) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = err
	}
}

type destinations []*destination

// scanned is a map of changed blocks that was made for one destination, and is
// the same for another that has the same previous backup.
type scanned struct {
	base  *repo.Summary
	m     *wal.Map
	proof string
}

// newDestinations makes a view of the attempt for each repository.
func (j *job) newDestinations(clusters []*repo.Cluster) destinations {
	var ds destinations
	j.scanned = new([]scanned)
	for _, c := range clusters {
		view := *j
		view.cluster, view.keeper = c, j.newKeeper(c)
		view.files = j.files.view()
		if len(clusters) > 1 {
			view.Progress = placed{j.Progress, c.Repository().Location()}
		}
		ds = append(ds, &destination{job: &view})
	}
	return ds
}

// placed says which repository a note is about.
type placed struct {
	progress.Reporter
	where string
}

// Note implements progress.Reporter.
func (p placed) Note(format string, args ...any) {
	p.Reporter.Note("%s: %s", p.where, fmt.Sprintf(format, args...))
}

// alive are the destinations that did not drop out.
func (ds destinations) alive() destinations {
	return slices.DeleteFunc(slices.Clone(ds), func(d *destination) bool { return d.failed() != nil })
}

// errAllFailed ends an attempt that has no destination left. Each of them knows
// why.
var errAllFailed = errors.New("no repository can take the backup")

// each runs do for every destination that is still there, one after another.
// Who fails drops out; it is an error only if nobody is left.
func (ds destinations) each(ctx context.Context, do func(*destination) error) error {
	left := false
	for _, d := range ds {
		if d.failed() != nil {
			continue
		}
		if err := do(d); err != nil {
			if ctx.Err() != nil {
				return err
			}
			d.fail(err)
			continue
		}
		left = true
	}
	if !left {
		return errAllFailed
	}
	return nil
}

// atOnce is each with all of them at the same time.
func (ds destinations) atOnce(ctx context.Context, do func(*destination) error) error {
	var g errgroup.Group
	for _, d := range ds.alive() {
		g.Go(func() error {
			if err := do(d); err != nil {
				d.fail(err)
			}
			return nil
		})
	}
	g.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	return ds.each(ctx, func(*destination) error { return nil })
}

// open finds out what each destination can take over from its previous backup,
// and begins the backup there: under one identifier, for it is one backup.
func (ds destinations) open(ctx context.Context) error {
	name := ""
	return ds.each(ctx, func(d *destination) (err error) {
		parent, err := d.parent(ctx)
		if err != nil {
			return err
		}
		if !d.Stream { // which comes whole
			if err := d.skipUnchanged(ctx, parent); err != nil {
				return err
			}
		}
		d.writer, err = d.cluster.NewBackup(ctx, repo.WriterOptions{Tool: d.Tool, Name: name, BlockSize: d.control.BlockSize,
			Parent: parent, AnyOrder: d.Stream, Level: level(parent)})
		if err != nil {
			return err
		}
		name = d.writer.ID()
		if d.resumed = d.writer.Resumes(); len(d.resumed) > 0 {
			d.Progress.Note("going on where the interrupted backup %s had come to", strings.Join(d.resumed, ", "))
		}
		return nil
	})
}

// level is how hard a backup compresses. A full one is over soon. What changes
// from day to day is little, and kept for as long: it is worth half as much time
// again of compressing to store a fifth less.
func level(parent string) repo.Level {
	if parent == "" {
		return repo.LevelFast
	}
	return repo.LevelGood
}

// toRead is what has to be read so that every destination gets what it needs.
func (ds destinations) toRead() *contents {
	alive := ds.alive()
	out := alive[0].files
	for _, d := range alive[1:] {
		out = out.join(d.files, int64(d.control.BlockSize))
	}
	for _, d := range alive {
		if d.files = out; out.parts == nil {
			d.hashed, d.proof = time.Time{}, "" // by this backup
		}
	}
	return out
}

// view is the same files, for another to say what of them is to be read.
func (c *contents) view() *contents {
	v := *c
	return &v
}

// join returns what one of two views says is to be read.
func (c *contents) join(o *contents, blockSize int64) *contents {
	out := c.view()
	if c.parts == nil || o.parts == nil {
		out.readAll()
		return out
	}
	out.parts, out.read, out.bytes = make([]bool, len(c.entries)), map[int][]blockcopy.Range{}, 0
	for i := range c.entries {
		if out.parts[i] = c.parts[i] && o.parts[i]; out.parts[i] {
			if both := slices.Concat(c.read[i], o.read[i]); len(both) > 0 {
				out.read[i] = blockcopy.MergeRanges(both, joinBlocks*blockSize)
			}
		}
		out.bytes += out.toRead(i)
	}
	return out
}

// conclude waits for the WAL and makes the backup exist in every destination
// that got it whole.
func (j *job) conclude(ctx context.Context, ds destinations) error {
	for _, d := range ds.alive() {
		if fault := d.writer.ParentFault(); fault != nil {
			d.Progress.Note("blocks are stored again, for the previous backup cannot be compared with: %v", fault)
		}
	}
	j.Progress.Phase("making the backup durable", 0, progress.Items)
	if err := ds.atOnce(ctx, func(d *destination) error { return d.writer.Flush() }); err != nil {
		return err
	}
	stop, control, err := j.end(ctx, ds)
	if err != nil {
		return err
	}
	findings, count := j.pages.findings(stop)
	if err := j.stream.verdict(count); err != nil {
		return err
	}
	if count > 0 && j.stream != nil {
		j.sayHowToName(findings[0])
	} else if count > 0 {
		nameRelations(ctx, j.server, findings)
	}
	if err := j.wait(ctx, ds, stop); err != nil {
		return err
	}
	names, err := j.server.databases(ctx)
	if err != nil {
		return err
	}
	finished := time.Now().UTC().Truncate(time.Millisecond)
	return ds.atOnce(ctx, func(d *destination) error {
		histories, err := d.keeper.histories(ctx)
		if err != nil {
			return err
		}
		sum := d.summarize(stop, control, histories)
		sum.Databases, sum.Findings, sum.FindingCount, sum.Finished = names, findings, count, finished
		if d.tail != nil {
			if err := d.tail.store(d.writer, sum, int64(j.control.BlockSize)); err != nil {
				return err
			}
		}
		if err := d.writer.Commit(sum); err != nil {
			return err
		}
		d.summary = sum
		d.tidy(ctx, d.resumed)
		return nil
	})
}

// end returns the position up to which the WAL has to be replayed, and the
// control file for the copy.
func (j *job) end(ctx context.Context, ds destinations) (wal.LSN, *volume.Control, error) {
	if j.stream != nil {
		return j.endStream(ctx, ds)
	}
	return j.server.end(ctx, j.src, j.start)
}

// wait waits until the WAL is durable in each destination, and looks whether
// replaying it gives the cluster.
func (j *job) wait(ctx context.Context, ds destinations, stop wal.LSN) error {
	j.Progress.Phase("waiting for the WAL", 0, progress.Items)
	err := ds.atOnce(ctx, func(d *destination) (err error) {
		d.tail, err = d.keeper.finish(ctx, stop, j.Timeout)
		return err
	})
	if err != nil {
		return err
	}
	j.Progress.Phase("checking the WAL", 0, progress.Items)
	alive := ds.alive()
	reader := alive[0]
	if at := slices.IndexFunc(alive, func(d *destination) bool { return d.cluster.Repository().Unlocked() }); at >= 0 {
		reader = alive[at]
	}
	return guard(ctx, reader.tail.over(reader.writtenWAL(), j.keeper.size), j.walOptions(), stop)
}

// watch keeps the archives of all destinations up with the server while files
// are copied. Its session is the only one, so they take turns.
func (ds destinations) watch(ctx context.Context, copied <-chan struct{}, current func(context.Context) (wal.LSN, error)) error {
	if len(ds) == 1 {
		return ds[0].keeper.watch(ctx, copied, current)
	}
	return eachSecond(ctx, copied, current, func(lsn wal.LSN) error {
		kept, known := wal.SegmentNumber(0), true
		for i, d := range ds.alive() {
			k := d.keeper
			if _, err := k.catchUp(ctx, lsn); err != nil {
				d.Log.Debug("the WAL cannot be archived now", "repository", d.cluster.Repository().Location(), "error", err)
			}
			known = known && k.cluster.Repository().Unlocked()
			if i == 0 || k.next < kept {
				kept = k.next
			}
		}
		if known && kept > 0 {
			ds[0].server.advance(ctx, ds[0].keeper.size.Start(kept))
		}
		return nil
	})
}

// sinks are the writers of one file, of each destination; nil where it dropped out.
type sinks []*repo.FileWriter

// openSinks opens a file in every destination.
func (p *packing) openSinks(e blockcopy.Entry) (sinks, error) {
	out := make(sinks, len(p.to))
	for i, d := range p.to {
		if d.failed() != nil {
			continue
		}
		f, err := d.writer.File(e)
		if err != nil {
			d.fail(err)
			continue
		}
		out[i] = f
	}
	return out, p.someLeft(out)
}

// eachSink calls do for every destination's writer of a file.
func (p *packing) eachSink(s sinks, do func(*repo.FileWriter) error) error {
	for i, f := range s {
		if f == nil || p.to[i].failed() != nil {
			continue
		}
		if err := do(f); err != nil {
			p.to[i].fail(err)
		}
	}
	return p.someLeft(s)
}

func (p *packing) someLeft(s sinks) error {
	for i, f := range s {
		if f != nil && p.to[i].failed() == nil {
			return nil
		}
	}
	return errAllFailed
}

// takeOver gives every destination the blocks of a file that are not read.
func (p *packing) takeOver(i int, s sinks) (end int64, done bool, err error) {
	err = p.eachSink(s, func(f *repo.FileWriter) error {
		e, d, err := p.j.files.takeOver(i, f, int64(p.j.control.BlockSize))
		if err == nil { // the same for all of them
			end, done = e, d
		}
		return err
	})
	return end, done, err
}

// taken says what became of the backup in each repository. err is what ended it
// for all of them; it is nil where each has its own reason.
func (ds destinations) taken(err error) ([]Taken, error) {
	var out []Taken
	if err == errAllFailed {
		if err = nil; len(ds) == 1 {
			err = ds[0].failed()
		}
	}
	for _, d := range ds {
		t := Taken{Repository: d.cluster.Repository(), Summary: d.summary}
		if d.summary == nil {
			why := d.failed()
			if why == nil {
				why = err
			}
			t.Err = why
			if d.writer != nil {
				aside := setAside(d.writer, why)
				t.Err = errors.Join(why, aside)
				if err != nil {
					err = errors.Join(err, aside)
				}
			}
		}
		out = append(out, t)
	}
	return out, err
}
