package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/repo"
	"tidemark/internal/ssh"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// server is the cluster that is backed up, seen through one session. The
// session owns the slot, so it lives as long as the backup. One that streams is
// asked over the replication protocol, and has no session of its own.
type server struct {
	conn     *pgx.Conn  // nil where it streams
	asking   sync.Mutex // held by those who use conn while the WAL is waited for
	streams  bool
	wal      *walStream // then: its WAL
	conninfo string
	log      *slog.Logger

	major      int
	version    string
	systemID   uint64
	inRecovery bool
	dataDir    string // "" where the role may not know it
	localDir   string // where its files are read here; "" where they are not
	started    time.Time
	archiveTo  string // archive_command, "" where archiving is off

	slot    string
	slotLSN wal.LSN // the slot holds back the WAL from here on; 0 without one
}

// point is where the copy starts: a checkpoint.
type point struct {
	Checkpoint wal.LSN
	Redo       wal.LSN
	Timeline   wal.TimelineID
}

func connect(ctx context.Context, o Options) (*server, error) {
	conn, err := postgres.Connect(ctx, o.ConnInfo)
	if err != nil {
		return nil, err
	}
	s := &server{conn: conn, conninfo: o.ConnInfo, log: o.Log, major: postgres.ServerMajor(conn.PgConn())}
	if err := s.probe(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *server) close() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s.conn.Close(ctx)
}

func (s *server) probe(ctx context.Context) error {
	if s.streams {
		return s.probeStream(ctx)
	}
	var id int64
	var mode, command, library string
	err := postgres.Query(ctx, s.conn, `SELECT pg_is_in_recovery(), system_identifier, current_setting('server_version'),
		pg_postmaster_start_time(), current_setting('archive_mode'), current_setting('archive_command'),
		coalesce(current_setting('archive_library', true), '') FROM pg_control_system()`, nil,
		&s.inRecovery, &id, &s.version, &s.started, &mode, &command, &library)
	if err != nil {
		return err
	}
	s.systemID = uint64(id)
	s.archives(mode, command, library)
	if _, err := wal.FormatByMajor(s.major); err != nil {
		return exit.New(exit.Refused, "PostgreSQL 13 to 18 are supported", "the server is version %s", s.version)
	}
	// Only for members of pg_read_all_settings; the rest works without.
	if err := s.conn.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&s.dataDir); err != nil {
		s.log.Debug("the data directory is not known", "error", err)
	}
	return nil
}

// archives notes where the server archives to.
func (s *server) archives(mode, command, library string) {
	s.archiveTo = ""
	if mode == "always" || mode == "on" && !s.inRecovery {
		s.archiveTo = command
		if library != "" {
			s.archiveTo = "archive_library " + library
		}
	}
}

// anchor makes the slot that holds back WAL while the backup runs.
func (s *server) anchor(ctx context.Context) error {
	var r [4]byte
	rand.Read(r[:])
	name := "tidemark_backup_" + hex.EncodeToString(r[:])
	var lsn *string
	err := s.conn.QueryRow(ctx, "SELECT lsn::text FROM pg_create_physical_replication_slot($1, true, true)", name).Scan(&lsn)
	switch postgres.SQLState(err) {
	case "":
	case "42501", "55000", "53400": // no privilege; no slots configured; none free
		s.log.Warn("no replication slot can be made: the server may recycle WAL that the backup needs before it is archived",
			"reason", err)
		return nil
	}
	if err != nil {
		return postgres.Explain(err)
	}
	s.slot = name
	if lsn != nil {
		s.slotLSN, err = wal.ParseLSN(*lsn)
	}
	return err
}

// advance lets the server recycle the WAL before lsn.
func (s *server) advance(ctx context.Context, lsn wal.LSN) {
	if s.streams {
		if err := s.wal.drop(lsn); err != nil {
			s.log.Debug("received WAL cannot be removed", "error", err)
		}
		return
	}
	if s.slot == "" || lsn <= s.slotLSN {
		return
	}
	if _, err := s.conn.Exec(ctx, "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)", s.slot, lsn.String()); err != nil {
		s.log.Debug("the slot cannot be advanced", "lsn", lsn, "error", err)
		return
	}
	s.slotLSN = lsn
}

