package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// RestoreOptions say what to restore and where.
type RestoreOptions struct {
	Cluster     *repo.Cluster
	Others      []string // further repositories that the server may fetch WAL from
	DataDir     string
	Request     Request
	Tablespaces []Mapping // where tablespaces go that shall not go where they were
	Then        Then      // at the target; Promote where empty
	Archiving   bool      // leave archive_mode as it was in the backup
	Jobs        int
	NoSync      bool
	Program     string // dbrecover, for restore_command: an absolute path
	Identity    string // file with the secret key, for restore_command: an absolute path; may be empty
	Command     string // the command line to run again, for the tombstone

	FS       volume.FS // volume.OS where nil
	Progress progress.Reporter
	Log      *slog.Logger
}

// Mapping sends a tablespace to another directory. From is its old directory,
// its name or its OID.
type Mapping struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Restore is a restore that was looked into and can be done.
type Restore struct {
	Resolution *Resolution     `json:"resolution"`
	Plan       *blockcopy.Plan `json:"plan"`
	Resumed    bool            `json:"resumed"` // goes on with an unfinished one

	options RestoreOptions
	source  *repo.Source
	meta    planMeta
}

// planMeta is kept in the plan so that a resumed restore does the same.
type planMeta struct {
	Request     Request     `json:"request"`
	Resolution  *Resolution `json:"resolution"`
	Tablespaces []Mapping   `json:"tablespaces,omitempty"`
	Then        Then        `json:"then"`
	Archiving   bool        `json:"archiving"`
}

const operation = "restore"

// PrepareRestore finds out what a restore would do. It changes nothing, and
// refuses what cannot end well: a target that is out of reach, a directory
// that holds something else, a running server.
func PrepareRestore(ctx context.Context, o RestoreOptions) (*Restore, error) {
	if o.FS == nil {
		o.FS = volume.OS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Progress = progress.Or(o.Progress)
	if o.Then == "" {
		o.Then = Promote
	}
	if o.Request.Target.Kind == "" {
		o.Request.Target.Kind = Latest
	}
	r := &Restore{options: o}
	pending, err := r.inspectTarget()
	if err != nil {
		return nil, err
	}
	if pending != nil {
		return r, r.resume(ctx, pending)
	}
	if r.Resolution, err = Resolve(ctx, o.Cluster, o.Request); err != nil {
		return nil, err
	}
	r.meta = planMeta{Request: o.Request, Resolution: r.Resolution, Tablespaces: o.Tablespaces, Then: o.Then, Archiving: o.Archiving}
	if r.source, err = o.Cluster.OpenSource(ctx, r.Resolution.Backup); err != nil {
		return nil, err
	}
	return r, r.plan(ctx)
}

// inspectTarget returns the unfinished restore that the directory holds, or
// nil where it is empty or not there.
func (r *Restore) inspectTarget() (*blockcopy.PendingRun, error) {
	dir := r.options.DataDir
	entries, err := r.options.FS.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, nil
	}
	if pid, err := volume.RunningServer(r.options.FS, dir); err != nil {
		return nil, err
	} else if pid != nil {
		return nil, exit.New(exit.Refused, "stop it, or restore into another directory",
			"a server is running in %s (process %d)", dir, pid.PID)
	}
	pending, err := blockcopy.Pending(r.options.FS, dir)
	if err != nil {
		return nil, err
	}
	if pending == nil && len(entries) == 1 && entries[0].Name() == volume.OwnDir {
		return nil, nil // of a restore that ended before it had a plan
	}
	if pending == nil {
		return nil, exit.New(exit.Refused, "restore into a new or an empty directory, or empty this one first",
			"%s is not empty", dir)
	}
	return pending, nil
}

// resume checks that the unfinished restore is the one that is asked for.
func (r *Restore) resume(ctx context.Context, p *blockcopy.PendingRun) error {
	other := func() error {
		return exit.New(exit.Refused, "run that command again to finish it, or empty the directory first:\n    "+p.Plan.Command,
			"%s holds an unfinished %s that was begun with other options", r.options.DataDir, p.Plan.Operation)
	}
	if p.Plan.Operation != operation {
		return other()
	}
	if err := json.Unmarshal(p.Plan.Meta, &r.meta); err != nil || r.meta.Resolution == nil {
		return fmt.Errorf("the journal in %s cannot be read: %w", r.options.DataDir, err)
	}
	o := r.options
	same := o.Request.Equal(r.meta.Request) && slices.Equal(o.Tablespaces, r.meta.Tablespaces) &&
		o.Then == r.meta.Then && o.Archiving == r.meta.Archiving &&
		r.meta.Resolution.SystemID == strconv.FormatUint(o.Cluster.SystemID(), 10)
	if !same {
		return other()
	}
	r.Resolution, r.Plan, r.Resumed = r.meta.Resolution, p.Plan, true
	var err error
	r.source, err = r.options.Cluster.OpenSource(ctx, r.Resolution.Backup)
	return err
}

