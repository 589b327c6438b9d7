package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"tidemark/internal/exit"
	"tidemark/pkg/wal"
)

// ReplConn is a session of the physical replication protocol: the walsender's
// small command language, and the stream of WAL that START_REPLICATION opens.
//
// The messages inside the stream (Streaming Replication Protocol; all numbers
// are big-endian, times are microseconds since 2000-01-01 UTC):
//
//	from the server   'w' start int64, end int64, time int64, WAL bytes
//	                  'k' end int64, time int64, reply wanted int8
//	to the server     'r' written int64, flushed int64, applied int64, time int64, reply wanted int8
type ReplConn struct {
	conn *pgconn.PgConn
	name string
}

const replicationBuffer = 256 << 10

// ConnectReplication opens a physical replication session. The role needs
// REPLICATION and a line "replication" in pg_hba.conf.
func ConnectReplication(ctx context.Context, conninfo string) (*ReplConn, error) {
	cfg, err := parseConfig(conninfo)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "true"
	cfg.Database = "replication"
	cfg.BuildFrontend = buffered(replicationBuffer)
	// A walsender of a physical session runs no SET; what it needs comes with
	// the start of the session.
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, explainConnect(err, cfg)
	}
	return &ReplConn{conn: conn, name: where(cfg)}, nil
}

// Major is the server's major version.
func (c *ReplConn) Major() int { return ServerMajor(c.conn) }

// Close ends the session.
func (c *ReplConn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return c.conn.Close(ctx)
}

// row runs a command and returns its single row; ok is false where it has none.
func (c *ReplConn) row(ctx context.Context, command string, columns int) (row [][]byte, ok bool, err error) {
	results, err := c.conn.Exec(ctx, command).ReadAll()
	if err != nil {
		return nil, false, fmt.Errorf("%s on %s: %w", firstWord(command), c.name, Explain(err))
	}
	if len(results) == 0 || len(results[0].Rows) == 0 {
		return nil, false, nil
	}
	row = results[0].Rows[0]
	if len(row) < columns {
		return nil, false, fmt.Errorf("%s on %s: %d columns, expected %d", firstWord(command), c.name, len(row), columns)
	}
	return row, true, nil
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, " ")
	return word
}

// System is what IDENTIFY_SYSTEM tells.
type System struct {
	ID       uint64         // system identifier
	Timeline wal.TimelineID // current timeline; on a standby the one being replayed
	Flush    wal.LSN        // how far WAL is durable there
}

// IdentifySystem asks which cluster this is and where it stands.
func (c *ReplConn) IdentifySystem(ctx context.Context) (System, error) {
	var s System
	row, ok, err := c.row(ctx, "IDENTIFY_SYSTEM", 3)
	if err != nil {
		return s, err
	}
	if !ok {
		return s, fmt.Errorf("IDENTIFY_SYSTEM on %s: no answer", c.name)
	}
	if s.ID, err = strconv.ParseUint(string(row[0]), 10, 64); err != nil {
		return s, err
	}
	tli, err := strconv.ParseUint(string(row[1]), 10, 32)
	if err != nil {
		return s, err
	}
	s.Timeline = wal.TimelineID(tli)
	s.Flush, err = wal.ParseLSN(string(row[2]))
	return s, err
}

// Version is the server's version, as it says it.
func (c *ReplConn) Version() string { return c.conn.ParameterStatus("server_version") }

// Show asks for a setting.
func (c *ReplConn) Show(ctx context.Context, name string) (string, error) {
	row, ok, err := c.row(ctx, "SHOW "+name, 1)
	if err == nil && !ok {
		err = fmt.Errorf("SHOW %s on %s: no answer", name, c.name)
	}
	if err != nil {
		return "", err
	}
	return string(row[0]), nil
}

// ShowBytes asks for a setting that is a size, with a unit or in bytes.
func (c *ReplConn) ShowBytes(ctx context.Context, name string) (uint64, error) {
	text, err := c.Show(ctx, name)
	if err != nil {
		return 0, err
	}
	unit := uint64(1)
	for suffix, factor := range map[string]uint64{"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30} {
		if digits, ok := strings.CutSuffix(text, suffix); ok {
			text, unit = digits, factor
		}
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s of %s: %w", name, c.name, err)
	}
	return n * unit, nil
}

// SegmentSize asks for the size of WAL segments.
func (c *ReplConn) SegmentSize(ctx context.Context) (wal.SegmentSize, error) {
	n, err := c.ShowBytes(ctx, "wal_segment_size")
	if err != nil {
		return 0, err
	}
	size := wal.SegmentSize(n)
	return size, size.Validate()
}

// TimelineHistory fetches the history file of a timeline other than 1.
func (c *ReplConn) TimelineHistory(ctx context.Context, tli wal.TimelineID) ([]byte, error) {
	row, ok, err := c.row(ctx, "TIMELINE_HISTORY "+tli.String(), 2)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("TIMELINE_HISTORY %d on %s: no answer", tli, c.name)
	}
	return row[1], nil
}

