package postgres

import (
	"fmt"
	"net/url"
	"os"
	"sort"
	"strings"

	"tidemark/internal/exit"
)

// ConnInfo is a libpq connection string taken apart: option name to value.
// The names are libpq's (host, port, user, dbname, password, sslmode, ...).
type ConnInfo map[string]string

// ParseConnInfo reads both of libpq's forms: "host=a port=5432" and
// "postgresql://user@host:5432/db?sslmode=require". It reads no environment,
// no service and no password file.
func ParseConnInfo(s string) (ConnInfo, error) {
	if isURI(s) {
		return parseURI(s)
	}
	return parseKeyValue(s)
}

func isURI(s string) bool {
	return strings.HasPrefix(s, "postgresql://") || strings.HasPrefix(s, "postgres://")
}

func connInfoError(format string, args ...any) error {
	return exit.New(exit.Usage, `a connection string reads "host=db1 port=5432 user=replicator" or postgresql://replicator@db1:5432/`,
		"connection string: "+format, args...)
}

// parseKeyValue reads key = value pairs; a value may stand in single quotes,
// and a backslash takes the next character as it is, as libpq does.
func parseKeyValue(s string) (ConnInfo, error) {
	c := ConnInfo{}
	isSpace := func(b byte) bool { return strings.IndexByte(" \t\n\r\v\f", b) >= 0 }
	i := 0
	skip := func() {
		for i < len(s) && isSpace(s[i]) {
			i++
		}
	}
	for skip(); i < len(s); skip() {
		start := i
		for i < len(s) && s[i] != '=' && !isSpace(s[i]) {
			i++
		}
		name := s[start:i]
		skip()
		if i == len(s) || s[i] != '=' || name == "" {
			return nil, connInfoError("no \"=\" after %q", name)
		}
		i++
		skip()
		var value strings.Builder
		quoted := i < len(s) && s[i] == '\''
		if quoted {
			i++
		}
		closed := false
		for i < len(s) {
			switch {
			case s[i] == '\\' && i+1 < len(s):
				i++
			case quoted && s[i] == '\'':
				closed = true
			case !quoted && isSpace(s[i]):
				closed = true
			}
			if closed {
				i++
				break
			}
			value.WriteByte(s[i])
			i++
		}
		if quoted && !closed {
			return nil, connInfoError("the quoted value of %q does not end", name)
		}
		c[name] = value.String()
	}
	return c, nil
}

// parseURI reads the URI form. Several hosts, a socket directory (percent
// encoded or as ?host=) and IPv6 addresses in brackets are understood.
func parseURI(s string) (ConnInfo, error) {
	c := ConnInfo{}
	_, rest, _ := strings.Cut(s, "://")
	rest, query, _ := strings.Cut(rest, "?")
	unescape := func(name, text string) error {
		v, err := url.PathUnescape(text)
		if err != nil {
			return connInfoError("bad percent encoding in its %s", name)
		}
		if v != "" {
			c[name] = v
		}
		return nil
	}
	authority, db, _ := strings.Cut(rest, "/")
	if err := unescape("dbname", db); err != nil {
		return nil, err
	}
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, password, _ := strings.Cut(authority[:at], ":")
		if err := unescape("user", user); err != nil {
			return nil, err
		}
		if err := unescape("password", password); err != nil {
			return nil, err
		}
		authority = authority[at+1:]
	}
	if authority != "" {
		var hosts, ports []string
		anyPort := false
		for _, one := range strings.Split(authority, ",") {
			host, port := one, ""
			if h, after, ok := strings.Cut(one, "]"); ok && strings.HasPrefix(h, "[") {
				host, port = h[1:], strings.TrimPrefix(after, ":")
			} else if h, p, ok := strings.Cut(one, ":"); ok {
				host, port = h, p
			}
			h, err := url.PathUnescape(host)
			if err != nil {
				return nil, connInfoError("bad percent encoding in its host")
			}
			hosts, ports = append(hosts, h), append(ports, port)
			anyPort = anyPort || port != ""
		}
		if h := strings.Join(hosts, ","); h != "" {
			c["host"] = h
		}
		if anyPort {
			c["port"] = strings.Join(ports, ",")
		}
	}
	if query == "" {
		return c, nil
	}
	for _, pair := range strings.Split(query, "&") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, connInfoError("no \"=\" in its query part")
		}
		if name == "ssl" && value == "true" { // as JDBC writes it
			name, value = "sslmode", "require"
		}
		if err := unescape(name, value); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// connInfoOrder puts the options that identify the server first.
