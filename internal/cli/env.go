package cli

import (
	"encoding/json"
	"io"
	"log/slog"
	"sync"

	"tidemark/internal/exit"
	"tidemark/internal/progress"
)

// Env is what a verb's Run gets to talk to its operator.
type Env struct {
	globals  globals
	streams  Streams
	config   *Config
	document any // the result to print as JSON, nil while there is none
	status   func(exit.Code) int

	once     sync.Once
	reporter *reporter
}

// JSON tells whether stdout is for machines.
func (e *Env) JSON() bool { return e.globals.JSON }

// Quiet tells whether notes are unwanted.
func (e *Env) Quiet() bool { return e.globals.Quiet }

// Verbose tells whether details are wanted.
func (e *Env) Verbose() bool { return e.globals.Verbose }

// Stdout is for a verb that writes something other than a document.
func (e *Env) Stdout() io.Writer { return e.streams.Out }

// Stderr is above the progress bar, and safe for several goroutines.
func (e *Env) Stderr() io.Writer { return e.renderer() }

// Config is what tidemark.toml says; without a file it is empty, never nil.
func (e *Env) Config() *Config {
	if e.config == nil {
		return &Config{}
	}
	return e.config
}

// Render hands over the verb's result: with --json doc is printed when the
// verb has ended (with the error, if it then returns one), otherwise text
// writes it for people at once.
func (e *Env) Render(doc any, text func(t *Text)) error {
	if e.JSON() {
		e.document = doc
		return nil
	}
	e.renderer().clear()
	t := &Text{w: e.streams.Out}
	text(t)
	return t.err
}

// Stream prints one line of a verb that goes on: a compact document with
// --json, otherwise what text writes.
func (e *Env) Stream(doc any, text func(t *Text)) error {
	if !e.JSON() {
		return e.Render(nil, text)
	}
	return json.NewEncoder(e.streams.Out).Encode(doc)
}

// Progress returns the reporter that draws on stderr as --progress says.
func (e *Env) Progress() progress.Reporter { return e.renderer() }

// Log returns the logger for libraries: warnings always, details with --verbose.
func (e *Env) Log() *slog.Logger {
	level := slog.LevelWarn
	switch {
	case e.globals.Quiet:
		level = slog.LevelError
	case e.globals.Verbose:
		level = slog.LevelDebug
	}
	return slog.New(&logHandler{w: e.renderer(), level: level})
}

// Note prints a line on stderr unless --quiet.
func (e *Env) Note(format string, args ...any) { e.renderer().Note(format, args...) }

func (e *Env) renderer() *reporter {
	e.once.Do(func() {
		e.reporter = newReporter(e.streams.Err, e.globals.Progress, e.globals.Quiet, e.globals.JSON)
	})
	return e.reporter
}

func (e *Env) closeProgress() {
	if e.reporter != nil {
		e.reporter.close()
	}
}

// writeDocument prints the one JSON document: the result, and what went wrong.
func (e *Env) writeDocument(code exit.Code, err error) error {
	if !e.JSON() || (e.document == nil && err == nil) {
		return nil
	}
	return writeJSON(e.streams.Out, e.document, newErrorDocument(code, e.exitStatus(code), err))
}
