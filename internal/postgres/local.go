package postgres

import (
	"os/user"
	"strconv"
	"syscall"

	"tidemark/internal/exit"
)

// LocalConnInfo is how to reach the server that runs in dir, by its socket and
// as this process's user. Where none runs it is an error that matches
// ErrNotRunning.
func LocalConnInfo(dir string) (string, error) {
	st, err := (&Server{DataDir: dir}).Status()
	if err != nil {
		return "", err
	}
	if !st.Running {
		return "", exit.Wrap(ErrNotRunning, exit.Failed, "start it: dbrepl start -D "+dir, "%s", dir)
	}
	return st.ConnInfo() + " dbname=postgres" + localUser(), nil
}

// localUser names this process's user where PGUSER does not name another: it
// may not be the one that the process began as.
func localUser() string {
	if _, set := syscall.Getenv("PGUSER"); set {
		return ""
	}
	u, err := user.LookupId(strconv.Itoa(syscall.Geteuid()))
	if err != nil {
		return ""
	}
	return " user=" + QuoteValue(u.Username)
}
