package backup

import (
	"context"
	"strconv"
	"strings"
	"time"

	"tidemark/internal/repo"
)

// ShowResult says what a backup is.
type ShowResult struct {
	Result
	Finished      time.Time         `json:"finished"`             // when it was complete
	Major         int               `json:"major"`                // version of the server
	Checksums     bool              `json:"data_checksums"`       // the cluster has data checksums
	NewBytes      int64             `json:"new_bytes"`            // of the blocks that it stored, before compression
	ResumedBlocks int64             `json:"resumed_blocks"`       // of its new blocks, stored by an interrupted backup before it
	Packs         int               `json:"packs"`                // that it needs
	PackBytes     int64             `json:"pack_bytes"`           // size of those packs: what a restore reads at most
	Chain         []ChainLink       `json:"chain"`                // whose packs those are, the oldest first
	Tablespaces   []repo.Tablespace `json:"tablespaces"`          // besides pg_default and pg_global
	Databases     []ShownDatabase   `json:"databases"`            // by number
	WALNeeded     int               `json:"wal_needed"`           // WAL files that make it consistent
	WALMissing    []string          `json:"wal_missing"`          // of which the archive lacks these
	Encryption    *repo.Encryption  `json:"encryption,omitempty"` // how it is encrypted
	Pin           *repo.Pin         `json:"pin,omitempty"`        // why it is not expired
	Expires       *time.Time        `json:"expires,omitempty"`    // when it goes, whatever the policy says
}

// ChainLink is a backup that stored packs which this one needs. It need not
// exist any more: the packs stay.
type ChainLink struct {
	Backup  string `json:"backup"`  // which backup stored the packs
	Packs   int    `json:"packs"`   // how many of them are needed
	Bytes   int64  `json:"bytes"`   // their size
	Deleted bool   `json:"deleted"` // that backup is gone
}

// ShownDatabase is a database as far as its files tell.
type ShownDatabase struct {
	OID   uint32 `json:"oid"`            // its number
	Name  string `json:"name,omitempty"` // its name, where the backup knows it
	Files int64  `json:"files"`          // how many files it has
	Bytes int64  `json:"bytes"`          // their size
}

// Show describes one backup.
func Show(ctx context.Context, c *repo.Cluster, id string) (*ShowResult, error) {
	s, err := c.Summary(ctx, id)
	if err != nil {
		return nil, err
	}
	m, err := c.OpenManifest(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	cat, err := c.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	out := &ShowResult{Result: *NewResult(c.Repository(), s), Finished: s.Finished, Major: s.Major, Checksums: s.Checksums, NewBytes: s.NewSize,
		ResumedBlocks: s.ResumedBlocks, Packs: len(m.Packs), Chain: chain(m, cat), Tablespaces: append([]repo.Tablespace{}, s.Tablespaces...),
		Encryption: s.Encryption, Expires: s.Expires}
	for _, l := range out.Chain {
		out.PackBytes += l.Bytes
	}
	if p := cat.Pins[s.ID]; p.ID != "" {
		out.Pin = &p
	}
	if err := needed(s, func(string) error { out.WALNeeded++; return nil }); err != nil {
		return nil, err
	}
	if out.WALMissing, err = Missing(ctx, c, s); err != nil {
		return nil, err
	}
	out.Databases, err = databases(ctx, m)
	return out, err
}

// chain groups the packs by the backup that stored them.
func chain(m *repo.Manifest, cat *repo.Catalog) []ChainLink {
	there := map[string]bool{}
	for _, b := range cat.Backups {
		there[b.ID] = true
	}
	at := map[string]int{}
	links := []ChainLink{}
	for _, p := range m.Packs {
		owner, _, _ := strings.Cut(p.Name, "/")
		i, ok := at[owner]
		if !ok {
			i = len(links)
			at[owner] = i
			links = append(links, ChainLink{Backup: owner, Deleted: !there[owner]})
		}
		links[i].Packs++
		links[i].Bytes += p.Size
	}
	sortBy(links, func(l ChainLink) string { return l.Backup })
	return links
}

// databases sums up the files below base and in tablespaces.
func databases(ctx context.Context, m *repo.Manifest) ([]ShownDatabase, error) {
	sums := map[uint32]*ShownDatabase{}
	err := m.EachFile(ctx, func(f *repo.File) {
		parts := strings.Split(f.Path, "/")
		dir := ""
		switch {
		case len(parts) == 3 && parts[0] == "base":
			dir = parts[1]
		case len(parts) == 5 && parts[0] == "pg_tblspc":
			dir = parts[3]
		}
		oid, err := strconv.ParseUint(dir, 10, 32)
		if err != nil {
			return
		}
		d := sums[uint32(oid)]
		if d == nil {
			d = &ShownDatabase{OID: uint32(oid)}
			sums[uint32(oid)] = d
		}
		d.Files++
		d.Bytes += f.Size
	})
	out := []ShownDatabase{}
	for _, d := range m.Databases {
		if sums[d.OID] != nil {
			sums[d.OID].Name = d.Name
		}
	}
	for _, d := range sums {
		out = append(out, *d)
	}
	sortBy(out, func(d ShownDatabase) uint32 { return d.OID })
	return out, err
}
