package rewind

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tidemark/internal/catalog"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// scratch is a small cluster made of copies of what is needed of the target to
// read some of its rows: the shared files, the catalogs of the databases
// concerned, and of tables only the blocks that matter; the rest of their
// files are holes. The target is read and never written, started or locked.
//
// A server runs on it alone, on a socket that nobody else can reach. It
// recovers where the target crashed: then the blocks that recovery touches are
// copied, too, and its WAL from the redo point on.
type scratch struct {
	*postgres.Server
	job    *job
	dir    string
	socket string
	copied int64                           // bytes
	blocks map[wal.RelFile]map[uint32]bool // of sparse files: what was copied
	crash  *wal.Map                        // what recovery will touch; nil for a clean target
	spaces map[uint32]bool                 // tablespaces that were made
}

// sharedDirs are copied whole; emptyDirs a server wants to find.
var (
	sharedDirs = []string{"global", "pg_xact", "pg_multixact", "pg_multixact/members", "pg_multixact/offsets", "pg_subtrans", "pg_commit_ts"}
	emptyDirs  = []string{"base", "pg_dynshmem", "pg_logical", "pg_logical/mappings", "pg_logical/snapshots", "pg_notify", "pg_replslot", "pg_serial",
		"pg_snapshots", "pg_stat", "pg_stat_tmp", "pg_tblspc", "pg_twophase", "pg_wal", "pg_wal/archive_status", "pg_wal/summaries"}
)

// scratchSocket begins the name of the directory with the server's socket,
// whose path has to be short.
const scratchSocket = "dbrewind-"

// scratchLog is the name of the server's log in the cluster's directory.
const scratchLog = "server.log"

// newScratch makes the cluster below parent, without any table yet.
func (j *job) newScratch(parent string, n *names, databases []uint32) (*scratch, error) {
	dir := filepath.Join(parent, "server.tmp")
	s := &scratch{job: j, dir: dir, blocks: map[wal.RelFile]map[uint32]bool{}, spaces: map[uint32]bool{}}
	var err error
	if s.socket, err = os.MkdirTemp("", scratchSocket); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(parent, rescueMarker), []byte(s.socket), 0o600); err != nil { // for who comes after a kill
		return nil, errors.Join(err, os.Remove(s.socket))
	}
	for _, name := range append(append([]string{""}, sharedDirs...), emptyDirs...) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return s, err
		}
	}
	for _, name := range sharedDirs {
		if err := s.copyDir(name); err != nil {
			return s, err
		}
	}
	if err := s.copyFile("PG_VERSION"); err != nil {
		return s, err
	}
	for _, db := range databases {
		if err := s.copyDatabase(n, db); err != nil {
			return s, err
		}
	}
	if s.Server, err = postgres.NewServer(dir, j.Bindir); err != nil {
		return s, err
	}
	s.Server.Log, s.Server.LogFile, s.Server.DieWithParent = j.Log, filepath.Join(dir, scratchLog), true
	return s, s.configure()
}

// remove removes all of it.
func (s *scratch) remove() error {
	return errors.Join(os.RemoveAll(s.socket), os.RemoveAll(s.dir))
}

