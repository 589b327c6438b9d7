package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// DefaultTimeout is how long a backup waits for its last WAL.
const DefaultTimeout = 5 * time.Minute

// attempts is how often a copy that met an unsafe record is begun again.
const attempts = 3

// Options say what is backed up, and how.
type Options struct {
	Tool     string // program and version, for the manifest
	ConnInfo string // how to reach the server
	// DataDir, where set, is the server's data directory on this machine, or
	// on another as an ssh.Location; it is proved to be. Where empty it is
	// looked for here, and read over SQL else.
	DataDir string
	// Stream reads everything over the replication protocol: the role needs the
	// right to replicate, and no other.
	Stream  bool
	Label   string     // the operator's words
	Full    bool       // store every block again
	Expires *time.Time // when the backup may go, whatever the policy says
	// Rehash is how long ago every block may have been read at most; blocks
	// that the WAL proves unchanged are not read meanwhile. DefaultRehash where
	// 0, negative: every backup reads everything.
	Rehash time.Duration
	Rate   int64 // bytes per second read at most; 0: as fast as it goes
	// Tablespaces says where a plain copy puts those that shall not go where
	// they are; Tar makes it tar files.
	Tablespaces []Mapping
	Tar         bool
	Jobs        int           // parallel workers; 0 means as many as processors
	Timeout     time.Duration // for the last WAL to arrive, DefaultTimeout where 0

	Progress progress.Reporter
	Log      *slog.Logger

	remote bool // read over SQL even where the files can be read here: for tests
}

func (o Options) withDefaults() Options {
	o.Jobs = cmp.Or(o.Jobs, runtime.GOMAXPROCS(0))
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	o.Rehash = cmp.Or(o.Rehash, DefaultRehash)
	o.Progress = progress.Or(o.Progress)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Create takes a backup into a repository. Blocks that the newest backup has
// at the same place are referenced.
func Create(ctx context.Context, r *repo.Repository, o Options) (*repo.Summary, error) {
	taken, err := CreateIn(ctx, []*repo.Repository{r}, o)
	if err != nil {
		return nil, err
	}
	return taken[0].Summary, taken[0].Err
}

// CreateIn takes one backup into several repositories: it reads the cluster
// once. It says of each what became of it there; the error is what ended it for
// all of them.
func CreateIn(ctx context.Context, rs []*repo.Repository, o Options) ([]Taken, error) {
	o = o.withDefaults()
	open := connect
	if o.Stream {
		open = connectStream
	}
	s, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var lost []Taken
	var clusters []*repo.Cluster
	var names []string
	for _, r := range rs {
		if _, err := r.Sweep(ctx); err != nil { // what dead processes left unfinished
			lost = append(lost, Taken{Repository: r, Err: err})
			continue
		}
		clusters, names = append(clusters, r.Cluster(s.systemID)), append(names, "--repo "+r.Location())
	}
	if len(clusters) == 0 {
		return lost, ctx.Err()
	}
	if !s.inRecovery && !strings.Contains(s.archiveTo, "dbbackup") {
		o.Progress.Note("the server does not archive into the repository: this backup restores to its own end, and no further (archive_command = 'dbbackup push %s %%p')",
			strings.Join(names, " "))
	}
	for try := 1; ; try++ {
		taken, err := createOnce(ctx, s, clusters, o)
		again, perr := s.again(ctx, err, try, o.Progress.Note)
		if perr != nil {
			return nil, perr
		}
		var unsafe *unsafeError
		if !again && errors.As(err, &unsafe) {
			err = exit.Wrap(err, exit.Failed, "take the backup when nothing creates databases or tablespaces", "%d copies were spoiled", attempts)
		}
		if !again {
			return append(taken, lost...), err
		}
	}
}

// tidy removes what the interrupted backups left that this one went on from.
// That the backup exists does not depend on it.
func (j *job) tidy(ctx context.Context, resumed []string) {
	if len(resumed) == 0 {
		return
	}
	if _, err := j.cluster.Sweep(ctx, nil, false); err != nil {
		j.Progress.Note("what the interrupted backup %s left is still there, the next dbbackup expire removes it: %v", strings.Join(resumed, ", "), err)
	}
}

// job is one attempt at a backup.
type job struct {
	Options
	server  *server
	cluster *repo.Cluster
	src     blockcopy.Source
	stream  *streaming // where the server sends the files
	access  string
	control *volume.Control
	start   point
	pages   *pageChecker
	files   *contents
	keeper  *walKeeper
	began   time.Time
	proof   string    // why not every block was read
	hashed  time.Time // when every block was read last; zero: by this job
	scanned *[]scanned
}

func createOnce(ctx context.Context, s *server, clusters []*repo.Cluster, o Options) ([]Taken, error) {
	j := &job{Options: o, server: s, cluster: clusters[0], began: time.Now().UTC()}
	begin, explain := j.begin, func(err error) error { return err }
	if o.Stream {
		standby := s.inRecovery
		begin, explain = j.beginStream, func(err error) error { return j.promotedMeanwhile(ctx, standby, err) }
	}
	if err := begin(ctx); err != nil {
		return nil, explain(err)
	}
	defer j.src.Close()
	ds := j.newDestinations(clusters)
	return ds.taken(explain(j.into(ctx, ds)))
}

// into copies the cluster into every destination.
func (j *job) into(ctx context.Context, ds destinations) error {
	if err := ds.open(ctx); err != nil {
		return err
	}
	j.files = ds.toRead()
	copy := j.copy
	if j.stream != nil {
		copy = j.receive
	}
	if err := copy(ctx, ds); err != nil {
		return err
	}
	return j.conclude(ctx, ds)
}

// setAside ends a backup that failed. What is durable is kept for the same
// command to go on from, unless the room that it takes is what was missing.
func setAside(w *repo.BackupWriter, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return w.Abort()
	}
	return w.Suspend()
}

