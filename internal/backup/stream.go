package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// A backup over the replication protocol needs a role that may replicate and
// nothing else: no SQL is run. Two sessions are open, one that sends the files
// (BASE_BACKUP), and one that owns a temporary slot and sends the WAL meanwhile:
//
//	server --- BASE_BACKUP ---> tar --> check pages --> packing --> repositories
//	       \-- WAL -----------> spool (a temporary directory) --> walKeeper --> archive
//
// The files come once, in an order of the server's: every block is read, a
// page that does not verify cannot be asked for again (the server has read it
// twice), and the repository sorts its list of files at the end.
//
// A restore gets a label and a control file as from any other way (job.label,
// settle), whose minimum recovery point is the stop: behind the server's own
// end-of-backup record on a primary, and on a standby at or behind the minimum
// recovery point that the server returns. Full page images are forced by the
// server meanwhile; what else replay does not repeat, guard looks for.

// streaming is a backup that the server is sending.
type streaming struct {
	*walStream
	owner   *postgres.ReplConn // of the slot
	repl    *postgres.ReplConn // idle before and after the backup
	backup  *postgres.BaseBackup
	cancel  context.CancelFunc
	label   *volume.BackupLabel
	control *volume.Control
	stop    postgres.WALPoint
	damaged bool // the server saw it, too
}

// connectStream asks a server over the replication protocol what it is.
func connectStream(ctx context.Context, o Options) (*server, error) {
	s := &server{conninfo: o.ConnInfo, log: o.Log, streams: true}
	return s, s.probeStream(ctx)
}

func (s *server) probeStream(ctx context.Context) error {
	c, err := postgres.ConnectReplication(ctx, s.conninfo)
	if err != nil {
		return err
	}
	defer c.Close()
	s.major, s.version = c.Major(), c.Version()
	if _, err := wal.FormatByMajor(s.major); err != nil {
		return exit.New(exit.Refused, "PostgreSQL 13 to 18 are supported", "the server is version %s", s.version)
	}
	system, err := c.IdentifySystem(ctx)
	if err != nil {
		return err
	}
	s.systemID = system.ID
	set := map[string]string{}
	for _, name := range []string{"transaction_read_only", "default_transaction_read_only", "archive_mode", "archive_command"} {
		if set[name], err = c.Show(ctx, name); err != nil {
			return err
		}
	}
	// In recovery every transaction is read only. Where all are anyway, the
	// label says what it is.
	s.inRecovery = set["transaction_read_only"] == "on" && set["default_transaction_read_only"] == "off"
	library := ""
	if s.major >= 15 {
		if library, err = c.Show(ctx, "archive_library"); err != nil {
			return err
		}
	}
	s.archives(set["archive_mode"], set["archive_command"], library)
	return nil
}

// beginStream anchors the WAL, has the server begin the backup, and opens the
// stream of WAL from its start on.
func (j *job) beginStream(ctx context.Context) (err error) {
	j.Progress.Phase("waiting for a checkpoint", 0, progress.Items)
	st := &streaming{}
	j.stream, j.src = st, &streamSource{stream: st, name: "the replication protocol"}
	defer func() {
		if err != nil {
			j.src.Close()
		}
	}()
	slot, now, err := j.openStream(ctx, st)
	if err != nil {
		return err
	}
	ctx, st.cancel = context.WithCancel(ctx)
	if st.backup, err = st.repl.BaseBackup(ctx, postgres.BaseBackupOptions{Label: "tidemark", Rate: j.Rate}); err != nil {
		return beginHint(err)
	}
	start := st.backup.Start
	if now > start.Timeline {
		return exit.New(exit.Failed, "run CHECKPOINT on the primary of timeline "+now.String()+", then the command again",
			"the standby is on timeline %s, its last restart point still on timeline %s", now, start.Timeline)
	}
	j.start, j.access = point{Redo: start.LSN, Timeline: start.Timeline}, "stream"
	st.walStream, err = startWAL(ctx, postgres.ReceiveOptions{ConnInfo: j.ConnInfo, Conn: st.owner, Slot: slot, SystemID: j.server.systemID,
		Start: start.LSN, Timeline: start.Timeline, PgWAL: true, Log: j.Log}, j.control.XLogSegSize)
	if err != nil {
		return err
	}
	j.server.wal = st.walStream
	j.files = &contents{links: map[string]string{}}
	j.pages = newPageChecker(nil, j.start.Redo, j.control, j.Log)
	j.keeper = j.newKeeper(j.cluster)
	return nil
}

