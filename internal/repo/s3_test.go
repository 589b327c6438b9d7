package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/internal/repo/drivertest"
	"tidemark/internal/repo/storetest"
)

func openAt(t *testing.T, location string) repo.Driver {
	t.Helper()
	l, err := repo.ParseLocation(location)
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Driver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>13 + i)
	}
	return b
}

func writer(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

func readAll(t *testing.T, d repo.Driver, name string) ([]byte, error) {
	t.Helper()
	o, err := d.Get(t.Context(), name, 0, -1)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return io.ReadAll(o)
}

func TestS3Conformance(t *testing.T) {
	s := storetest.NewS3(t, false)
	drivertest.Run(t, func(t *testing.T) (repo.Driver, repo.Driver) {
		at := s.Location(t.Name())
		return openAt(t, at), openAt(t, at)
	})
}

// nth meets the nth request that matches with a fault, and some after it.
func nth(match func(*http.Request) bool, fault storetest.Fault, n, times int) func(*http.Request) storetest.Fault {
	seen := 0
	return func(r *http.Request) storetest.Fault {
		if !match(r) {
			return storetest.None
		}
		seen++
		if seen > n && seen <= n+times {
			return fault
		}
		return storetest.None
	}
}

func every(*http.Request) bool { return true }

// TestS3Faults meets each request of a put, one after the other, with each
// fault: the object is there whole all the same, once, and nothing is left.
func TestS3Faults(t *testing.T) {
	s := storetest.NewS3(t, false)
	faults := map[string]storetest.Fault{"hang": storetest.Hang, "refuse": storetest.Refuse, "break": storetest.Break,
		"lose": storetest.Lose, "fail": storetest.Fail, "tear": storetest.TearUpload, "flip": storetest.FlipUpload}
	for kind, fault := range faults {
		for _, size := range []int{1000, 9 << 20} {
			t.Run(fmt.Sprintf("%s/%d", kind, size), func(t *testing.T) {
				data := content(size)
				for n, met := 0, true; met; n++ {
					p := storetest.NewProxy(t, s.Endpoint)
					p.Choose = nth(every, fault, n, 1)
					name := fmt.Sprintf("%s/%d/%d", kind, size, n)
					d := openAt(t, s.At(p.URL, "faults", "timeout=400ms"))
					if err := d.Put(t.Context(), name, writer(data)); err != nil {
						t.Fatalf("fault at request %d: %v", n, err)
					}
					_, faults := p.Counts()
					met = faults > 0
					got, err := readAll(t, openAt(t, s.Location("faults")), name)
					if err != nil || !bytes.Equal(got, data) {
						t.Fatalf("fault at request %d: %d bytes are there, %v", n, len(got), err)
					}
					if err := d.Put(t.Context(), name, writer(data)); !errors.Is(err, repo.ErrExist) {
						t.Fatalf("a second put: %v", err)
					}
				}
			})
		}
	}
}

// TestS3LostAnswer: a write whose answer was lost is told from another's.
func TestS3LostAnswer(t *testing.T) {
	s := storetest.NewS3(t, false)
	for _, size := range []int{10, 9 << 20} {
		name := fmt.Sprintf("x-%d", size)
		other := openAt(t, s.Location(""))
		p := storetest.NewProxy(t, s.Endpoint)
		d := openAt(t, s.At(p.URL, "", "timeout=2s"))
		var raced atomic.Bool
		p.Choose = func(r *http.Request) storetest.Fault {
			creates := r.Method == http.MethodPut && !strings.Contains(r.URL.RawQuery, "partNumber") || r.Method == http.MethodPost && strings.Contains(r.URL.RawQuery, "uploadId")
			if creates && raced.CompareAndSwap(false, true) {
				if err := other.Put(context.Background(), name, writer([]byte("the other's"))); err != nil {
					t.Error(err)
				}
				return storetest.Break // this request never arrives: what is there is the other's
			}
			return storetest.None
		}
		if err := d.Put(t.Context(), name, writer(content(size))); !errors.Is(err, repo.ErrExist) {
			t.Errorf("%d bytes: %v, want ErrExist", size, err)
		}
		if got, err := readAll(t, other, name); string(got) != "the other's" {
			t.Errorf("%d bytes: %q, %v", size, got, err)
		}
	}
}

// TestS3ReadFaults: a download that is torn goes on where it was.
func TestS3ReadFaults(t *testing.T) {
	s := storetest.NewS3(t, false)
	data := content(3 << 20)
	if err := openAt(t, s.Location("r")).Put(t.Context(), "x", writer(data)); err != nil {
		t.Fatal(err)
	}
	for _, fault := range []storetest.Fault{storetest.Hang, storetest.Refuse, storetest.Break, storetest.TearDownload, storetest.HTML404} {
		p := storetest.NewProxy(t, s.Endpoint)
		p.Choose = nth(every, fault, 0, 3)
		got, err := readAll(t, openAt(t, s.At(p.URL, "r", "timeout=500ms")), "x")
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("fault %d: %d bytes, %v", fault, len(got), err)
		}
		if _, faults := p.Counts(); faults != 3 {
			t.Errorf("fault %d was met %d times", fault, faults)
		}
	}
}

