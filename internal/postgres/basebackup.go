package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"tidemark/internal/exit"
	"tidemark/pkg/wal"
)

// BaseBackupOptions shape a base backup.
type BaseBackupOptions struct {
	Label string
	Rate  int64 // bytes per second that the server sends at most; 0: as fast as it goes
}

// The bounds of MAX_RATE, in kB per second.
const (
	minBackupRate = 32
	maxBackupRate = 1 << 20
)

// command spells the options as the server's version does.
func (o BaseBackupOptions) command(major int) string {
	label := "'" + strings.ReplaceAll(o.Label, "'", "''") + "'"
	rate := ""
	if o.Rate > 0 {
		rate = fmt.Sprintf("MAX_RATE %d", min(max(o.Rate>>10, minBackupRate), maxBackupRate))
	}
	if major < 15 {
		return strings.TrimSpace("BASE_BACKUP LABEL " + label + " PROGRESS FAST NOWAIT " + rate)
	}
	if rate != "" {
		rate = ", " + rate
	}
	return "BASE_BACKUP (LABEL " + label + ", PROGRESS, CHECKPOINT 'fast', WAIT false" + rate + ")"
}

// WALPoint is a position on a timeline.
type WALPoint struct {
	LSN      wal.LSN
	Timeline wal.TimelineID
}

// BackupArchive is one of the tar archives that a base backup consists of.
type BackupArchive struct {
	OID  uint32 // of the tablespace; 0 for the data directory
	Path string // where the tablespace is on the server
	Size int64  // bytes, about; as of before the first of them is sent
}

// fileName is what the server calls the archive.
func (a *BackupArchive) fileName() string {
	if a.OID == 0 {
		return "base.tar"
	}
	return strconv.FormatUint(uint64(a.OID), 10) + ".tar"
}

// BaseBackup is a base backup that the server is sending: after the start, the
// archives of the tablespaces one after another, the data directory's last, then
// the stop position.
//
//	13, 14   one COPY for each archive, in the order of the list
//	15 on    one COPY for all of them, of typed messages:
//	           'n' name\0 path\0   an archive begins
//	           'm'                 the manifest begins
//	           'd' bytes           of either
//	           'p' int64           progress
//
// The server makes sure that full pages are in the WAL meanwhile, and reads a
// page that does not verify once more before it sends it.
type BaseBackup struct {
	Start    WALPoint // where replay begins
	Archives []BackupArchive

	c       *ReplConn
	ctx     context.Context
	typed   bool
	next    int    // archives that have begun
	reading int    // the archive that Next went to, from 1 on
	in      bool   // an archive is being received
	ended   bool   // no archive follows
	data    []byte // received and not read
	row     [][]byte
	stopRow [][]byte
	failed  error // the server's
	ready   bool  // for another command
}

// BaseBackup starts a base backup with a fast checkpoint. The session is the
// backup's until Finish returns.
func (c *ReplConn) BaseBackup(ctx context.Context, o BaseBackupOptions) (*BaseBackup, error) {
	b := &BaseBackup{c: c, ctx: ctx, typed: c.Major() >= 15}
	frontend := c.conn.Frontend()
	frontend.SendQuery(&pgproto3.Query{String: o.command(c.Major())})
	if err := frontend.Flush(); err != nil {
		return nil, b.fault(err)
	}
	rows, err := b.result()
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 {
		return nil, b.fault(errors.New("the server did not say where the backup starts"))
	}
	if b.Start, err = walPoint(rows[0]); err != nil {
		return nil, b.fault(err)
	}
	if rows, err = b.result(); err != nil {
		return nil, err
	}
	for _, row := range rows {
		a, err := backupArchive(row)
		if err != nil {
			return nil, b.fault(err)
		}
		b.Archives = append(b.Archives, a)
	}
	return b, nil
}

func (b *BaseBackup) fault(err error) error {
	return fmt.Errorf("base backup from %s: %w", b.c.name, Explain(err))
}