// openStream opens both sessions, makes the slot, and asks for the settings and
// for the timeline of now.
func (j *job) openStream(ctx context.Context, st *streaming) (slot string, now wal.TimelineID, err error) {
	if st.owner, slot, err = j.server.anchorStream(ctx); err != nil {
		return "", 0, err
	}
	if st.repl, err = postgres.ConnectReplication(ctx, j.ConnInfo); err != nil {
		return "", 0, err
	}
	system, err := st.repl.IdentifySystem(ctx)
	if err != nil {
		return "", 0, err
	}
	return slot, system.Timeline, j.settings(ctx, st.repl)
}

// beginHint says what to do about a server that does not begin a backup.
func beginHint(err error) error {
	if postgres.SQLState(err) == "55000" && strings.Contains(err.Error(), "full_page_writes") {
		return exit.Wrap(err, exit.Refused, "set full_page_writes = on on the primary, reload, and run CHECKPOINT there", "the standby cannot be backed up")
	}
	return err
}

// settings asks for what has to be known of the files before the control file
// comes, which is the last of them.
func (j *job) settings(ctx context.Context, c *postgres.ReplConn) error {
	j.control = &volume.Control{SystemIdentifier: j.server.systemID}
	size, err := c.SegmentSize(ctx)
	if err != nil {
		return err
	}
	j.control.XLogSegSize = size
	for name, to := range map[string]*uint32{"block_size": &j.control.BlockSize, "wal_block_size": &j.control.XLogBlockSize} {
		n, err := c.ShowBytes(ctx, name)
		if err != nil {
			return err
		}
		*to = uint32(n)
	}
	segment, err := c.ShowBytes(ctx, "segment_size")
	if err != nil {
		return err
	}
	j.control.RelSegSize = uint32(segment / uint64(j.control.BlockSize))
	sums, err := c.Show(ctx, "data_checksums")
	if err == nil && sums == "on" {
		j.control.DataChecksumVersion = 1
	}
	return err
}

// anchorStream opens the session that owns the slot which holds back WAL. slot
// is "" where there can be none.
func (s *server) anchorStream(ctx context.Context) (owner *postgres.ReplConn, slot string, err error) {
	if owner, err = postgres.ConnectReplication(ctx, s.conninfo); err != nil {
		return nil, "", err
	}
	var r [4]byte
	rand.Read(r[:])
	slot = "tidemark_backup_" + hex.EncodeToString(r[:])
	err = owner.CreateSlot(ctx, slot, postgres.SlotOptions{Temporary: true, Reserve: true})
	switch postgres.SQLState(err) {
	case "":
	case "55000", "53400": // no slots configured; none free
		s.log.Warn("no replication slot can be made: the server may recycle WAL that the backup needs before it is sent", "reason", err)
		return owner, "", nil
	}
	if err != nil {
		owner.Close()
		return nil, "", err
	}
	return owner, slot, nil
}

// sent takes what the server says behind the last file.
func (j *job) sent(ds destinations) (err error) {
	st := j.stream
	if st.stop, st.damaged, err = st.backup.Finish(); err != nil {
		return err
	}
	switch {
	case st.label == nil, st.control == nil:
		return exit.New(exit.Failed, "run the command again", "the server sent no %s and no %s", volume.BackupLabelFile, volume.ControlPath)
	case st.label.StartWAL != j.start.Redo:
		return fmt.Errorf("the backup's label starts at %s, the server said %s", st.label.StartWAL, j.start.Redo)
	case st.stop.Timeline != j.start.Timeline:
		return switched(st.stop.Timeline)
	}
	j.start.Checkpoint = st.label.Checkpoint
	j.server.inRecovery = st.label.From == volume.FromStandby
	if c := st.control; c.BlockSize != j.control.BlockSize || c.RelSegSize != j.control.RelSegSize || c.Checksums() != j.control.Checksums() {
		return errors.New("the server's settings are not those of its control file")
	}
	*j.control = *st.control
	for _, d := range ds {
		d.start = j.start
	}
	return nil
}

