package blockcopy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"tidemark/pkg/volume"
)

// The journal, in JournalDir inside the target:
//
//	plan.json     the Plan; durable before anything else in the target changes
//	log           what is durable, one line per fact, appended and fsynced
//	pg_control    the target's own, as it was
//	backup_label  the target's own, where it had one
//	undo/         what an undo needs (undolog.go), where the plan says so
//
// A line of the log is the CRC-32C of the rest, in eight hex digits, a space,
// and the rest:
//
//	begun                    the tombstone is durable, changes follow
//	task 17                  all ranges of task 17 are written and fsynced; the
//	                         tasks of one batch are noted at once
//	task 18 4=81920 5=gone   the same; the source's file of action 4 ended at
//	                         that size, and that of action 5 is gone
//	result A B               the SHA-256 of the pg_control and of the backup_label
//	                         that the run ends with, - for none; the last counts
//	finishing                all data is durable; pg_control and the label follow
//	undoing                  an undo has begun: the run cannot go on
//	undone                   all but pg_control and the label is as it was
//	given-up                 the undo is given up, what it needs is being removed
//
// A torn last line is no fact. These names and words are part of the format,
// do not change.
const (
	planName    = "plan.json"
	logName     = "log"
	controlName = "pg_control"
	labelName   = "backup_label"

	factBegun     = "begun"
	factTask      = "task"
	factGone      = "gone"
	factFinishing = "finishing"
	factResult    = "result"
	factUndoing   = "undoing"
	factUndone    = "undone"
	factGivenUp   = "given-up"
)

// maxPlanBytes bounds the plan that is read back from a journal.
const maxPlanBytes = 1 << 30

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// facts is what a journal's log says.
type facts struct {
	tasks     map[int]bool
	short     map[int]int64 // action -> size at which the source's file ended
	gone      map[int]bool  // action
	begun     bool
	finishing bool
	undoing   bool
	undone    bool
	givenUp   bool
	result    string // the two sums
}

func newFacts() facts {
	return facts{tasks: map[int]bool{}, short: map[int]int64{}, gone: map[int]bool{}}
}

// taskFact is what is known after one task.
type taskFact struct {
	task  int
	short map[int]int64
	gone  map[int]bool
}

func (t taskFact) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d", factTask, t.task)
	for _, a := range slices.Sorted(maps.Keys(t.short)) {
		fmt.Fprintf(&b, " %d=%d", a, t.short[a])
	}
	for _, a := range slices.Sorted(maps.Keys(t.gone)) {
		fmt.Fprintf(&b, " %d=%s", a, factGone)
	}
	return b.String()
}

// learn takes the text of one line in; false means that it is foreign.
func (f *facts) learn(text string) bool {
	switch text {
	case factBegun:
		f.begun = true
		return true
	case factFinishing:
		f.finishing = true
		return true
	case factUndoing:
		f.undoing = true
		return true
	case factUndone:
		f.undone = true
		return true
	case factGivenUp:
		f.givenUp = true
		return true
	}
	if sums, ok := strings.CutPrefix(text, factResult+" "); ok {
		f.result = sums
		return true
	}
	words := strings.Split(text, " ")
	if len(words) < 2 || words[0] != factTask {
		return false
	}
	task, err := strconv.Atoi(words[1])
	if err != nil || task < 0 {
		return false
	}
	for _, w := range words[2:] {
		if !f.learnFile(w) {
			return false
		}
	}
	f.tasks[task] = true
	return true
}

// learnFile takes "action=size" or "action=gone" in. The smallest size counts.
func (f *facts) learnFile(word string) bool {
	left, right, _ := strings.Cut(word, "=")
	action, err := strconv.Atoi(left)
	if err != nil || action < 0 {
		return false
	}
	if right == factGone {
		f.gone[action] = true
		return true
	}
	size, err := strconv.ParseInt(right, 10, 64)
	if err != nil || size < 0 {
		return false
	}
	if old, ok := f.short[action]; !ok || size < old {
		f.short[action] = size
	}
	return true
}

// journal is an open journal. Its methods may be called by several workers.
type journal struct {
	fsys   volume.FS
	dir    string
	noSync bool

	mu     sync.Mutex
	log    volume.File
	broken error
	facts
}

func journalDir(target string) string { return filepath.Join(target, JournalDir) }

