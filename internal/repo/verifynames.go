package repo

import (
	"context"
	"errors"
	"io"
)

// nameFiles finds out which blocks of which files the damages hit.
func (v *verifier) nameFiles(ctx context.Context, manifests []*Manifest) error {
	byPack := map[string][]*Damage{}
	for i := range v.v.Damages {
		if d := &v.v.Damages[i]; d.bad != nil {
			byPack[d.bad.pack] = append(byPack[d.bad.pack], d)
		}
	}
	if len(byPack) == 0 {
		return nil
	}
	for _, m := range manifests {
		files := m.Files(ctx)
		for {
			f, err := files.Next()
			if errors.Is(err, io.EOF) || isCorrupt(err) {
				break
			}
			if err != nil {
				return err
			}
			at := int64(0)
			for _, r := range f.Runs {
				if r.Pack != ZeroPack {
					for _, d := range byPack[m.Packs[r.Pack].Name] {
						d.hit(m.ID, f.Path, at, r)
					}
				}
				at += int64(r.Count)
			}
		}
	}
	return nil
}

// hit records the blocks of a run that the damage covers. at is the run's first
// block in the file.
func (d *Damage) hit(backup, path string, at int64, r Run) {
	first, last := max(r.First, d.bad.first), min(r.First+r.Count-1, d.bad.last)
	if first > last || len(d.Files) >= MaxDamagedFiles {
		return
	}
	block, count := at+int64(first-r.First), int64(last-first)+1
	if k := len(d.Files); k > 0 {
		if l := &d.Files[k-1]; l.Backup == backup && l.Path == path && l.Block+l.Count == block {
			l.Count += count
			return
		}
	}
	d.Files = append(d.Files, DamagedFile{backup, path, block, count})
}
