package cli

import (
	"reflect"
	"strings"

	"github.com/alecthomas/kong"
)

// narrow returns a grammar of only the verb that the arguments begin with, and
// the option that brings it in; the whole one where they begin otherwise. The
// server starts an archive command and a restore command for every segment, and
// a sixth of what that costs would go into verbs that nobody named.
func narrow(grammar any, args []string) (any, kong.Option) {
	none := kong.OptionFunc(func(*kong.Kong) error { return nil })
	all := reflect.ValueOf(grammar)
	if len(args) == 0 || all.Kind() != reflect.Pointer || all.Elem().Kind() != reflect.Struct {
		return grammar, none
	}
	all = all.Elem()
	for i := range all.NumField() {
		f := all.Type().Field(i)
		if strings.ToLower(f.Name) == args[0] && onlyVerb(f.Tag) && f.IsExported() {
			return &struct{}{}, kong.DynamicCommand(args[0], f.Tag.Get("help"), "", all.Field(i).Addr().Interface())
		}
	}
	return grammar, none
}

// onlyVerb tells whether a field's tag declares a verb and says nothing else of
// it than what it is good for.
func onlyVerb(tag reflect.StructTag) bool {
	help, ok := tag.Lookup("help")
	return ok && string(tag) == `cmd:"" help:"`+help+`"`
}
