package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"tidemark/pkg/volume"
)

// AutoConfFile is the file that ALTER SYSTEM writes. It is read last: what
// stands there wins over postgresql.conf.
const AutoConfFile = "postgresql.auto.conf"

// Setting is a configuration parameter and its value; Reset removes it.
type Setting struct {
	Name  string
	Value string
	Reset bool
}

// RecoveryTargets are the settings that name a recovery target. A server that
// finds two of them set does not start.
var RecoveryTargets = []string{"recovery_target", "recovery_target_time", "recovery_target_lsn", "recovery_target_xid", "recovery_target_name"}

// recoverySettings stop recovery somewhere; a data directory that was once
// restored to a point in time may still hold them.
var recoverySettings = []string{"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time",
	"recovery_target_xid", "recovery_target_timeline", "recovery_target_inclusive", "recovery_target_action", "promote_trigger_file"}

// StandbySettings make a data directory a standby of the server that conninfo
// reaches, and remove what would stop its recovery. slot may be empty.
func StandbySettings(conninfo, slot string) []Setting {
	out := []Setting{{Name: "primary_conninfo", Value: conninfo}, {Name: "primary_slot_name", Value: slot}}
	for _, name := range recoverySettings {
		out = append(out, Setting{Name: name, Reset: true})
	}
	return out
}

// RewriteConf drops every line of a configuration file that sets one of the
// parameters and appends those that have a value. Other lines stay as they are.
func RewriteConf(old []byte, settings []Setting) []byte {
	ours := map[string]bool{}
	for _, s := range settings {
		ours[strings.ToLower(s.Name)] = true
	}
	var out strings.Builder
	for line := range strings.Lines(string(old)) {
		if name, _, ok := confLine(line); ok && ours[name] {
			continue
		}
		out.WriteString(strings.TrimRight(line, "\r\n") + "\n")
	}
	for _, s := range settings {
		if !s.Reset {
			fmt.Fprintf(&out, "%s = %s\n", s.Name, QuoteGUC(s.Value))
		}
	}
	return []byte(out.String())
}

// ConfValue returns the last value that a configuration file gives a
// parameter. It does not follow include directives.
func ConfValue(data []byte, name string) (value string, ok bool) {
	for line := range strings.Lines(string(data)) {
		if n, v, set := confLine(line); set && n == strings.ToLower(name) {
			value, ok = v, true
		}
	}
	return value, ok
}

// confLine takes a line of a configuration file apart: name = 'value', where
// the "=" may be missing and the quotes too. ok is false for other lines.
func confLine(line string) (name, value string, ok bool) {
	line = strings.TrimSpace(line)
	end := strings.IndexFunc(line, func(r rune) bool {
		return r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if end <= 0 {
		return "", "", false
	}
	name, rest := strings.ToLower(line[:end]), strings.TrimSpace(line[end:])
	rest = strings.TrimSpace(strings.TrimPrefix(rest, "="))
	if !strings.HasPrefix(rest, "'") {
		rest, _, _ = strings.Cut(rest, "#")
		return name, strings.TrimSpace(rest), true
	}
	var b strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '\\' && i+1 < len(rest):
			i++
			b.WriteByte(unescaped(rest[i]))
		case c == '\'' && i+1 < len(rest) && rest[i+1] == '\'':
			i++
			b.WriteByte('\'')
		case c == '\'':
			return name, b.String(), true
		default:
			b.WriteByte(c)
		}
	}
	return name, b.String(), true
}

func unescaped(c byte) byte {
	if i := strings.IndexByte("bfnrt", c); i >= 0 {
		return "\b\f\n\r\t"[i]
	}
	return c
}

// EditAutoConf changes settings in a data directory. The file is replaced in
// one rename and keeps its mode. A running server reads it at the next reload.
func EditAutoConf(fsys volume.FS, dir string, settings []Setting) error {
	path := filepath.Join(dir, AutoConfFile)
	old, err := volume.ReadFile(fsys, path, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	perm := fs.FileMode(0o600)
	if st, err := fsys.Stat(path); err == nil {
		perm = st.Mode().Perm()
	}
	return volume.WriteFile(fsys, path, RewriteConf(old, settings), perm)
}
