package cli

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"tidemark/internal/exit"
)

// TestExitCodesDocument compares docs/exit-codes.md with the table.
func TestExitCodesDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, r := range exit.Table() {
		fmt.Fprintf(&want, "| %d | `%s` | %s |\n", r.Code, r.Name, r.Meaning)
	}
	if !strings.Contains(string(text), "|---:|---|---|\n"+want.String()+"\n") {
		t.Errorf("docs/exit-codes.md does not hold this table:\n%s", want.String())
	}
}

// TestConfigurationDocument reads the example of docs/configuration.md and
// looks for every key in its table.
func TestConfigurationDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```toml\n")
	example, _, _ := strings.Cut(rest, "```")
	c, err := LoadConfig(writeConfig(t, example))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Nodes) != 2 || c.Repository.Path != "/srv/backup" {
		t.Errorf("the example reads as %+v", c)
	}
	for _, key := range knownKeys(reflect.TypeFor[Config](), "") {
		if !strings.Contains(rest, "| `"+key+"` |") {
			t.Errorf("docs/configuration.md does not explain %s", key)
		}
	}
}
