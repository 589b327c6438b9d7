package cli

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

// globals are the flags that every command and verb takes.
type globals struct {
	JSON     bool         `name:"json" group:"Common flags:" help:"Print one JSON document on stdout."`
	Quiet    bool         `short:"q" group:"Common flags:" help:"No progress, no notes; errors only."`
	Verbose  bool         `short:"v" group:"Common flags:" help:"Say on stderr what is being done."`
	Progress progressMode `short:"P" group:"Common flags:" help:"Show progress: --progress=auto, bar, plain or none."`
	Yes      bool         `short:"y" group:"Common flags:" help:"Answer every question with yes."`
	Config   string       `group:"Common flags:" placeholder:"FILE" env:"TIDEMARK_CONFIG" help:"Configuration file; default ./tidemark.toml, then /etc/tidemark.toml."`
	Version  versionFlag  `short:"V" group:"Common flags:" help:"Print the version."`
}

// progressMode is how progress is drawn. As a flag its value is optional and
// only taken after "=", so that pg_rewind's bare -P and --progress work too.
type progressMode string

const (
	progressAuto  progressMode = "auto"
	progressBar   progressMode = "bar"
	progressPlain progressMode = "plain"
	progressNone  progressMode = "none"
)

// Decode implements kong.MapperValue.
func (m *progressMode) Decode(ctx *kong.DecodeContext) error {
	*m = progressAuto
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		return nil
	}
	v := progressMode(ctx.Scan.Pop().String())
	switch v {
	case progressAuto, progressBar, progressPlain, progressNone:
		*m = v
		return nil
	}
	return fmt.Errorf("must be auto, bar, plain or none, not %q", string(v))
}

// IsBool tells kong that the flag may stand alone.
func (progressMode) IsBool() bool { return true }

type versionFlag bool

// BeforeReset prints the version before anything is validated.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	fmt.Fprintf(app.Stdout, "%s (Tidemark) %s\n", app.Model.Name, Version())
	app.Exit(0)
	return nil
}

// DataDirFlag names the data directory a verb works on.
type DataDirFlag struct {
	PGData string `name:"pgdata" short:"D" placeholder:"DIR" type:"path" env:"PGDATA" help:"Data directory."`
}

// DSNFlag says how to reach a server.
type DSNFlag struct {
	DSN string `name:"dsn" short:"d" placeholder:"CONNINFO" help:"Connection string or URI; libpq's environment fills in the rest."`
}

// ReposFlag names one repository or several.
type ReposFlag struct {
	Repos []string `name:"repo" placeholder:"REPO" sep:"none" type:"repository" env:"TIDEMARK_REPO" config:"repository.paths" help:"Repository: a directory, s3://BUCKET/PREFIX?endpoint=URL, or sftp://USER@HOST/PATH; may be repeated."`
}

// IdentityFlag names a file with a secret key. The key itself is never given
// on a command line.
type IdentityFlag struct {
	Identity string `name:"identity" placeholder:"FILE" type:"path" env:"TIDEMARK_IDENTITY" config:"repository.identity" help:"File with the secret key that reads an encrypted repository: of age, or of ssh."`
}

// Identities are the files with secret keys.
func (f IdentityFlag) Identities() []string {
	if f.Identity == "" {
		return nil
	}
	return []string{f.Identity}
}

// JobsFlag is the number of parallel workers; 0 lets the library choose.
type JobsFlag struct {
	Jobs int `name:"jobs" short:"j" placeholder:"N" config:"jobs" help:"Parallel workers; by default as many as the machine carries."`
}

// BindirFlag names the directory of the server's programs.
type BindirFlag struct {
	Bindir string `name:"bindir" placeholder:"DIR" type:"path" config:"bindir" help:"Directory of the server's programs; found by itself otherwise."`
}

// DryRunFlag asks for the plan alone.
type DryRunFlag struct {
	DryRun bool `name:"dry-run" short:"n" help:"Print what would be done, change nothing."`
}

// OwnerFlag names the owner of a new data directory; it matters only to root.
type OwnerFlag struct {
	Owner string `name:"owner" placeholder:"USER" help:"Run as root: the user that a new data directory belongs to; default its parent's owner."`
}

// scanFlag looks for a flag in the raw arguments, for what must be known
// before they are parsed: whether errors are to be JSON, and which
// configuration file to read.
func scanFlag(args []string, name string) (value string, found bool) {
	for i, a := range args {
		if a == "--" {
			break
		}
		if a == name {
			found = true
			if i+1 < len(args) {
				value = args[i+1]
			}
		} else if v, ok := strings.CutPrefix(a, name+"="); ok {
			value, found = v, true
		}
	}
	return value, found
}

// questionMark turns -?, which operators know from PostgreSQL's own programs,
// into --help.
func questionMark(args []string) []string {
	out := make([]string, len(args))
	copy(out, args)
	for i, a := range out {
		if a == "--" {
			break
		}
		if a == "-?" {
			out[i] = "--help"
		}
	}
	return out
}

// checkGrammar reports a flag that is spelled twice on one path of the
// grammar: kong does not see a clash with embedded flags.
func checkGrammar(app *kong.Application) error {
	var walk func(n *kong.Node, seen map[string]string) error
	walk = func(n *kong.Node, seen map[string]string) error {
		mine := make(map[string]string, len(seen))
		for k, v := range seen {
			mine[k] = v
		}
		for _, f := range n.Flags {
			names := []string{"--" + f.Name}
			for _, a := range f.Aliases {
				names = append(names, "--"+a)
			}
			if f.Short != 0 {
				names = append(names, "-"+string(f.Short))
			}
			for _, name := range names {
				if other, ok := mine[name]; ok {
					return fmt.Errorf("%s: %s is declared twice (also on %s)", n.FullPath(), name, other)
				}
				mine[name] = n.FullPath()
			}
		}
		for _, c := range n.Children {
			if err := walk(c, mine); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(app.Node, map[string]string{})
}
