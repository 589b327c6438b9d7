package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/internal/exit"
)

// Location says where a repository is, as --repo and tidemark.toml name it:
//
//	/srv/backup                       a directory (file:///srv/backup as well)
//	s3://bucket/prefix?endpoint=...   an S3-compatible object store
//	sftp://user@host:port/path        a directory on another host, over ssh
//
// A location names no secret: keys and passwords stand in files or in the
// environment, which the location may name.
type Location struct {
	text string
	Dir  string       // of a local repository
	S3   *S3Options   // for s3://
	SFTP *SFTPOptions // for sftp://
}

// String is the location in the form that ParseLocation takes.
func (l Location) String() string { return l.text }

// schemes lists what a location may look like, for hints.
const schemes = "a repository is a directory, s3://BUCKET/PREFIX?endpoint=URL or sftp://USER@HOST/PATH"

// ParseLocation reads the name of a repository.
func ParseLocation(text string) (Location, error) {
	if text == "" {
		return Location{}, exit.New(exit.Usage, "name the repository with --repo", "no repository given")
	}
	scheme, _, ok := strings.Cut(text, "://")
	if !ok {
		return Location{text: text, Dir: text}, nil
	}
	if scheme == "file" {
		dir := strings.TrimPrefix(text, "file://")
		if dir == "" {
			return Location{}, exit.New(exit.Usage, schemes, "no directory in %s", text)
		}
		return Location{text: dir, Dir: dir}, nil
	}
	if scheme != "s3" && scheme != "sftp" {
		return Location{}, exit.New(exit.Usage, schemes, "no driver for repositories at %s://", scheme)
	}
	u, err := url.Parse(text)
	if err != nil {
		// url.Error repeats the text, which may hold a password.
		var bad *url.Error
		if errors.As(err, &bad) {
			err = bad.Err
		}
		return Location{}, exit.Wrap(err, exit.Usage, schemes, "not the name of a repository")
	}
	if _, has := u.User.Password(); has || scheme == "s3" && u.User != nil {
		return Location{}, exit.New(exit.Usage, secretHint(scheme), "the name of the repository at %s holds a secret, and command lines are seen by everyone", u.Host)
	}
	if u.Fragment != "" || strings.HasSuffix(text, "#") {
		return Location{}, exit.New(exit.Usage, "write # as %23", "%s has a #", u.Redacted())
	}
	l := Location{text: text}
	q := &query{values: u.Query()}
	if scheme == "s3" {
		l.S3, err = parseS3(u, q)
	} else {
		l.SFTP, err = parseSFTP(u, q)
	}
	if err == nil {
		err = q.finish()
	}
	if err != nil {
		return Location{}, exit.Wrap(err, exit.Usage, exit.HintOf(err), "%s", text)
	}
	if l.S3 != nil {
		l.text = l.S3.complete(u)
	}
	return l, nil
}

func secretHint(scheme string) string {
	if scheme == "s3" {
		return "put the keys into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or into a file: ?credentials=FILE&profile=NAME"
	}
	return "use a key, as for ssh: ~/.ssh/config, an agent, or ?identity=FILE"
}

// Driver opens the store.
func (l Location) Driver(ctx context.Context) (Driver, error) {
	switch {
	case l.S3 != nil:
		return NewS3(ctx, l.text, *l.S3)
	case l.SFTP != nil:
		return NewSFTP(l.text, *l.SFTP), nil
	}
	d, err := NewLocal(l.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exit.Wrap(err, exit.Failed, hintNoRepository(l.Dir), "no repository at %s", l.Dir)
	}
	return d, err
}

// prepare makes the place for a new repository where that is a directory.
func (l Location) prepare() error {
	if l.Dir == "" {
		return nil
	}
	if err := os.Mkdir(l.Dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return exit.Wrap(err, exit.Failed, "its parent directory must exist and be writable", "cannot make a repository at %s", l.Dir)
	}
	return nil
}

// rootMaker is implemented by drivers that make the directory of a new
// repository.
type rootMaker interface {
	makeRoot(ctx context.Context) error
}

// preparer is implemented by drivers that prove, before a repository is made,
// that the store can hold one.
type preparer interface {
	prepare(ctx context.Context) error
}

// query reads the parameters of a location. The first error is kept.
type query struct {
	values url.Values
	known  []string
	err    error
}

func (q *query) text(key string) string {
	q.known = append(q.known, key)
	v := q.values[key]
	if len(v) > 1 && q.err == nil {
		q.err = fmt.Errorf("%s is given twice", key)
	}
	if len(v) == 0 {
		return ""
	}
	return v[0]
}

func (q *query) number(key string, fallback, least, most int) int {
	s := q.text(key)
	if s == "" {
		return fallback
	}
	n, err := strconv.Atoi(s)
	if (err != nil || n < least || n > most) && q.err == nil {
		q.err = fmt.Errorf("%s=%s: give a number from %d to %d", key, s, least, most)
	}
	return n
}

func (q *query) duration(key string, fallback time.Duration) time.Duration {
	s := q.text(key)
	if s == "" {
		return fallback
	}
	d, err := time.ParseDuration(s)
	if (err != nil || d <= 0) && q.err == nil {
		q.err = fmt.Errorf("%s=%s: give a time such as 30s", key, s)
	}
	return d
}

func (q *query) boolean(key string, fallback bool) bool {
	s := q.text(key)
	if s == "" {
		return fallback
	}
	b, err := strconv.ParseBool(s)
	if err != nil && q.err == nil {
		q.err = fmt.Errorf("%s=%s: give true or false", key, s)
	}
	return b
}

// finish reports the first error, or a parameter that nobody asked for.
func (q *query) finish() error {
	if q.err != nil {
		return q.err
	}
	for key := range q.values {
		if !slices.Contains(q.known, key) {
			slices.Sort(q.known)
			return exit.New(exit.Usage, "known are: "+strings.Join(q.known, ", "), "unknown parameter %q", key)
		}
	}
	return nil
}
