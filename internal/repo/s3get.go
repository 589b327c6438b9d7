package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"tidemark/internal/exit"
)

// listPage is how many names one request brings; stores send no more than that.
const listPage = 1000

// Get implements Driver.
func (s *S3) Get(ctx context.Context, name string, offset, length int64) (*Object, error) {
	if err := checkName("get", name); err != nil {
		return nil, err
	}
	spec := ""
	switch {
	case length == 0:
		spec = "bytes=0-0" // for the size; a HEAD cannot tell a missing bucket from a missing object
	case offset < 0 && length < 0:
		spec = "bytes=" + strconv.FormatInt(offset, 10)
	case offset < 0:
		return s.getFromEnd(ctx, name, offset, length)
	case length < 0 && offset > 0:
		spec = fmt.Sprintf("bytes=%d-", offset)
	case length > 0:
		spec = fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	}
	r, err := s.open(ctx, name, spec)
	if err != nil {
		return nil, err
	}
	if length == 0 || r.body == nil {
		r.Close()
		at := offset
		if at < 0 {
			at = max(r.size+at, 0)
		}
		return &Object{ReadCloser: http.NoBody, Size: r.size, Offset: min(at, r.size)}, nil
	}
	rr := &rangeReader{ctx: ctx, retry: s.retry, body: r.body, offset: r.first, left: r.length,
		open: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			again, err := s.openOnce(ctx, name, fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
			if err != nil {
				return nil, err
			}
			if again.size != r.size || again.first != offset {
				again.Close()
				return nil, fmt.Errorf("%s was replaced while it was read", name)
			}
			return again.body, nil
		}}
	return &Object{ReadCloser: rr, Size: r.size, Offset: r.first, Length: r.length}, nil
}

// getFromEnd reads a bounded range that is counted from the end.
func (s *S3) getFromEnd(ctx context.Context, name string, offset, length int64) (*Object, error) {
	o, err := s.Get(ctx, name, 0, 0)
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, name, max(o.Size+offset, 0), length)
}

// s3Range is the answer to a request for a range; body is nil where the range
// lies beyond the end.
type s3Range struct {
	body                io.ReadCloser
	size, first, length int64
}

func (r *s3Range) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}

func (s *S3) open(ctx context.Context, name, spec string) (r *s3Range, err error) {
	err = s.retry.do(ctx, func(int) (err error) {
		r, err = s.openOnce(ctx, name, spec)
		return err
	})
	if err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return nil, cerr
		}
		if errors.Is(err, ErrNotExist) {
			return nil, err
		}
		return nil, s.fault("reading", name, err)
	}
	return r, nil
}

func (s *S3) openOnce(ctx context.Context, name, spec string) (*s3Range, error) {
	var o minio.GetObjectOptions
	if spec != "" {
		o.Set("Range", spec)
	}
	body, info, header, err := s.core.GetObject(ctx, s.o.Bucket, s.key(name), o)
	if err != nil {
		if isMissing(err) {
			return nil, fmt.Errorf("%s: %w", name, ErrNotExist)
		}
		if e, ok := answer(err); ok && (e.StatusCode == http.StatusRequestedRangeNotSatisfiable || e.Code == "InvalidRange") {
			return s.beyond(ctx, name)
		}
		return nil, err
	}
	r := &s3Range{body: body, size: info.Size, length: info.Size}
	if cr := header.Get("Content-Range"); cr != "" {
		var last int64
		if n, err := fmt.Sscanf(cr, "bytes %d-%d/%d", &r.first, &last, &r.size); n != 3 {
			body.Close()
			return nil, fmt.Errorf("the store answered with Content-Range %q: %w", cr, errors.Join(errNotS3, err))
		}
		r.length = last - r.first + 1
	} else if spec != "" && info.Size > 0 && !strings.HasPrefix(spec, "bytes=0-") && !strings.HasPrefix(spec, "bytes=-") {
		body.Close()
		return nil, fmt.Errorf("%w: it ignores ranges", errNotS3)
	} else if first, last, ok := strings.Cut(strings.TrimPrefix(spec, "bytes="), "-"); ok && first == "0" && last != "" {
		// The whole object came for a range from its beginning.
		if n, err := strconv.ParseInt(last, 10, 64); err == nil {
			r.length = min(n+1, r.size)
		}
	}
	if r.size == 0 {
		body.Close()
		r.body = nil
	}
	return r, nil
}

// stat describes an object. It asks for the first byte and not by HEAD, whose
// answer cannot tell a missing object from a missing bucket or from the page
// of something between here and the store.
func (s *S3) stat(ctx context.Context, name string) (minio.ObjectInfo, error) {
	var o minio.GetObjectOptions
	o.Set("Range", "bytes=0-0")
	body, info, _, err := s.core.GetObject(ctx, s.o.Bucket, s.key(name), o)
	if err == nil {
		return info, body.Close()
	}
	if e, ok := answer(err); ok && (e.StatusCode == http.StatusRequestedRangeNotSatisfiable || e.Code == "InvalidRange") {
		return s.core.StatObject(ctx, s.o.Bucket, s.key(name), minio.StatObjectOptions{}) // it is empty
	}
	return minio.ObjectInfo{}, err
}

// beyond answers for a range that lies beyond the end of the object.
func (s *S3) beyond(ctx context.Context, name string) (*s3Range, error) {
	st, err := s.core.StatObject(ctx, s.o.Bucket, s.key(name), minio.StatObjectOptions{})
	if err != nil {
		return nil, err
	}
	return &s3Range{size: st.Size}, nil
}

// List implements Driver.
func (s *S3) List(ctx context.Context, prefix string, each func(ObjectInfo) error) error {
	if err := checkPrefix(prefix); err != nil {
		return err
	}
	return s.pages(ctx, s.key(prefix), "", func(page minio.ListBucketV2Result) error {
		for _, o := range page.Contents {
			name, ok := s.name(o.Key)
			if !ok {
				continue // not ours: a folder's marker, another tool's object
			}
			if err := each(ObjectInfo{Name: name, Size: o.Size}); err != nil {
				return err
			}
		}
		return nil
	})
}

// folders lists the topmost folders without what is in them.
func (s *S3) folders(ctx context.Context) (names []string, err error) {
	err = s.pages(ctx, s.o.Prefix, "/", func(page minio.ListBucketV2Result) error {
		for _, p := range page.CommonPrefixes {
			if name, ok := s.name(strings.TrimSuffix(p.Prefix, "/")); ok {
				names = append(names, name)
			}
		}
		return nil
	})
	return names, err
}

// pages calls each for the pages of a listing.
func (s *S3) pages(ctx context.Context, prefix, delimiter string, each func(minio.ListBucketV2Result) error) error {
	token := ""
	for {
		var page minio.ListBucketV2Result
		err := s.retry.do(ctx, func(int) (err error) {
			page, err = s.listPage(ctx, prefix, token, delimiter)
			return err
		})
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		if err != nil {
			return s.fault("listing", prefix, err)
		}
		if err := each(page); err != nil || !page.IsTruncated {
			return err
		}
		if page.NextContinuationToken == "" || page.NextContinuationToken == token {
			return fmt.Errorf("listing %s: the store says that there is more, and not where", prefix)
		}
		token = page.NextContinuationToken
	}
}

// listPage asks for one page. The library takes no context for it: the answer
// to one that has ended is not waited for.
func (s *S3) listPage(ctx context.Context, prefix, token, delimiter string) (minio.ListBucketV2Result, error) {
	type answer struct {
		page minio.ListBucketV2Result
		err  error
	}
	if err := ctx.Err(); err != nil {
		return minio.ListBucketV2Result{}, err
	}
	done := make(chan answer, 1)
	go func() {
		page, err := s.core.ListObjectsV2(s.o.Bucket, prefix, "", token, delimiter, listPage)
		done <- answer{page, err}
	}()
	select {
	case a := <-done:
		return a.page, a.err
	case <-ctx.Done():
		return minio.ListBucketV2Result{}, ctx.Err()
	}
}

// Delete implements Driver. In a bucket with versions the version itself is
// removed: a mark alone would free nothing.
func (s *S3) Delete(ctx context.Context, name string) error {
	if err := checkName("delete", name); err != nil {
		return err
	}
	var st minio.ObjectInfo
	err := s.retry.do(ctx, func(int) (err error) {
		st, err = s.stat(ctx, name)
		return err
	})
	if isMissing(err) {
		return nil
	}
	if err == nil {
		if err := stillLocked(name, st); err != nil {
			return err
		}
		o := minio.RemoveObjectOptions{VersionID: st.VersionID}
		err = s.retry.do(ctx, func(int) error { return s.core.RemoveObject(ctx, s.o.Bucket, s.key(name), o) })
	}
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	if err == nil || isMissing(err) {
		return nil
	}
	if e, ok := answer(err); ok && (e.Code == "ObjectLocked" || e.Code == "AccessDenied" && st.VersionID != "") {
		return s.lockedUntil(ctx, name, err)
	}
	return s.fault("removing", name, err)
}

const lockedHint = "the bucket's object lock keeps it until its retention ends, also against this command; run it again then"

// lockedUntil explains a refusal; some stores tell the date by HEAD only.
func (s *S3) lockedUntil(ctx context.Context, name string, err error) error {
	st, serr := s.core.StatObject(ctx, s.o.Bucket, s.key(name), minio.StatObjectOptions{})
	if serr == nil {
		if err := stillLocked(name, st); err != nil {
			return err
		}
	}
	if e, _ := answer(err); e.Code == "AccessDenied" && !strings.Contains(strings.ToLower(e.Message), "lock") {
		return s.fault("removing", name, err)
	}
	return exit.Wrap(fmt.Errorf("%w: %w", ErrLocked, err), exit.Refused, lockedHint, "%s cannot be removed yet", name)
}

// stillLocked refuses what the store says to be under retention.
func stillLocked(name string, st minio.ObjectInfo) error {
	until, err := time.Parse(time.RFC3339, st.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	hold := strings.EqualFold(st.Metadata.Get("X-Amz-Object-Lock-Legal-Hold"), "ON")
	switch {
	case hold:
		return exit.Wrap(ErrLocked, exit.Refused, "lift the legal hold with the store's own tools", "%s is under a legal hold", name)
	case err == nil && until.After(time.Now()):
		return exit.Wrap(ErrLocked, exit.Refused, lockedHint, "%s is locked until %s", name, until.UTC().Format(time.RFC3339))
	}
	return nil
}

// staleUpload is the age from which an upload is taken for abandoned: nothing
// tells a slow writer from a dead one.
const staleUpload = 24 * time.Hour

// Sweep gives up multipart uploads that no living process can be working on:
// their parts take space, and no listing shows them.
func (s *S3) Sweep(ctx context.Context) (int, error) {
	removed := 0
	for u := range s.core.ListIncompleteUploads(ctx, s.o.Bucket, s.o.Prefix, true) {
		if u.Err != nil {
			if e, ok := answer(u.Err); ok && (e.Code == "NotImplemented" || e.Code == "AccessDenied") {
				return removed, nil // a bucket's life cycle rule does it as well
			}
			return removed, s.fault("looking for abandoned uploads in", s.o.Bucket, u.Err)
		}
		if _, ok := s.name(u.Key); !ok || time.Since(u.Initiated) < staleUpload {
			continue
		}
		err := s.core.AbortMultipartUpload(ctx, s.o.Bucket, u.Key, u.UploadID)
		if err != nil && !isGoneUpload(err) {
			return removed, s.fault("giving up", u.Key, err)
		}
		removed++
	}
	return removed, nil
}
