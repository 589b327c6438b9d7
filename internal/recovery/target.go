package recovery

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"tidemark/pkg/wal"
)

// Kind is how a target is named.
type Kind string

// The kinds of targets; the values are part of the JSON output.
const (
	Latest    Kind = "latest"    // the end of the archived WAL
	Immediate Kind = "immediate" // as soon as the backup is consistent
	AtTime    Kind = "time"
	AtLSN     Kind = "lsn"
	AtXID     Kind = "xid"
	AtName    Kind = "name" // a restore point
)

// Target is where replay stops. The zero value is the end of the WAL.
type Target struct {
	Kind      Kind      `json:"kind"`                // latest, immediate, time, lsn, xid or name
	Time      time.Time `json:"time,omitzero"`       // for a time
	LSN       wal.LSN   `json:"lsn,omitzero"`        // for an LSN
	XID       uint32    `json:"xid,omitempty"`       // for a transaction
	Name      string    `json:"name,omitempty"`      // of a restore point
	Exclusive bool      `json:"exclusive,omitempty"` // stop just before the target, not just after it
}

// String names the target for people.
func (t Target) String() string {
	before := ""
	if t.Exclusive {
		before = "just before "
	}
	switch t.Kind {
	case Immediate:
		return "the end of the backup"
	case AtTime:
		return before + settingTime(t.Time)
	case AtLSN:
		return before + "LSN " + t.LSN.String()
	case AtXID:
		return before + "transaction " + strconv.FormatUint(uint64(t.XID), 10)
	case AtName:
		return fmt.Sprintf("restore point %q", t.Name)
	}
	return "the end of the archived WAL"
}

// settingTime formats a time as the server reads it whatever its time zone is.
func settingTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.999999") + "+00" }

// timeForms are the notations of a time that ParseTime takes. Those without a
// zone mean the zone of this machine.
var timeForms = []string{
	"2006-01-02 15:04:05.999999999-07", "2006-01-02 15:04:05.999999999-07:00", "2006-01-02 15:04:05.999999999-0700",
	"2006-01-02 15:04:05.999999999 -07:00", "2006-01-02 15:04:05.999999999 -0700",
	"2006-01-02 15:04:05.999999999 UTC", "2006-01-02 15:04:05.999999999Z",
	"2006-01-02 15:04:05.999999999", "2006-01-02 15:04", "2006-01-02",
}

// ParseTime reads a point in time: RFC 3339, or as PostgreSQL prints it,
// "2026-11-21 22:50:01.5+00". Without a zone it is local time.
func ParseTime(s string) (time.Time, error) {
	text := strings.TrimSpace(s)
	if len(text) > 10 && text[10] == 'T' {
		text = text[:10] + " " + text[11:]
	}
	for _, form := range timeForms {
		if t, err := time.ParseInLocation(form, text, time.Local); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf(`%q is not a time: write it as 2026-11-21T22:50:01Z or "2026-11-21 22:50:01+00"`, s)
}

// settings returns the server's settings for the target.
func (t Target) settings() map[string]string {
	m := map[string]string{}
	switch t.Kind {
	case Immediate:
		m["recovery_target"] = "immediate"
	case AtTime:
		m["recovery_target_time"] = settingTime(t.Time)
	case AtLSN:
		m["recovery_target_lsn"] = t.LSN.String()
	case AtXID:
		m["recovery_target_xid"] = strconv.FormatUint(uint64(t.XID), 10)
	case AtName:
		m["recovery_target_name"] = t.Name
	}
	if t.Exclusive {
		m["recovery_target_inclusive"] = "false"
	}
	return m
}
