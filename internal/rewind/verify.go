package rewind

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// A verification compares a running standby with its source, block by block.
// Both write meanwhile, so it goes by rounds:
//
//	source  CHECKPOINT ------------ read what is left ----
//	          |  replayed, then CHECKPOINT (a restartpoint)
//	standby   '---------------------- read what is left ----
//
// After the two checkpoints every change up to the smaller of their redo points
// (the common LSN) is in the files of both sides. The first round hashes
// everything on both sides; what differs is read and judged (verdict.go). What
// the source changed behind the common LSN is looked at again in the next round;
// what is wrong has to be so in two rounds.

// VerifyOptions say what to compare.
type VerifyOptions struct {
	Target     string        // data directory of a running standby
	SourceConn string        // the server that it shall be a copy of
	Jobs       int           // connections to the source
	Timeout    time.Duration // for the standby to replay what the source has; DefaultStartTimeout where 0
	Progress   progress.Reporter
	Log        *slog.Logger
}

// Verification is what a comparison of a standby with its source found.
type Verification struct {
	Source      string            `json:"source"`            // what it was compared with
	CommonLSN   wal.LSN           `json:"common_lsn"`        // up to there both sides are in their files, and compared
	Files       int               `json:"files"`             // of relations that were compared
	Bytes       int64             `json:"bytes"`             // compared, on each side
	Reread      int64             `json:"reread_blocks"`     // that were not equal byte for byte, and looked at closely
	Rounds      int               `json:"rounds"`            // in which that was done
	Unsettled   int64             `json:"unsettled_blocks"`  // the source changed them in every round: they could not be compared
	Differences []BlockDifference `json:"differences"`       // what is wrong
	More        bool              `json:"more,omitempty"`    // there are more than are listed
	Orphans     []string          `json:"orphans,omitempty"` // files on one side that belong to no relation
	Seconds     float64           `json:"elapsed_seconds"`
}

// BlockDifference is one block that is wrong.
type BlockDifference struct {
	Database string `json:"database,omitempty"` // its name; empty for what all databases share
	Relation string `json:"relation,omitempty"` // its name with its schema, empty where the source does not know it
	File     string `json:"file"`               // of the segment, relative to the data directory
	Fork     string `json:"fork"`               // main, vm, init
	Block    uint32 `json:"block"`              // counted from the begin of the fork
	What     string `json:"what"`               // is wrong, a few words
}

// Limits of a verification.
const (
	verifyRounds   = 6
	verifyMost     = 10000   // differences, after which it stops
	verifyTaskSize = 4 << 20 // bytes that a worker reads of either side at once
)

// verifier is one verification at work.
type verifier struct {
	VerifyOptions
	source    *source
	target    *blockcopy.DirSource
	sides     *sides
	bs        int64
	segSize   uint32
	checksums bool
	result    Verification

	mu       sync.Mutex
	suspects map[blockID]suspicion // of the last round
	now      map[blockID]suspicion // of this one
}

type blockID struct {
	path  string
	block uint32 // in its segment
}

// Verify compares every block of every relation of a standby with its source,
// up to a common LSN. Differences are in the result, not an error.
func Verify(ctx context.Context, o VerifyOptions) (*Verification, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Progress = progress.Or(o.Progress)
	o.Jobs = cmp.Or(o.Jobs, max(blockcopy.DefaultJobs, runtime.NumCPU()))
	o.Timeout = cmp.Or(o.Timeout, DefaultStartTimeout)
	begin := time.Now()
	if o.SourceConn == "" {
		return nil, exit.New(exit.Usage, "name it with --source-server", "the source is not given")
	}
	src, err := openSource(ctx, Options{SourceConn: o.SourceConn})
	if err != nil {
		return nil, err
	}
	defer src.Close()
	v := &verifier{VerifyOptions: o, source: src, target: blockcopy.NewDirSource(o.Target, false), suspects: map[blockID]suspicion{}}
	v.result = Verification{Source: src.Name(), Differences: []BlockDifference{}}
	if v.sides, err = openSides(ctx, v.source, o.Target); err != nil {
		return nil, err
	}
	defer v.sides.close()
	if err := v.checkPair(ctx); err != nil {
		return nil, err
	}
	if err := v.run(ctx); err != nil {
		return nil, err
	}
	v.result.Seconds = time.Since(begin).Seconds()
	return &v.result, nil
}

// checkPair refuses what cannot be compared.
func (v *verifier) checkPair(ctx context.Context) error {
	sc, err := v.source.control(ctx)
	if err != nil {
		return err
	}
	tc, err := postgres.ReadControl(ctx, v.target)
	if err != nil {
		return err
	}
	if sc.SystemIdentifier != tc.SystemIdentifier {
		return exit.New(exit.Refused, "they are not copies of one cluster; check -D and the source",
			"target and source have different system identifiers (%d and %d)", tc.SystemIdentifier, sc.SystemIdentifier)
	}
	v.bs, v.segSize, v.checksums = int64(tc.BlockSize), tc.RelSegSize, tc.Checksums()
	return nil
}

