package cli

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/alecthomas/kong"

	"tidemark/internal/exit"
)

// Exampler is a verb, or a whole command, whose help ends with examples: one
// command a line, comments behind "#".
type Exampler interface {
	Examples() string
}

// printHelp is kong's help with the examples behind it, and for a command as
// a whole the exit codes.
func printHelp(options kong.HelpOptions, ctx *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, ctx); err != nil {
		return err
	}
	node, whole := ctx.Model.Node, true
	if n := ctx.Selected(); n != nil {
		node, whole = n, false
	}
	if ex, ok := exampler(node.Target); ok {
		fmt.Fprintf(ctx.Stdout, "\nExamples:\n")
		for _, line := range strings.Split(strings.Trim(ex.Examples(), "\n"), "\n") {
			fmt.Fprintf(ctx.Stdout, "  %s\n", strings.TrimSpace(line))
		}
	}
	if whole {
		fmt.Fprintf(ctx.Stdout, "\nExit codes:\n")
		for _, r := range exit.Table() {
			fmt.Fprintf(ctx.Stdout, "  %3d  %s\n", r.Code, r.Meaning)
		}
	}
	return nil
}

func exampler(v reflect.Value) (Exampler, bool) {
	if !v.IsValid() {
		return nil, false
	}
	if v.CanAddr() {
		v = v.Addr()
	}
	ex, ok := v.Interface().(Exampler)
	return ex, ok
}
