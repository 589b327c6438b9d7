package repo_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	command "tidemark/internal/backup"
	"tidemark/internal/repo"
	"tidemark/internal/repo/storetest"
)

// chain is a repository and what should be in it.
type chain struct {
	t      *testing.T
	r      *rand.Rand
	c      *repo.Cluster // as writers see it
	reader *repo.Cluster // and as readers do
	at     string

	now  tree // the cluster
	kept map[string]tree
	pins map[string]bool
	open *repo.BackupWriter // one that is being written
	half tree               // what it writes
	log  []string
}

// place makes an empty repository somewhere and returns how to open it.
func place(t *testing.T, at, key, recipient string) (writer, reader *repo.Cluster) {
	t.Helper()
	if key == "" {
		r, _, err := repo.Init(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		return r.Cluster(testSystem), r.Cluster(testSystem)
	}
	r, _, err := repo.Init(t.Context(), at, recipient)
	if err != nil {
		t.Fatal(err)
	}
	return r.Cluster(testSystem), opened(t, at, key)
}

func (h *chain) say(format string, args ...any) { h.log = append(h.log, fmt.Sprintf(format, args...)) }

func (h *chain) ids() []string { return slices.Sorted(maps.Keys(h.kept)) }

func (h *chain) pick() string {
	ids := h.ids()
	return ids[h.r.IntN(len(ids))]
}

// must fails with the steps so far.
func (h *chain) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%v\nafter\n%s", err, strings.Join(h.log, "\n"))
	}
}

// step does one thing at random.
func (h *chain) step() {
	switch k := h.r.IntN(12); {
	case len(h.kept) == 0 || k < 4:
		h.create()
	case k == 4:
		h.begin()
	case k == 5 && h.open != nil:
		h.end()
	case k < 8: // a backup is deleted, with or without a sweep after it
		id := h.pick()
		h.say("delete %s", id)
		err := h.c.DeleteBackup(h.t.Context(), id)
		if h.pins[id] {
			if !errors.Is(err, repo.ErrPinned) {
				h.t.Fatalf("delete %s, which is pinned: %v", id, err)
			}
			break
		}
		h.must(err)
		delete(h.kept, id)
	case k == 8:
		id := h.pick()
		h.say("pin %s", id)
		_, err := h.c.Pin(h.t.Context(), id, "", nil)
		h.must(err)
		h.pins[id] = true
	case k == 9:
		id := h.pick()
		was, _, err := h.c.Unpin(h.t.Context(), id)
		h.must(err)
		if was != h.pins[id] {
			h.t.Fatalf("unpin %s: pinned %v, by the model %v", id, was, h.pins[id])
		}
		delete(h.pins, id)
	default:
		h.sweep()
	}
}

// parent is mostly the newest, sometimes another one, sometimes none.
func (h *chain) parent() string {
	switch ids := h.ids(); {
	case len(ids) == 0 || h.r.IntN(6) == 0:
		return ""
	case h.r.IntN(4) == 0:
		return h.pick()
	default:
		return ids[len(ids)-1]
	}
}

func (h *chain) create() {
	parent := h.parent()
	s := backup(h.t, h.c, h.now, parent)
	h.say("create %s after %q", s.ID, parent)
	h.kept[s.ID] = h.now
	h.now = change(h.r, h.now)
}

// begin leaves a backup open while other things happen.
func (h *chain) begin() {
	if h.open != nil {
		return
	}
	parent := h.parent()
	w, err := h.c.NewBackup(h.t.Context(), small(parent))
	h.must(err)
	h.say("begin %s after %q", w.ID(), parent)
	h.open, h.half = w, h.now
}

// end completes, interrupts or gives up the one that is open.
func (h *chain) end() {
	w := h.open
	h.open = nil
	switch h.r.IntN(4) {
	case 0:
		h.say("suspend %s", w.ID())
		writeSome(h.t, w, h.half, h.r.Float64())
		h.must(w.Suspend())
	case 1:
		h.say("abort %s", w.ID())
		writeSome(h.t, w, h.half, h.r.Float64())
		h.must(w.Abort())
	default:
		h.say("commit %s", w.ID())
		h.must(writeTree(w, h.half))
		s := summary()
		h.must(w.Commit(s))
		h.kept[s.ID] = h.half
	}
}

