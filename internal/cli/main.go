package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"tidemark/internal/exit"
)

// Streams are where a command reads and writes.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// Main runs a command with the process's arguments and streams and returns
// its exit status. The first SIGINT, SIGTERM or SIGHUP cancels the context so
// that the work ends cleanly, the second ends the process at once.
func Main(name, description string, grammar any) int {
	ctx, stop := withSignals(notesTo(os.Stderr, os.Args[1:]))
	defer stop()
	return Run(ctx, name, description, grammar, Streams{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:])
}

// Run is Main without the process: tests call it.
func Run(ctx context.Context, name, description string, grammar any, s Streams, args []string) int {
	_, asJSON := scanFlag(args, "--json")
	env := &Env{streams: s}
	env.globals.JSON = asJSON

	err := parseAndRun(ctx, name, description, grammar, env, questionMark(args))
	var done exited
	if errors.As(err, &done) {
		return int(done)
	}
	return env.finish(ctx, name, err)
}

// exited carries the status of --help and --version, which end the parse early.
type exited int

func (e exited) Error() string { return fmt.Sprintf("exit %d", int(e)) }

func parseAndRun(ctx context.Context, name, description string, grammar any, env *Env, args []string) error {
	conf := newResolver(args)
	grammar, verb := narrow(grammar, args)
	parser, err := kong.New(grammar,
		verb,
		kong.Name(name),
		kong.Description(description),
		kong.Embed(&env.globals),
		kong.Writers(env.streams.Out, env.streams.Err),
		kong.Exit(func(code int) { panic(exited(code)) }),
		kong.Resolvers(conf),
		kong.NamedMapper("repository", repoMapper{}),
		kong.NamedMapper("datadir", dataDirMapper{}),
		kong.Help(printHelp),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true, WrapUpperBound: 95}),
		kong.Bind(env),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err == nil {
		err = checkGrammar(parser.Model)
	}
	if err != nil {
		return fmt.Errorf("the command line of %s is declared wrongly: %w", name, err)
	}
	kctx, err := parse(parser, args)
	if err != nil {
		env.status = statusRule(failedVerb(parser, err))
		return usageError(name, err)
	}
	env.status = statusRule(kctx.Selected())
	env.config = conf.config
	return kctx.Run()
}

// Statuser is a verb that does not end with the codes of package exit but by a
// rule of its own, as one must that stands in for another program.
type Statuser interface {
	Status(code exit.Code) int
}

// statusRule returns the rule of a verb, nil where it has none.
func statusRule(verb *kong.Node) func(exit.Code) int {
	if verb == nil {
		return nil
	}
	if s, ok := target[Statuser](verb); ok {
		return s.Status
	}
	return nil
}

// failedVerb is the verb that a command line meant which could not be parsed.
func failedVerb(parser *kong.Kong, err error) *kong.Node {
	var perr *kong.ParseError
	if errors.As(err, &perr) && perr.Context != nil {
		if n := perr.Context.Selected(); n != nil {
			return n
		}
	}
	return parser.Model.DefaultCmd
}

// parse turns the panic by which --help and --version leave kong into an error.
func parse(parser *kong.Kong, args []string) (ctx *kong.Context, err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case exited:
			err = p
		default:
			panic(p)
		}
	}()
	return parser.Parse(args)
}

// usageError gives a parse error its code and says where help is. An error
// that knows its own code (the configuration file, a hook) keeps it.
func usageError(name string, err error) error {
	var done exited
	var own *exit.Error
	if errors.As(err, &done) || errors.As(err, &own) {
		return err
	}
	command := name
	var perr *kong.ParseError
	if errors.As(err, &perr) && perr.Context != nil {
		if n := perr.Context.Selected(); n != nil && n.Tag != nil && n.Tag.Default == "" {
			command = n.FullPath()
		}
	}
	return exit.Wrap(err, exit.Usage, fmt.Sprintf("try `%s --help`", command), "")
}

// finish prints what is left to print and returns the exit status.
func (e *Env) finish(ctx context.Context, name string, err error) int {
	e.closeProgress()
	code := exit.CodeOf(err)
	if code == exit.Failed && ctx.Err() != nil {
		code = exit.Interrupted
	}
	if err != nil {
		e.printError(name, code, err)
	}
	werr := e.writeDocument(code, err)
	if werr != nil {
		fmt.Fprintf(e.streams.Err, "error: cannot write the result: %v\n", werr)
		code = max(code, exit.Failed)
	}
	return e.exitStatus(code)
}

// exitStatus is what the process ends with.
func (e *Env) exitStatus(code exit.Code) int {
	if e.status != nil {
		return e.status(code)
	}
	return int(code)
}

func (e *Env) printError(name string, code exit.Code, err error) {
	msg := strings.TrimRight(err.Error(), "\n")
	if msg == "" {
		return
	}
	fmt.Fprintf(e.streams.Err, "%s: %s\n", errorPrefix(code), indentRest(msg))
	for _, line := range strings.Split(hintFor(err), "\n") {
		if line != "" {
			fmt.Fprintf(e.streams.Err, "hint: %s\n", line)
		}
	}
}

func errorPrefix(code exit.Code) string {
	switch code {
	case exit.Problem:
		return "problem"
	case exit.Partial:
		return "stopped part-way"
	case exit.RoleIncomplete:
		return "incomplete"
	case exit.Refused:
		return "refused"
	case exit.Interrupted:
		return "interrupted"
	}
	return "error"
}

func indentRest(msg string) string { return strings.ReplaceAll(msg, "\n", "\n  ") }

// notesTo is stderr unless the arguments say --quiet.
func notesTo(stderr io.Writer, args []string) io.Writer {
	_, long := scanFlag(args, "--quiet")
	_, short := scanFlag(args, "-q")
	if long || short {
		return io.Discard
	}
	return stderr
}

// withSignals returns a context that the first signal cancels.
func withSignals(stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	quit := make(chan struct{})
	go func() {
		select {
		case sig := <-ch:
			fmt.Fprintf(stderr, "\n%s: ending cleanly; a second signal ends at once\n", sig)
			cancel()
		case <-quit:
			return
		}
		select {
		case <-ch:
			os.Exit(int(exit.Interrupted))
		case <-quit:
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(quit)
		cancel()
	}
}
