package cli

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"
)

// Several repositories in one word are separated by commas. A comma counts
// only before what begins the name of a repository: it may stand in one.
var repoComma = regexp.MustCompile(`,(/|[a-z0-9]+://)`)

// splitRepos splits the names of several repositories.
func splitRepos(s string) []string {
	var out []string
	for {
		at := repoComma.FindStringIndex(s)
		if at == nil {
			return append(out, s)
		}
		out, s = append(out, s[:at[0]]), s[at[0]+1:]
	}
}

// repoMapper decodes the names of repositories: --repo into a slice, and a flag
// that takes one only into a string.
type repoMapper struct{}

// Decode implements kong.Mapper.
func (repoMapper) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	t, err := ctx.Scan.PopValue("repository")
	if err != nil {
		return err
	}
	var names []string
	switch v := t.Value.(type) {
	case string:
		names = splitRepos(v)
	case []string: // of the configuration
		names = v
	default:
		return fmt.Errorf("a repository is a text, not %v", v)
	}
	if target.Kind() == reflect.Slice {
		target.Set(reflect.AppendSlice(target, reflect.ValueOf(names).Convert(target.Type())))
		return nil
	}
	if len(names) > 1 {
		return fmt.Errorf("%s are several repositories, and one is meant", strings.Join(names, ", "))
	}
	target.SetString(names[0])
	return nil
}