// sweep compares what is left with what should be: while a backup is open no
// pack goes; afterwards there is just what is referenced, and what a backup
// that can be resumed has left.
func (h *chain) sweep() {
	before := packNames(h.t, h.c)
	plan, err := h.c.Sweep(h.t.Context(), nil, false)
	h.must(err)
	h.say("sweep: %d packs", len(plan.Packs))
	after := packNames(h.t, h.c)
	if h.open != nil {
		if !slices.Equal(before, after) || !slices.Equal(plan.Waits, []string{h.open.ID()}) {
			h.must(fmt.Errorf("%d packs went, waiting for %v", len(before)-len(after), plan.Waits))
		}
		return
	}
	cat, err := h.c.Catalog(h.t.Context())
	h.must(err)
	var ids, want []string
	for _, s := range cat.Backups {
		ids = append(ids, s.ID)
		if pinned := cat.Pins[s.ID].Holds(time.Now()); pinned != h.pins[s.ID] {
			h.must(fmt.Errorf("%s: pinned %v, by the model %v", s.ID, pinned, h.pins[s.ID]))
		}
		m, err := h.c.OpenManifest(h.t.Context(), s.ID)
		h.must(err)
		for _, p := range m.Packs {
			want = append(want, p.Name)
		}
	}
	if !slices.Equal(ids, h.ids()) {
		h.must(fmt.Errorf("backups %v, by the model %v", ids, h.ids()))
	}
	slices.Sort(want)
	want = slices.Compact(want)
	resumable := map[string]bool{}
	for _, s := range cat.Started {
		resumable[s.ID] = true
	}
	after = slices.DeleteFunc(after, func(name string) bool {
		owner, _, _ := strings.Cut(name, "/")
		return resumable[owner] && !slices.Contains(want, name)
	})
	if !slices.Equal(after, want) {
		h.must(fmt.Errorf("packs\n%v\nare there, referenced are\n%v", after, want))
	}
}

func (h *chain) restore(ids ...string) {
	for _, id := range ids {
		got, err := restore(h.t.Context(), h.reader, id)
		h.must(err)
		same(h.t, got, h.kept[id])
	}
}

func packNames(t *testing.T, c *repo.Cluster) []string {
	t.Helper()
	packs, err := c.PackNames(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return packs
}

// run does so many random steps.
func (h *chain) run(steps int) {
	for range steps {
		h.step()
		if len(h.kept) > 0 {
			h.restore(h.pick())
		}
	}
	if h.open != nil {
		h.end()
	}
	h.restore(h.ids()...)
	h.sweep()
	v, err := h.reader.Verify(h.t.Context(), repo.VerifyOptions{Deep: true, Jobs: 2})
	h.must(err)
	if len(v.Damages) > 0 {
		h.must(fmt.Errorf("%+v", v.Damages))
	}
	for _, id := range h.ids() { // down to nothing
		_, _, err := h.c.Unpin(h.t.Context(), id)
		h.must(err)
		h.must(h.c.DeleteBackup(h.t.Context(), id))
		delete(h.kept, id)
		h.sweep()
		h.restore(h.ids()...)
	}
}

// smallTree is a cluster of a few files.
func smallTree(r *rand.Rand) tree {
	tr := tree{"PG_VERSION": []byte("15\n"), "empty": {}, "zero": make([]byte, 3*testBlock)}
	for i := range 8 {
		tr[fmt.Sprintf("base/1/%d", 16384+i)] = noise(r, r.IntN(12*testBlock))
	}
	return tr
}

func newChain(t *testing.T, seed uint64, at, key, recipient string) *chain {
	t.Logf("seed %d: TIDEMARK_SEED=%d runs it again", seed, seed)
	r := rand.New(rand.NewPCG(seed, 77))
	w, reader := place(t, at, key, recipient)
	w.Tick()
	return &chain{t: t, r: r, c: w, reader: reader, at: at, now: smallTree(r), kept: map[string]tree{}, pins: map[string]bool{}}
}

// TestChains: backups are taken, interrupted, pinned, deleted in random order,
// with sweeps between. Each that is left restores byte for byte, nothing that
// one needs goes, and nothing that none needs stays.
func TestChains(t *testing.T) {
	t.Setenv(repo.StateEnv, t.TempDir())
	key, recipient := identity(t)
	for i, seed := range repo.Seeds(t, 3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if i%3 == 2 {
				newChain(t, seed, t.TempDir()+"/r", key, recipient).run(30)
				return
			}
			newChain(t, seed, t.TempDir()+"/r", "", "").run(30)
		})
	}
}

