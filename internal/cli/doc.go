// Package cli is the one place where the five commands meet their operator:
// the command line, tidemark.toml, exit codes, text and JSON output, progress,
// prompts and signals. Nothing below cmd/ and this package knows a flag, prints
// a line or ends the process.
//
// A command is a struct of verbs, each verb a struct of flags with a Run method:
//
//	type commands struct {
//		Create createCmd `cmd:"" help:"Take an online backup."`
//	}
//
//	type createCmd struct {
//		cli.DSNFlag
//		cli.ReposFlag
//		cli.JobsFlag
//	}
//
//	func (c *createCmd) Run(ctx context.Context, e *cli.Env) error {
//		result, err := backup.Create(ctx, backup.Options{
//			Jobs: c.Jobs, Progress: e.Progress(), Log: e.Log(),
//		})
//		if err != nil {
//			return err
//		}
//		return e.Render(result, func(t *cli.Text) {
//			t.Line("Backup %s is complete.", result.ID)
//			t.KV("size", cli.Bytes(result.Size), "took", cli.Duration(result.Took))
//		})
//	}
//
//	func (createCmd) Examples() string { return "dbbackup create --repo /srv/backup" }
//
//	func main() { os.Exit(cli.Main("dbbackup", "Online backup of PostgreSQL.", &commands{})) }
//
// # Flags that mean the same everywhere
//
// Every command takes --json, -q/--quiet, -v/--verbose, -P/--progress[=MODE],
// -y/--yes, --config FILE, -V/--version and -h/-?/--help. A verb that needs one of the
// following embeds its struct instead of spelling the flag again:
//
//	-D, --pgdata DIR      DataDirFlag   the data directory (environment PGDATA)
//	-d, --dsn CONNINFO    DSNFlag       a libpq connection string or URI; what it leaves
//	                                    open comes from PGHOST, PGSERVICE, PGPASSFILE, ...
//	    --repo DIR        ReposFlag     the repositories (environment TIDEMARK_REPO)
//	    --jobs N          JobsFlag      parallel workers
//	    --bindir DIR      BindirFlag    the server's programs
//	-n, --dry-run         DryRunFlag    print the plan, change nothing
//	    --owner USER      OwnerFlag     who a new data directory belongs to, when run as root
//
// Each is taken from the command line, else from the environment, else from
// tidemark.toml, else it has its default. A flag of a verb's own is read from
// the file when it carries a tag such as `config:"retention.keep_last"`.
//
// # Output
//
// Result goes to stdout, everything else to stderr. Without --json, Render
// calls the text function. With --json stdout holds exactly one document: the
// verb's result, and where the exit code is not 0 its member "error":
//
//	{"error": {"code": 6, "name": "refused", "message": "...", "hint": "..."}}
//
// A verb that streams (Stream) prints one compact document a line instead.
//
// # Errors
//
// A verb returns an error; this package turns it into the exit code (package
// exit), one "error:" line and "hint:" lines on stderr. An *exit.Error without
// message and cause sets the code and says nothing.
package cli
