package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"tidemark/internal/exit"
)

// hintFor returns the hint that an error carries, or the one that its cause
// always has.
func hintFor(err error) string {
	if hint := exit.HintOf(err); hint != "" {
		return hint
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room on that file system, then run the same command again"
	case errors.Is(err, syscall.EROFS):
		return "the file system is mounted read-only"
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return "run it as the owner of the data directory, or as root"
	case errors.Is(err, fs.ErrPermission):
		return "look at the owner and the mode of the directories above"
	case errors.Is(err, fs.ErrNotExist):
		return "check the path"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return "is the server running, and does it listen there?"
	case errors.Is(err, context.DeadlineExceeded):
		return "it took too long to answer; is the other side overloaded or unreachable?"
	}
	return ""
}