// begin anchors the WAL, makes the checkpoint, and opens the source.
func (j *job) begin(ctx context.Context) (err error) {
	j.Progress.Phase("waiting for a checkpoint", 0, progress.Items)
	if j.server.slot == "" {
		if err := j.server.anchor(ctx); err != nil {
			return err
		}
	}
	if j.start, err = j.server.settled(ctx, j.Timeout, j.Progress); err != nil {
		return err
	}
	if j.src, j.access, err = j.server.openSource(ctx, j.DataDir, j.remote, j.start); err != nil {
		return err
	}
	if err := j.prepare(ctx); err != nil {
		j.src.Close()
		return err
	}
	return nil
}

func (j *job) prepare(ctx context.Context) (err error) {
	if j.control, err = postgres.ReadControl(ctx, j.src); err != nil {
		return err
	}
	if err := j.server.sameCluster(j.control, j.start, j.src.Name()); err != nil {
		return err
	}
	if j.files, err = choose(ctx, j.src); err != nil {
		return err
	}
	if err := j.server.nameTablespaces(ctx, j.files.tablespaces); err != nil {
		return err
	}
	j.pages = newPageChecker(j.src, j.start.Redo, j.control, j.Log)
	j.keeper = j.newKeeper(j.cluster)
	return nil
}

// newKeeper makes the keeper of the WAL in one repository; c is nil where the
// backup goes into a directory.
func (j *job) newKeeper(c *repo.Cluster) *walKeeper {
	size := j.control.XLogSegSize
	k := &walKeeper{cluster: c, src: j.src, server: j.server, log: j.Log, progress: j.Progress,
		timeline: j.start.Timeline, size: size, next: size.Number(j.start.Redo)}
	if c != nil {
		k.ours = pushesTo(j.server.archiveTo, c.Repository().Location())
	}
	return k
}

// parent is the backup to compare with: the newest complete one.
func (j *job) parent(ctx context.Context) (string, error) {
	if j.Full {
		return "", nil
	}
	cat, err := j.cluster.Catalog(ctx)
	if err != nil {
		return "", err
	}
	for _, d := range cat.Damaged {
		j.Progress.Note("backup %s is damaged: %v", d.ID, d.Err)
	}
	newest := ""
	for _, s := range slices.Backward(cat.Backups) {
		if s.BlockSize != j.control.BlockSize {
			continue
		}
		if j.cluster.Comparable(s) {
			return s.ID, nil
		}
		newest = cmp.Or(newest, s.ID) // the writer says why it cannot
	}
	return newest, nil
}