// TestS3Down: a store that stays away is an error after a bounded time, and
// never an object that is not there.
func TestS3Down(t *testing.T) {
	s := storetest.NewS3(t, false)
	for _, fault := range []storetest.Fault{storetest.Hang, storetest.Refuse, storetest.Break, storetest.HTML404} {
		p := storetest.NewProxy(t, s.Endpoint)
		p.Choose = func(*http.Request) storetest.Fault { return fault }
		d := openAt(t, s.At(p.URL, "down", "timeout=200ms", "attempts=3"))
		began := time.Now()
		_, err := d.Get(t.Context(), "x", 0, -1)
		if err == nil || errors.Is(err, repo.ErrNotExist) {
			t.Errorf("get with fault %d: %v", fault, err)
		}
		if err := d.List(t.Context(), "", func(repo.ObjectInfo) error { return nil }); err == nil {
			t.Errorf("list with fault %d: no error", fault)
		}
		if err := d.Put(t.Context(), "x", writer(content(9<<20))); err == nil || errors.Is(err, repo.ErrExist) {
			t.Errorf("put with fault %d: %v", fault, err)
		}
		if err := d.Delete(t.Context(), "x"); err == nil {
			t.Errorf("delete with fault %d: no error", fault)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("fault %d: it took %v to give up", fault, took)
		}
	}
}

// TestS3LateListing: a store whose listings lag behind still refuses a name
// that is taken, and still serves what is there.
func TestS3LateListing(t *testing.T) {
	s := storetest.NewS3(t, false)
	p := storetest.NewProxy(t, s.Endpoint)
	p.Hide = func(string) bool { return true }
	at := s.At(p.URL, "late")
	if _, created, err := repo.Init(t.Context(), at); err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
	// Opened, not made again, although nothing is listed.
	if _, created, err := repo.Init(t.Context(), at); err != nil || created {
		t.Fatalf("created %v, %v", created, err)
	}
	d := openAt(t, at)
	if err := d.Put(t.Context(), "x", writer([]byte("1"))); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "x", writer([]byte("2"))); !errors.Is(err, repo.ErrExist) {
		t.Errorf("second put: %v", err)
	}
	if got, err := readAll(t, d, "x"); string(got) != "1" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestS3Errors: what an operator can mend comes with how to mend it, and no