// begin makes a checkpoint and returns it.
func (s *server) begin(ctx context.Context) (point, error) {
	if err := s.checkSettings(ctx); err != nil {
		return point{}, err
	}
	if _, err := s.conn.Exec(ctx, "CHECKPOINT"); err != nil {
		if postgres.SQLState(err) == "42501" {
			return point{}, exit.Wrap(err, exit.Failed,
				"connect as a superuser, or (from version 15 on) GRANT pg_checkpoint to the role", "a backup begins with a checkpoint")
		}
		return point{}, postgres.Explain(err)
	}
	var checkpoint, redo string
	var tli int64
	var fpw bool
	err := postgres.Query(ctx, s.conn, `SELECT checkpoint_lsn::text, redo_lsn::text, timeline_id, full_page_writes FROM pg_control_checkpoint()`, nil,
		&checkpoint, &redo, &tli, &fpw)
	if err != nil {
		return point{}, err
	}
	if !fpw {
		return point{}, fullPageWritesOff("since the last checkpoint")
	}
	p := point{Timeline: wal.TimelineID(tli)}
	var err1, err2 error
	p.Checkpoint, err1 = wal.ParseLSN(checkpoint)
	p.Redo, err2 = wal.ParseLSN(redo)
	if err := errors.Join(err1, err2); err != nil {
		return point{}, err
	}
	if s.slotLSN > p.Redo {
		return point{}, exit.New(exit.Failed, "run the command again; on a standby, after the primary's next checkpoint",
			"the WAL is held back from %s on, but the copy has to start at %s", s.slotLSN, p.Redo)
	}
	return p, nil
}

func fullPageWritesOff(when string) error {
	return exit.New(exit.Refused, "set full_page_writes = on, reload, and take the backup again",
		"full_page_writes was off %s: blocks copied from a running server cannot be made consistent", when)
}

func (s *server) checkSettings(ctx context.Context) error {
	var fpw, level string
	if err := postgres.Query(ctx, s.conn, "SELECT current_setting('full_page_writes'), current_setting('wal_level')", nil, &fpw, &level); err != nil {
		return err
	}
	if fpw != "on" && !s.inRecovery {
		return fullPageWritesOff("on the server")
	}
	if level == "minimal" {
		return exit.New(exit.Refused, "set wal_level = replica and restart the server",
			"wal_level is minimal: the WAL does not hold what a backup needs")
	}
	return nil
}

// end returns the position up to which the WAL has to be replayed, once all
// files are read, and the control file for the copy.
func (s *server) end(ctx context.Context, src blockcopy.Source, start point) (wal.LSN, *volume.Control, error) {
	var recovery bool
	if err := postgres.Query(ctx, s.conn, "SELECT pg_is_in_recovery()", nil, &recovery); err != nil {
		return 0, nil, err
	}
	if recovery != s.inRecovery {
		return 0, nil, promoted()
	}
	control, err := postgres.ReadControl(ctx, src)
	if err != nil {
		return 0, nil, err
	}
	if err := s.sameCluster(control, start, src.Name()); err != nil {
		return 0, nil, err
	}
	var stop wal.LSN
	if s.inRecovery {
		if control.MinRecoveryPointTLI > start.Timeline {
			return 0, nil, switched(control.MinRecoveryPointTLI)
		}
		if stop, err = s.replayedStop(ctx, control.MinRecoveryPoint, start.Redo); err != nil {
			return 0, nil, err
		}
	} else if stop, err = s.insertPosition(ctx, control.XLogSegSize, control.XLogBlockSize); err != nil {
		return 0, nil, err
	}
	settle(control, stop, start)
	return stop, control, nil
}

// settle makes a control file that of a copy: replay has to reach the stop
// position.
func settle(control *volume.Control, stop wal.LSN, start point) {
	control.State = volume.StateInArchiveRecovery
	control.MinRecoveryPoint = stop
	control.MinRecoveryPointTLI = start.Timeline
	control.BackupStartPoint, control.BackupEndPoint, control.BackupEndRequired = 0, 0, false
}

func timelineChanged(start point, now wal.TimelineID) error {
	return exit.New(exit.Failed, "run the command again",
		"the server went from timeline %s to %s while it was copied", start.Timeline, now)
}

// insertPosition returns the end of the WAL so far, and has the server finish
// its segment.
func (s *server) insertPosition(ctx context.Context, size wal.SegmentSize, pageSize uint32) (wal.LSN, error) {
	var text string
	if err := postgres.Query(ctx, s.conn, "SELECT pg_current_wal_insert_lsn()::text", nil, &text); err != nil {
		return 0, err
	}
	lsn, err := wal.ParseLSN(text)
	if err != nil {
		return 0, err
	}
	lsn = recordEnd(lsn, size, pageSize)
	if _, err := s.conn.Exec(ctx, "SELECT pg_switch_wal()"); err != nil {
		if postgres.SQLState(err) != "42501" {
			return 0, postgres.Explain(err)
		}
		s.log.Warn("the role may not call pg_switch_wal: the last segment is complete only when the server fills it", "reason", err)
	}
	return lsn, nil
}

