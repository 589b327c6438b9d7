package volume

import (
	"encoding/binary"
	"math"
	"time"

	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// controlField ties a field of Control to its place in the file.
type controlField struct {
	offset int
	value  any // a pointer to the field
}

// fields lists every field that this version of the file has.
func (c *Control) fields() []controlField {
	const copyAt = 40
	cp := &c.CheckPointCopy
	list := []controlField{
		{0, &c.SystemIdentifier}, {8, &c.PgControlVersion}, {12, &c.CatalogVersionNo},
		{16, &c.State}, {24, &c.Time}, {32, &c.CheckPoint},

		{copyAt + 0, &cp.Redo}, {copyAt + 8, &cp.ThisTimeLineID}, {copyAt + 12, &cp.PrevTimeLineID},
		{copyAt + 16, &cp.FullPageWrites}, {copyAt + 24, &cp.NextXid}, {copyAt + 32, &cp.NextOid},
		{copyAt + 36, &cp.NextMulti}, {copyAt + 40, &cp.NextMultiOffset}, {copyAt + 44, &cp.OldestXid},
		{copyAt + 48, &cp.OldestXidDB}, {copyAt + 52, &cp.OldestMulti}, {copyAt + 56, &cp.OldestMultiDB},
		{copyAt + 64, &cp.Time}, {copyAt + 72, &cp.OldestCommitTsXid}, {copyAt + 76, &cp.NewestCommitTsXid},
		{copyAt + 80, &cp.OldestActiveXid},

		{128, &c.UnloggedLSN}, {136, &c.MinRecoveryPoint}, {144, &c.MinRecoveryPointTLI},
		{152, &c.BackupStartPoint}, {160, &c.BackupEndPoint}, {168, &c.BackupEndRequired},

		{172, &c.WalLevel}, {176, &c.WalLogHints}, {180, &c.MaxConnections}, {184, &c.MaxWorkerProcesses},
		{188, &c.MaxWalSenders}, {192, &c.MaxPreparedXacts}, {196, &c.MaxLocksPerXact},
		{200, &c.TrackCommitTimestamp},

		{204, &c.MaxAlign}, {208, &c.FloatFormat}, {216, &c.BlockSize}, {220, &c.RelSegSize},
		{224, &c.XLogBlockSize}, {228, &c.XLogSegSize}, {232, &c.NameDataLen}, {236, &c.IndexMaxKeys},
		{240, &c.ToastMaxChunkSize}, {244, &c.LoBlkSize}, {248, &c.Float8ByVal}, {252, &c.DataChecksumVersion},
	}
	nonce := 256
	if c.version.WalLevel {
		list = append(list, controlField{copyAt + 20, &cp.WalLevel})
	}
	if c.version.CharSign {
		list = append(list, controlField{256, &c.DefaultCharSignedness})
		nonce = 257
	}
	return append(list, controlField{nonce, &c.MockAuthNonce})
}

// load decodes the field from the file's bytes.
func (f controlField) load(data []byte) {
	at := data[f.offset:]
	switch p := f.value.(type) {
	case *bool:
		*p = at[0] != 0
	case *uint32:
		*p = binary.LittleEndian.Uint32(at)
	case *State:
		*p = State(binary.LittleEndian.Uint32(at))
	case *wal.WALLevel:
		*p = wal.WALLevel(binary.LittleEndian.Uint32(at))
	case *timeline.ID:
		*p = timeline.ID(binary.LittleEndian.Uint32(at))
	case *wal.SegmentSize:
		*p = wal.SegmentSize(binary.LittleEndian.Uint32(at))
	case *uint64:
		*p = binary.LittleEndian.Uint64(at)
	case *wal.LSN:
		*p = wal.LSN(binary.LittleEndian.Uint64(at))
	case *float64:
		*p = math.Float64frombits(binary.LittleEndian.Uint64(at))
	case *time.Time:
		*p = time.Unix(int64(binary.LittleEndian.Uint64(at)), 0).UTC()
	case *[32]byte:
		copy(p[:], at)
	default:
		panic("volume: field of pg_control with a type that has no encoding")
	}
}

// store encodes the field, unless it is what the bytes say already: a true
// that the server wrote as something other than 1 stays as it is.
func (f controlField) store(data []byte) {
	at := data[f.offset:]
	switch p := f.value.(type) {
	case *bool:
		switch {
		case !*p:
			at[0] = 0
		case at[0] == 0:
			at[0] = 1
		}
	case *uint32:
		binary.LittleEndian.PutUint32(at, *p)
	case *State:
		binary.LittleEndian.PutUint32(at, uint32(*p))
	case *wal.WALLevel:
		binary.LittleEndian.PutUint32(at, uint32(*p))
	case *timeline.ID:
		binary.LittleEndian.PutUint32(at, uint32(*p))
	case *wal.SegmentSize:
		binary.LittleEndian.PutUint32(at, uint32(*p))
	case *uint64:
		binary.LittleEndian.PutUint64(at, *p)
	case *wal.LSN:
		binary.LittleEndian.PutUint64(at, uint64(*p))
	case *float64:
		binary.LittleEndian.PutUint64(at, math.Float64bits(*p))
	case *time.Time:
		binary.LittleEndian.PutUint64(at, uint64(p.Unix()))
	case *[32]byte:
		copy(at, p[:])
	default:
		panic("volume: field of pg_control with a type that has no encoding")
	}
}
