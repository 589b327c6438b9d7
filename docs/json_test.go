// Package docs tests that the documents say what the code does.
package docs

import (
	"encoding"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"tidemark/internal/cli"
)

var update = flag.Bool("update", false, "write the tables of json.md anew")

const marker = "<!-- From here on written by `go test ./docs -update`, from the result types and their comments. -->\n"

// TestJSON compares the field tables of json.md with the result types of the
// verbs: the field names by their tags, the meanings by their comments.
func TestJSON(t *testing.T) {
	old, err := os.ReadFile("json.md")
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(old), marker)
	if !ok {
		t.Fatal("json.md has lost its marker")
	}
	var b strings.Builder
	b.WriteString(head + marker)
	g := generator{comments: map[string]map[string]string{}}
	for _, v := range documents {
		fmt.Fprintf(&b, "\n## %s\n\n| field | type | meaning |\n|---|---|---|\n", v.verb)
		rows, err := g.rows(reflect.TypeOf(v.document), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", r.field, r.kind, r.meaning)
			if r.meaning == "" {
				t.Errorf("%s: the field %s has no comment", v.verb, r.field)
			}
		}
	}
	if *update {
		if err := os.WriteFile("json.md", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if b.String() != string(old) {
		t.Error("json.md does not say what the code prints: run `go test ./docs -update` and look at the difference")
	}
}

type row struct{ field, kind, meaning string }

type generator struct {
	comments map[string]map[string]string // package path -> Type.Field -> comment
}

// rows lists the fields of a document, those of nested objects behind theirs.
func (g *generator) rows(t reflect.Type, prefix string) ([]row, error) {
	t = elem(t)
	var out []row
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" || !f.IsExported() {
			continue
		}
		if f.Anonymous && tag == "" {
			rows, err := g.rows(f.Type, prefix)
			if err != nil {
				return nil, err
			}
			out = append(out, rows...)
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		comment, err := g.comment(t, f.Name)
		if err != nil {
			return nil, err
		}
		if comment == "" {
			comment = plain[tag]
		}
		kind, inner := kindOf(f.Type)
		out = append(out, row{prefix + tag, kind, comment})
		if inner == nil {
			continue
		}
		suffix := "."
		if strings.HasPrefix(kind, "list") {
			suffix = "[]."
		}
		if strings.HasPrefix(kind, "map") {
			suffix = ".*."
		}
		rows, err := g.rows(inner, prefix+tag+suffix)
		if err != nil {
			return nil, err
		}
		out = append(out, rows...)
	}
	return out, nil
}

func elem(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

var (
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	longList      = reflect.TypeFor[cli.LongList]()
)

// kindOf names a type as JSON shows it, and returns the object inside.
func kindOf(t reflect.Type) (kind string, inner reflect.Type) {
	t = elem(t)
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "time", nil
	case t.Implements(textMarshaler), reflect.PointerTo(t).Implements(textMarshaler):
		if t.Name() == "LSN" {
			return "LSN", nil
		}
		return "string", nil
	case elements(t) != nil:
		kind, inner := kindOf(elements(t))
		return "list of " + plural(kind), inner
	case t.Implements(jsonMarshaler):
		return "value", nil
	}
	switch t.Kind() {
	case reflect.Bool:
		return "boolean", nil
	case reflect.String:
		return "string", nil
	case reflect.Float32, reflect.Float64:
		return "number", nil
	case reflect.Struct:
		return "object", t
	case reflect.Slice, reflect.Array:
		kind, inner := kindOf(t.Elem())
		return "list of " + plural(kind), inner
	case reflect.Map:
		kind, inner := kindOf(t.Elem())
		return "map of " + plural(kind), inner
	case reflect.Interface:
		return "value", nil
	}
	return "integer", nil
}

// elements is what a list that is written element by element holds, nil for
// every other type.
func elements(t reflect.Type) reflect.Type {
	t = reflect.PointerTo(t)
	if !t.Implements(longList) {
		return nil
	}
	all, _ := t.MethodByName("All")
	return all.Type.Out(0).In(0).In(0) // of func(yield func(T) bool)
}

func plural(kind string) string {
	if strings.HasPrefix(kind, "list of ") || strings.HasPrefix(kind, "map of ") {
		return strings.Replace(kind, " of ", "s of ", 1)
	}
	return kind + "s"
}

// comment returns the comment of a struct's field, read from its source.
func (g *generator) comment(t reflect.Type, field string) (string, error) {
	pkg := t.PkgPath()
	if g.comments[pkg] == nil {
		c, err := readComments(filepath.Join("..", strings.TrimPrefix(pkg, "tidemark/")))
		if err != nil {
			return "", err
		}
		g.comments[pkg] = c
	}
	return g.comments[pkg][t.Name()+"."+field], nil
}

func readComments(dir string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			st, ok := spec.Type.(*ast.StructType)
			if !ok {
				return false
			}
			for _, field := range st.Fields.List {
				for _, name := range field.Names {
					text := field.Comment.Text()
					if text == "" {
						text = field.Doc.Text()
					}
					out[spec.Name.Name+"."+name.Name] = strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
				}
			}
			return false
		})
	}
	return out, nil
}
