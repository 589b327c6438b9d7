package storetest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"
)

// The keys of every test's S3 server.
const (
	AccessKey = "tidemark-test"
	SecretKey = "the-secret-of-the-test"
)

// S3 is an S3 server of a test.
type S3 struct {
	Endpoint string // http://127.0.0.1:port, or https
	Dir      string // holds the buckets as directories
	Bucket   string
	Host     string
	CA       string // file of the certificate that it is known by; "" without TLS
}

// NewS3 starts an S3 server with one bucket, which has versions and object
// lock where locked is set. The keys are put into the test's environment.
func NewS3(t testing.TB, locked bool) *S3 {
	t.Helper()
	s, args := newS3(t, "http")
	if locked {
		args = append(args, "--versioning-dir", filepath.Join(filepath.Dir(s.Dir), "versions"))
	}
	return s.start(t, nil, args, locked)
}

// NewS3TLS starts one that speaks TLS, with a certificate of its own making.
func NewS3TLS(t testing.TB) *S3 {
	t.Helper()
	s, args := newS3(t, "https")
	s.CA = filepath.Join(filepath.Dir(s.Dir), "cert.pem")
	key := filepath.Join(filepath.Dir(s.Dir), "key.pem")
	makeCertificate(t, s.CA, key)
	return s.start(t, []string{"--cert", s.CA, "--key", key}, args, false)
}

// newS3 prepares a server and returns the arguments of its store.
func newS3(t testing.TB, scheme string) (s *S3, store []string) {
	t.Helper()
	base := t.TempDir()
	s = &S3{Dir: filepath.Join(base, "data"), Bucket: "backup", Host: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	s.Endpoint = scheme + "://" + s.Host
	store = []string{"posix"}
	for _, dir := range []string{"data", "versions", "sidecar"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if !hasAttributes(base) {
		store = append(store, "--sidecar", filepath.Join(base, "sidecar"))
	}
	return s, store
}

func (s *S3) start(t testing.TB, options, store []string, locked bool) *S3 {
	t.Helper()
	bin := program(t, "versitygw", cacheDirs()...)
	_, port, err := net.SplitHostPort(s.Host)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--port", s.Host, "--quiet"}, options...)
	cmd := exec.Command(bin, append(append(args, store...), s.Dir)...)
	cmd.Dir = filepath.Dir(s.Dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	start(t, number, cmd)
	err = s.Client(t).MakeBucket(context.Background(), s.Bucket, minio.MakeBucketOptions{ObjectLocking: locked})
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range Environment() {
		t.Setenv(name, value)
	}
	return s
}

// Environment is where commands find the keys.
func Environment() map[string]string {
	return map[string]string{"AWS_ACCESS_KEY_ID": AccessKey, "AWS_SECRET_ACCESS_KEY": SecretKey}
}

// Client returns a client with the server's keys.
func (s *S3) Client(t testing.TB) *minio.Client {
	t.Helper()
	o := &minio.Options{Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Region: "us-east-1", BucketLookup: minio.BucketLookupPath}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		o.Secure, o.Transport = true, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	}
	c, err := minio.New(s.Host, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Stamps tells when each object of the bucket was written.
func (s *S3) Stamps(t testing.TB) map[string]time.Time {
	t.Helper()
	out := map[string]time.Time{}
	for o := range s.Client(t).ListObjects(context.Background(), s.Bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		out[o.Key] = o.LastModified
	}
	return out
}

// Location names the repository at a prefix of the bucket; more are further
// parameters.
func (s *S3) Location(prefix string, more ...string) string {
	return s.At(s.Endpoint, prefix, more...)
}

// At is Location by way of another endpoint, a proxy's.
func (s *S3) At(endpoint, prefix string, more ...string) string {
	return "s3://" + s.Bucket + "/" + prefix + "?" + strings.Join(append([]string{"endpoint=" + endpoint}, more...), "&")
}

// hasAttributes tells whether files in a directory may have attributes, in
// which the server keeps what it knows of an object.
func hasAttributes(dir string) bool {
	probe := filepath.Join(dir, "probe")
	if os.WriteFile(probe, nil, 0o600) != nil {
		return false
	}
	defer os.Remove(probe)
	return unix.Setxattr(probe, "user.probe", []byte("x"), 0) == nil
}
