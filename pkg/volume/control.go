package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"time"

	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// The control file, global/pg_control (catalog/pg_control.h): one C structure
// in the machine's byte order, here little-endian, padded with zeros.
//
//	offset size
//	     0    8  system identifier
//	     8    4  control file version: 1300 (13-16), 1700 (17), 1800 (18)
//	    12    4  catalog version
//	    16    4  state
//	    24    8  time of the last update
//	    32    8  latest checkpoint's location
//	    40   88  copy of the latest checkpoint, see below
//	   128    8  counter for fake LSNs of unlogged relations
//	   136    8  minimum recovery ending location, and 4 its timeline
//	   152    8  backup start location
//	   160    8  backup end location, and 1: an end-of-backup record is required
//	   172   32  settings that a standby must match: wal_level, wal_log_hints,
//	             max_connections, ... track_commit_timestamp
//	   204    4  maximum alignment, and 8 bytes of floating point 1234567.0
//	   216   36  block, segment and name sizes
//	   252    4  data checksum version, 0 for none
//	   256    1  18 only: whether char is signed
//	   256   32  mock authentication nonce (18: from 257)
//	   288    4  CRC-32C of all the bytes before (18: at 292)
//
// The checkpoint's copy, which is also the main data of a checkpoint record:
//
//	 0    8  redo location
//	 8    8  timeline, previous timeline
//	16    1  full_page_writes
//	20    4  17 and up: wal_level
//	24    8  next transaction id with its epoch
//	32   28  next OID, next multixact, its offset, oldest xid and its
//	         database, oldest multixact and its database
//	64    8  time
//	72   12  oldest and newest xid with a commit time, oldest active xid
const (
	// ControlFileSize is the size of pg_control on disk.
	ControlFileSize = 8192
	// ControlPath is where pg_control lies in a data directory.
	ControlPath = "global/pg_control"

	floatFormat = 1234567.0
	maxAlign    = 8
)

// version is what one major version of the server writes into pg_control and
// into the names of its tablespace directories. A new major version is one
// more row.
type version struct {
	Major    int
	Control  uint32
	Catalog  uint32
	WalLevel bool // the checkpoint holds wal_level
	CharSign bool // default_char_signedness precedes the nonce
	CRC      int  // offset of the CRC
}

var versions = []version{
	{Major: 13, Control: 1300, Catalog: 202007201, CRC: 288},
	{Major: 14, Control: 1300, Catalog: 202107181, CRC: 288},
	{Major: 15, Control: 1300, Catalog: 202209061, CRC: 288},
	{Major: 16, Control: 1300, Catalog: 202307071, CRC: 288},
	{Major: 17, Control: 1700, Catalog: 202406281, CRC: 288, WalLevel: true},
	{Major: 18, Control: 1800, Catalog: 202506291, CRC: 292, WalLevel: true, CharSign: true},
}

// CatalogVersion returns the catalog version of a major version, or 0.
func CatalogVersion(major int) uint32 {
	for _, v := range versions {
		if v.Major == major {
			return v.Catalog
		}
	}
	return 0
}

// ErrControlCRC is returned when the control file's CRC does not match: it is
// torn or damaged, or read while the server was writing it.
var ErrControlCRC = errors.New("pg_control: CRC does not match its content")

// ErrByteOrder is returned for a control file written by a machine of the
// other byte order.
var ErrByteOrder = errors.New("pg_control: byte order of another machine architecture")

// UnknownVersionError refuses a control file whose layout is not known.
type UnknownVersionError struct {
	ControlVersion uint32
	CatalogVersion uint32
}

func (e *UnknownVersionError) Error() string {
	return fmt.Sprintf("pg_control: unknown version %d with catalog version %d; PostgreSQL 13 to 18 are known",
		e.ControlVersion, e.CatalogVersion)
}

// State is the state of the cluster in pg_control.
type State uint32

// The states of a cluster (DBState).
const (
	StateStartup            State = iota // starting up
	StateShutdowned                      // shut down cleanly
	StateShutdownedRecovery              // shut down cleanly as a standby
	StateShutdowning                     // shutting down
	StateInCrashRecovery                 // replaying after a crash
	StateInArchiveRecovery               // a standby, or replaying to a target
	StateInProduction                    // running as primary, or crashed as such
)

