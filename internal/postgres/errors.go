package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"tidemark/internal/exit"
)

// Sentinels for errors.Is on what Connect and Explain return.
var (
	// ErrUnreachable is returned when no session could be opened at all.
	ErrUnreachable = errors.New("cannot connect")
	// ErrPassword is returned when the password was wrong or missing.
	ErrPassword = errors.New("password authentication failed")
	// ErrNoHBA is returned when no line of pg_hba.conf lets the session in.
	ErrNoHBA = errors.New("no pg_hba.conf entry")
	// ErrPrivilege is returned when the role may not do what was asked.
	ErrPrivilege = errors.New("missing privilege")
	// ErrStarting is returned while the server starts, stops or recovers.
	ErrStarting = errors.New("the server does not accept sessions now")
)

// classified carries one of the sentinels beside the server's own words.
type classified struct {
	kind error
	msg  string
	err  error
}

func (c *classified) Error() string   { return c.msg }
func (c *classified) Unwrap() []error { return []error{c.kind, c.err} }

// serverError returns the server's error in err, nil where there is none.
func serverError(err error) *pgconn.PgError {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg
	}
	return nil
}

// SQLState returns the five-letter code of a server's error, empty for others.
func SQLState(err error) string {
	if pg := serverError(err); pg != nil {
		return pg.Code
	}
	return ""
}

// explainConnect says why no session could be opened, and what to do.
func explainConnect(err error, cfg *pgconn.Config) error {
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	server := where(cfg)
	pg := serverError(err)
	if pg == nil {
		text := lastCause(err)
		return exit.Wrap(&classified{ErrUnreachable, text, err}, exit.Failed,
			"is the server running there, and do host, port and sslmode fit? (-d, or PGHOST, PGPORT, PGSERVICE)", "cannot connect to %s", server)
	}
	wrap := func(kind error, hint string) error {
		return exit.Wrap(&classified{kind, pg.Message, err}, exit.Failed, hint, "cannot connect to %s as %q", server, cfg.User)
	}
	replication := cfg.RuntimeParams["replication"] != ""
	switch {
	case pg.Code == "28P01":
		return wrap(ErrPassword, "put the password into ~/.pgpass (or the file named by PGPASSFILE), mode 0600")
	case pg.Code == "28000" && strings.Contains(pg.Message, "pg_hba.conf"):
		database := cfg.Database
		if replication {
			database = "replication"
		}
		return wrap(ErrNoHBA, fmt.Sprintf("add to pg_hba.conf on that server, then reload it:\nhost %s %s <this host's address>/32 scram-sha-256", database, cfg.User))
	case pg.Code == "28000" && replication, pg.Code == "42501" && replication:
		return wrap(ErrPrivilege, fmt.Sprintf("give the role the right to replicate: ALTER ROLE %s REPLICATION", QuoteIdent(cfg.User)))
	case pg.Code == "28000":
		return wrap(ErrPassword, "check the role's name (-d user=..., or PGUSER) and that it may log in")
	case pg.Code == "3D000":
		return wrap(ErrUnreachable, "name another database: -d dbname=postgres")
	case pg.Code == "53300":
		return wrap(ErrUnreachable, "raise max_connections (max_wal_senders for replication), or end sessions")
	case pg.Code == "57P03", pg.Code == "57P01", pg.Code == "57P02":
		return wrap(ErrStarting, "wait until the server has started, or look into its log")
	}
	return wrap(ErrUnreachable, pg.Hint)
}

// lastCause shortens a dial error to its cause: a refused connection is not
// told once per address of the host.
func lastCause(err error) string {
	text := strings.TrimSpace(err.Error())
	if n := strings.LastIndexByte(text, '\n'); n >= 0 {
		text = strings.TrimSpace(text[n+1:])
	}
	for _, mark := range []string{"server error: ", "dial error: ", "hostname resolving error: ", "failed to receive message: ", "tls error: "} {
		if _, after, ok := strings.Cut(text, mark); ok {
			text = after
		}
	}
	return strings.TrimSuffix(text, ")")
}

// Explain gives an error of a running session a hint where there is one.
func Explain(err error) error {
	pg := serverError(err)
	if pg == nil {
		return err
	}
	text := pg.Message
	if pg.Detail != "" {
		text += " (" + pg.Detail + ")"
	}
	switch pg.Code {
	case "42501":
		hint := "connect as a role that may, or grant it"
		if name, ok := functionOf(pg.Message); ok {
			hint = "GRANT EXECUTE ON FUNCTION pg_catalog." + name + " TO the role, or connect as a superuser"
		}
		return exit.Wrap(&classified{ErrPrivilege, text, err}, exit.Failed, hint, "missing privilege")
	case "57P01", "57P02", "57P03":
		return exit.Hint(&classified{ErrStarting, text, err}, "the server was stopped or restarted; look into its log")
	}
	return exit.Hint(&classified{err, text + " (SQLSTATE " + pg.Code + ")", err}, pg.Hint)
}

// functionOf finds the function's name in "permission denied for function f".
func functionOf(message string) (string, bool) {
	_, name, ok := strings.Cut(message, "permission denied for function ")
	if !ok {
		return "", false
	}
	switch name {
	case "pg_ls_dir":
		name += "(text, boolean, boolean)"
	case "pg_stat_file":
		name += "(text, boolean)"
	case "pg_read_binary_file":
		name += "(text, bigint, bigint, boolean)"
	}
	return name, true
}

// QuoteIdent quotes a name for SQL.
func QuoteIdent(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// QuoteLiteral quotes a text for SQL.
func QuoteLiteral(text string) string {
	return "'" + strings.ReplaceAll(text, "'", "''") + "'"
}
