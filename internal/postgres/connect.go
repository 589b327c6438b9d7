package postgres

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// applicationName is what sessions call themselves where nothing else is given.
const applicationName = "tidemark"

// libpqOnly are connection options of libpq's that the server does not know and
// that this client has no use for; sent along they would be refused as unknown
// configuration parameters.
var libpqOnly = []string{
	"fallback_application_name", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
	"gssencmode", "gsslib", "gssdelegation", "sslcompression", "sslcrl", "sslcrldir", "ssl_min_protocol_version", "ssl_max_protocol_version",
	"requirepeer", "load_balance_hosts", "hostaddr", "authtype", "requiressl", "client_encoding", "sslkeylogfile",
}

// parseConfig turns a connection string and libpq's environment (PGHOST,
// PGSERVICE, PGPASSFILE, ...) into a configuration.
func parseConfig(conninfo string) (*pgconn.Config, error) {
	given, err := ParseConnInfo(conninfo)
	if err != nil {
		return nil, err
	}
	if given["hostaddr"] != "" { // the address wins over the name, as in libpq
		given = given.With("host", given["hostaddr"], "hostaddr", "")
	}
	cfg, err := pgconn.ParseConfig(given.String())
	if err != nil {
		return nil, connInfoError("%s", scrub(err.Error(), given))
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = applicationName
		if name := cfg.RuntimeParams["fallback_application_name"]; name != "" {
			cfg.RuntimeParams["application_name"] = name
		}
	}
	if given["dbname"] == "" && os.Getenv("PGDATABASE") == "" && cfg.Database == "" {
		cfg.Database = "postgres"
	}
	for _, name := range libpqOnly {
		delete(cfg.RuntimeParams, name)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 30 * time.Second
	}
	return cfg, nil
}

// scrub removes secrets from a text that may quote the connection string.
func scrub(text string, c ConnInfo) string {
	for _, name := range secretOptions {
		if v := c[name]; v != "" {
			text = strings.ReplaceAll(text, v, "********")
		}
	}
	return text
}

// Connect opens a session. conninfo may be empty: then libpq's environment and
// defaults apply. The session has no time-outs, waits for no synchronous
// standby, and looks up names in pg_catalog only. Errors say what is wrong and
// what to do, and never hold a password.
func Connect(ctx context.Context, conninfo string) (*pgx.Conn, error) {
	return connect(ctx, conninfo, 0)
}

// connect is Connect with a buffer for large answers.
func connect(ctx context.Context, conninfo string, readBuffer int) (*pgx.Conn, error) {
	pc, err := parseConfig(conninfo)
	if err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig("")
	if err != nil {
		return nil, connInfoError("%s", err)
	}
	cfg.Config = *pc
	if readBuffer > 0 {
		cfg.BuildFrontend = buffered(readBuffer)
	}
	// A pooler between us and the server loses prepared statements.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, explainConnect(err, pc)
	}
	if err := prepareSession(ctx, conn.PgConn()); err != nil {
		conn.Close(context.WithoutCancel(ctx))
		return nil, explainConnect(err, pc)
	}
	return conn, nil
}

// buffered reads from the server through a buffer of so many bytes.
func buffered(size int) pgconn.BuildFrontendFunc {
	return func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, size), w)
	}
}

// prepareSession makes the session independent of the server's defaults.
func prepareSession(ctx context.Context, conn *pgconn.PgConn) error {
	major := ServerMajor(conn)
	settings := []string{
		"statement_timeout = 0",      // first: it counts for what follows
		"synchronous_commit = local", // a role change must not wait for the standby it talks about
		"lock_timeout = 0", "idle_in_transaction_session_timeout = 0",
		"search_path = pg_catalog", "client_min_messages = error", "datestyle = iso", "default_transaction_read_only = off",
		"jit = off", // compiling the walk over the files takes longer than the walk
	}
	if major >= 14 {
		settings = append(settings, "idle_session_timeout = 0")
	}
	if major >= 17 {
		settings = append(settings, "transaction_timeout = 0")
	}
	for try := 0; ; try++ {
		_, err := conn.Exec(ctx, "SET "+strings.Join(settings, "; SET ")).ReadAll()
		var pgErr *pgconn.PgError
		if err == nil || try == prepareTries || !errors.As(err, &pgErr) || pgErr.Code != "57014" {
			return err
		}
	}
}

// prepareTries is how often the role's own statement_timeout may cut off even
// its being switched off.
const prepareTries = 10

// ServerMajor returns the major version of the server at the other end, 0 where
// it does not say.
func ServerMajor(conn *pgconn.PgConn) int {
	digits, _, _ := strings.Cut(conn.ParameterStatus("server_version"), ".")
	if n := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); n >= 0 {
		digits = digits[:n] // "18beta1", "15 (Debian ...)"
	}
	n, _ := strconv.Atoi(digits)
	return n
}

// Query runs one statement and scans its single row into dest.
func Query(ctx context.Context, conn *pgx.Conn, sql string, args []any, dest ...any) error {
	if err := conn.QueryRow(ctx, sql, args...).Scan(dest...); err != nil {
		return Explain(err)
	}
	return nil
}

// Exec runs one statement.
func Exec(ctx context.Context, conn *pgx.Conn, sql string, args ...any) error {
	_, err := conn.Exec(ctx, sql, args...)
	return Explain(err)
}

// where names the server of a configuration for messages.
func where(cfg *pgconn.Config) string {
	if strings.HasPrefix(cfg.Host, "/") {
		return fmt.Sprintf("the server on socket %s/.s.PGSQL.%d", cfg.Host, cfg.Port)
	}
	return fmt.Sprintf("the server on %s port %d", cfg.Host, cfg.Port)
}