// result reads the rows of one result.
func (b *BaseBackup) result() (rows [][][]byte, err error) {
	for {
		msg, err := b.c.conn.ReceiveMessage(b.ctx)
		if err != nil {
			return nil, b.fault(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			rows = append(rows, cloneRow(msg))
		case *pgproto3.CommandComplete:
			return rows, nil
		case *pgproto3.ErrorResponse:
			err := b.fault(pgconn.ErrorResponseToPgError(msg))
			return nil, errors.Join(err, b.c.untilReady(b.ctx, nil))
		case *pgproto3.ReadyForQuery:
			return nil, b.fault(errors.New("the server ended it without a word"))
		}
	}
}

func cloneRow(msg *pgproto3.DataRow) [][]byte {
	row := make([][]byte, len(msg.Values))
	for i, v := range msg.Values {
		row[i] = bytes.Clone(v) // nil stays nil
	}
	return row
}

func walPoint(row [][]byte) (p WALPoint, err error) {
	if len(row) < 2 {
		return p, errors.New("a WAL position without a timeline")
	}
	if p.LSN, err = wal.ParseLSN(string(row[0])); err != nil {
		return p, err
	}
	n, err := strconv.ParseUint(string(row[1]), 10, 32)
	p.Timeline = wal.TimelineID(n)
	return p, err
}

// backupArchive reads "spcoid, spclocation, size in kB".
func backupArchive(row [][]byte) (a BackupArchive, err error) {
	if len(row) < 3 {
		return a, errors.New("a tablespace without a place")
	}
	if row[0] != nil {
		oid, err := strconv.ParseUint(string(row[0]), 10, 32)
		if err != nil {
			return a, err
		}
		a.OID, a.Path = uint32(oid), string(row[1])
	}
	if row[2] != nil {
		a.Size, err = strconv.ParseInt(string(row[2]), 10, 64)
		a.Size <<= 10
	}
	return a, err
}

// Next passes over the rest of the archive that is being read and goes to the
// next. It returns io.EOF when there is none; Finish says how the backup ended.
func (b *BaseBackup) Next() (*BackupArchive, error) {
	for !b.ended && (!b.in || b.next == b.reading) {
		b.data = nil
		if err := b.receive(); err != nil {
			return nil, err
		}
	}
	if b.ended {
		return nil, io.EOF
	}
	b.reading = b.next
	return &b.Archives[b.next-1], nil
}

// Read implements io.Reader for the archive that Next went to: a tar archive,
// perhaps without the blocks that end one.
func (b *BaseBackup) Read(p []byte) (int, error) {
	for len(b.data) == 0 {
		if !b.in || b.next != b.reading {
			if b.failed != nil { // in the middle of an archive
				return 0, b.failed
			}
			return 0, io.EOF
		}
		if err := b.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.data)
	b.data = b.data[n:]
	return n, nil
}

// receive takes the next message.
func (b *BaseBackup) receive() error {
	msg, err := b.c.conn.ReceiveMessage(b.ctx)
	if err != nil {
		return b.fault(err)
	}
	switch msg := msg.(type) {
	case *pgproto3.CopyOutResponse:
		if !b.typed {
			return b.begin()
		}
	case *pgproto3.CopyData:
		if !b.typed {
			b.data = msg.Data
			return nil
		}
		return b.message(msg.Data)
	case *pgproto3.CopyDone:
		b.in, b.ended = false, b.typed || b.next == len(b.Archives)
	case *pgproto3.DataRow:
		b.row = cloneRow(msg)
	case *pgproto3.CommandComplete:
		if b.row != nil {
			b.stopRow, b.row = b.row, nil
		}
		b.in, b.ended = false, true
	case *pgproto3.ErrorResponse:
		b.failed = b.fault(pgconn.ErrorResponseToPgError(msg))
		b.in, b.ended = false, true
	case *pgproto3.ReadyForQuery:
		b.in, b.ended, b.ready = false, true, true
	}
	return nil
}

// message takes a typed message.
func (b *BaseBackup) message(data []byte) error {
	if len(data) == 0 {
		return b.fault(errors.New("an empty message"))
	}
	switch data[0] {
	case 'n':
		name, _, _ := bytes.Cut(data[1:], []byte{0})
		if err := b.begin(); err != nil {
			return err
		}
		if want := b.Archives[b.next-1].fileName(); string(name) != want {
			return b.fault(fmt.Errorf("it sends %q in the place of %s", name, want))
		}
	case 'm':
		b.in = false
	case 'd':
		if b.in {
			b.data = data[1:]
		}
	case 'p':
		if len(data) != 9 || binary.BigEndian.Uint64(data[1:]) > 1<<62 {
			return b.fault(errors.New("malformed progress"))
		}
	default:
		return b.fault(fmt.Errorf("unknown message %q", data[0]))
	}
	return nil
}

// begin goes to the next archive. They come in the order of the list.
func (b *BaseBackup) begin() error {
	if b.next == len(b.Archives) {
		return b.fault(errors.New("more archives than were announced"))
	}
	b.next++
	b.in = true
	return nil
}

// Finish reads what follows the archives, and returns the position up to which
// WAL has to be replayed. damaged says that the server found pages whose
// checksums are wrong, and sent them all the same.
func (b *BaseBackup) Finish() (stop WALPoint, damaged bool, err error) {
	for !b.ready {
		if err := b.receive(); err != nil {
			return stop, false, err
		}
	}
	damaged = SQLState(b.failed) == "XX001" && b.stopRow != nil
	if b.failed != nil && !damaged {
		return stop, false, b.failed
	}
	if b.next != len(b.Archives) || b.stopRow == nil {
		return stop, damaged, exit.New(exit.Failed, "run the command again", "base backup from %s: it ended early", b.c.name)
	}
	if stop, err = walPoint(b.stopRow); err != nil {
		return stop, damaged, b.fault(err)
	}
	return stop, damaged, nil
}