// writtenWAL is where the WAL of the backup is read once it is durable: in the
// archive, or on the server where the archive cannot be read here.
func (j *job) writtenWAL() wal.Source {
	if !j.cluster.Repository().Unlocked() {
		return live(j.src, j.start.Timeline, j.keeper.size)
	}
	return archived(j.cluster, j.start.Timeline, j.keeper.size)
}

func (j *job) walOptions() wal.Options {
	return wal.Options{Start: j.start.Redo, SegmentSize: j.control.XLogSegSize, PageSize: j.control.XLogBlockSize,
		BlockSize: j.control.BlockSize, SystemID: j.control.SystemIdentifier, Major: j.control.Major()}
}

func (j *job) label() *volume.BackupLabel {
	return &volume.BackupLabel{StartWAL: j.start.Redo, Checkpoint: j.start.Checkpoint, Method: "pg_rewind", From: "standby",
		WALFile:   wal.SegmentName(j.start.Timeline, j.keeper.size.Number(j.start.Redo), j.keeper.size),
		StartTime: volume.LabelTime(j.began), Label: j.Label}
}

func (j *job) summarize(stop wal.LSN, control *volume.Control, histories []string) *repo.Summary {
	size := j.keeper.size
	host, err := os.Hostname()
	if err != nil {
		j.Log.Debug("no host name", "error", err)
	}
	role := "primary"
	if j.server.inRecovery {
		role = "standby"
	}
	return &repo.Summary{
		Label: j.Label, Expires: j.Expires, Major: control.Major(), ControlVersion: control.PgControlVersion, CatalogVersion: control.CatalogVersionNo,
		WALSegmentSize: uint32(size), Checksums: control.Checksums(),
		Start:      repo.Point{LSN: j.start.Redo, Timeline: j.start.Timeline},
		Checkpoint: j.start.Checkpoint,
		Stop:       repo.Point{LSN: stop, Timeline: j.start.Timeline},
		Began:      j.began.Truncate(time.Millisecond), Finished: time.Now().UTC().Truncate(time.Millisecond),
		Source:      repo.Origin{Host: host, Data: j.server.dataDir, Role: role, Access: j.access, Server: j.server.version},
		Tablespaces: j.files.tablespaces,
		WAL: []repo.WALRange{{Timeline: j.start.Timeline,
			First: wal.SegmentName(j.start.Timeline, size.Number(j.start.Redo), size),
			Last:  wal.SegmentName(j.start.Timeline, max(size.NumberBefore(stop), size.Number(j.start.Redo)), size)}},
		Hashed: j.hashed, Proof: j.proof, ReadSize: j.files.bytes,
		History: histories, Control: control.Encode(), BackupLabel: string(j.label().Format()), TablespaceMap: string(j.files.tablespaceMap()),
	}
}

// copy reads every file once, with the WAL keepers beside it.
func (j *job) copy(ctx context.Context, ds destinations) error {
	j.Progress.Phase("copying", j.files.bytes, progress.Bytes)
	p := newPacking(j, ds)
	g, ctx := errgroup.WithContext(ctx)
	copied := make(chan struct{})
	// The keepers are asked to end, not cancelled: cancelling a query closes
	// the session, and the slot goes with it.
	g.Go(func() error { return ds.watch(ctx, copied, j.server.current) })
	g.Go(func() error {
		defer close(copied)
		src := throttle(j.src, j.Rate)
		for ranges := range j.files.ranges() {
			err := blockcopy.Fetch(ctx, src, ranges, blockcopy.FetchOptions{Jobs: j.Jobs, TaskDone: p.taskDone},
				func(piece blockcopy.Range, data []byte, gone bool) error { return p.deliver(ctx, piece, data, gone) })
			if err != nil {
				return err
			}
		}
		return p.openUpTo(len(j.files.entries))
	})
	return g.Wait()
}

