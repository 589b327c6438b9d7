// Package exit holds the one table of exit codes that all five commands share
// and the error type that carries a code and a hint up to main.
//
// Libraries return ordinary errors for ordinary failures (they become code 1)
// and an *Error where the operator needs to know more: that nothing was done
// because it would have been unsafe, that work stopped part-way, or that a
// check found a problem.
package exit

import (
	"context"
	"errors"
	"fmt"
)

// Code is a process exit status with a documented meaning.
type Code int

// The codes. They are part of the interface that runbooks script against.
const (
	OK             Code = 0   // done, or nothing to do
	Failed         Code = 1   // failed, nothing changed
	Problem        Code = 3   // a check found a problem: divergence, gap, corruption, drift, lag
	Partial        Code = 4   // stopped part-way; run again to resume, or undo
	RoleIncomplete Code = 5   // the role change took effect, listed steps remain
	Refused        Code = 6   // refused as unsafe, nothing changed
	Usage          Code = 64  // the command line or the configuration is wrong
	Interrupted    Code = 130 // ended by a signal
)

// Row is one line of the table as documented.
type Row struct {
	Code    Code
	Name    string
	Meaning string
}

// Table lists every code once, in ascending order.
func Table() []Row {
	return []Row{
		{OK, "ok", "done, or nothing to do"},
		{Failed, "failed", "failed, nothing changed"},
		{Problem, "problem", "a check found a problem: divergence, a gap, corruption, drift, lag over the limit"},
		{Partial, "partial", "stopped part-way: run the same command again to resume"},
		{RoleIncomplete, "role-incomplete", "the role change took effect, the listed steps remain"},
		{Refused, "refused", "refused as unsafe, nothing changed"},
		{Usage, "usage", "the command line or the configuration is wrong"},
		{Interrupted, "interrupted", "ended by a signal"},
	}
}

// Error is a failure that knows its exit code and what the operator can do.
type Error struct {
	Code Code
	Msg  string // what happened and where
	Hint string // what to do next; one or more lines, may be empty
	Err  error  // the cause, may be nil
}

func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.Msg
	case e.Msg == "":
		return e.Err.Error()
	}
	return e.Msg + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// New returns an error with a code, a message and a hint.
func New(code Code, hint, format string, args ...any) error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// Wrap gives err a code, a leading message and a hint. It returns nil for a nil err.
func Wrap(err error, code Code, hint, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...), Hint: hint, Err: err}
}

// Hint adds a hint to err and leaves its code as it is.
func Hint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Code: CodeOf(err), Hint: hint, Err: err}
}

// CodeOf returns the code that err carries: OK for nil, Interrupted for a
// cancelled context, Failed for an error without a code.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	if errors.Is(err, context.Canceled) {
		return Interrupted
	}
	return Failed
}

// HintOf returns the outermost non-empty hint in err's chain.
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}