// plan lists what is to be made and copied.
func (r *Restore) plan(ctx context.Context) error {
	entries, err := r.source.List(ctx)
	if err != nil {
		return err
	}
	links, err := r.mapTablespaces()
	if err != nil {
		return err
	}
	meta, err := json.Marshal(r.meta)
	if err != nil {
		return err
	}
	p := &blockcopy.Plan{Version: blockcopy.PlanVersion, Operation: operation, Command: r.options.Command,
		Created: time.Now().UTC().Truncate(time.Second), Source: r.source.Name(), Meta: meta,
		TaskBytes: blockcopy.DefaultTaskBytes}
	for _, e := range entries {
		a := blockcopy.Action{Path: e.Path}
		switch e.Type {
		case blockcopy.Dir:
			a.Kind = blockcopy.CreateDir
		case blockcopy.Link:
			a.Kind, a.LinkTarget = blockcopy.CreateLink, e.LinkTarget
			if to, ok := links[e.Path]; ok {
				a.LinkTarget = to
			}
		default:
			a.Kind, a.Size, a.Required = blockcopy.Copy, e.Size, true
			p.Totals.SourceBytes += e.Size
		}
		p.Actions = append(p.Actions, a)
	}
	p.Sum()
	r.Plan = p
	return p.Validate()
}

// mapTablespaces returns where each link in pg_tblspc shall lead, and refuses
// directories that hold something already.
func (r *Restore) mapTablespaces() (map[string]string, error) {
	targets, err := mapLinks(r.source.Summary().Tablespaces, r.options.Tablespaces)
	if err != nil {
		return nil, err
	}
	links := map[string]string{}
	taken := map[string]uint32{}
	for oid, dir := range targets {
		if other, ok := taken[dir]; ok {
			return nil, exit.New(exit.Usage, "give each its own directory", "tablespaces %d and %d would share %s", other, oid, dir)
		}
		taken[dir] = oid
		links["pg_tblspc/"+strconv.FormatUint(uint64(oid), 10)] = dir
		entries, err := r.options.FS.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if len(entries) > 0 {
			return nil, exit.New(exit.Refused, fmt.Sprintf("send the tablespace to an empty directory: --tablespace %s=DIR", ShellQuote(dir)),
				"%s, the directory of tablespace %d, is not empty", dir, oid)
		}
	}
	return links, nil
}

// mapLinks applies the mappings to a backup's tablespaces. In-place ones,
// whose path is relative, stay in the data directory.
func mapLinks(spaces []repo.Tablespace, mappings []Mapping) (map[uint32]string, error) {
	targets := map[uint32]string{}
	for _, s := range spaces {
		if filepath.IsAbs(s.Path) {
			targets[s.OID] = filepath.Clean(s.Path)
		}
	}
	for _, m := range mappings {
		if !filepath.IsAbs(m.To) {
			return nil, exit.New(exit.Usage, "", "--tablespace %s=%s: the new directory is not an absolute path", m.From, m.To)
		}
		i := slices.IndexFunc(spaces, func(s repo.Tablespace) bool {
			return m.From == s.Name && s.Name != "" || m.From == strconv.FormatUint(uint64(s.OID), 10) ||
				filepath.IsAbs(m.From) && filepath.Clean(m.From) == filepath.Clean(s.Path)
		})
		if i < 0 {
			var known []string
			for _, s := range spaces {
				known = append(known, strings.TrimSpace(fmt.Sprintf("%s %d in %s", s.Name, s.OID, s.Path)))
			}
			hint := "the backup holds no tablespaces"
			if len(known) > 0 {
				hint = "the backup holds: " + strings.Join(known, ", ")
			}
			return nil, exit.New(exit.Usage, hint, "--tablespace: the backup has no tablespace %s", m.From)
		}
		targets[spaces[i].OID] = filepath.Clean(m.To)
	}
	return targets, nil
}

