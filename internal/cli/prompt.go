package cli

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"

	"tidemark/internal/exit"
)

// Confirm asks before something irreversible. --yes answers it; without a
// terminal to ask on it is a refusal, never a hang.
func (e *Env) Confirm(format string, args ...any) error {
	question := fmt.Sprintf(format, args...)
	if e.globals.Yes {
		return nil
	}
	if !isTerminal(e.streams.In) || !isTerminal(e.streams.Err) {
		return exit.New(exit.Refused, "run it again with --yes to confirm", "%s Nobody is there to answer", question)
	}
	fmt.Fprintf(e.Stderr(), "%s [y/N] ", question)
	answer, err := bufio.NewReader(e.streams.In).ReadString('\n')
	if err != nil && answer == "" {
		return exit.New(exit.Refused, "", "not confirmed")
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return exit.New(exit.Refused, "", "not confirmed")
}

// isTerminal tells whether a stream is a file that is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
