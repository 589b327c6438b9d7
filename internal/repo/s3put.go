package repo

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

// An object of up to partSize is written by one request, a larger one in parts
// of that size, and of largePart once there are many: a store takes 10,000.
const (
	partSize   = 8 << 20
	largePart  = 64 << 20
	manyParts  = 1000
	tokenKey   = "Tidemark-Put"
	abortLimit = 20 * time.Second
)

// ahead bounds how many uploads of the process, whatever repository they go to,
// may fill a part while the one before is on its way: each takes a second
// buffer. The others send a part before they fill the next, so that memory is
// bounded by the number of uploads.
var ahead = make(chan struct{}, 4)

// bufferPool keeps buffers of partSize for the next upload.
type bufferPool struct{ sync.Pool }

func (p *bufferPool) get() []byte {
	if b, ok := p.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, partSize)
}

func (p *bufferPool) put(b []byte) {
	if cap(b) == partSize {
		p.Put(&b)
	}
}

func randomToken() string {
	var b [12]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Put implements Driver.
func (s *S3) Put(ctx context.Context, name string, write func(io.Writer) error) error {
	if err := checkName("put", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	u := &s3Upload{s: s, ctx: ctx, name: name, token: randomToken(), buf: s.buffers.get()}
	err := write(u)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = u.finish()
	}
	if err != nil {
		u.giveUp()
	}
	s.buffers.put(u.buf)
	if u.ahead {
		<-ahead
	}
	return err
}

// s3Upload gathers an object: one part is sent while the next is filled.
type s3Upload struct {
	s        *S3
	ctx      context.Context
	name     string
	token    string
	unlocked bool // no retention, whatever the location says

	buf   []byte
	id    string // of the multipart upload, empty while there is none
	parts []minio.CompletePart
	busy  chan sentPart // the part on its way, nil while there is none
	ahead bool          // it has one of the process's second buffers
}

type sentPart struct {
	part minio.CompletePart
	buf  []byte
	err  error
}

// Write implements io.Writer for the function that makes the object.
func (u *s3Upload) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if err := u.ctx.Err(); err != nil {
			return n, err
		}
		if len(u.buf) == u.size() {
			if err := u.sendPart(); err != nil {
				return n, err
			}
		}
		k := min(u.size()-len(u.buf), len(p)-n)
		u.buf = append(u.buf, p[n:n+k]...)
		n += k
	}
	return n, nil
}

// size is that of the part being filled.
func (u *s3Upload) size() int {
	if len(u.parts) < manyParts {
		return partSize
	}
	return largePart
}

// sendPart sends the full buffer on its way, once the part before has arrived.
func (u *s3Upload) sendPart() error {
	if u.id == "" {
		if err := u.begin(); err != nil {
			return err
		}
	}
	spare, err := u.await()
	if err != nil {
		return err
	}
	body, number := u.buf, len(u.parts)+1
	if spare == nil {
		select {
		case ahead <- struct{}{}:
			u.ahead, spare = true, u.s.buffers.get()
		default:
			return u.sendNow(body, number)
		}
	}
	u.buf, u.busy = spare[:0], make(chan sentPart, 1)
	go func() {
		part, err := u.put(body, number)
		u.busy <- sentPart{part, body, err}
	}()
	return nil
}

// sendNow sends a part, and leaves its buffer for the next.
func (u *s3Upload) sendNow(body []byte, number int) error {
	part, err := u.put(body, number)
	if err != nil {
		return u.s.fault("writing", u.name, err)
	}
	u.parts, u.buf = append(u.parts, part), body[:0]
	return nil
}

// await waits for the part on its way and returns its buffer.
func (u *s3Upload) await() ([]byte, error) {
	if u.busy == nil {
		return nil, nil
	}
	sent := <-u.busy
	u.busy = nil
	if sent.err != nil {
		u.s.buffers.put(sent.buf)
		return nil, u.s.fault("writing", u.name, sent.err)
	}
	u.parts = append(u.parts, sent.part)
	return sent.buf, nil
}

func (u *s3Upload) put(body []byte, number int) (part minio.CompletePart, err error) {
	sum := sha256.Sum256(body)
	o := minio.PutObjectPartOptions{Sha256Hex: hex.EncodeToString(sum[:])}
	if u.locked() {
		o.Md5Base64 = md5Base64(body)
	}
	err = u.s.sending.do(u.ctx, func(int) error {
		p, err := u.s.core.PutObjectPart(u.ctx, u.s.o.Bucket, u.s.key(u.name), u.id, number, bytes.NewReader(body), int64(len(body)), o)
		part = minio.CompletePart{PartNumber: number, ETag: p.ETag}
		return err
	})
	return part, err
}