var stateNames = [...]string{"starting up", "shut down", "shut down in recovery", "shutting down",
	"in crash recovery", "in archive recovery", "in production"}

// String returns the state in pg_controldata's words.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unrecognized status code"
}

// MarshalText makes a state readable in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Clean tells whether the server stopped in an orderly way, as a primary or
// as a standby, so that nothing has to be replayed.
func (s State) Clean() bool { return s == StateShutdowned || s == StateShutdownedRecovery }

// Checkpoint is the copy of the latest checkpoint record.
type Checkpoint struct {
	Redo              wal.LSN
	ThisTimeLineID    timeline.ID
	PrevTimeLineID    timeline.ID
	FullPageWrites    bool
	WalLevel          wal.WALLevel // 17 and up; before, Control.WalLevel is all there is
	NextXid           uint64       // epoch in the upper half
	NextOid           uint32
	NextMulti         uint32
	NextMultiOffset   uint32
	OldestXid         uint32
	OldestXidDB       uint32
	OldestMulti       uint32
	OldestMultiDB     uint32
	Time              time.Time
	OldestCommitTsXid uint32
	NewestCommitTsXid uint32
	OldestActiveXid   uint32
}

// Control is the content of pg_control. It remembers the bytes it was read
// from: Encode changes only those whose fields differ.
type Control struct {
	SystemIdentifier uint64
	PgControlVersion uint32
	CatalogVersionNo uint32
	State            State
	Time             time.Time
	CheckPoint       wal.LSN // of the latest checkpoint record
	CheckPointCopy   Checkpoint
	UnloggedLSN      wal.LSN

	MinRecoveryPoint    wal.LSN
	MinRecoveryPointTLI timeline.ID
	BackupStartPoint    wal.LSN
	BackupEndPoint      wal.LSN
	BackupEndRequired   bool

	WalLevel             wal.WALLevel
	WalLogHints          bool
	MaxConnections       uint32
	MaxWorkerProcesses   uint32
	MaxWalSenders        uint32
	MaxPreparedXacts     uint32
	MaxLocksPerXact      uint32
	TrackCommitTimestamp bool

	MaxAlign            uint32
	FloatFormat         float64
	BlockSize           uint32 // blcksz
	RelSegSize          uint32 // blocks in a relation's segment file
	XLogBlockSize       uint32
	XLogSegSize         wal.SegmentSize
	NameDataLen         uint32
	IndexMaxKeys        uint32
	ToastMaxChunkSize   uint32
	LoBlkSize           uint32
	Float8ByVal         bool
	DataChecksumVersion uint32 // 0: no checksums

	DefaultCharSignedness bool     // 18 and up
	MockAuthNonce         [32]byte `json:"-"`

	version version
	raw     []byte
}

