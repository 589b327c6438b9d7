// Package lint keeps the shape of the tree: which package may import which,
// who may use the libraries that talk to people, and how small a command's
// main.go stays. Its test is run by `make lint` and with every `go test`.
package lint

import (
	"fmt"
	"go/ast"
	"strings"
)

// module is the path in go.mod.
const module = "tidemark/"

// The packages that others stand on.
var (
	public = []string{"pkg/wal", "pkg/timeline", "pkg/volume"}
	plain  = []string{"internal/exit", "internal/progress"}
	engine = append(append([]string{"internal/blockcopy"}, public...), plain...)
	ground = append([]string{"internal/postgres", "internal/repo", "internal/ssh", "internal/catalog", "internal/walguard"}, engine...)
)

// arrows says what each package may import of ours. A package that is not in
// the table may import nothing of ours, cmd/ excepted.
var arrows = map[string][]string{
	"pkg/wal":              {},
	"pkg/timeline":         {"pkg/wal"},
	"pkg/volume":           {"pkg/wal", "pkg/timeline"},
	"internal/exit":        {},
	"internal/progress":    {},
	"internal/catalog":     public,
	"internal/walguard":    {"pkg/wal"},
	"internal/blockcopy":   append(append([]string{}, public...), plain...),
	"internal/postgres":    engine,
	"internal/ssh":         engine,
	"internal/repo":        append([]string{"internal/ssh"}, engine...),
	"internal/backup":      ground,
	"internal/recovery":    ground,
	"internal/rewind":      ground,
	"internal/replication": ground,
	"internal/cluster":     ground,
	"internal/cli":         plain,
}

// tools are programs and test helpers: they may import anything of ours, and
// only tests and other tools may import them.
var tools = []string{"cmd", "examples", "testdata", "bench", "internal/pgtest", "internal/lint"}

// people are the libraries that only internal/cli uses.
var people = []string{
	"github.com/alecthomas/kong",
	"github.com/schollz/progressbar",
	"github.com/dustin/go-humanize",
	"github.com/pelletier/go-toml",
	"golang.org/x/term",
}

// CheckImport returns what is wrong with a package's import of another, or "".
// Paths are import paths; imports of the standard library are always right.
func CheckImport(from, to string) string {
	from, ours := strings.CutPrefix(from, module)
	if !ours {
		return ""
	}
	target, ours := strings.CutPrefix(to, module)
	if !ours {
		for _, lib := range people {
			if inside(to, lib) && from != "internal/cli" {
				return fmt.Sprintf("%s imports %s: only internal/cli talks to people", from, to)
			}
		}
		return ""
	}
	if isTool(from) {
		if strings.HasPrefix(from, "cmd/") && isTool(target) {
			return fmt.Sprintf("%s imports %s, which is for tests", from, target)
		}
		return ""
	}
	for _, parent := range append([]string{from}, above(from)...) {
		allowed, known := arrows[parent]
		if !known {
			continue
		}
		for _, a := range append([]string{parent}, allowed...) {
			if inside(target, a) {
				return ""
			}
		}
		return fmt.Sprintf("%s imports %s; it may import %s", from, target, list(allowed))
	}
	return fmt.Sprintf("%s is not in the table of arrows and imports %s", from, target)
}

func isTool(path string) bool {
	for _, t := range tools {
		if inside(path, t) {
			return true
		}
	}
	return false
}

// inside tells whether path is dir or below it.
func inside(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// above lists the directories over a package, nearest first.
func above(path string) []string {
	var out []string
	for i := strings.LastIndexByte(path, '/'); i > 0; i = strings.LastIndexByte(path, '/') {
		path = path[:i]
		out = append(out, path)
	}
	return out
}

func list(allowed []string) string {
	if len(allowed) == 0 {
		return "nothing of ours"
	}
	return strings.Join(allowed, ", ")
}

// forbidden calls end the process or print; a library does neither.
var forbidden = map[string]bool{
	"os.Exit": true, "fmt.Print": true, "fmt.Println": true, "fmt.Printf": true,
	"log.Print": true, "log.Println": true, "log.Printf": true,
	"log.Fatal": true, "log.Fatalf": true, "log.Fatalln": true, "log.Panic": true, "log.Panicf": true,
}

// LibraryCalls returns the calls in a file that a library must not make.
func LibraryCalls(f *ast.File) []*ast.SelectorExpr {
	var found []*ast.SelectorExpr
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Obj == nil && forbidden[pkg.Name+"."+sel.Sel.Name] {
			found = append(found, sel)
		}
		return true
	})
	return found
}
