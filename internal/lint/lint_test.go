package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../.."

// TestArrows checks every import of the module against the table.
func TestArrows(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		for _, imp := range p.Imports {
			if wrong := CheckImport(p.ImportPath, imp); wrong != "" {
				t.Error(wrong)
			}
		}
	}
}

func TestCheckImport(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		ok       bool
	}{
		{"tidemark/pkg/wal", "fmt", true},
		{"tidemark/pkg/wal", "tidemark/internal/exit", false},
		{"tidemark/pkg/timeline", "tidemark/pkg/wal", true},
		{"tidemark/pkg/volume", "golang.org/x/term", false},
		{"tidemark/internal/rewind", "tidemark/internal/backup", false},
		{"tidemark/internal/rewind", "tidemark/internal/blockcopy", true},
		{"tidemark/internal/cluster", "tidemark/internal/cli", false},
		{"tidemark/internal/repo/local", "tidemark/internal/repo", true},
		{"tidemark/internal/repo/local", "tidemark/internal/backup", false},
		{"tidemark/internal/new", "tidemark/pkg/wal", false},
		{"tidemark/internal/cli", "github.com/alecthomas/kong", true},
		{"tidemark/cmd/dbctl", "github.com/alecthomas/kong", false},
		{"tidemark/cmd/dbctl", "tidemark/internal/rewind", true},
		{"tidemark/cmd/dbctl", "tidemark/internal/pgtest", false},
		{"tidemark/internal/backup", "tidemark/internal/pgtest", false},
		{"tidemark/examples/writer", "tidemark/internal/pgtest", true},
	} {
		if got := CheckImport(tc.from, tc.to); (got == "") != tc.ok {
			t.Errorf("%s -> %s: %q", tc.from, tc.to, got)
		}
	}
}

// TestMainsAreThin keeps the work out of main.go.
func TestMainsAreThin(t *testing.T) {
	mains, err := filepath.Glob(filepath.Join(root, "cmd", "*", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range mains {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte("\n")); n >= 40 {
			t.Errorf("%s has %d lines; under 40 are allowed", path, n)
		}
	}
}

// TestLibrariesNeitherPrintNorExit looks at pkg/ and internal/, except for the
// packages that are there to print or to run tests.
func TestLibrariesNeitherPrintNorExit(t *testing.T) {
	for _, dir := range []string{"pkg", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			rel := filepath.ToSlash(strings.TrimPrefix(path, root+string(filepath.Separator)))
			switch {
			case err != nil:
				return err
			case d.IsDir() && (isTool(rel) || rel == "internal/cli" || d.Name() == "testdata"):
				return fs.SkipDir
			case d.IsDir() || !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go"):
				return nil
			}
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, path, nil, 0)
			if err != nil {
				return err
			}
			if f.Name.Name == "main" {
				return nil
			}
			for _, call := range LibraryCalls(f) {
				t.Errorf("%s: a library calls %s.%s", set.Position(call.Pos()), call.X.(*ast.Ident).Name, call.Sel.Name)
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