var connInfoOrder = map[string]int{"service": -9, "host": -8, "hostaddr": -7, "port": -6, "user": -5, "password": -4, "passfile": -3, "dbname": -2}

// String returns the key=value form, quoted where needed, in a stable order.
// It holds the password if c does: use Redacted for messages.
func (c ConnInfo) String() string {
	names := make([]string, 0, len(c))
	for name := range c {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool {
		a, b := connInfoOrder[names[i]], connInfoOrder[names[j]]
		if a != b {
			return a < b
		}
		return names[i] < names[j]
	})
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = name + "=" + QuoteValue(c[name])
	}
	return strings.Join(parts, " ")
}

// With returns a copy of c with further options; an empty value removes one.
func (c ConnInfo) With(pairs ...string) ConnInfo {
	out := ConnInfo{}
	for name, value := range c {
		out[name] = value
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			delete(out, pairs[i])
			continue
		}
		out[pairs[i]] = pairs[i+1]
	}
	return out
}

// secretOptions never appear in a message, a log or JSON.
var secretOptions = []string{"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}

// Redacted returns the key=value form without secrets.
func (c ConnInfo) Redacted() string {
	out := c.With()
	for _, name := range secretOptions {
		if _, ok := out[name]; ok {
			out[name] = "********"
		}
	}
	return out.String()
}

// Redact returns a connection string without secrets. One that cannot be read
// is not shown at all.
func Redact(conninfo string) string {
	c, err := ParseConnInfo(conninfo)
	if err != nil {
		return "(unreadable connection string)"
	}
	return c.Redacted()
}

// Append adds options to a connection string of either form and returns the
// key=value form.
func Append(conninfo string, pairs ...string) (string, error) {
	c, err := ParseConnInfo(conninfo)
	if err != nil {
		return "", err
	}
	return c.With(pairs...).String(), nil
}

// QuoteValue quotes a value for the key=value form where it needs quotes.
func QuoteValue(v string) string {
	if v != "" && !strings.ContainsAny(v, " \t\n\r\v\f'\\=") {
		return v
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}

// QuoteGUC quotes a value for a line of postgresql.conf.
func QuoteGUC(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(v) + "'"
}

// notForStandby are the options that do not belong into primary_conninfo: the
// server sets or ignores them. dbname is used from 17 on only to synchronise
// slots, and is kept only when the operator gave it.
var notForStandby = []string{"replication", "fallback_application_name", "service", "servicefile", "target_session_attrs", "load_balance_hosts"}

// ForStandby returns the options that primary_conninfo needs so that a server
// reaches what conninfo and this process's environment reach. A password is
// kept only where conninfo itself gave it; one that came from a password file
// or the environment is referred to by passfile, not copied.
func ForStandby(conninfo string) (ConnInfo, error) {
	given, err := ParseConnInfo(conninfo)
	if err != nil {
		return nil, err
	}
	cfg, err := parseConfig(conninfo)
	if err != nil {
		return nil, err
	}
	c := given.With()
	for _, name := range notForStandby {
		delete(c, name)
	}
	set := func(name, value string) {
		if _, ok := c[name]; !ok && value != "" {
			c[name] = value
		}
	}
	if given["host"] == "" && given["hostaddr"] == "" {
		hosts, ports := []string{cfg.Host}, []string{fmt.Sprint(cfg.Port)}
		set("host", strings.Join(hosts, ","))
		set("port", strings.Join(ports, ","))
	}
	set("port", fmt.Sprint(cfg.Port))
	set("user", cfg.User)
	for option, variable := range map[string]string{
		"passfile": "PGPASSFILE", "sslmode": "PGSSLMODE", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslrootcert": "PGSSLROOTCERT",
		"sslcrl": "PGSSLCRL", "gssencmode": "PGGSSENCMODE", "krbsrvname": "PGKRBSRVNAME", "channel_binding": "PGCHANNELBINDING", "require_auth": "PGREQUIREAUTH",
	} {
		set(option, os.Getenv(variable))
	}
	return c, nil
}