// createJournal makes the journal directory and persists the plan, after keep
// has saved what the undo needs to know. What an earlier run left is garbage
// and goes first.
func createJournal(fsys volume.FS, target string, plan *Plan, modes targetModes, keep func() error) error {
	dir := journalDir(target)
	if err := clearJournal(fsys, target); err != nil {
		return err
	}
	if err := fsys.Mkdir(dir, modes.dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for from, to := range map[string]string{"global/pg_control": controlName, "backup_label": labelName} {
		data, err := volume.ReadFile(fsys, filepath.Join(target, from), 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = volume.WriteFile(fsys, filepath.Join(dir, to), data, modes.file)
		}
		if err != nil {
			return err
		}
	}
	if err := keep(); err != nil {
		return err
	}
	data, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	if err := fsys.SyncDir(target); err != nil {
		return err
	}
	return volume.WriteFile(fsys, filepath.Join(dir, planName), append(data, '\n'), modes.file)
}

// readPlan reads a journal's plan; fs.ErrNotExist where there is none.
func readPlan(fsys volume.FS, target string) (*Plan, error) {
	data, err := volume.ReadFile(fsys, filepath.Join(journalDir(target), planName), maxPlanBytes)
	if err != nil {
		return nil, err
	}
	var p Plan
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s/%s: %w", JournalDir, planName, err)
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%s/%s: %w", JournalDir, planName, err)
	}
	return &p, nil
}

// readFacts reads a journal's log up to its end or its torn tail, and tells
// how many bytes of it are good. A journal without a log has no facts.
func readFacts(fsys volume.FS, target string) (facts, int64, error) {
	f := newFacts()
	data, err := volume.ReadFile(fsys, filepath.Join(journalDir(target), logName), maxPlanBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return f, 0, nil
	}
	if err != nil {
		return f, 0, err
	}
	good := int64(0)
	for {
		line, rest, ok := bytes.Cut(data, []byte{'\n'})
		if !ok || !f.apply(string(line)) {
			return f, good, nil
		}
		good += int64(len(line)) + 1
		data = rest
	}
}

// apply takes one line in; false means that it is torn or foreign.
func (f *facts) apply(line string) bool {
	sum, text, ok := strings.Cut(line, " ")
	return ok && sum == lineSum(text) && f.learn(text)
}

func lineSum(text string) string {
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(text), castagnoli))
}

// openJournal opens the log for appending, its torn tail cut off.
func openJournal(fsys volume.FS, target string, modes targetModes, noSync bool) (*journal, error) {
	f, good, err := readFacts(fsys, target)
	if err != nil {
		return nil, err
	}
	dir := journalDir(target)
	log, err := fsys.OpenFile(filepath.Join(dir, logName), os.O_RDWR|os.O_CREATE, modes.file)
	if err != nil {
		return nil, err
	}
	err = log.Truncate(good)
	if err == nil {
		_, err = log.Seek(good, 0)
	}
	if err == nil {
		err = log.Sync()
	}
	if err == nil {
		err = fsys.SyncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return &journal{fsys: fsys, dir: dir, noSync: noSync, log: log, facts: f}, nil
}

// note appends facts and makes them durable together. They count from then on.
// After a failure the log's end is not known, so nothing more can be noted.
func (j *journal) note(texts ...string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return j.broken
	}
	var lines bytes.Buffer
	sync := !j.noSync
	for _, text := range texts {
		fmt.Fprintf(&lines, "%s %s\n", lineSum(text), text)
		sync = sync || !strings.HasPrefix(text, factTask)
	}
	_, err := j.log.Write(lines.Bytes())
	if err == nil && sync {
		err = j.log.Sync()
	}
	if err != nil {
		j.broken = fmt.Errorf("writing the journal: %w", err)
		return j.broken
	}
	for _, text := range texts {
		j.learn(text)
	}
	return nil
}

// noteTasks notes tasks of one batch.
func (j *journal) noteTasks(tasks ...taskFact) error {
	texts := make([]string, len(tasks))
	for i, t := range tasks {
		texts[i] = t.line()
	}
	return j.note(texts...)
}

func (j *journal) close() error { return j.log.Close() }

// removeJournal removes the plan first: a journal without a plan is garbage
// wherever it is met.
func removeJournal(fsys volume.FS, target string) error {
	// A tombstone that was being written, when the journal was all there was.
	if err := fsys.Remove(filepath.Join(target, volume.BackupLabelFile) + volume.TempSuffix); err != nil && !missing(err) {
		return err
	}
	if err := volume.RemoveDurable(fsys, filepath.Join(journalDir(target), planName)); err != nil {
		return err
	}
	dir := journalDir(target)
	for _, name := range []string{planName, logName, controlName, labelName} {
		for _, name := range []string{name, name + volume.TempSuffix} {
			if err := fsys.Remove(filepath.Join(dir, name)); err != nil && !missing(err) {
				return err
			}
		}
	}
	if err := volume.RemoveAll(fsys, filepath.Join(dir, undoDirName)); err != nil {
		return err
	}
	entries, err := fsys.ReadDir(dir)
	if missing(err) {
		return nil
	}
	if err != nil || len(entries) > 0 {
		return err // what others keep there is not of the journal
	}
	if err := fsys.Remove(dir); err != nil {
		return err
	}
	return fsys.SyncDir(target)
}
