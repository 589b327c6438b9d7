package main

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/replication"
)

// localFlags name a standby on this machine.
type localFlags struct {
	cli.DataDirFlag
	cli.DSNFlag
	cli.BindirFlag
	ConfigFile string        `name:"config-file" placeholder:"FILE" type:"path" help:"The server's postgresql.conf where it lies outside the data directory."`
	Timeout    time.Duration `name:"timeout" placeholder:"DURATION" help:"How long to wait; default one minute."`
}

func (f *localFlags) options(e *cli.Env) replication.StandbyOptions {
	return replication.StandbyOptions{Dir: f.PGData, ConnInfo: f.DSN, Bindir: f.Bindir, ConfigFile: f.ConfigFile, Timeout: f.Timeout,
		Progress: e.Progress(), Log: e.Log()}
}

// dataDir checks that a directory is named, and becomes its owner.
func (f *localFlags) dataDir() error {
	if f.PGData == "" {
		return exit.New(exit.Usage, "name it with -D DIR, or in PGDATA", "no data directory is given")
	}
	return cli.BecomeOwner(f.PGData, "")
}

// commandLine is how a shell takes this command again, without passwords.
func commandLine(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		switch name, value, ok := strings.Cut(a, "="); {
		case i == 0:
			a = filepath.Base(a)
		case args[i-1] == "-d" || args[i-1] == "--dsn":
			a = cli.Redact(a)
		case ok && name == "--dsn":
			a = name + "=" + cli.Redact(value)
		case strings.HasPrefix(a, "-d") && !strings.HasPrefix(a, "--"):
			a = "-d" + cli.Redact(strings.TrimPrefix(a, "-d"))
		}
		words[i] = quote(a)
	}
	return strings.Join(words, " ")
}

func quote(word string) string {
	if word != "" && !strings.ContainsAny(word, " \t\n'\"\\$`*?[]{}()<>|&;#~!") {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func thisCommand() string { return commandLine(os.Args) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