// Run carries the restore out.
func (r *Restore) Run(ctx context.Context) (blockcopy.Result, error) {
	o := r.options
	if err := r.makeTarget(); err != nil {
		return blockcopy.Result{}, err
	}
	run := blockcopy.Options{Target: o.DataDir, FS: o.FS, Source: r.source, Jobs: o.Jobs, NoSync: o.NoSync,
		Finish: r.finish, Progress: o.Progress, Log: o.Log}
	if r.Resumed {
		run.Resume = true
	} else {
		run.Plan = r.Plan
	}
	return blockcopy.Run(ctx, run)
}

func (r *Restore) makeTarget() error {
	fsys, dir := r.options.FS, r.options.DataDir
	made, err := volume.MkdirAll(fsys, dir, 0o700)
	if err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	for _, name := range made {
		if err := fsys.SyncDir(filepath.Dir(name)); err != nil {
			return err
		}
	}
	if !r.Resumed {
		if err := volume.RemoveAll(fsys, filepath.Join(dir, volume.OwnDir)); err != nil {
			return err
		}
	}
	fi, err := fsys.Stat(dir)
	if err != nil || len(made) > 0 || fi.Mode().Perm()&0o027 == 0 {
		return err
	}
	return fsys.Chmod(dir, 0o700) // a server refuses one that others may enter
}

// finish says what ends a restore: the settings, pg_control, the label.
func (r *Restore) finish(ctx context.Context) (blockcopy.Finish, error) {
	s := r.source.Summary()
	conf, err := r.source.ReadFile(ctx, postgres.AutoConfFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return blockcopy.Finish{}, err
	}
	command := repo.SealedFetchCommand(r.options.Program, r.options.Identity, r.options.Cluster.SystemID(), append([]string{r.Resolution.Repository}, r.options.Others...)...)
	settings := recoverySettings(r.Resolution, command, r.options.Then, r.options.Archiving)
	record, err := json.MarshalIndent(Record{Request: r.meta.Request, Resolution: r.Resolution, Then: r.options.Then}, "", "  ")
	if err != nil {
		return blockcopy.Finish{}, err
	}
	f := blockcopy.Finish{
		Files: []blockcopy.FinalFile{
			{Path: postgres.AutoConfFile, Data: postgres.RewriteConf(conf, settings)},
			{Path: RecordFile, Data: append(record, '\n')},
			{Path: recoverySignal},
		},
		Label: []byte(s.BackupLabel),
	}
	control, err := volume.ParseControl(s.Control)
	if err != nil {
		return f, fmt.Errorf("backup %s: %w", s.ID, err)
	}
	f.Control = control.Encode()
	f.TablespaceMap, err = r.tablespaceMap(s)
	return f, err
}

// tablespaceMap returns the map with the directories that the links lead to.
func (r *Restore) tablespaceMap(s *repo.Summary) ([]byte, error) {
	targets, err := mapLinks(s.Tablespaces, r.options.Tablespaces)
	if err != nil || len(targets) == 0 {
		return nil, err
	}
	var links []volume.TablespaceLink
	for oid, dir := range targets {
		links = append(links, volume.TablespaceLink{Oid: oid, Path: dir})
	}
	slices.SortFunc(links, func(a, b volume.TablespaceLink) int { return int(int64(a.Oid) - int64(b.Oid)) })
	return volume.FormatTablespaceMap(links), nil
}

const recoverySignal = "recovery.signal"

// RecordFile tells a later command what was restored, and to which end. It lies
// in the data directory until the recovery is over; no copy takes it along.
const RecordFile = "recovery" + volume.OwnSuffix

// Record is the content of RecordFile.
type Record struct {
	Request    Request     `json:"request"`
	Resolution *Resolution `json:"resolution"`
	Then       Then        `json:"then"`
}

// ReadRecord returns the record in a data directory; its error wraps
// fs.ErrNotExist where there is none.
func ReadRecord(fsys volume.FS, dir string) (*Record, error) {
	data, err := volume.ReadFile(fsys, filepath.Join(dir, RecordFile), 0)
	if err != nil {
		return nil, err
	}
	var rec Record
	if err := json.Unmarshal(data, &rec); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, RecordFile), err)
	}
	return &rec, nil
}
