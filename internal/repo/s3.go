package repo

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"tidemark/internal/exit"
)

// S3Options say where and how an object store is reached.
type S3Options struct {
	Bucket string
	Prefix string // "" or ending in a slash

	Endpoint    string // "https://host:port"; empty means Amazon's
	Region      string
	PathStyle   bool   // bucket in the path, not in the host name
	CA          string // file of certificates to trust besides the system's
	Credentials string // file of keys in Amazon's format, empty: where its tools look
	Profile     string // in that file

	LockMode string // "", "governance" or "compliance": object lock retention
	LockDays int

	Timeout  time.Duration // without any progress
	Attempts int           // of each request
}

func parseS3(u *url.URL, q *query) (*S3Options, error) {
	o := &S3Options{
		Bucket:      u.Host,
		Endpoint:    q.text("endpoint"),
		Region:      q.text("region"),
		CA:          q.text("ca"),
		Credentials: q.text("credentials"),
		Profile:     q.text("profile"),
		LockMode:    strings.ToLower(q.text("lock")),
		LockDays:    q.number("lock-days", 0, 1, 36500),
		Timeout:     q.duration("timeout", defaultTimeout),
		Attempts:    q.number("attempts", defaultAttempts, 1, 100),
	}
	if o.Endpoint == "" {
		o.Endpoint = firstEnv("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
	}
	if o.Region == "" {
		o.Region = firstEnv("AWS_REGION", "AWS_DEFAULT_REGION")
	}
	o.PathStyle = q.boolean("path-style", o.Endpoint != "")
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		if !ValidName(prefix) {
			return nil, errors.New("the prefix may have letters, digits, and ._- only")
		}
		o.Prefix = prefix + "/"
	}
	return o, o.validate()
}

func (o *S3Options) validate() error {
	if o.Bucket == "" {
		return errors.New("it names no bucket")
	}
	if o.Endpoint != "" {
		if !strings.Contains(o.Endpoint, "://") {
			o.Endpoint = "https://" + o.Endpoint
		}
		e, err := url.Parse(o.Endpoint)
		if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || e.User != nil || strings.Trim(e.Path, "/") != "" || e.RawQuery != "" {
			return exit.New(exit.Usage, "write endpoint=https://HOST or endpoint=http://HOST:PORT", "that is no endpoint")
		}
	}
	switch {
	case o.LockMode != "" && o.LockMode != "governance" && o.LockMode != "compliance":
		return exit.New(exit.Usage, "lock=governance lets an administrator lift it, lock=compliance nobody", "lock=%s", o.LockMode)
	case (o.LockMode == "") != (o.LockDays == 0):
		return errors.New("lock and lock-days go together")
	}
	return nil
}

// complete returns the location with what came from the environment: it is
// written into recovery settings, which the server reads in another one.
func (o *S3Options) complete(u *url.URL) string {
	text, has := u.String(), u.Query()
	add := func(key, value string) {
		if value == "" || has.Has(key) {
			return
		}
		sep := "&"
		if !strings.Contains(text, "?") {
			sep = "?"
		}
		text += sep + key + "=" + strings.ReplaceAll(url.QueryEscape(value), "%3A%2F%2F", "://")
	}
	add("endpoint", o.Endpoint)
	add("region", o.Region)
	return text
}

func firstEnv(names ...string) string {
	for _, n := range names {
		if v := os.Getenv(n); v != "" {
			return v
		}
	}
	return ""
}

// S3 stores objects in a bucket of an S3-compatible store.
//
// A name is given by a conditional write (If-None-Match: *), for large objects
// by the conditional completion of a multipart upload: the store itself refuses
// a name that is taken. Each object carries a random token, so that a write
// whose answer was lost is told from another's.
type S3 struct {
	o        S3Options
	location string
	core     *minio.Core
	retry    retrier
	sending  retrier // of requests with a body
	buffers  bufferPool
}

// NewS3 returns the driver for a bucket. It finds the credentials, and does
// not ask the store anything yet.
func NewS3(ctx context.Context, location string, o S3Options) (*S3, error) {
	s := &S3{o: o, location: location}
	transport, err := newTransport(o)
	if err != nil {
		return nil, err
	}
	creds, err := findCredentials(o, transport)
	if err != nil {
		return nil, err
	}
	host, secure := "s3.amazonaws.com", true
	if o.Endpoint != "" {
		e, err := url.Parse(o.Endpoint)
		if err != nil {
			return nil, err
		}
		host, secure = e.Host, e.Scheme == "https"
	}
	lookup := minio.BucketLookupDNS
	if o.PathStyle {
		lookup = minio.BucketLookupPath
	} else if o.Endpoint == "" {
		lookup = minio.BucketLookupAuto
	}
	region := o.Region
	if region == "" && o.Endpoint != "" {
		region = "us-east-1" // what stores other than Amazon's call theirs
	}
	s.core, err = minio.NewCore(host, &minio.Options{Creds: creds, Secure: secure, Transport: transport,
		Region: region, BucketLookup: lookup, MaxRetries: 1}) // the retries are ours
	if err != nil {
		return nil, exit.Wrap(err, exit.Usage, "", "%s", location)
	}
	s.retry = retrier{attempts: o.Attempts, retryable: passing}
	s.sending = retrier{attempts: o.Attempts, retryable: tornOrPassing}
	return s, nil
}

// Location names the bucket and how it is reached.
func (s *S3) Location() string { return s.location }

func (s *S3) key(name string) string { return s.o.Prefix + name }

// name is the inverse of key; ok is false for keys that are not ours.
func (s *S3) name(key string) (string, bool) {
	name, ok := strings.CutPrefix(key, s.o.Prefix)
	return name, ok && ValidName(name)
}

// prepare proves that the store refuses to overwrite, in both ways of writing:
// without that, two writers could destroy each other's objects unseen.
func (s *S3) prepare(ctx context.Context) error {
	name := "probe-" + randomToken()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.Timeout)
		defer cancel()
		s.core.RemoveObject(ctx, s.o.Bucket, s.key(name), minio.RemoveObjectOptions{})
	}()
	u := &s3Upload{s: s, ctx: ctx, name: name, token: randomToken(), unlocked: true}
	if err := u.whole([]byte("a")); err != nil {
		return err
	}
	for _, multipart := range []bool{false, true} {
		u.token = randomToken()
		err := u.whole([]byte("b"))
		how := "puts"
		if multipart {
			err = u.inParts([]byte("c"))
			how = "completions of multipart uploads"
		}
		switch {
		case errors.Is(err, ErrExist):
		case err != nil:
			return err
		default:
			return noConditions(s.location, how)
		}
	}
	return nil
}

func noConditions(location, how string) error {
	return exit.New(exit.Refused, "use a store that honours If-None-Match (Amazon S3, MinIO, Ceph, versitygw, ... in recent versions); nothing was made there",
		"the store of %s ignores the condition on %s, and would overwrite what is there", path.Clean(strings.SplitN(location, "?", 2)[0]), how)
}

func (s *S3) fault(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", op, name, explainS3(s.o, err))
}