// recordEnd turns the position where the next record will be put into the end
// of the last one. They differ at the start of a page: the server says where
// the page's header ends, and a segment that holds no more than that may never
// be completed, nor replay ever say that it came so far.
func recordEnd(next wal.LSN, size wal.SegmentSize, pageSize uint32) wal.LSN {
	switch {
	case size.Offset(next) == wal.LongHeaderSize:
		return next - wal.LongHeaderSize
	case size.Offset(next) > pageSize && uint32(next)%pageSize == wal.ShortHeaderSize:
		return next - wal.ShortHeaderSize
	}
	return next
}

// sameCluster checks that files are those of the server that was asked for a
// checkpoint: they show that checkpoint or a later one, on the same timeline.
func (s *server) sameCluster(c *volume.Control, start point, name string) error {
	switch {
	case c.SystemIdentifier != s.systemID:
		return wrongDirectory(name, "its system identifier is %d, the server's is %d", c.SystemIdentifier, s.systemID)
	case c.CheckPointCopy.ThisTimeLineID != start.Timeline:
		return timelineChanged(start, c.CheckPointCopy.ThisTimeLineID)
	case c.CheckPoint < start.Checkpoint:
		return wrongDirectory(name, "its last checkpoint is at %s, the server's at %s", c.CheckPoint, start.Checkpoint)
	}
	return nil
}

func wrongDirectory(name, format string, args ...any) error {
	return exit.New(exit.Refused, "-D has to name the data directory of the server that -d connects to; without -D it is found, or the files are read over SQL",
		"%s is not the server's: %s", name, fmt.Sprintf(format, args...))
}

// openSource chooses how files are read. dir is the directory that the
// operator named; "" means the server's own if it can be read here.
func (s *server) openSource(ctx context.Context, dir string, remote bool, start point) (src blockcopy.Source, access string, err error) {
	if ssh.IsLocation(dir) {
		src, err := s.openRemote(ctx, dir, start)
		return src, "ssh", err
	}
	named := dir != ""
	if !named && !remote {
		dir = s.dataDir
	}
	if dir != "" {
		err := s.proveLocal(dir, start)
		if err == nil {
			s.localDir = dir
			return blockcopy.NewDirSource(dir, false), "files", nil
		}
		if named {
			return nil, "", err
		}
		s.log.Debug("reading files over SQL", "because", err)
	}
	src, err = postgres.OpenSource(ctx, s.conninfo)
	return src, "sql", err
}

// startSlack is how much later than its lock file's time a server may say that
// it started.
const startSlack = 10 * time.Second

// proveLocal proves that dir is the server's data directory: system
// identifier, last checkpoint and timeline are the server's, and the lock file
// is that of a postmaster that started when the server says it did.
func (s *server) proveLocal(dir string, start point) error {
	c, err := volume.ReadControl(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return exit.Wrap(err, exit.Refused, "-D names the data directory", "%s is not a cluster's data directory", dir)
	case errors.Is(err, fs.ErrPermission):
		return exit.Wrap(err, exit.Failed, "run as the user that the server runs as, or leave -D out to read the files over SQL", "cannot read %s", dir)
	case err != nil:
		return err
	}
	if err := s.sameCluster(c, start, dir); err != nil {
		return err
	}
	pid, err := volume.ReadPostmasterPID(volume.OS, dir)
	if err != nil {
		return exit.Wrap(err, exit.Refused, "is this a copy of the server's directory?", "%s has no running server", dir)
	}
	if !pid.Alive() {
		return wrongDirectory(dir, "its server is not running")
	}
	if d := s.started.Sub(pid.Started); d < -startSlack || d > startSlack {
		return wrongDirectory(dir, "its server started at %s, the one connected to at %s",
			pid.Started.Format(time.RFC3339), s.started.UTC().Format(time.RFC3339))
	}
	_, err = filepath.EvalSymlinks(dir)
	return err
}

// databases lists the databases' names.
func (s *server) databases(ctx context.Context) ([]repo.Database, error) {
	if s.streams {
		return nil, nil
	}
	rows, err := s.conn.Query(ctx, "SELECT oid, datname FROM pg_database ORDER BY oid LIMIT $1", repo.MaxDatabases)
	if err != nil {
		return nil, postgres.Explain(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[repo.Database])
	if err != nil {
		return nil, postgres.Explain(err)
	}
	return list, nil
}

// nameTablespaces fills in the tablespaces' names.
func (s *server) nameTablespaces(ctx context.Context, spaces []repo.Tablespace) error {
	for i := range spaces {
		err := s.conn.QueryRow(ctx, "SELECT spcname FROM pg_tablespace WHERE oid = $1", spaces[i].OID).Scan(&spaces[i].Name)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) { // dropped just now
			return postgres.Explain(err)
		}
	}
	return nil
}