// TestChainsRemote: the same on an S3 server and by SFTP, encrypted.
func TestChainsRemote(t *testing.T) {
	for _, kind := range []string{"s3", "sftp"} {
		t.Run(kind, func(t *testing.T) {
			t.Setenv(repo.StateEnv, t.TempDir())
			key, recipient := identity(t)
			at := ""
			if kind == "s3" {
				at = storetest.NewS3(t, false).Location("chain")
			} else {
				s := storetest.NewSFTP(t)
				at = s.Location("chain")
			}
			h := newChain(t, repo.Seeds(t, 1)[0], at, key, recipient)
			h.run(8)
			copyElsewhere(t, h)
		})
	}
}

// copyElsewhere copies what a chain makes into a repository in a directory.
func copyElsewhere(t *testing.T, h *chain) {
	t.Helper()
	h.create()
	r, _, err := repo.Init(t.Context(), t.TempDir()+"/copy")
	if err != nil {
		t.Fatal(err)
	}
	to := r.Cluster(testSystem)
	to.Tick()
	for _, id := range h.ids() {
		if did, err := to.CopyBackup(t.Context(), h.reader, id, 2, func(int64) {}); err != nil || !did {
			t.Fatal(did, err)
		}
		mustRestore(t, to, id, h.kept[id])
		// And back, beside the others, which it does not need.
		h.must(h.c.DeleteBackup(t.Context(), id))
		if did, err := h.c.CopyBackup(t.Context(), to, id, 2, func(int64) {}); err != nil || !did {
			t.Fatal(did, err)
		}
		h.sweep()
		h.restore(h.ids()...)
	}
}

// TestManyAtOnce: backups are taken while two others expire:
// what is complete restores, and in the end no pack is too much.
func TestManyAtOnce(t *testing.T) {
	t.Run("directory", func(t *testing.T) { manyAtOnce(t, t.TempDir()+"/r", 12) })
	t.Run("s3", func(t *testing.T) { manyAtOnce(t, storetest.NewS3(t, false).Location("many"), 6) })
}

func manyAtOnce(t *testing.T, at string, count int) {
	seed := repo.Seeds(t, 1)[0]
	t.Logf("seed %d", seed)
	h := newChain(t, seed, at, "", "")
	name, seg := goldenSegment() // without it no backup counts
	if _, err := push(t, h.c, name, seg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			r, err := repo.Open(ctx, at)
			if err != nil {
				t.Error(err)
				return
			}
			for ctx.Err() == nil {
				if err := expireTo(ctx, r, 2); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
					return
				}
			}
		})
	}
	for range count {
		cat, err := h.c.Catalog(ctx)
		if err != nil {
			t.Fatal(err)
		}
		parent := ""
		if n := len(cat.Backups); n > 0 {
			parent = cat.Backups[n-1].ID
		}
		s := backup(t, h.c, h.now, parent)
		h.kept[s.ID] = h.now
		mustRestore(t, h.c, s.ID, h.now)
		h.now = change(h.r, h.now)
	}
	cancel()
	wg.Wait()
	if err := expireTo(t.Context(), h.c.Repository(), 2); err != nil {
		t.Fatal(err)
	}
	cat, err := h.c.Catalog(t.Context())
	if err != nil || len(cat.Backups) != 2 {
		t.Fatalf("%+v, %v", cat, err)
	}
	left := map[string]tree{}
	for _, s := range cat.Backups {
		left[s.ID] = h.kept[s.ID]
	}
	h.kept = left
	h.restore(h.ids()...)
	h.sweep()
}

// expireTo expires all but the newest so many.
func expireTo(ctx context.Context, r *repo.Repository, keep int) error {
	_, err := command.Expire(ctx, r, command.ExpireOptions{Keep: command.Retention{Last: keep}})
	return err
}