// packing turns what the fetch stage delivers into the files of a backup, in
// every destination.
type packing struct {
	j  *job
	to destinations

	mu     sync.Mutex
	opened int
	open   map[int]*openFile
}

// openFile is a file of which not everything was delivered yet.
type openFile struct {
	w       sinks
	rel     bool // a relation: whole blocks
	pending int64
	size    int64 // the end of what was delivered
	cut     int64 // where the file was seen to end, -1 if it was not
	gone    bool
}

func newPacking(j *job, to destinations) *packing {
	return &packing{j: j, to: to, open: map[int]*openFile{}}
}

// openUpTo opens the entries before n that are not open yet, in order.
func (p *packing) openUpTo(n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; p.opened < n; p.opened++ {
		e := p.j.files.entry(p.opened)
		f, err := p.openSinks(e)
		if err != nil {
			return err
		}
		if e.Type == blockcopy.File && e.Size == 0 {
			if err := p.eachSink(f, func(f *repo.FileWriter) error { return f.Close(0, false) }); err != nil {
				return err
			}
		}
		if e.Type != blockcopy.File || e.Size == 0 {
			continue
		}
		end, done, err := p.takeOver(p.opened, f)
		if err != nil {
			return err
		}
		if done {
			continue
		}
		_, rel := volume.ParseRelPath(e.Path)
		p.open[p.opened] = &openFile{w: f, rel: rel, pending: p.j.files.toRead(p.opened), size: end, cut: -1}
	}
	return nil
}

func (p *packing) file(path string) (*openFile, error) {
	i, ok := p.j.files.find(path)
	if !ok || !p.j.files.reads(i) {
		return nil, fmt.Errorf("%s was not asked for", path)
	}
	if err := p.openUpTo(i + 1); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open[i], nil
}

func (p *packing) deliver(ctx context.Context, piece blockcopy.Range, data []byte, gone bool) error {
	f, err := p.file(piece.Path)
	if err != nil {
		return err
	}
	if gone {
		p.mu.Lock()
		f.gone = true
		p.mu.Unlock()
		return nil
	}
	return p.put(ctx, f, piece, data)
}

// put checks a piece of a file and gives it to every destination.
func (p *packing) put(ctx context.Context, f *openFile, piece blockcopy.Range, data []byte) error {
	bs := int64(p.j.control.BlockSize)
	if piece.Offset%bs != 0 {
		return fmt.Errorf("%s: a piece does not begin with a block", piece)
	}
	if err := p.j.pages.check(ctx, piece.Path, piece.Offset, data); err != nil {
		return err
	}
	end := piece.Offset + int64(len(data))
	short := int64(len(data)) < piece.Length
	if odd := int64(len(data)) % bs; odd != 0 && f.rel {
		// Caught while it was extended or cut: replay settles the block.
		data = append(slices.Clone(data), make([]byte, bs-odd)...)
		end += bs - odd
	}
	if err := p.eachSink(f.w, func(w *repo.FileWriter) error { return w.Write(piece.Offset/bs, data) }); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f.size = max(f.size, end)
	if short && !f.rel && (f.cut < 0 || end < f.cut) {
		f.cut = end
	}
	return nil
}

// taskDone closes the files of which nothing is outstanding.
func (p *packing) taskDone(_ context.Context, t blockcopy.Task) error {
	p.j.Progress.Add(t.Bytes())
	var done []*openFile
	p.mu.Lock()
	for _, r := range t.Ranges {
		i, _ := p.j.files.find(r.Path)
		f := p.open[i]
		if f.pending -= r.Length; f.pending == 0 {
			delete(p.open, i)
			done = append(done, f)
		}
	}
	p.mu.Unlock()
	for _, f := range done {
		size := f.size
		if f.cut >= 0 {
			size = f.cut
		}
		if err := p.eachSink(f.w, func(w *repo.FileWriter) error { return w.Close(size, f.gone) }); err != nil {
			return err
		}
	}
	return nil
}
