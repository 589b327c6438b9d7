package rewind

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark/internal/exit"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// How a search works. A place that fails is not the end: the others are asked,
// and it is asked again. A restore_command cannot tell "there is none" from
// many a fault, so that answer, too, is asked for twice.
const (
	searchJobs   = 6 // files that are fetched at once
	faultRounds  = 3
	absentRounds = 2
	roundPause   = 200 * time.Millisecond
)

// place is somewhere outside of both servers' pg_wal where WAL may lie: what a
// restore_command reaches, a repository.
type place interface {
	String() string // for people: "the target's restore_command"
	// fetch puts a WAL file at path. An *absent says that the place answered
	// and has none; any other error is a fault, behind which the file may exist.
	fetch(ctx context.Context, name, path string) error
}

// absent says that a place has no such file.
type absent struct {
	why  string // what the place said; may be empty
	sure bool   // it need not be asked again
}

func (a *absent) Error() string {
	if a.why == "" {
		return "not there"
	}
	return a.why
}

// walSearch fetches WAL files from places into a scratch directory, several at
// once, each one once. A nil search has no places.
type walSearch struct {
	places   []place
	systemID uint64
	log      *slog.Logger
	warn     func(format string, args ...any)

	ctx    context.Context // of the whole job: a fetch outlives the reader that asked first
	cancel context.CancelFunc
	work   sync.WaitGroup
	slots  chan struct{}

	mu    sync.Mutex
	dir   string // made when it is needed
	files map[string]*lookup
}

// lookup is what came out of the search for one file. It may be read when done
// is closed.
type lookup struct {
	name  string
	done  chan struct{}
	path  string   // of the file, "" where no place has it
	where string   // the place that had it
	asked []string // the places that had not, and what they said
	fault error    // of a place that could not tell, where no other had the file

	served int64 // bytes of it that were read for good; under the search's lock
}

func newSearch(ctx context.Context, systemID uint64, log *slog.Logger, warn func(string, ...any), places ...place) *walSearch {
	s := &walSearch{places: places, systemID: systemID, log: log, warn: warn, slots: make(chan struct{}, searchJobs), files: map[string]*lookup{}}
	s.ctx, s.cancel = context.WithCancel(ctx)
	return s
}

// close ends what is under way and removes what was fetched.
func (s *walSearch) close() {
	if s == nil {
		return
	}
	s.cancel()
	s.work.Wait()
	if s.dir != "" {
		if err := os.RemoveAll(s.dir); err != nil {
			s.log.Warn("removing restored WAL", "error", err)
		}
	}
}

// names are the places, for people.
func (s *walSearch) names() []string {
	if s == nil {
		return nil
	}
	var names []string
	for _, p := range s.places {
		names = append(names, p.String())
	}
	return names
}

// start begins to fetch a file that may be needed, and returns at once.
func (s *walSearch) start(name string) *lookup {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.files[name]
	if l == nil {
		l = &lookup{name: name, done: make(chan struct{})}
		s.files[name] = l
		s.work.Go(func() {
			defer close(l.done)
			s.fetch(l)
		})
	}
	return l
}

