package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tidemark/bench/scratch"
	"tidemark/internal/blockcopy"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// need is what has to travel at the least, in bytes.
type need struct {
	blocks int64 // that the old primary changed, and what the source's relations have more
	other  int64 // other files whose content differs
	wal    int64 // of the source, from the fork on
}

func (n need) total() int64 { return n.blocks + n.other + n.wal }

// needed works out what has to travel: the blocks are those of the plan, the
// rest is compared here.
func (b *bench) needed(ctx context.Context, sc scenario, source *scratch.Server) (n need, err error) {
	pristine := b.place.Cluster(sc.pristine, portOld)
	out, _, err := scratch.Measured(b.place.Command(b.dbrewind, "run", "-D", pristine.Data, "--source-server", source.Conninfo(), "--dry-run", "--json"))
	if err != nil {
		return n, err
	}
	var res struct {
		Fork timeline.Fork  `json:"fork"`
		Plan blockcopy.Plan `json:"plan"`
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return n, err
	}
	for _, a := range res.Plan.Actions {
		if volume.Classify(a.Path) == volume.ClassRelMain {
			n.blocks += a.Bytes()
		}
	}
	end, err := source.Text(ctx, "SELECT pg_current_wal_insert_lsn()::text")
	if err != nil {
		return n, err
	}
	lsn, err := wal.ParseLSN(end)
	if err != nil {
		return n, err
	}
	n.wal = int64(lsn - res.Fork.LSN)
	n.other, err = differing(source.Data, pristine.Data)
	return n, err
}

// differing sums up the files of a that are no main forks, no WAL and nobody's
// own, and that b does not have in the same form.
func differing(a, b string) (sum int64, err error) {
	err = filepath.WalkDir(a, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name := strings.TrimPrefix(path, a+"/")
		switch volume.Classify(name) {
		case volume.ClassCopy, volume.ClassRelFork:
			same, size, err := equal(path, filepath.Join(b, name))
			if err != nil || same {
				return err
			}
			sum += size
		}
		return nil
	})
	return sum, err
}

func equal(a, b string) (same bool, size int64, err error) {
	da, err := os.ReadFile(a)
	if err != nil {
		return false, 0, err
	}
	db, err := os.ReadFile(b)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return db != nil && bytes.Equal(da, db), int64(len(da)), err
}
