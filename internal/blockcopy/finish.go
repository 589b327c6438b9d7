package blockcopy

import (
	"context"
	"errors"
	"io/fs"

	"tidemark/internal/progress"
	"tidemark/pkg/volume"
)

// Finish is what a run needs to know only after its last byte is durable.
type Finish struct {
	// Late are copies that could not be planned before: WAL that came into
	// being meanwhile. They are not journalled; a resumed run does them anew.
	Late []Action
	// Check, where set, is called when the late files are there and before
	// pg_control is written: its error leaves the target unfinished.
	Check func(ctx context.Context) error
	// Files are durable before pg_control: recovery settings, signal files.
	Files []FinalFile
	// Control is the new pg_control, 8192 bytes; nil leaves the target's.
	Control []byte
	// Label is the valid backup_label; nil means that the target starts
	// without one. TablespaceMap nil means none.
	Label         []byte
	TablespaceMap []byte
}

// FinalFile is a small file that is written whole.
type FinalFile struct {
	Path string
	Data []byte
}

// finish is steps 4 to 6.
func (r *runner) finish(ctx context.Context) error {
	r.Progress.Phase("finishing", 0, progress.Items)
	f, err := r.Finish(ctx)
	if err != nil {
		return err
	}
	if err := r.undo.finish(f); err != nil {
		return err
	}
	if err := r.late(ctx, f.Late); err != nil {
		return err
	}
	if f.Check != nil {
		if err := f.Check(ctx); err != nil {
			return err
		}
	}
	if err := r.writeFiles(f.Files); err != nil {
		return err
	}
	if f.TablespaceMap == nil {
		err = volume.RemoveDurable(r.FS, r.path("tablespace_map"))
	} else {
		err = volume.WriteFile(r.FS, r.path("tablespace_map"), f.TablespaceMap, r.modes.file)
	}
	if err != nil {
		return err
	}
	if err := r.noteResult(f); err != nil {
		return err
	}
	if err := r.journal.note(factFinishing); err != nil {
		return err
	}
	if f.Control != nil {
		if err := volume.WriteFile(r.FS, r.path("global/pg_control"), f.Control, r.modes.file); err != nil {
			return err
		}
	}
	if f.Label == nil {
		return volume.RemoveDurable(r.FS, r.path("backup_label"))
	}
	return volume.WriteFile(r.FS, r.path("backup_label"), f.Label, r.modes.file)
}

// writeFiles makes the final files durable.
func (r *runner) writeFiles(files []FinalFile) error {
	var names []string
	var data [][]byte
	for _, file := range files {
		if err := CheckPath(file.Path); err != nil {
			return err
		}
		names, data = append(names, r.path(file.Path)), append(data, file.Data)
	}
	return volume.WriteFiles(r.FS, names, data, r.modes.file)
}

// noteResult notes what the target will be like when the run has ended, so
// that an undo can tell whether a server was started on it.
func (r *runner) noteResult(f Finish) error {
	if r.undo == nil {
		return nil
	}
	control, exists := f.Control, true
	if control == nil {
		data, err := volume.ReadFile(r.FS, r.path(volume.ControlPath), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		control, exists = data, err == nil
	}
	return r.journal.note(factResult + " " + contentSum(control, exists) + " " + contentSum(f.Label, f.Label != nil))
}

// late copies what came into being while the plan was carried out. A late
// file that has vanished again is an error: it would leave a hole.
func (r *runner) late(ctx context.Context, actions []Action) error {
	if len(actions) == 0 {
		return nil
	}
	p := Plan{Version: PlanVersion, TaskBytes: planTaskBytes, Actions: actions}
	if err := p.Validate(); err != nil {
		return err
	}
	if err := r.create(actions); err != nil {
		return err
	}
	p.Sum()
	r.Progress.Phase("copying what came meanwhile", p.Totals.Bytes, progress.Bytes)
	f := newFacts()
	c := newCopier(r, actions, func(tasks ...taskFact) error {
		for _, t := range tasks {
			f.learn(t.line())
		}
		return nil
	})
	err := c.run(ctx, SplitTasks(fetchRanges(actions), p.TaskBytes), p.TaskBytes, nil)
	r.result.LateBytes = c.bytes.Load()
	if err != nil {
		return err
	}
	return r.truncate(actions, f)
}