// find returns what came out of the search for a file.
func (s *walSearch) find(ctx context.Context, name string) (*lookup, error) {
	if s == nil || len(s.places) == 0 {
		return &lookup{name: name}, nil
	}
	l := s.start(name)
	select {
	case <-l.done:
		return l, s.ctx.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// lister is a place that can tell whether it has a file without fetching it.
type lister interface {
	has(ctx context.Context, name string) (bool, error)
}

// locate is find for a file that need not be at hand yet: path may be empty
// though where is not.
func (s *walSearch) locate(ctx context.Context, name string) (*lookup, error) {
	if s == nil {
		return &lookup{name: name}, nil
	}
	for _, p := range s.places {
		l, ok := p.(lister)
		if !ok {
			continue
		}
		if has, err := l.has(ctx, name); err == nil && has {
			return &lookup{name: name, where: p.String()}, nil
		} else if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return s.find(ctx, name)
}

// open opens a file that the search finds. Where no place has it the file is
// nil, and the lookup tells what they said.
func (s *walSearch) open(ctx context.Context, name string) (*os.File, *lookup, error) {
	for {
		l, err := s.find(ctx, name)
		if err != nil || l.path == "" {
			return nil, l, err
		}
		f, current, err := s.openFound(l)
		if current || err != nil {
			return f, l, err
		}
		// Another reader was through with it before this one came: once more.
	}
}

// openFound opens a lookup's file unless that has been given back meanwhile.
func (s *walSearch) openFound(l *lookup) (f *os.File, current bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[l.name] != l {
		return nil, false, nil
	}
	f, err = os.Open(l.path)
	return f, true, err
}

// served notes that bytes of an open file have been read for good. The space
// of one that was read whole is given back; it is fetched again when it is
// asked for again.
func (s *walSearch) served(l *lookup, n, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.served += n; l.served < size || s.files[l.name] != l {
		return nil
	}
	delete(s.files, l.name)
	return ignoreMissing(os.Remove(l.path))
}

// fetch asks the places in turn, and those again that might answer otherwise.
func (s *walSearch) fetch(l *lookup) {
	said := make([]error, len(s.places))
	rounds := make([]int, len(s.places)) // in which a place is asked
	for round := range faultRounds {
		if round > 0 && (slices.Max(rounds) <= round || !pause(s.ctx, roundPause)) {
			break
		}
		if s.askPlaces(l, round, said, rounds) {
			s.tell(l, said)
			return
		}
	}
	s.conclude(l, said)
}

// askPlaces asks the places for a file in one round and tells whether one gave
// it. It takes one of the search's slots; a search that pauses has none.
func (s *walSearch) askPlaces(l *lookup, round int, said []error, rounds []int) bool {
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	for i, p := range s.places {
		if round > 0 && rounds[i] <= round {
			continue
		}
		path, err := s.fetchFrom(p, l.name)
		if err == nil {
			l.path, l.where = path, p.String()
			return true
		}
		s.log.Debug("looking for WAL", "file", l.name, "place", p.String(), "error", err)
		said[i], rounds[i] = err, max(rounds[i], worthAsking(err))
	}
	return false
}

// worthAsking is in how many rounds a place is asked that gave an answer.
func worthAsking(err error) int {
	var a *absent
	switch {
	case !errors.As(err, &a):
		return faultRounds
	case a.sure:
		return 1
	}
	return absentRounds
}

// pause waits, and tells whether to go on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// tell warns of places that failed for a file which another one had.
func (s *walSearch) tell(l *lookup, said []error) {
	s.log.Info("restored WAL", "file", l.name, "from", l.where)
	for i, err := range said {
		var a *absent
		if err != nil && !errors.As(err, &a) && s.places[i].String() != l.where {
			s.warn("%s failed for %s (%v); %s has it", s.places[i], l.name, err, l.where)
		}
	}
}

// conclude notes what the places said of a file that none gave.
func (s *walSearch) conclude(l *lookup, said []error) {
	for i, err := range said {
		l.asked = append(l.asked, fmt.Sprintf("%s (%v)", s.places[i], err))
		var a *absent
		if !errors.As(err, &a) {
			l.fault = errors.Join(l.fault, fmt.Errorf("%s: %w", s.places[i], err))
		}
	}
}

// fetchFrom brings a file from one place and checks that it is what its name says.
func (s *walSearch) fetchFrom(p place, name string) (string, error) {
	dir, err := s.scratch()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	tmp := path + volume.TempSuffix
	err = p.fetch(s.ctx, name, tmp)
	if err == nil {
		err = checkWALFile(tmp, name, s.systemID)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return "", errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return path, nil
}

func (s *walSearch) scratch() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.dir == "" {
		s.dir, err = os.MkdirTemp("", "dbrewind-wal-")
	}
	return s.dir, err
}

// checkWALFile checks a segment or history file that a place gave.
func checkWALFile(path, name string, systemID uint64) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("it says that it gave %s, but did not: %w", name, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	parsed, ok := wal.ParseFileName(name)
	switch {
	case !ok:
		return fmt.Errorf("%q is not the name of a WAL file", name)
	case parsed.Kind == wal.FileHistory:
		data, err := os.ReadFile(path)
		if err == nil {
			_, err = timeline.Parse(parsed.Timeline, data)
		}
		return err
	}
	return wal.CheckSegmentFile(f, fi.Size(), parsed, systemID)
}

// missingWAL says which WAL is nowhere, and where it was looked for. It
// matches wal.ErrNoSegment.
type missingWAL struct {
	names  []string
	looked []string
}

func (m *missingWAL) Error() string {
	return fmt.Sprintf("%s: not in %s", strings.Join(m.names, ", "), strings.Join(m.looked, ", nor in "))
}

func (m *missingWAL) Unwrap() error { return wal.ErrNoSegment }

// archiveFault says that WAL may exist in a place that could not be asked.
type archiveFault struct {
	name string
	err  error
}

func (f *archiveFault) Error() string {
	return fmt.Sprintf("%s could not be fetched, and nothing else has it: %v", f.name, f.err)
}

func (f *archiveFault) Unwrap() error { return f.err }

// waysOut is the hint for WAL that is nowhere.
func (j *job) waysOut() string {
	var ways []string
	if !j.RestoreTargetWAL {
		ways = append(ways, "-c (--restore-target-wal) asks the restore_command of target and source too")
	}
	if len(j.Repositories) == 0 && j.SourceRepo == "" {
		ways = append(ways, "--repo DIR looks into a backup repository too")
	}
	ways = append(ways, "a copy of it in the target's pg_wal is found")
	if j.SourceRepo == "" && !j.needsWAL {
		ways = append(ways, "--compare needs no WAL of the target: it finds the blocks that differ by their hashes")
	}
	return strings.Join(ways, ";\n")
}

// explainWAL gives an error about WAL a code and a hint.
func (j *job) explainWAL(err error, doing string) error {
	var fault *archiveFault
	switch {
	case err == nil:
		return nil
	case errors.Is(err, wal.ErrNoSegment):
		return exit.Wrap(err, exit.Refused, j.waysOut(), "%s", doing)
	case errors.As(err, &fault):
		return exit.Wrap(err, exit.Failed, "mend it and run the command again; WAL is restored into "+os.TempDir()+" (TMPDIR names another directory)", "%s", doing)
	}
	return exit.Wrap(err, exit.Failed, "the target's WAL cannot be trusted from there on: go without it (--compare), or seed the node anew (dbrepl seed)", "%s", doing)
}
