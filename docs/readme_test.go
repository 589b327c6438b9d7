package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeVerbs looks for each verb of the five commands, as they declare
// them, in the README's table.
func TestReadmeVerbs(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile("(?m)^\t(\\w+) +\\w+ +`cmd:\"([^\"]*)\"([^`]*)`")
	for _, command := range []string{"dbbackup", "dbrecover", "dbrewind", "dbrepl", "dbctl"} {
		source := grammar(t, command)
		row := regexp.MustCompile("(?m)^\\| `" + command + "` \\|.*$").Find(readme)
		verbs := declared.FindAllStringSubmatch(source, -1)
		if len(verbs) < 3 {
			t.Errorf("%s: only %d verbs found in its source", command, len(verbs))
		}
		for _, v := range verbs {
			verb := strings.ToLower(v[1])
			if strings.Contains(v[3], "hidden") || strings.Contains(v[3], "default") {
				continue
			}
			if !strings.Contains(string(row), "`"+verb+"`") {
				t.Errorf("README.md's table has no %s %s", command, verb)
			}
		}
	}
}

// grammar returns the declaration of a command's verbs.
func grammar(t *testing.T, command string) string {
	files, err := filepath.Glob("../cmd/" + command + "/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if m := regexp.MustCompile(`(?ms)^type commands struct \{.*?^\}`).Find(source); m != nil {
			return string(m)
		}
	}
	t.Fatalf("%s declares no verbs", command)
	return ""
}