// SlotOptions shape a physical slot.
type SlotOptions struct {
	Temporary bool // gone with the session
	Reserve   bool // hold back WAL from now on, not only once it is used
}

// ErrSlotExists is returned when a slot of that name is there already.
var ErrSlotExists = errors.New("the replication slot exists already")

// CreateSlot makes a physical replication slot.
func (c *ReplConn) CreateSlot(ctx context.Context, name string, o SlotOptions) error {
	command := "CREATE_REPLICATION_SLOT " + QuoteIdent(name)
	if o.Temporary {
		command += " TEMPORARY"
	}
	command += " PHYSICAL"
	if o.Reserve {
		command += " RESERVE_WAL"
	}
	_, _, err := c.row(ctx, command, 0)
	switch SQLState(err) {
	case "42710":
		return fmt.Errorf("slot %q: %w", name, ErrSlotExists)
	case "53400":
		return exit.Hint(err, "raise max_replication_slots on that server (a restart), or drop a slot that nobody uses")
	}
	return err
}

// DropSlot drops a slot, waiting until nobody uses it where wait is set.
func (c *ReplConn) DropSlot(ctx context.Context, name string, wait bool) error {
	command := "DROP_REPLICATION_SLOT " + QuoteIdent(name)
	if wait {
		command += " WAIT"
	}
	_, _, err := c.row(ctx, command, 0)
	return err
}

// SlotInfo is what a walsender tells of a physical slot.
type SlotInfo struct {
	RestartLSN wal.LSN // 0 where it reserves nothing
	Timeline   wal.TimelineID
}

// ReadSlot reads a physical slot (15 and newer; older servers tell in
// pg_replication_slots). ok is false where there is no such slot.
func (c *ReplConn) ReadSlot(ctx context.Context, name string) (s SlotInfo, ok bool, err error) {
	row, ok, err := c.row(ctx, "READ_REPLICATION_SLOT "+QuoteIdent(name), 3)
	if err != nil || !ok || row[0] == nil {
		return s, false, err
	}
	if row[1] != nil {
		if s.RestartLSN, err = wal.ParseLSN(string(row[1])); err != nil {
			return s, false, err
		}
	}
	if row[2] != nil {
		n, err := strconv.ParseUint(string(row[2]), 10, 32)
		if err != nil {
			return s, false, err
		}
		s.Timeline = wal.TimelineID(n)
	}
	return s, true, nil
}

// EndOfTimeline is how a stream ends when the server has switched timelines.
type EndOfTimeline struct {
	Next   wal.TimelineID // 0 where the server did not say
	Switch wal.LSN
}

// StartReplication opens the stream at start on a timeline. A position that is
// exactly the end of a former timeline has no stream: then end is not nil.
func (c *ReplConn) StartReplication(ctx context.Context, slot string, start wal.LSN, tli wal.TimelineID) (end *EndOfTimeline, err error) {
	command := "START_REPLICATION"
	if slot != "" {
		command += " SLOT " + QuoteIdent(slot)
	}
	command += fmt.Sprintf(" PHYSICAL %s TIMELINE %d", start, tli)
	frontend := c.conn.Frontend()
	frontend.SendQuery(&pgproto3.Query{String: command})
	if err := frontend.Flush(); err != nil {
		return nil, fmt.Errorf("starting replication from %s: %w", c.name, err)
	}
	var e EndOfTimeline
	for {
		msg, err := c.conn.ReceiveMessage(ctx)
		if err != nil {
			return nil, fmt.Errorf("starting replication from %s: %w", c.name, c.explainStart(err, start, tli))
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyBothResponse:
			return nil, nil
		case *pgproto3.DataRow:
			if err := e.fromRow(msg); err != nil {
				return nil, err
			}
		case *pgproto3.ErrorResponse:
			err := c.explainStart(pgconn.ErrorResponseToPgError(msg), start, tli)
			if ready := c.untilReady(ctx, nil); ready != nil {
				return nil, ready
			}
			return nil, fmt.Errorf("starting replication from %s: %w", c.name, err)
		case *pgproto3.ReadyForQuery:
			return &e, nil
		}
	}
}

// ErrWALRemoved is returned when the server no longer has the WAL asked for.
var ErrWALRemoved = errors.New("the WAL asked for is gone")

func (c *ReplConn) explainStart(err error, start wal.LSN, tli wal.TimelineID) error {
	pg := serverError(err)
	if pg == nil {
		return err
	}
	switch {
	case pg.Code == "58P01" || strings.Contains(pg.Message, "has already been removed"):
		return exit.Hint(&classified{ErrWALRemoved, fmt.Sprintf("WAL from %s on timeline %d: %s", start, tli, pg.Message), err},
			"the server has removed it; use a replication slot, raise wal_keep_size, or fetch it from the WAL archive")
	case pg.Code == "55006":
		return exit.Hint(&classified{ErrSlotActive, pg.Message, err}, "another receiver uses the slot: stop it, or name another slot")
	case pg.Code == "42704":
		return exit.Hint(&classified{ErrNoSlot, pg.Message, err}, "create the slot, or name another one")
	}
	return Explain(err)
}

