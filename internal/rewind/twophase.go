package rewind

import (
	"strconv"
	"strings"
)

// preparedLater recognises the state file of a prepared transaction that the
// checkpoint which replay begins with does not know. Replay makes it again; with
// the file in place PostgreSQL 18 takes it for the future's, fails to remove it, and
// then loses the prepared transaction. The names are eight digits of the
// transaction ID up to 16, sixteen with its epoch since.
func (p *planner) preparedLater(path string) bool {
	name, ok := strings.CutPrefix(path, "pg_twophase/")
	if !ok || p.d.Start == nil || p.d.Start.nextXID == 0 {
		return false
	}
	xid, err := strconv.ParseUint(name, 16, 64)
	switch {
	case err != nil:
		return false
	case len(name) == 16:
		return xid >= p.d.Start.nextXID
	case len(name) == 8: // IDs go round: the nearer half is the future
		return int32(uint32(xid)-uint32(p.d.Start.nextXID)) >= 0
	}
	return false
}
