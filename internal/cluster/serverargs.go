package cluster

import (
	"os"
	"path/filepath"
	"strings"
)

// lastArguments returns what the server of a data directory was last started
// with, without its -D: postmaster.opts holds the command line, the program's
// path bare and every argument in double quotes. A server whose configuration
// lies elsewhere (-c config_file=...) would not come up without them.
func lastArguments(dir string) []string {
	b, err := os.ReadFile(filepath.Join(dir, "postmaster.opts"))
	if err != nil {
		return nil
	}
	return withoutDataDir(splitOptions(string(b)))
}

// splitOptions takes apart the quoted arguments of postmaster.opts. The server
// does not escape quotes inside them, so that an argument ends at a quote
// which is followed by a blank or the end.
func splitOptions(line string) []string {
	line = strings.TrimRight(line, "\r\n")
	var args []string
	for {
		i := strings.Index(line, ` "`)
		if i < 0 {
			return args
		}
		line = line[i+2:]
		end := strings.Index(line, `" "`)
		if end < 0 {
			return append(args, strings.TrimSuffix(line, `"`))
		}
		args = append(args, line[:end])
		line = line[end+1:]
	}
}

func withoutDataDir(args []string) []string {
	var kept []string
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "-D":
			i++
		case strings.HasPrefix(args[i], "-D"):
		default:
			kept = append(kept, args[i])
		}
	}
	return kept
}

// ConfigFile returns the postgresql.conf of a node where it lies outside the
// data directory, as the server was last told, else "".
func ConfigFile(n Node) string {
	for _, arg := range lastArguments(n.DataDir) {
		arg = strings.TrimPrefix(strings.TrimPrefix(arg, "--"), "-c")
		if v, ok := strings.CutPrefix(strings.TrimSpace(arg), "config_file="); ok {
			return v
		}
	}
	return ""
}
