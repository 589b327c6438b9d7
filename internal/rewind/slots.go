package rewind

import (
	"encoding/binary"
	"os"
	"path"
	"path/filepath"
	"strings"

	"tidemark/pkg/wal"
)

// slotState is what a replication slot's state file says of it.
//
//	offset  size  field (replication/slot.c, ReplicationSlotOnDisk)
//	0       16    magic 0x1051CA1, checksum, version, length
//	16      64    name
//	80      4     database, 0 for a physical slot
//	84      12    persistency, xmin, catalog_xmin
//	96      8     restart_lsn
//
// These fields are where they are in 13 to 18. Part of the format, do not change.
type slotState struct {
	logical bool
	restart wal.LSN
}

const (
	slotMagic   = 0x1051CA1
	slotMinSize = 104
)

func parseSlot(data []byte) (slotState, bool) {
	if len(data) < slotMinSize || binary.NativeEndian.Uint32(data) != slotMagic {
		return slotState{}, false
	}
	return slotState{logical: binary.NativeEndian.Uint32(data[80:]) != 0, restart: wal.LSN(binary.NativeEndian.Uint64(data[96:]))}, true
}

// slots tells of the target's replication slots, which stay, what their owners
// should know.
func (p *planner) slots() {
	for name := range p.target {
		rest, ok := strings.CutPrefix(name, "pg_replslot/")
		if slot, file := path.Split(rest); !ok || slot == "" || file != "state" {
			continue
		}
		slot := path.Dir(rest)
		data, err := os.ReadFile(filepath.Join(p.Target, filepath.FromSlash(name)))
		s, known := parseSlot(data)
		switch {
		case err != nil || !known:
			p.warn("replication slot %s stays, and its state cannot be read", slot)
		case s.logical:
			p.warn("logical replication slot %s stays; what its subscriber got of the lost transactions stays there too: drop it unless it shall be used again", slot)
		case p.d.Fork != nil && s.restart > p.d.Fork.LSN:
			p.warn("replication slot %s stays; whoever used it has WAL from behind the fork and needs a rewind too", slot)
		}
	}
}
