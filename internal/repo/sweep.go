package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/pkg/wal"
)

// Sweeping: how packs go that no backup needs, while others write and sweep.
//
// Nothing is locked. All objects are written once, and these rules hold:
//
//	a writer    1. puts its note "started"
//	            2. only then reads what it will reference: the manifest of its
//	               parent, the parts of interrupted backups, and which packs
//	               there are
//	            3. puts packs; puts its manifest; its note stays
//	a sweeper   a. removes manifests (a backup that is deleted or expired), and
//	               the notes and parts of dead backups that nobody will resume
//	            b. lists the packs
//	            c. lists notes and manifests. If there is a note without a manifest
//	               whose writer may be alive, it stops here and removes no pack
//	            d. reads the pack tables of all manifests; if one cannot be read,
//	               it stops as well
//	            e. deletes the packs of b that no table names and that belong to
//	               no dead backup which can still be resumed
//
// Is a pack that is needed ever deleted? Take a writer and a pack that its
// manifest names.
//
//   - The note came before c: the sweeper sees it, and either finds no manifest
//     and stops, or finds the manifest, whose table names the pack.
//   - The note came after c. If the pack is the writer's own it came after b, and
//     is not among those that are deleted. Otherwise the writer found it
//     through a manifest or part that it read after its note, so after c, so
//     after a: that manifest was not removed by this sweeper, was there at c, and
//     its table names the pack; or that part is of a dead backup which was not
//     given up in a, whose packs are spared.
//
// A copy keeps to the same rules with packs under their old names. Those that are
// there already it takes for its own only where it found them, after its note,
// through a manifest or through the note of another copy, which names them: a
// dead copy's are spared like a dead backup's.
//
// Two sweepers at once delete at most what each would have deleted alone: both
// obey the rules above, with respect to every writer. Which manifests go is the
// policy's choice, and no policy lets the newest backup go.
//
// The argument needs a store whose listings show what was put before; all that
// are supported do. For one that does not, and for a writer that was
// taken for dead while it lived, a writer looks once more before it puts its
// manifest: its note has to be there, and all packs (stillThere). So the worst
// case is a backup that fails and says so.
//
// Dead means proved dead: the same host was started anew or has no such
// process, or the writer said so itself ("stopped"). A writer on another host
// is believed to live for AbandonAfter; then its note is removed, and should it
// live after all, it cannot complete its backup.

// AbandonAfter is how long a backup may take before another host, which cannot
// see whether its process lives, takes it for dead.
const AbandonAfter = 7 * 24 * time.Hour

// ResumeWithin is how long what an interrupted backup left is kept for the
// next one to take up, unless that one is complete already.
const ResumeWithin = 3 * 24 * time.Hour

// SweepPlan says what a sweep would remove, or has removed.
type SweepPlan struct {
	Unfinished []string // dead backups that nobody will resume
	Waits      []string // backups that run: packs stay until they are done
	Packs      []string // by name
	Bytes      int64    // of those packs
	Locked     []string // packs that would go and that the store's lock keeps for now
}

// Sweep removes what no backup needs: packs that no manifest names, and what
// dead backups left. without are backups to be taken for deleted already, for a
// plan; dry makes no change.
func (c *Cluster) Sweep(ctx context.Context, without []string, dry bool) (*SweepPlan, error) {
	plan := &SweepPlan{}
	if err := c.sweepNotes(ctx, plan, dry); err != nil { // a
		return plan, err
	}
	packs, err := c.listPacks(ctx, "") // b
	if err != nil {
		return plan, err
	}
	list, err := c.listBackups(ctx) // c
	if err != nil {
		return plan, err
	}
	spared := map[string]bool{}
	for _, id := range list.unfinished() {
		if dry && slices.Contains(plan.Unfinished, id) {
			continue
		}
		s, err := c.readStarted(ctx, id, list)
		if errors.Is(err, ErrNotExist) {
			continue
		}
		if err != nil || !s.Dead() {
			plan.Waits = append(plan.Waits, id)
		}
		spared[id] = true
		for _, owner := range s.owners() {
			spared[owner] = true
		}
	}
	if len(plan.Waits) > 0 {
		return plan, nil
	}
	needed, err := c.neededPacks(ctx, list, without) // d
	if err != nil {
		return plan, err
	}
	for name, size := range packs { // e
		owner, _, _ := strings.Cut(name, "/")
		if needed[name] || spared[owner] {
			continue
		}
		plan.Packs = append(plan.Packs, name)
		plan.Bytes += size
	}
	slices.Sort(plan.Packs)
	if dry {
		return plan, nil
	}
	return plan, c.deletePacks(ctx, plan, packs)
}

