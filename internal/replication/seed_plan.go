package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// makePlan lists the source and decides what becomes of each file.
func (s *seeder) makePlan(ctx context.Context, f *sourceFacts) error {
	s.Progress.Phase("listing the source's files", 0, progress.Items)
	templates, err := s.templateDatabases(ctx)
	if err != nil {
		return err
	}
	entries, err := s.src.List(ctx)
	if err != nil {
		return err
	}
	p := &blockcopy.Plan{Operation: operation, Command: s.Command, Source: s.src.Name(), Version: blockcopy.PlanVersion}
	unlogged := volume.Unlogged{}
	for _, e := range entries {
		unlogged.Note(e.Path)
	}
	mapped := map[string]bool{}
	for _, e := range entries {
		if e.Type == blockcopy.Link {
			mapped[e.LinkTarget] = true
		}
		a, ok, err := s.action(e, unlogged, f.system.Timeline)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		p.Totals.SourceBytes += e.Size
		if a.Kind == blockcopy.CreateDir {
			if oid, ok := databaseOf(a.Path); ok && templates[oid] {
				s.meta.Templates = append(s.meta.Templates, a.Path)
			}
		}
		p.Actions = append(p.Actions, a)
	}
	for from := range s.Tablespaces {
		if !mapped[from] {
			return exit.New(exit.Usage, "see pg_tablespace_location() of each tablespace at the source", "the source has no tablespace in %s", from)
		}
	}
	// Template databases come first: CREATE DATABASE copies their files, and a
	// standby that replays it copies its own.
	slices.SortStableFunc(p.Actions, func(a, b blockcopy.Action) int { return s.rank(a) - s.rank(b) })
	if p.Meta, err = json.Marshal(s.meta); err != nil {
		return err
	}
	p.Sum()
	s.plan = p
	return nil
}

// rank orders actions: directories and links, then template databases, then the rest.
func (s *seeder) rank(a blockcopy.Action) int {
	switch {
	case a.Kind != blockcopy.Copy:
		return 0
	case a.Path == "PG_VERSION":
		return 1
	case under(a.Path, s.meta.Templates):
		return 2
	}
	return 3
}

// under tells whether a path lies in one of the directories.
func under(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(path, dir+"/") })
}

// databaseOf takes the OID from the path of a database's directory.
func databaseOf(path string) (oid string, ok bool) {
	parts := strings.Split(path, "/")
	switch {
	case len(parts) == 2 && parts[0] == "base":
		return parts[1], true
	case len(parts) == 4 && parts[0] == "pg_tblspc":
		return parts[3], true
	}
	return "", false
}

// templateDatabases returns the OIDs of the databases that are marked as templates.
func (s *seeder) templateDatabases(ctx context.Context) (map[string]bool, error) {
	conn, err := postgres.Connect(ctx, s.ConnInfo)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var oids []string
	if err := postgres.Query(ctx, conn, "SELECT coalesce(array_agg(oid::text), '{}') FROM pg_database WHERE datistemplate", nil, &oids); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, oid := range oids {
		out[oid] = true
	}
	return out, nil
}

// action decides about one entry; ok is false for what is not copied.
func (s *seeder) action(e blockcopy.Entry, unlogged volume.Unlogged, tli wal.TimelineID) (a blockcopy.Action, ok bool, err error) {
	if e.Path == blockcopy.JournalDir || strings.HasPrefix(e.Path, blockcopy.JournalDir+"/") {
		return a, false, exit.New(exit.Refused, "finish that first", "the source holds the journal of an unfinished run (%s)", e.Path)
	}
	switch e.Type {
	case blockcopy.Link:
		return s.link(e)
	case blockcopy.Dir:
		switch volume.ClassifyDir(e.Path) {
		case volume.ClassDir, volume.ClassKeepEmpty:
			return blockcopy.Action{Kind: blockcopy.CreateDir, Path: e.Path}, true, nil
		}
		return a, false, nil
	}
	a = blockcopy.Action{Kind: blockcopy.Copy, Path: e.Path, Size: e.Size}
	switch volume.Classify(e.Path) {
	case volume.ClassSkip, volume.ClassKeepEmpty, volume.ClassControl, volume.ClassLabel:
		return a, false, nil
	case volume.ClassWAL:
		// Segments are streamed; the receiver stores the newest history.
		name, _ := wal.ParseFileName(strings.TrimPrefix(e.Path, "pg_wal/"))
		return a, name.Kind == wal.FileHistory && name.Timeline < tli, nil
	}
	if e.Path == postgres.AutoConfFile || unlogged.Omit(e.Path) {
		return a, false, nil
	}
	return a, true, nil
}

// link maps a tablespace. Its directory here must be empty: another cluster
// may live in it, the source itself where both are on one machine.
func (s *seeder) link(e blockcopy.Entry) (blockcopy.Action, bool, error) {
	target, given := s.Tablespaces[e.LinkTarget]
	if !given {
		target = e.LinkTarget
	}
	entries, err := s.FS.ReadDir(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return blockcopy.Action{}, false, err
	case len(entries) > 0:
		return blockcopy.Action{}, false, exit.New(exit.Refused, fmt.Sprintf("choose another directory for it: --tablespace %s=/new/directory", e.LinkTarget),
			"the directory %s of tablespace %s is not empty", target, strings.TrimPrefix(e.Path, "pg_tblspc/"))
	}
	return blockcopy.Action{Kind: blockcopy.CreateLink, Path: e.Path, LinkTarget: target}, true, nil
}

// tablespaceOf takes the OID of the tablespace from a path below pg_tblspc.
func tablespaceOf(path string) (oid string, ok bool) {
	parts := strings.Split(path, "/")
	if len(parts) < 2 || parts[0] != "pg_tblspc" {
		return "", false
	}
	return parts[1], true
}
