package ssh

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"tidemark/internal/exit"
)

// ParseURL reads user, host, port and directory of sftp://USER@HOST:PORT/PATH;
// /~/PATH is one below the user's home. The rest of the host is the caller's.
func ParseURL(u *url.URL) (h Target, dir string, err error) {
	h = Target{User: u.User.Username(), Host: u.Hostname()}
	if p := u.Port(); p != "" {
		n, err := strconv.Atoi(p)
		if err != nil || n < 1 || n > 65535 {
			return h, "", fmt.Errorf("there is no port %s", p)
		}
		h.Port = n
	}
	if h.Host == "" || strings.HasPrefix(h.Host, "-") || strings.HasPrefix(h.User, "-") {
		return h, "", errors.New("it names no host")
	}
	dir = path.Clean(u.Path)
	if home, ok := strings.CutPrefix(dir, "/~/"); ok {
		dir = home
	}
	if dir == "/" || dir == "." {
		return h, "", exit.New(exit.Usage, "write sftp://HOST/PATH, or sftp://HOST/~/PATH for one below the user's home", "it names no directory")
	}
	return h, dir, nil
}

// Location says where a directory on another host is:
// sftp://USER@HOST:PORT/PATH?config=FILE&identity=FILE&timeout=TIME&attempts=N.
type Location struct {
	Target
	Dir      string // absolute, or relative to the user's home
	Attempts int    // of an operation, where the connection breaks
}

// Defaults of a Location.
const (
	DefaultTimeout  = 60 * time.Second // without any progress
	DefaultAttempts = 6
)

// IsLocation tells whether a text is meant as a Location.
func IsLocation(text string) bool { return strings.HasPrefix(text, "sftp://") }

// ParseLocation reads the text of a Location.
func ParseLocation(text string) (Location, error) {
	l, err := parseLocation(text)
	if err != nil {
		hint := exit.HintOf(err)
		if hint == "" {
			hint = "write sftp://USER@HOST/PATH, and ?config=FILE, identity=FILE, timeout=60s or attempts=6 behind it where ssh's own configuration does not do"
		}
		return l, exit.Wrap(err, exit.Usage, hint, "not the name of a directory on another host")
	}
	return l, nil
}

func parseLocation(text string) (Location, error) {
	l := Location{Attempts: DefaultAttempts}
	u, err := url.Parse(text)
	if err != nil {
		var bad *url.Error // it repeats the text, which may hold a password
		if errors.As(err, &bad) {
			err = bad.Err
		}
		return l, err
	}
	if _, has := u.User.Password(); has {
		return l, exit.New(exit.Usage, "use a key, as for ssh: ~/.ssh/config, an agent, or ?identity=FILE", "it holds a password, and command lines are seen by everyone")
	}
	if l.Target, l.Dir, err = ParseURL(u); err != nil {
		return l, err
	}
	l.Timeout = DefaultTimeout
	for key, values := range u.Query() {
		if len(values) > 1 {
			return l, fmt.Errorf("%s is given twice", key)
		}
		if err := l.set(key, values[0]); err != nil {
			return l, err
		}
	}
	return l, nil
}

func (l *Location) set(key, value string) (err error) {
	switch key {
	case "config":
		l.Config = value
	case "identity":
		l.Identity = value
	case "timeout":
		if l.Timeout, err = time.ParseDuration(value); err != nil || l.Timeout <= 0 {
			return fmt.Errorf("timeout=%s: give a time such as 30s", value)
		}
	case "attempts":
		if l.Attempts, err = strconv.Atoi(value); err != nil || l.Attempts < 1 || l.Attempts > 100 {
			return fmt.Errorf("attempts=%s: give a number from 1 to 100", value)
		}
	default:
		return fmt.Errorf("unknown parameter %q", key)
	}
	return nil
}
