package cli

import (
	"fmt"
	"os"
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