// finish makes the object appear.
func (u *s3Upload) finish() error {
	if u.id == "" {
		return u.whole(u.buf)
	}
	spare, err := u.await()
	u.s.buffers.put(spare)
	if err == nil && len(u.buf) > 0 {
		err = u.sendNow(u.buf, len(u.parts)+1)
	}
	if err != nil {
		return err
	}
	return u.complete()
}

// whole writes the object with one request.
func (u *s3Upload) whole(body []byte) error {
	o := u.options()
	sum := sha256.Sum256(body)
	var md5 string
	if u.locked() {
		md5 = md5Base64(body) // stores insist on it where there is a lock
	}
	return u.create("writing", func() error {
		_, err := u.s.core.PutObject(u.ctx, u.s.o.Bucket, u.s.key(u.name), bytes.NewReader(body), int64(len(body)), md5, hex.EncodeToString(sum[:]), o)
		return err
	})
}

// inParts writes the object as a multipart upload of one part.
func (u *s3Upload) inParts(body []byte) error {
	err := u.begin()
	if err == nil {
		u.buf = body
		err = u.finish()
	}
	if err != nil {
		u.giveUp()
	}
	return err
}

func (u *s3Upload) locked() bool { return u.s.o.LockMode != "" && !u.unlocked }

// options are those of a write that creates: condition, token, retention.
func (u *s3Upload) options() minio.PutObjectOptions {
	o := minio.PutObjectOptions{UserMetadata: map[string]string{tokenKey: u.token}}
	o.SetMatchETagExcept("*")
	if u.locked() {
		o.Mode = minio.RetentionMode(strings.ToUpper(u.s.o.LockMode))
		o.RetainUntilDate = time.Now().AddDate(0, 0, u.s.o.LockDays).UTC().Truncate(time.Second)
		o.SendContentMd5 = true
	}
	return o
}

func md5Base64(b []byte) string {
	sum := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func (u *s3Upload) begin() error {
	o := u.options()
	var condition minio.PutObjectOptions // belongs to the completion
	condition.UserMetadata, condition.Mode, condition.RetainUntilDate = o.UserMetadata, o.Mode, o.RetainUntilDate
	err := u.s.retry.do(u.ctx, func(int) (err error) {
		u.id, err = u.s.core.NewMultipartUpload(u.ctx, u.s.o.Bucket, u.s.key(u.name), condition)
		return err
	})
	return u.s.fault("writing", u.name, err)
}

func (u *s3Upload) complete() error {
	var o minio.PutObjectOptions
	o.SetMatchETagExcept("*")
	err := u.create("completing", func() error {
		_, err := u.s.core.CompleteMultipartUpload(u.ctx, u.s.o.Bucket, u.s.key(u.name), u.id, u.parts, o)
		return err
	})
	if err == nil {
		u.id = ""
	}
	return err
}

// create runs the request that gives the object its name, until the store has
// said whether it did. Where an answer was lost, the object that has the name
// may be ours: its token tells.
func (u *s3Upload) create(op string, request func() error) error {
	lost := false
	err := u.s.sending.do(u.ctx, func(int) error {
		err := request()
		if err == nil {
			return nil
		}
		if lost && (isTaken(err) || isGoneUpload(err)) {
			ours, serr := u.ours()
			if serr != nil {
				return serr
			}
			if ours {
				return nil
			}
		}
		if isTaken(err) {
			return fmt.Errorf("%s: %w", u.name, ErrExist)
		}
		lost = lost || tornOrPassing(err)
		return err
	})
	if err == nil || errors.Is(err, ErrExist) {
		return err
	}
	if cerr := u.ctx.Err(); cerr != nil {
		return cerr
	}
	return u.s.fault(op, u.name, err)
}

func isGoneUpload(err error) bool {
	e, ok := answer(err)
	return ok && e.Code == "NoSuchUpload"
}

// ours reports whether the object was written by this upload.
func (u *s3Upload) ours() (bool, error) {
	st, err := u.s.stat(u.ctx, u.name)
	if isMissing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for k, v := range st.UserMetadata {
		if strings.EqualFold(k, tokenKey) {
			return v == u.token, nil
		}
	}
	return false, nil
}

// giveUp removes the parts of an upload that will not be completed.
func (u *s3Upload) giveUp() {
	if u.busy != nil {
		sent := <-u.busy
		u.busy = nil
		u.s.buffers.put(sent.buf)
	}
	if u.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), abortLimit)
	defer cancel()
	// What cannot be removed now is removed by Sweep.
	_ = u.s.retry.do(ctx, func(int) error {
		err := u.s.core.AbortMultipartUpload(ctx, u.s.o.Bucket, u.s.key(u.name), u.id)
		if isGoneUpload(err) {
			return nil
		}
		return err
	})
	u.id = ""
}