// ParseControl decodes a control file, whole or without its padding. It
// returns ErrControlCRC, ErrByteOrder, an *UnknownVersionError, or what
// Validate finds.
func ParseControl(data []byte) (*Control, error) {
	c, err := decodeControl(data)
	if err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

func decodeControl(data []byte) (*Control, error) {
	if len(data) < 16 || len(data) > ControlFileSize {
		return nil, fmt.Errorf("pg_control: %d bytes long, expected %d", len(data), ControlFileSize)
	}
	number := binary.LittleEndian.Uint32(data[8:])
	catalog := binary.LittleEndian.Uint32(data[12:])
	if number%65536 == 0 && number/65536 != 0 {
		return nil, ErrByteOrder
	}
	v, ok := findVersion(number, catalog)
	if !ok {
		return nil, &UnknownVersionError{number, catalog}
	}
	if len(data) < v.CRC+4 {
		return nil, fmt.Errorf("pg_control: %d bytes long, expected %d", len(data), ControlFileSize)
	}
	if binary.LittleEndian.Uint32(data[v.CRC:]) != crc32c(data[:v.CRC]) {
		return nil, ErrControlCRC
	}
	c := &Control{version: v, raw: bytes.Clone(data)}
	for _, f := range c.fields() {
		f.load(c.raw)
	}
	return c, nil
}

func findVersion(control, catalog uint32) (version, bool) {
	for _, v := range versions {
		if v.Control == control && v.Catalog == catalog {
			return v, true
		}
	}
	return version{}, false
}

// Validate checks what must hold in every control file that a server of this
// architecture can use.
func (c *Control) Validate() error {
	bad := func(what string, value any) error {
		return fmt.Errorf("pg_control: %s is %v, which no server writes", what, value)
	}
	switch {
	case c.MaxAlign != maxAlign:
		return bad("maximum alignment", c.MaxAlign)
	case c.FloatFormat != floatFormat:
		return bad("floating point format", c.FloatFormat)
	case !validBlockSize(c.BlockSize):
		return bad("block size", c.BlockSize)
	case !validBlockSize(c.XLogBlockSize) && c.XLogBlockSize != 65536:
		return bad("WAL block size", c.XLogBlockSize)
	case c.RelSegSize == 0:
		return bad("relation segment size", c.RelSegSize)
	case !c.XLogSegSize.Valid():
		return bad("WAL segment size", c.XLogSegSize)
	case int(c.State) >= len(stateNames):
		return bad("state", uint32(c.State))
	case c.CheckPointCopy.ThisTimeLineID == 0:
		return bad("timeline", 0)
	}
	return nil
}

func validBlockSize(n uint32) bool { return n >= 1024 && n <= 32768 && n&(n-1) == 0 }

// Major returns the server's major version.
func (c *Control) Major() int { return c.version.Major }

// Checksums tells whether data pages carry checksums.
func (c *Control) Checksums() bool { return c.DataChecksumVersion != 0 }

// VersionDir returns the name of this server's directory in a tablespace, for
// example PG_15_202209061.
func (c *Control) VersionDir() string { return VersionDir(c.version.Major, c.version.Catalog) }

// Timeline returns the timeline that the cluster's files have reached: the
// checkpoint's, or that of the minimum recovery point where it is later, as
// it is between a promotion and its first checkpoint.
func (c *Control) Timeline() timeline.ID {
	return max(c.CheckPointCopy.ThisTimeLineID, c.MinRecoveryPointTLI)
}

// Encode returns the control file's 8192 bytes: those it was read from, with
// the fields that changed since and a new CRC.
func (c *Control) Encode() []byte {
	data := make([]byte, ControlFileSize)
	copy(data, c.raw)
	for _, f := range c.fields() {
		f.store(data)
	}
	binary.LittleEndian.PutUint32(data[c.version.CRC:], crc32c(data[:c.version.CRC]))
	return data
}

// Clone returns a copy that can be changed on its own.
func (c *Control) Clone() *Control {
	d := *c
	return &d
}

// ReadControl reads the control file of the data directory dir.
func ReadControl(dir string) (*Control, error) { return ReadControlFS(OS, dir) }

// ReadControlFS reads the control file of the data directory dir in fsys. A
// running server may be writing it: a CRC that does not match is read again,
// and becomes an error when the bytes stay the same or keep changing.
func ReadControlFS(fsys FS, dir string) (*Control, error) {
	name := filepath.Join(dir, filepath.FromSlash(ControlPath))
	var before []byte
	for try := 0; ; try++ {
		data, err := ReadFile(fsys, name, ControlFileSize)
		if err != nil {
			return nil, err
		}
		c, err := ParseControl(data)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, ErrControlCRC) || bytes.Equal(data, before) || try >= 10 {
			return nil, &fs.PathError{Op: "read", Path: name, Err: err}
		}
		before = data
		time.Sleep(10 * time.Millisecond)
	}
}

// WriteControl puts the control file durably into the data directory dir,
// with the permissions perm.
func WriteControl(fsys FS, dir string, c *Control, perm fs.FileMode) error {
	return WriteFile(fsys, filepath.Join(dir, filepath.FromSlash(ControlPath)), c.Encode(), perm)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc32c(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }
