package repo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/minio/minio-go/v7"

	"tidemark/internal/exit"
)

// answer returns what the store answered, ok being false where it did not.
func answer(err error) (minio.ErrorResponse, bool) {
	var e minio.ErrorResponse
	ok := errors.As(err, &e)
	return e, ok
}

// passing reports whether an error may be gone at the next attempt.
func passing(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrExist) || errors.Is(err, ErrNotExist) || badCertificate(err) {
		return false
	}
	e, ok := answer(err)
	if !ok {
		return true // the network's, or a page that is not the store's
	}
	switch e.Code {
	case "SlowDown", "InternalError", "RequestTimeout", "Throttling", "ServiceUnavailable", "OperationAborted",
		"ConditionalRequestConflict",                                                                               // two writers met: the next attempt says who was first
		"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody", "InvalidDigest": // torn on the way
		return true
	}
	return e.StatusCode >= 500 && e.StatusCode != http.StatusNotImplemented ||
		e.StatusCode == http.StatusTooManyRequests || e.StatusCode == http.StatusRequestTimeout
}

// tornOrPassing is passing for a request with a body. The body's hash is part
// of what is signed: changed on the way, some stores call the signature wrong.
// A wrong key has been noticed before, when the repository was opened.
func tornOrPassing(err error) bool {
	e, ok := answer(err)
	return ok && e.Code == "SignatureDoesNotMatch" || passing(err)
}

func badCertificate(err error) bool {
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var verification *tls.CertificateVerificationError
	return errors.As(err, &authority) || errors.As(err, &invalid) || errors.As(err, &host) || errors.As(err, &verification)
}

// isTaken reports whether the condition of a write was not met.
func isTaken(err error) bool {
	e, ok := answer(err)
	return ok && (e.StatusCode == http.StatusPreconditionFailed || e.Code == "PreconditionFailed")
}

func isMissing(err error) bool {
	e, ok := answer(err)
	return ok && e.Code == "NoSuchKey"
}

// explainS3 says what an operator can do about an error of the store.
func explainS3(o S3Options, err error) error {
	if err == nil || exit.HintOf(err) != "" {
		return err
	}
	if hint := s3Hint(o, err); hint != "" {
		return exit.Hint(err, hint)
	}
	return err
}

func s3Hint(o S3Options, err error) string {
	at := o.Endpoint
	if at == "" {
		at = "Amazon S3"
	}
	e, ok := answer(err)
	if !ok {
		return networkHint(at, err)
	}
	switch e.Code {
	case "InvalidAccessKeyId", "XAdminUserNotFound":
		return "the store at " + at + " does not know the access key: check AWS_ACCESS_KEY_ID, or the file and profile of the keys"
	case "SignatureDoesNotMatch":
		return "the secret key is wrong: check AWS_SECRET_ACCESS_KEY, or the file and profile of the keys"
	case "ExpiredToken", "InvalidToken", "ExpiredTokenException":
		return "the session's credentials have expired: get new ones, or use keys that last for what runs unattended"
	case "AccessDenied", "AllAccessDisabled", "AccountProblem":
		return "the keys need s3:ListBucket on the bucket " + o.Bucket + ", and s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its objects" +
			lockRights(o)
	case "RequestTimeTooSkewed", "RequestExpired":
		return "the clock of this machine and that of the store differ too much: synchronize it (chronyc tracking, timedatectl)"
	case "NoSuchBucket":
		return "make the bucket " + o.Bucket + " first, with the store's own tools" + lockBucket(o)
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidRegion":
		if e.Region != "" {
			return "the bucket is in another region: say region=" + e.Region
		}
		return "the bucket is in another region, or the endpoint's region has another name: say region=NAME"
	case "NotImplemented":
		return "the store lacks what a repository needs: conditional writes (If-None-Match), and object lock where a lock is asked for"
	case "InvalidRequest", "ObjectLockConfigurationNotFoundError", "InvalidBucketObjectLockConfiguration":
		if o.LockMode != "" {
			return "the bucket " + o.Bucket + " may have been made without object lock, which is needed for lock=" + o.LockMode
		}
	case "MethodNotAllowed":
		return "is the endpoint that of an S3 store, and the bucket's name right?"
	}
	return ""
}

func lockRights(o S3Options) string {
	if o.LockMode == "" {
		return ""
	}
	return "; for the lock also s3:PutObjectRetention"
}

func lockBucket(o S3Options) string {
	if o.LockMode == "" {
		return ""
	}
	return ", with object lock enabled"
}

func networkHint(at string, err error) string {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case badCertificate(err):
		return "the certificate of " + at + " is not trusted here: name the file of its authority with ca=FILE"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "the endpoint speaks plain HTTP: write endpoint=http://HOST:PORT"
	case errors.As(err, &dns):
		return "the name of the endpoint is not known here: check it; where the bucket was put before it, say path-style=true"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at " + at + ": check the endpoint, and that the store is up"
	case errors.As(err, &op) && op.Timeout():
		return "the store at " + at + " does not answer: check the network and the store"
	}
	return ""
}