func (v *verifier) run(ctx context.Context) error {
	common, err := v.sides.settle(ctx, &v.VerifyOptions)
	if err != nil {
		return err
	}
	todo, err := v.first(ctx)
	if err != nil {
		return err
	}
	for v.result.Rounds = 1; ; v.result.Rounds++ {
		v.result.CommonLSN = common
		if todo, err = v.round(ctx, todo, common); err != nil {
			return err
		}
		if len(todo) == 0 || v.result.Rounds == verifyRounds || v.result.More {
			break
		}
		if common, err = v.sides.settle(ctx, &v.VerifyOptions); err != nil {
			return err
		}
	}
	for _, r := range todo {
		v.result.Unsettled += (r.Length + v.bs - 1) / v.bs
	}
	return v.name(ctx)
}

// first lists both sides, hashes what both have, and returns what has to be
// looked at.
func (v *verifier) first(ctx context.Context) ([]blockcopy.Range, error) {
	theirs, err := v.source.List(ctx)
	if err != nil {
		return nil, err
	}
	ours, err := blockcopy.ListDir(ctx, volume.OS, v.Target)
	if err != nil {
		return nil, err
	}
	unlogged := volume.Unlogged{}
	sizes := map[string][2]int64{}
	for side, list := range [][]blockcopy.Entry{theirs, ours} {
		for _, e := range list {
			unlogged.Note(e.Path)
			if e.Type == blockcopy.File {
				s := sizes[e.Path]
				s[side] = e.Size
				sizes[e.Path] = s
			}
		}
	}
	var both, todo []blockcopy.Range
	for path, s := range sizes {
		rel, ok := volume.ParseRelPath(path)
		if !ok || rel.Fork == wal.ForkFSM || unlogged.Omit(path) {
			continue
		}
		v.result.Files++
		n := min(s[0], s[1]) / v.bs * v.bs
		if n > 0 {
			both = append(both, blockcopy.Range{Path: path, Length: n})
		}
		if most := max(s[0], s[1]); most > n {
			todo = append(todo, blockcopy.Range{Path: path, Offset: n, Length: most - n})
		}
		v.result.Bytes += n
	}
	sortRanges(both)
	v.Progress.Phase("comparing every block with the source", v.result.Bytes, progress.Bytes)
	c := blockcopy.Comparer{Source: v.source.Source, Target: v.Target, BlockSize: v.bs, Jobs: v.Jobs, Progress: v.Progress.Add}
	d, err := c.Compare(ctx, both)
	if err != nil {
		return nil, exit.Wrap(err, exit.CodeOf(err), exit.HintOf(err), "comparing with the source")
	}
	for path, spans := range d.Spans {
		for _, s := range spans {
			todo = append(todo, blockcopy.Range{Path: path, Offset: s.Offset, Length: s.Length})
		}
	}
	for _, r := range todo {
		v.result.Reread += (r.Length + v.bs - 1) / v.bs
	}
	return todo, nil
}

func sortRanges(ranges []blockcopy.Range) {
	slices.SortFunc(ranges, func(a, b blockcopy.Range) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), cmp.Compare(a.Offset, b.Offset))
	})
}

// round reads ranges on both sides, judges their blocks, and returns those
// that have to be looked at again.
func (v *verifier) round(ctx context.Context, todo []blockcopy.Range, common wal.LSN) ([]blockcopy.Range, error) {
	sortRanges(todo)
	var total int64
	for _, r := range todo {
		total += r.Length
	}
	v.Progress.Phase(fmt.Sprintf("looking at what is not equal (round %d)", v.result.Rounds), total, progress.Bytes)
	v.now = map[blockID]suspicion{}
	var again []blockcopy.Range
	err := blockcopy.EachTask(ctx, blockcopy.SplitTasks(todo, verifyTaskSize), v.Jobs, func(ctx context.Context, t blockcopy.Task) error {
		left, err := v.task(ctx, t.Ranges, common)
		v.mu.Lock()
		again = append(again, left...)
		v.mu.Unlock()
		v.Progress.Add(t.Bytes())
		return err
	})
	if err != nil && !errors.Is(err, errManyDifferences) {
		return nil, err
	}
	v.result.More = err != nil
	v.suspects = v.now
	return blockcopy.MergeRanges(again, 0), nil
}