// endStream returns the position up to which the WAL has to be replayed, and
// the control file for the copy. From a standby it is as far as it has received
// whole records, and at least what the server says.
func (j *job) endStream(ctx context.Context, ds destinations) (wal.LSN, *volume.Control, error) {
	stop, control := j.stream.stop.LSN, j.control.Clone()
	if err := j.server.sameCluster(control, j.start, j.src.Name()); err != nil {
		return 0, nil, err
	}
	if j.server.inRecovery {
		system, err := j.stream.repl.IdentifySystem(ctx)
		if err != nil {
			return 0, nil, err
		}
		if system.Timeline != j.start.Timeline {
			return 0, nil, switched(system.Timeline)
		}
		if stop, err = j.received(ctx, ds, stop, system.Flush); err != nil {
			return 0, nil, err
		}
	}
	settle(control, stop, j.start)
	return stop, control, nil
}

// received waits for the WAL before a position and returns the end of the last
// whole record of it, at least minimum.
func (j *job) received(ctx context.Context, ds destinations, minimum, upTo wal.LSN) (wal.LSN, error) {
	if upTo <= minimum {
		return minimum, nil
	}
	if err := j.stream.await(ctx, upTo); err != nil {
		return 0, err
	}
	o := wal.ScanOptions{Options: j.walOptions(), Workers: 1}
	o.End = upTo
	src := live(j.src, j.start.Timeline, j.control.XLogSegSize)
	for _, d := range ds.alive() {
		if d.cluster.Repository().Unlocked() { // and so may not be in the spool any more
			src = firstOf(src, archived(d.cluster, j.start.Timeline, j.control.XLogSegSize))
			break
		}
	}
	m, _, err := wal.ScanMap(ctx, src, o)
	if err != nil {
		return 0, err
	}
	return max(minimum, recordEnd(m.End, j.control.XLogSegSize, j.control.XLogBlockSize)), nil
}

// firstOf asks the second source for what the first one lacks.
func firstOf(a, b wal.Source) wal.Source {
	return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		seg, err := a.OpenSegment(ctx, n)
		if errors.Is(err, wal.ErrNoSegment) {
			return b.OpenSegment(ctx, n)
		}
		return seg, err
	})
}

// verdict compares the findings with the server's: it may not have seen what
// only our rules call wrong, but not the other way round.
func (st *streaming) verdict(count int64) error {
	if st == nil || !st.damaged || count > 0 {
		return nil
	}
	return exit.New(exit.Failed, "the server's log names the blocks",
		"the server says that page checksums are wrong, but what it sent is sound")
}

// sayHowToName tells what finds the relation of a damaged file, for its name
// takes SQL.
func (j *job) sayHowToName(f repo.Finding) {
	seg, ok := volume.ParseRelPath(f.Path)
	if !ok {
		return
	}
	space := seg.Tablespace
	if space == volume.DefaultTablespace {
		space = 0
	}
	j.Progress.Note("no SQL is run over the replication protocol, so damaged relations are named by their files: in the database with the OID %d, SELECT pg_filenode_relation(%d, %d)::regclass names that of %s",
		seg.Database, space, seg.Relation, f.Path)
}

// promotedMeanwhile turns the error of a copy that was begun from a standby
// into what is behind it.
func (j *job) promotedMeanwhile(ctx context.Context, was bool, err error) error {
	if err == nil || !was || ctx.Err() != nil {
		return err
	}
	now := &server{conninfo: j.ConnInfo, log: j.Log, streams: true}
	if now.probeStream(ctx) != nil || now.inRecovery {
		return err
	}
	return promoted()
}