// ErrSlotActive is returned when another receiver uses the slot.
var ErrSlotActive = errors.New("the replication slot is in use")

// ErrNoSlot is returned when there is no slot of that name.
var ErrNoSlot = errors.New("no such replication slot")

// fromRow reads "next_tli, next_tli_startpos".
func (e *EndOfTimeline) fromRow(row *pgproto3.DataRow) error {
	if len(row.Values) < 2 {
		return errors.New("end of timeline: a short row")
	}
	n, err := strconv.ParseUint(string(row.Values[0]), 10, 32)
	if err != nil {
		return fmt.Errorf("end of timeline: %w", err)
	}
	e.Next = wal.TimelineID(n)
	e.Switch, err = wal.ParseLSN(string(row.Values[1]))
	return err
}

// untilReady reads up to ReadyForQuery; a row on the way goes to e.
func (c *ReplConn) untilReady(ctx context.Context, e *EndOfTimeline) error {
	var failed error
	for {
		msg, err := c.conn.ReceiveMessage(ctx)
		if err != nil {
			return errors.Join(failed, err)
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			if e != nil {
				failed = errors.Join(failed, e.fromRow(msg))
			}
		case *pgproto3.ErrorResponse:
			failed = errors.Join(failed, pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.ReadyForQuery:
			return failed
		}
	}
}

// StreamMessage is one message of the stream: WAL or a keepalive.
type StreamMessage struct {
	Start     wal.LSN // of Data
	Data      []byte  // WAL, valid until the next call; nil for a keepalive
	ServerEnd wal.LSN // how far the server's WAL goes
	Reply     bool    // the server waits for a status
}

// Next returns the next message, or the end of the timeline. With wait > 0 it
// returns errNothing when none comes in that time.
func (c *ReplConn) Next(ctx context.Context, wait time.Duration) (m StreamMessage, end *EndOfTimeline, err error) {
	waiting := ctx
	if wait > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	for {
		msg, err := c.conn.ReceiveMessage(waiting)
		if err != nil {
			if ctx.Err() != nil {
				return m, nil, ctx.Err()
			}
			if pgconn.Timeout(err) && wait > 0 {
				return m, nil, errNothing
			}
			return m, nil, fmt.Errorf("receiving WAL from %s: %w", c.name, Explain(err))
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			err := m.decode(msg.Data)
			return m, nil, err
		case *pgproto3.CopyDone:
			e := &EndOfTimeline{}
			return m, e, c.finish(ctx, e)
		case *pgproto3.ErrorResponse:
			return m, nil, fmt.Errorf("receiving WAL from %s: %w", c.name, c.explainStart(pgconn.ErrorResponseToPgError(msg), 0, 0))
		}
	}
}

// errNothing is returned when no message came in time.
var errNothing = errors.New("no message from the server in time")

// finish answers the server's CopyDone and reads what follows it: the row with
// the next timeline, two CommandCompletes, ReadyForQuery.
func (c *ReplConn) finish(ctx context.Context, e *EndOfTimeline) error {
	frontend := c.conn.Frontend()
	frontend.Send(&pgproto3.CopyDone{})
	if err := frontend.Flush(); err != nil {
		return err
	}
	return c.untilReady(ctx, e)
}

// decode reads a message of the stream.
func (m *StreamMessage) decode(b []byte) error {
	if len(b) == 0 {
		return errors.New("replication stream: an empty message")
	}
	switch kind, rest := b[0], b[1:]; {
	case kind == 'w' && len(rest) >= 24:
		m.Start = wal.LSN(binary.BigEndian.Uint64(rest))
		m.ServerEnd = wal.LSN(binary.BigEndian.Uint64(rest[8:]))
		m.Data = rest[24:]
	case kind == 'k' && len(rest) >= 17:
		m.ServerEnd = wal.LSN(binary.BigEndian.Uint64(rest))
		m.Reply = rest[16] != 0
	default:
		return fmt.Errorf("replication stream: unknown message %q of %d bytes", kind, len(b))
	}
	return nil
}

// pgEpoch is where the server's times begin.
var pgEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// SendStatus tells the server how far WAL was written and made durable here.
// applied stays 0 for receivers that replay nothing.
func (c *ReplConn) SendStatus(written, flushed, applied wal.LSN) error {
	b := make([]byte, 0, 34)
	b = append(b, 'r')
	for _, n := range []uint64{uint64(written), uint64(flushed), uint64(applied), uint64(time.Since(pgEpoch).Microseconds())} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, 0)
	frontend := c.conn.Frontend()
	frontend.Send(&pgproto3.CopyData{Data: b})
	return frontend.Flush()
}

// StopStream ends the stream from this side and leaves the session ready for
// commands.
func (c *ReplConn) StopStream(ctx context.Context) error {
	frontend := c.conn.Frontend()
	frontend.Send(&pgproto3.CopyDone{})
	if err := frontend.Flush(); err != nil {
		return err
	}
	return c.untilReady(ctx, &EndOfTimeline{})
}
