package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tidemark.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigErrors(t *testing.T) {
	for _, tc := range []struct{ name, text, want, hint string }{
		{"unknown key", "[repository]\npaht = '/x'\n", `line 2: unknown key "repository.paht"`, `did you mean "repository.path"?`},
		{"far off", "zzzzzzzzzzzzz = 1\n", `unknown key "zzzzzzzzzzzzz"`, "known keys: bindir, "},
		{"wrong type", "jobs = 'many'\n", "line 1", ""},
		{"not TOML", "jobs = = 1\n", "line 1, column", ""},
		{"two of a name", "[[node]]\nname='a'\nconninfo='x'\n[[node]]\nname='a'\nconninfo='x'\n", `two nodes are named "a"`, ""},
		{"no conninfo", "[[node]]\nname='a'\n", `node "a" has no conninfo`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, stderr, code := run(t, "check", "--config", writeConfig(t, tc.text))
			if code != 64 || !strings.Contains(stderr, tc.want) || !strings.Contains(stderr, tc.hint) {
				t.Errorf("code %d, stderr %s", code, stderr)
			}
			if _, _, code := run(t, "check", "--help", "--config", writeConfig(t, tc.text)); code != 0 {
				t.Errorf("--help fails with a broken file: %d", code)
			}
		})
	}
	if _, stderr, code := run(t, "check", "--config", "/nowhere/t.toml"); code != 64 || !strings.Contains(stderr, "cannot read the configuration") {
		t.Errorf("missing file: code %d, %s", code, stderr)
	}
}

func TestPrecedence(t *testing.T) {
	path := writeConfig(t, "[repository]\npath = '/from/file'\n")
	has := func(want string, args ...string) {
		t.Helper()
		stdout, stderr, _ := run(t, append([]string{"check", "--config", path}, args...)...)
		if !strings.Contains(stdout, "repo    "+want) && !strings.Contains(stdout, "repo  "+want) {
			t.Errorf("%v: want %s, got %s%s", args, want, stdout, stderr)
		}
	}
	has("/from/file")
	t.Setenv("TIDEMARK_REPO", "/from/env")
	has("/from/env")
	has("/from/flag", "--repo", "/from/flag")
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"host=a password=secret user=b":         "host=a password=*** user=b",
		"host=a password='se cr\\'et' user=b":   "host=a password=*** user=b",
		"postgres://u:secret@h:5432/db":         "postgres://u:***@h:5432/db",
		"postgres://h/db?password=secret&x=1":   "postgres://h/db?password=***&x=1",
		"host=a sslpassword = secret user=bill": "host=a sslpassword=*** user=bill",
		"host=a user=b":                         "host=a user=b",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
}
