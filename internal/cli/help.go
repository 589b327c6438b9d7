package cli

import (
	"fmt"

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
	if ex, ok := target[Exampler](node); ok {
		fmt.Fprintf(ctx.Stdout, "\nExamples:\n")
		for _, line := range examples(ex.Examples()) {
			fmt.Fprintf(ctx.Stdout, "  %s\n", line)
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

// target returns what a node was made from, as one of our interfaces.
func target[T any](n *kong.Node) (T, bool) {
	v := n.Target
	if v.IsValid() && v.CanAddr() {
		v = v.Addr()
	}
	if !v.IsValid() {
		var none T
		return none, false
	}
	t, ok := v.Interface().(T)
	return t, ok
}