// deletePacks deletes the packs of a plan, and takes those out of it that the
// store's lock keeps.
func (c *Cluster) deletePacks(ctx context.Context, plan *SweepPlan, sizes map[string]int64) error {
	var gone []string
	for i, name := range plan.Packs {
		err := c.driver.Delete(ctx, c.packHeader(name, 0).Name)
		switch {
		case errors.Is(err, ErrLocked):
			plan.Locked = append(plan.Locked, name)
			plan.Bytes -= sizes[name]
		case err != nil:
			for _, left := range plan.Packs[i:] {
				plan.Bytes -= sizes[left]
			}
			plan.Packs = gone
			return err
		default:
			gone = append(gone, name)
		}
	}
	plan.Packs = gone
	return nil
}

// sweepNotes removes the notes of dead backups that nobody will resume.
func (c *Cluster) sweepNotes(ctx context.Context, plan *SweepPlan, dry bool) error {
	list, err := c.listBackups(ctx)
	if err != nil {
		return err
	}
	newest := ""
	for id, l := range list {
		if l.manifest {
			newest = max(newest, id)
		}
	}
	for _, id := range list.unfinished() {
		s, err := c.readStarted(ctx, id, list)
		switch {
		case errors.Is(err, ErrNotExist): // a removal was interrupted
		case isCorrupt(err): // not known whose it is: it may be running
			continue
		case err != nil:
			return err
		case time.Since(s.Began) > AbandonAfter && !s.alive():
		case s.Dead() && list.complete(s.copyOf()): // the copy was made after all
		case !s.Dead() || id > newest && time.Since(s.Began) < ResumeWithin:
			continue
		}
		plan.Unfinished = append(plan.Unfinished, id)
		if dry {
			continue
		}
		if err := unlessLocked(c.removeNotes(ctx, id)); err != nil {
			return err
		}
	}
	return nil
}

// neededPacks returns the packs that complete backups name.
func (c *Cluster) neededPacks(ctx context.Context, list listing, without []string) (map[string]bool, error) {
	needed := map[string]bool{}
	for id, l := range list {
		if !l.manifest || slices.Contains(without, id) {
			continue
		}
		m, err := c.OpenManifest(ctx, id)
		if errors.Is(err, ErrNotExist) { // deleted just now
			continue
		}
		if err != nil {
			return nil, exit.Wrap(err, exit.Problem, fmt.Sprintf("no pack was removed, for it is not known which ones this backup needs; if it is lost, remove it: dbbackup delete %s", id),
				"the manifest of backup %s cannot be read", id)
		}
		for _, p := range m.Packs {
			needed[p.Name] = true
		}
	}
	return needed, nil
}

// WALObject is a WAL file in the archive.
type WALObject struct {
	wal.FileName
	Stored int64 // bytes of the object
}

// ListWAL calls each for every WAL file of the archive, in no order.
func (c *Cluster) ListWAL(ctx context.Context, each func(WALObject) error) error {
	return c.listWAL(ctx, func(f wal.FileName, stored int64) error { return each(WALObject{f, stored}) })
}

// DeleteWAL removes one WAL file.
func (c *Cluster) DeleteWAL(ctx context.Context, f wal.FileName) error {
	return c.driver.Delete(ctx, c.walObject(f).Name)
}