// secret is ever shown.
func TestS3Errors(t *testing.T) {
	s := storetest.NewS3(t, false)
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("[wrong]\naws_access_key_id = tidemark-test\naws_secret_access_key = not-the-secret\n"+
		"[nobody]\naws_access_key_id = nobody\naws_secret_access_key = not-the-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ location, hint string }{
		{s.Location("x", "credentials="+keys, "profile=wrong"), "secret key is wrong"},
		{s.Location("x", "credentials="+keys, "profile=nobody"), "does not know the access key"},
		{s.Location("x", "credentials="+keys, "profile=none"), "form of ~/.aws/credentials"},
		{s.Location("x", "credentials="+keys+".none"), "form of ~/.aws/credentials"},
		{strings.Replace(s.Location("x"), "s3://backup/", "s3://elsewhere/", 1), "make the bucket elsewhere first"},
		{s.Location("x", "region=eu-none-1"), "region"},
		{strings.Replace(s.Location("x"), "http://", "https://", 1), "plain HTTP"},
		{s.At("http://127.0.0.1:1", "x", "attempts=1"), "nothing listens"},
		{s.At("http://no.such.host.invalid", "x", "attempts=1"), "name of the endpoint"},
		{s.Location("x"), "dbbackup init"},
	}
	for _, tt := range tests {
		_, err := repo.Open(t.Context(), tt.location+"&attempts=2&timeout=5s")
		if strings.Contains(tt.location, "attempts=") {
			_, err = repo.Open(t.Context(), tt.location)
		}
		if err == nil || !strings.Contains(exit.HintOf(err), tt.hint) {
			t.Errorf("%s:\n error %v\n hint %s\n want %q", tt.location, err, exit.HintOf(err), tt.hint)
			continue
		}
		if text := err.Error() + exit.HintOf(err); strings.Contains(text, "not-the-secret") || strings.Contains(text, storetest.SecretKey) {
			t.Errorf("%s: a secret is shown: %s", tt.location, text)
		}
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("HOME", t.TempDir())
	if _, err := repo.Open(t.Context(), s.Location("x")); err == nil || !strings.Contains(exit.HintOf(err), "AWS_ACCESS_KEY_ID") {
		t.Errorf("without keys: %v", err)
	}
}

// TestS3Unconditional: a store that overwrites is refused when a repository is
// to be made there.
func TestS3Unconditional(t *testing.T) {
	s := storetest.NewS3(t, false)
	for _, method := range []string{http.MethodPut, http.MethodPost} {
		p := storetest.NewProxy(t, s.Endpoint)
		p.Choose = func(r *http.Request) storetest.Fault {
			// As if the store took no notice of the condition.
			if r.Method == method && r.Header.Get("If-None-Match") != "" {
				key := strings.TrimPrefix(r.URL.Path, "/"+s.Bucket+"/")
				if err := s.Client(t).RemoveObject(context.Background(), s.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
					t.Error(err)
				}
			}
			return storetest.None
		}
		_, _, err := repo.Init(t.Context(), s.At(p.URL, "forget"))
		if exit.CodeOf(err) != exit.Refused || !strings.Contains(exit.HintOf(err), "If-None-Match") {
			t.Errorf("%s without conditions: %v", method, err)
		}
		for o := range s.Client(t).ListObjects(t.Context(), s.Bucket, minio.ListObjectsOptions{Prefix: "forget/", Recursive: true}) {
			t.Errorf("left behind: %s", o.Key)
		}
	}
}

// TestS3Lock: what is stored under a lock cannot be deleted before its time,
// and an unlocked object in the same bucket can.
func TestS3Lock(t *testing.T) {
	s := storetest.NewS3(t, true)
	d := openAt(t, s.Location("locked", "lock=compliance", "lock-days=2"))
	for name, data := range map[string][]byte{"small": []byte("1"), "large": content(9 << 20)} {
		if err := d.Put(t.Context(), name, writer(data)); err != nil {
			t.Fatal(err)
		}
		st, err := s.Client(t).StatObject(t.Context(), s.Bucket, "locked/"+name, minio.StatObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		until, err := time.Parse(time.RFC3339, st.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
		if mode := st.Metadata.Get("X-Amz-Object-Lock-Mode"); err != nil || mode != "COMPLIANCE" || time.Until(until) < 47*time.Hour {
			t.Errorf("%s: %v until %v, %v", name, mode, until, err)
		}
		err = d.Delete(t.Context(), name)
		if !errors.Is(err, repo.ErrLocked) || exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "until") {
			t.Errorf("delete %s: %v", name, err)
		}
		if err := d.Put(t.Context(), name, writer(nil)); !errors.Is(err, repo.ErrExist) {
			t.Errorf("put %s again: %v", name, err)
		}
		if got, err := readAll(t, d, name); !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	free := openAt(t, s.Location("free"))
	if err := free.Put(t.Context(), "x", writer([]byte("1"))); err != nil {
		t.Fatal(err)
	}
	if err := free.Delete(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	for o := range s.Client(t).ListObjects(t.Context(), s.Bucket, minio.ListObjectsOptions{Prefix: "free/", Recursive: true, WithVersions: true}) {
		t.Errorf("a version is left: %s %s", o.Key, o.VersionID)
	}
	r, _, err := repo.Init(t.Context(), s.Location("whole", "lock=governance", "lock-days=1"))
	if err != nil {
		t.Fatalf("a repository under a lock: %v", err)
	}
	// What is locked of a backup that failed does not stand in the next one's way.
	w, err := r.Cluster(1).NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: 8192})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Errorf("abort under a lock: %v", err)
	}
}

// TestS3Killed: a process that dies in the middle of an upload leaves nothing
// that is listed, and the name free.
func TestS3Killed(t *testing.T) {
	if at := os.Getenv("REPO_TEST_KILLED"); at != "" {
		dieInPut(t, at)
	}
	s := storetest.NewS3(t, false)
	killed(t, s.Location("k"), "TestS3Killed")
	parts := 0
	for u := range s.Client(t).ListIncompleteUploads(t.Context(), s.Bucket, "k/", true) {
		parts++
		if u.Err != nil {
			t.Error(u.Err)
		}
	}
	if parts != 1 {
		t.Errorf("%d incomplete uploads, want the one of the killed process", parts)
	}
	// It is too young to be taken for abandoned.
	if n, err := openAt(t, s.Location("k")).(repo.Sweeper).Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("sweep removed %d, %v", n, err)
	}
}

func dieInPut(t *testing.T, at string) {
	d := openAt(t, at)
	d.Put(context.Background(), "k/x", func(w io.Writer) error {
		w.Write(make([]byte, 20<<20))
		os.Stdout.WriteString("ready\n")
		select {}
	})
}

// killed runs dieInPut in another process, kills it, and stores the same name.
func killed(t *testing.T, at, test string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), "REPO_TEST_KILLED="+at)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadFull(out, make([]byte, 6))
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	d := openAt(t, at)
	if c, ok := d.(io.Closer); ok {
		defer c.Close()
	}
	if err := d.List(t.Context(), "", func(i repo.ObjectInfo) error { return fmt.Errorf("listed: %s", i.Name) }); err != nil {
		t.Error(err)
	}
	if _, err := d.Get(t.Context(), "k/x", 0, -1); !errors.Is(err, repo.ErrNotExist) {
		t.Errorf("get: %v", err)
	}
	if err := d.Put(t.Context(), "k/x", writer([]byte("1"))); err != nil {
		t.Error(err)
	}
}
