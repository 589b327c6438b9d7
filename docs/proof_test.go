package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// refusalRows returns the first column of the table with "it says" in a document.
func refusalRows(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(data), "\n| it says |")
	table, _, _ = strings.Cut(table, "\n\n")
	if !found {
		t.Fatalf("%s has no table of refusals", path)
	}
	var rows []string
	for _, line := range strings.Split(table, "\n")[2:] {
		says, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " |")
		rows = append(rows, says)
	}
	return rows
}

// TestRefusalsProved holds the runbook's table of refusals against the list of
// their tests, and its words against the product's.
func TestRefusalsProved(t *testing.T) {
	shown, proved := refusalRows(t, "runbooks/rewind.md"), refusalRows(t, "guides/rewind-proof.md")
	if !slices.Equal(shown, proved) {
		t.Errorf("the runbook names\n%s\nand rewind-proof.md\n%s", strings.Join(shown, "\n"), strings.Join(proved, "\n"))
	}
	var source strings.Builder
	for _, dir := range []string{"rewind", "blockcopy", "postgres"} {
		files, err := filepath.Glob("../internal/" + dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(data)
		}
	}
	text := regexp.MustCompile(`%[a-z]`).ReplaceAllString(source.String(), "%")
	// What differs from case to case stands in the document as an example.
	example := regexp.MustCompile(`\.\.\.|\b\d+\b|\b(file|directory)\b|; or |: |, and |, |after the rewind`)
	for _, says := range shown {
		for _, part := range example.Split(says, -1) {
			if part = strings.TrimSpace(part); part != "" && !strings.Contains(text, part) {
				t.Errorf("no message says %q (%s)", part, says)
			}
		}
	}
}

// TestProofExists looks for each test, and each case of one, that the documents
// of proof name.
func TestProofExists(t *testing.T) {
	have := map[string]bool{}
	var all strings.Builder
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(data), -1) {
			have[m[1]] = true
		}
		all.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"guides/rewind-proof.md", "guides/backup-proof.md"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(data), -1)
		if len(named) < 50 {
			t.Errorf("%s names only %d tests", path, len(named))
		}
		for _, m := range named {
			if !have[m[1]] {
				t.Errorf("%s names %s, which is no test", path, m[1])
			}
		}
		for _, m := range regexp.MustCompile("\\| `([a-zA-Z ]+)` \\|\n").FindAllStringSubmatch(string(data), -1) {
			if !have[m[1]] && !strings.Contains(all.String(), `{"`+m[1]+`", `) {
				t.Errorf("%s names the case %q, which no test has", path, m[1])
			}
		}
	}
}
