package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"tidemark/internal/exit"
)

type demoGrammar struct {
	Check checkCmd `cmd:"" help:"Check something."`
	Run   runCmd   `cmd:"" default:"withargs" help:"Do something."`
}

type checkCmd struct {
	DataDirFlag
	ReposFlag
	Fail string `help:"How to end."`
}

func (checkCmd) Examples() string { return "demo check -D /srv/alpha   # compares" }

func (c *checkCmd) Run(ctx context.Context, e *Env) error {
	switch c.Fail {
	case "refused":
		return exit.New(exit.Refused, "stop the server first", "the server of %s runs", c.PGData)
	case "problem":
		if err := e.Render(map[string]any{"diverged": true}, func(t *Text) { t.Line("diverged") }); err != nil {
			return err
		}
		return exit.New(exit.Problem, "", "it diverged")
	case "plain":
		return errors.New("disk on fire")
	case "silent":
		return &exit.Error{Code: 200}
	}
	return e.Render(map[string]any{"pgdata": c.PGData, "repo": strings.Join(c.Repos, ",")}, func(t *Text) { t.KV("pgdata", c.PGData, "repo", strings.Join(c.Repos, ",")) })
}

type runCmd struct {
	DryRunFlag
	Target string `name:"target-pgdata" short:"D" required:""`
	Source string `name:"source-server"`
}

func (c *runCmd) Run(e *Env) error {
	if c.Target == "busy" {
		return exit.New(exit.Refused, "", "it is busy")
	}
	return e.Render(c, func(t *Text) { t.Line("run %s %s %v %s", c.Target, c.Source, c.DryRun, e.globals.Progress) })
}

// Status is the rule of the program that the verb stands in for.
func (runCmd) Status(code exit.Code) int { return min(int(code), 1) }

func run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errb bytes.Buffer
	code = Run(context.Background(), "demo", "A demonstration.", &demoGrammar{}, Streams{strings.NewReader(""), &out, &errb}, args)
	return out.String(), errb.String(), code
}

func TestRun(t *testing.T) {
	t.Setenv("PGDATA", "")
	for _, tc := range []struct {
		args           string
		code           int
		stdout, stderr string // substrings; "" means the stream is empty
	}{
		{"check -D /srv/a", 0, "pgdata  /srv/a", ""},
		{"check --pgdata=/srv/a --fail refused", 6, "", "refused: the server of /srv/a runs\nhint: stop the server first\n"},
		{"check --fail problem", 3, "diverged\n", "problem: it diverged\n"},
		{"check --fail plain", 1, "", "error: disk on fire\n"},
		{"check --fail silent", 200, "", ""},
		{"check --nonsense", 64, "", "hint: try `demo check --help`\n"},
		{"nonsense", 1, "", "hint: try `demo --help`\n"},
		{"-D /srv/a --source-server=host=b -n -P", 0, "run /srv/a host=b true auto\n", ""},
		{"--target-pgdata /srv/a --progress --source-server x", 0, "run /srv/a x false auto\n", ""},
		{"-D /srv/a --progress=plain", 0, "plain\n", ""},
		{"-D busy", 1, "", "refused: it is busy\n"},
		{"-D /srv/a --progress=loud", 1, "", "must be auto, bar, plain or none"},
		{"--source-server=x", 1, "", "missing flags"},
		{"check --help", 0, "Examples:\n  demo check -D /srv/alpha  # compares\n", ""},
		{"-?", 0, "Exit codes:\n    0  done", ""},
		{"--version", 0, "demo (Tidemark) " + release, ""},
		{"check -V", 0, "demo (Tidemark) " + release, ""},
	} {
		t.Run(tc.args, func(t *testing.T) {
			stdout, stderr, code := run(t, strings.Fields(tc.args)...)
			if code != tc.code {
				t.Errorf("code %d, want %d", code, tc.code)
			}
			for what, pair := range map[string][2]string{"stdout": {stdout, tc.stdout}, "stderr": {stderr, tc.stderr}} {
				if pair[1] == "" && pair[0] != "" || !strings.Contains(pair[0], pair[1]) {
					t.Errorf("%s is %q, want %q in it", what, pair[0], pair[1])
				}
			}
		})
	}
}

func TestJSON(t *testing.T) {
	for _, tc := range []struct {
		args, want string
	}{
		{"check --json -D /srv/a", `{"pgdata":"/srv/a","repo":""}`},
		{"check --json --fail problem", `{"diverged":true,"error":{"code":3,"name":"problem","message":"it diverged"}}`},
		{"check --fail refused --json -D /x", `{"error":{"code":6,"name":"refused","message":"the server of /x runs","hint":"stop the server first"}}`},
		{"-D busy --json", `{"error":{"code":1,"name":"refused","message":"it is busy"}}`},
		{"check --json --nonsense", `{"error":{"code":64,"name":"usage","message":"unknown flag --nonsense","hint":"try ` + "`demo check --help`" + `"}}`},
	} {
		t.Run(tc.args, func(t *testing.T) {
			stdout, _, _ := run(t, strings.Fields(tc.args)...)
			var b bytes.Buffer
			if err := json.Compact(&b, []byte(stdout)); err != nil {
				t.Fatalf("%v: %q", err, stdout)
			}
			if b.String() != tc.want {
				t.Errorf("got  %s\nwant %s", b.String(), tc.want)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, errb bytes.Buffer
	code := Run(ctx, "demo", "", &demoGrammar{}, Streams{strings.NewReader(""), &out, &errb}, []string{"check", "--fail", "plain"})
	if code != 130 {
		t.Errorf("code %d after a signal, want 130", code)
	}
}

func TestDoubleFlag(t *testing.T) {
	type bad struct {
		Verb struct {
			Yell bool `short:"y"`
		} `cmd:""`
	}
	var out, errb bytes.Buffer
	code := Run(context.Background(), "demo", "", &bad{}, Streams{strings.NewReader(""), &out, &errb}, []string{"verb"})
	if code != 1 || !strings.Contains(errb.String(), "-y is declared twice") {
		t.Errorf("code %d, %s", code, errb.String())
	}
}
