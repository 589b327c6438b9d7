package repo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"tidemark/internal/exit"
)

// findCredentials looks for keys where Amazon's own tools do: the environment,
// the files of keys and profiles, the machine's role. None are ever taken from
// a command line.
func findCredentials(o S3Options, transport http.RoundTripper) (*credentials.Credentials, error) {
	var creds *credentials.Credentials
	switch {
	case o.Credentials != "" || o.Profile != "":
		creds = credentials.NewFileAWSCredentials(o.Credentials, o.Profile)
	default:
		creds = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{},
			&credentials.FileAWSCredentials{},
			&credentials.IAM{},
		})
	}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	v, err := creds.GetWithContext(&credentials.CredContext{Client: client})
	if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
		return creds, nil
	}
	hint := "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials, or name a file in the repository: ?credentials=FILE&profile=NAME"
	if o.Credentials != "" {
		hint = "the file has the form of ~/.aws/credentials: [default], aws_access_key_id = ..., aws_secret_access_key = ..."
		if err == nil {
			err = fmt.Errorf("%s holds no keys", o.Credentials)
		}
	} else if err == nil {
		err = errors.New("none found")
	}
	return nil, exit.Wrap(err, exit.Failed, hint, "no credentials for the bucket %s", o.Bucket)
}

// newTransport returns a transport on which nothing waits for ever: every
// read and write on a connection has the time-out to get on.
func newTransport(o S3Options) (http.RoundTripper, error) {
	pool, err := trusted(o.CA)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: min(o.Timeout, 15*time.Second), KeepAlive: 15 * time.Second}
	return &s3Transport{&http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &impatientConn{c, o.Timeout}, nil
		},
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       min(o.Timeout, 30*time.Second),
		TLSHandshakeTimeout:   min(o.Timeout, 15*time.Second),
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true,
		TLSClientConfig:       &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}}, nil
}

// trusted returns the system's certificates and those of a file.
func trusted(file string) (*x509.CertPool, error) {
	if file == "" {
		file = os.Getenv("AWS_CA_BUNDLE")
	}
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, exit.Wrap(err, exit.Failed, "", "cannot read the certificates")
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, exit.New(exit.Failed, "it should hold BEGIN CERTIFICATE", "there is no certificate in %s", file)
	}
	return pool, nil
}

// impatientConn gives each read and write its own deadline. Writing counts for
// the reader that waits meanwhile.
type impatientConn struct {
	net.Conn
	patience time.Duration
}

func (c *impatientConn) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(c.patience))
	return c.Conn.Read(p)
}

func (c *impatientConn) Write(p []byte) (int, error) {
	c.SetDeadline(time.Now().Add(c.patience))
	return c.Conn.Write(p)
}

// s3Transport refuses to take the page of something between here and the store
// for the store's word. A balancer's 404 must not pass for a WAL segment that
// is not in the archive: it would end a recovery early.
type s3Transport struct{ next http.RoundTripper }

var errNotS3 = errors.New("the answer does not come from an S3 store")

func (t *s3Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusNotFound || r.Method == http.MethodHead {
		return resp, err
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(head, []byte("<Code>")) {
		return nil, fmt.Errorf("%w: %s from %s, %q", errNotS3, resp.Status, r.URL.Host, firstLine(head))
	}
	resp.Body = io.NopCloser(bytes.NewReader(head))
	return resp, nil
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line[:min(len(line), 80)]
}