// configure writes settings of the cluster's own: none of the target's apply,
// so nothing of what it would start, preload, archive or connect to happens.
func (s *scratch) configure() error {
	c := s.job.tc
	settings := []postgres.Setting{
		{Name: "listen_addresses"}, {Name: "unix_socket_directories", Value: s.socket}, {Name: "unix_socket_permissions", Value: "0700"},
		{Name: "port", Value: "5432"}, {Name: "autovacuum", Value: "off"}, {Name: "fsync", Value: "off"}, {Name: "full_page_writes", Value: "off"},
		{Name: "archive_mode", Value: "off"}, {Name: "max_wal_senders", Value: "0"}, {Name: "wal_level", Value: "minimal"},
		{Name: "max_logical_replication_workers", Value: "0"}, {Name: "max_replication_slots", Value: "0"},
		{Name: "max_prepared_transactions", Value: fmt.Sprint(c.MaxPreparedXacts)}, {Name: "max_connections", Value: "20"},
		{Name: "max_locks_per_transaction", Value: fmt.Sprint(max(64, c.MaxLocksPerXact))},
		{Name: "track_commit_timestamp", Value: onOff(c.TrackCommitTimestamp)},
		{Name: "shared_buffers", Value: "64MB"}, {Name: "jit", Value: "off"}, {Name: "max_parallel_workers_per_gather", Value: "0"},
		{Name: "logging_collector", Value: "off"}, {Name: "log_destination", Value: "stderr"}, {Name: "restart_after_crash", Value: "off"},
	}
	if c.Major() >= 17 {
		settings = append(settings, postgres.Setting{Name: "event_triggers", Value: "off"})
	}
	for name, text := range map[string]string{
		"postgresql.conf": string(postgres.RewriteConf(nil, settings)), "pg_hba.conf": "local all all trust\n", "pg_ident.conf": "",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// copyDir copies the files of a directory, those below it and maps of free
// space and visibility left out.
func (s *scratch) copyDir(dir string) error {
	entries, err := os.ReadDir(filepath.Join(s.job.Target, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := dir + "/" + e.Name()
		if rel, ok := volume.ParseRelPath(name); ok && (rel.Fork == wal.ForkFSM || rel.Fork == wal.ForkVM) {
			continue
		}
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), "pg_internal.init") {
			continue
		}
		if err := s.copyFile(name); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file of the target whole. The file system shares the
// blocks of the two where it can.
func (s *scratch) copyFile(name string) error {
	from, err := os.Open(filepath.Join(s.job.Target, filepath.FromSlash(name)))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(s.dir, filepath.FromSlash(name)), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(to, from)
	s.copied += n
	return errors.Join(err, to.Close())
}

// copyDatabase copies a database's catalogs. Large objects are data.
func (s *scratch) copyDatabase(n *names, db uint32) error {
	if n.target == nil {
		return exit.New(exit.Failed, "", "the target's catalogs cannot be read")
	}
	home := uint32(volume.DefaultTablespace)
	for _, d := range n.target.Databases {
		if d.OID == db {
			home = d.Tablespace
		}
	}
	dir := s.databaseDir(home, db)
	if _, err := os.Stat(filepath.Join(s.job.Target, filepath.FromSlash(dir))); errors.Is(err, fs.ErrNotExist) {
		return nil // made after the last checkpoint before a crash: recovery makes it
	}
	if err := s.makeDir(home, db); err != nil {
		return err
	}
	for _, name := range []string{"PG_VERSION", "pg_filenode.map"} {
		if err := s.copyFile(dir + "/" + name); err != nil {
			return err
		}
	}
	catalogs := map[wal.RelFile]bool{}
	for _, f := range n.target.SystemFiles(db) {
		catalogs[f] = true
	}
	if lo := n.target.ByOID(db, catalog.LargeObjects); lo != nil {
		delete(catalogs, lo.File)
		if err := s.copyBlocks(lo.File, nil); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.job.Target, filepath.FromSlash(dir)))
	if err != nil {
		return err
	}
	for _, e := range entries {
		rel, ok := volume.ParseRelPath(dir + "/" + e.Name())
		if ok && rel.Fork == wal.ForkMain && catalogs[rel.RelFile] {
			if err := s.copyFile(dir + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *scratch) databaseDir(space, db uint32) string {
	probe := volume.RelSegment{RelFile: wal.RelFile{Tablespace: space, Database: db, Relation: catalog.FirstNormalOID}}
	path := probe.Path(s.job.tc.VersionDir())
	return path[:strings.LastIndexByte(path, '/')]
}

// makeDir makes a database's directory, and its tablespace as a link to a
// directory of our own.
func (s *scratch) makeDir(space, db uint32) error {
	if space != volume.DefaultTablespace && space != volume.GlobalTablespace && !s.spaces[space] {
		s.spaces[space] = true
		own := filepath.Join(s.dir, "spaces.tmp", fmt.Sprint(space))
		if err := os.MkdirAll(own, 0o700); err != nil {
			return err
		}
		if err := os.Symlink(own, filepath.Join(s.dir, "pg_tblspc", fmt.Sprint(space))); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(s.dir, filepath.FromSlash(s.databaseDir(space, db))), 0o700)
}
