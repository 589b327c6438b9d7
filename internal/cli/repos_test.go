package cli

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"tidemark/internal/exit"
)

type reposGrammar struct {
	One  oneRepo  `cmd:""`
	Many manyRepo `cmd:""`
}

type oneRepo struct {
	Source string `name:"source-repo" type:"repository"`
}

func (c *oneRepo) Run(e *Env) error {
	return e.Render(nil, func(t *Text) { t.Line("%s", c.Source) })
}

type manyRepo struct{ ReposFlag }

func (c *manyRepo) Run(e *Env) error {
	return e.Render(nil, func(t *Text) { t.Line("%s", strings.Join(c.Repos, " | ")) })
}

// TestRepositories: --repo, TIDEMARK_REPO and the file name one repository or
// several, in that order of precedence.
func TestRepositories(t *testing.T) {
	one := writeConfig(t, "[repository]\npath = \"/file\"\n")
	several := writeConfig(t, "[repository]\npaths = [\"/file\", \"s3://b/p?endpoint=http://h,x\"]\n")
	tests := []struct {
		args string
		env  string
		want string
	}{
		{"--repo /a", "", "/a"},
		{"--repo /a --repo s3://b/p", "/env", "/a | s3://b/p"},
		{"--repo /a,sftp://h/x", "", "/a | sftp://h/x"},
		{"--repo /a,b", "", "/a,b"},
		{"", "/env,/other", "/env | /other"},
		{"--config " + one, "", "/file"},
		{"--config " + several, "", "/file | s3://b/p?endpoint=http://h,x"},
		{"--config " + several, "/env", "/env"},
		{"--config " + several + " --repo /a", "/env", "/a"},
	}
	for _, tt := range tests {
		t.Setenv("TIDEMARK_REPO", tt.env)
		if tt.env == "" {
			unset(t, "TIDEMARK_REPO")
		}
		var out, errs bytes.Buffer
		args := append([]string{"many"}, strings.Fields(tt.args)...)
		code := Run(context.Background(), "x", "", &reposGrammar{}, Streams{In: strings.NewReader(""), Out: &out, Err: &errs}, args)
		if got := strings.TrimSpace(out.String()); code != 0 || got != tt.want {
			t.Errorf("%s (env %q): %q, want %q; code %d %s", tt.args, tt.env, got, tt.want, code, &errs)
		}
	}
	for arg, want := range map[string]string{"/a": "/a", "s3://b/p,x": "s3://b/p,x", "/a,/b": ""} {
		var out, errs bytes.Buffer
		code := Run(context.Background(), "x", "", &reposGrammar{}, Streams{In: strings.NewReader(""), Out: &out, Err: &errs}, []string{"one", "--source-repo", arg})
		if got := strings.TrimSpace(out.String()); got != want || (code == 0) != (want != "") {
			t.Errorf("one repository, %s: %q, code %d %s", arg, got, code, &errs)
		}
	}
	if _, err := LoadConfig(writeConfig(t, "[repository]\npath = \"/a\"\npaths = [\"/b\"]\n")); exit.CodeOf(err) != exit.Usage {
		t.Errorf("path and paths: %v", err)
	}
	if got := splitRepos("/a,/b,s3://c/d,e"); !slices.Equal(got, []string{"/a", "/b", "s3://c/d,e"}) {
		t.Errorf("%q", got)
	}
}

func unset(t *testing.T, name string) {
	t.Setenv(name, "") // restores it afterwards
	os.Unsetenv(name)
}
