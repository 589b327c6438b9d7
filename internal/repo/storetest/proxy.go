package storetest

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// Fault is what a Proxy does to a request.
type Fault int

// The faults.
const (
	None         Fault = iota
	Hang               // never answers
	Refuse             // 503 SlowDown, not passed on
	Break              // the connection ends before the store sees the request
	Lose               // passed on, but the answer is lost
	Fail               // passed on, but the answer is a 500
	TearUpload         // the store gets half of the body
	FlipUpload         // one bit of the body is changed on the way
	TearDownload       // half of the answer arrives
	HTML404            // a page of the proxy's own
)

// Proxy stands in front of a store and does to each request what Choose says.
type Proxy struct {
	URL string

	// Choose decides about a request; nil passes everything.
	Choose func(r *http.Request) Fault
	// Hide removes keys from listings.
	Hide func(key string) bool

	mu     sync.Mutex
	seen   int
	faults int
	gone   chan struct{}
}

// NewProxy starts a proxy in front of a store until the test ends.
func NewProxy(t testing.TB, endpoint string) *Proxy {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{gone: make(chan struct{})}
	pass := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host }, // the host is signed
		ModifyResponse: p.modify,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, pass) }))
	t.Cleanup(func() {
		close(p.gone)
		server.CloseClientConnections()
		server.Close()
	})
	p.URL = server.URL
	return p
}

// Counts returns how many requests came, and how many met a fault.
func (p *Proxy) Counts() (seen, faults int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen, p.faults
}

func (p *Proxy) choose(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen++
	if p.Choose == nil {
		return None
	}
	f := p.Choose(r)
	if f != None {
		p.faults++
	}
	return f
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	switch p.choose(r) {
	case None:
		pass.ServeHTTP(w, r)
	case Hang:
		io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-p.gone:
		}
	case Refuse:
		io.Copy(io.Discard, r.Body)
		xmlError(w, http.StatusServiceUnavailable, "SlowDown")
	case Break:
		panic(http.ErrAbortHandler)
	case Lose:
		pass.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	case Fail:
		pass.ServeHTTP(httptest.NewRecorder(), r)
		xmlError(w, http.StatusInternalServerError, "InternalError")
	case TearUpload:
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body[:len(body)/2]), broken{}))
		pass.ServeHTTP(w, r)
	case FlipUpload:
		body, _ := io.ReadAll(r.Body)
		if len(body) > 0 {
			body[len(body)/2] ^= 0x10
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		pass.ServeHTTP(w, r)
	case TearDownload:
		rec := httptest.NewRecorder()
		pass.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case HTML404:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, "<html><title>404</title>no such site</html>\n")
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func xmlError(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	io.WriteString(w, "<?xml version=\"1.0\"?><Error><Code>"+code+"</Code><Message>injected</Message></Error>")
}

var contents = regexp.MustCompile(`(?s)<Contents>.*?</Contents>`)
var keyElement = regexp.MustCompile(`<Key>(.*?)</Key>`)

// modify takes what Hide hides out of a listing, as a store does whose
// listings lag behind.
func (p *Proxy) modify(resp *http.Response) error {
	if p.Hide == nil || !strings.Contains(resp.Request.URL.RawQuery, "list-type=2") {
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	body = contents.ReplaceAllFunc(body, func(c []byte) []byte {
		if m := keyElement.FindSubmatch(c); m != nil && p.Hide(string(m[1])) {
			return nil
		}
		return c
	})
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Del("Content-Length")
	return nil
}