// task reads and judges ranges.
func (v *verifier) task(ctx context.Context, ranges []blockcopy.Range, common wal.LSN) ([]blockcopy.Range, error) {
	theirs, err := readRanges(ctx, v.source, ranges)
	if err != nil {
		return nil, err
	}
	mine, err := readRanges(ctx, v.target, ranges)
	if err != nil {
		return nil, err
	}
	var again []blockcopy.Range
	for i, r := range ranges {
		rel, _ := volume.ParseRelPath(r.Path)
		for off := int64(0); off < r.Length; off += v.bs {
			inSegment := uint32((r.Offset + off) / v.bs)
			b := blockPair{fork: rel.Fork, block: rel.FirstBlock(v.segSize) + inSegment, theirs: blockAt(theirs[i], off, v.bs), mine: blockAt(mine[i], off, v.bs)}
			j := b.judge(common, v.checksums)
			settled := j == nil
			if !settled && !j.open {
				if settled, err = v.suspect(blockID{r.Path, inSegment}, b.block, rel.Fork, *j); err != nil {
					return nil, err
				}
			}
			if !settled {
				again = append(again, blockcopy.Range{Path: r.Path, Offset: r.Offset + off, Length: min(v.bs, r.Length-off)})
			}
		}
	}
	return again, nil
}

// errManyDifferences ends a verification that need not go on.
var errManyDifferences = errors.New("too many differences")

// suspect notes that a block looks wrong, and tells whether that is settled: it
// looked wrong in the last round, too.
func (v *verifier) suspect(id blockID, block uint32, fork wal.Fork, s suspicion) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	before, ok := v.suspects[id]
	if !ok || !before.same(s) {
		v.now[id] = s
		return false, nil
	}
	v.result.Differences = append(v.result.Differences, BlockDifference{File: id.path, Fork: fork.String(), Block: block, What: s.what})
	if len(v.result.Differences) >= verifyMost {
		return true, errManyDifferences
	}
	return true, nil
}

// readRanges reads ranges of a few megabytes in all. What a file does not have
// is cut off.
func readRanges(ctx context.Context, src interface {
	Fetch(context.Context, []blockcopy.Range, blockcopy.Deliver) error
}, ranges []blockcopy.Range) ([][]byte, error) {
	byStart := map[blockcopy.Range]int{} // piece's place: its path and offset
	out := make([][]byte, len(ranges))
	for i, r := range ranges {
		byStart[blockcopy.Range{Path: r.Path, Offset: r.Offset}] = i
	}
	err := src.Fetch(ctx, ranges, func(piece blockcopy.Range, data []byte, gone bool) error {
		at := blockcopy.Range{Path: piece.Path, Offset: piece.Offset}
		i, ok := byStart[at]
		if !ok {
			return fmt.Errorf("%s was delivered and not asked for", piece)
		}
		delete(byStart, at)
		at.Offset += piece.Length
		if at.Offset < ranges[i].End() {
			byStart[at] = i
		}
		out[i] = append(out[i], data...)
		return nil
	})
	return out, err
}

// blockAt is a block of what was read of a range, nil where the file had ended.
func blockAt(data []byte, off, bs int64) []byte {
	if off+bs > int64(len(data)) {
		return nil
	}
	return data[off : off+bs]
}

// startAndVerify does what is to be done after a rewind.
func (j *job) startAndVerify(ctx context.Context, res *Result) (err error) {
	if res.Started, err = j.start(ctx); err != nil || !j.Verify {
		return err
	}
	res.Verified, err = Verify(ctx, VerifyOptions{Target: j.Target, SourceConn: j.SourceConn, Jobs: j.Jobs, Timeout: j.StartTimeout,
		Progress: j.Progress, Log: j.Log})
	if err != nil {
		return exit.Wrap(err, exit.CodeOf(err), exit.HintOf(err), "the target is rewound and follows, but it was not verified")
	}
	return res.Verified.Err()
}

// Err is the error of a standby that is not a copy of its source.
func (v *Verification) Err() error {
	if len(v.Differences) == 0 {
		return nil
	}
	d := v.Differences[0]
	more := ""
	if n := len(v.Differences); n > 1 {
		more = fmt.Sprintf(", and %d more", n-1)
	}
	return exit.New(exit.Problem, "stop it and bring it back: dbrewind run --compare copies the blocks that differ",
		"the standby is not a copy of its source: %s%s", d, more)
}

// String names the block: database, relation, fork, number.
func (d BlockDifference) String() string {
	name := d.Relation
	if name == "" {
		name = d.File
	}
	if d.Database != "" {
		name += " of database " + d.Database
	}
	if d.Fork != "main" {
		name += " (" + d.Fork + ")"
	}
	return fmt.Sprintf("%s, block %d: %s", name, d.Block, d.What)
}
