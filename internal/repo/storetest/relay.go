package storetest

import (
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"testing"
)

// Relay passes connections on to a port of this machine, and cuts them.
type Relay struct {
	Port int

	mu    sync.Mutex
	after []int64 // for each connection in turn
	seen  int
}

// NewRelay starts a relay to a port until the test ends. The first connection
// is cut after the first number of bytes from the client, or to it where the
// number is negative, and so on; those beyond the list are left alone.
func NewRelay(t testing.TB, port int, after ...int64) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &Relay{Port: l.Addr().(*net.TCPAddr).Port, after: after}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(c, port)
		}
	}()
	return r
}

// Connections is how many there were.
func (r *Relay) Connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}

func (r *Relay) pass(c net.Conn, port int) {
	defer c.Close()
	s, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return
	}
	defer s.Close()
	r.mu.Lock()
	limit := int64(math.MaxInt64)
	if r.seen < len(r.after) {
		limit = r.after[r.seen]
	}
	r.seen++
	r.mu.Unlock()
	up, down := limit, int64(math.MaxInt64)
	if limit < 0 {
		up, down = math.MaxInt64, -limit
	}
	done := make(chan struct{}, 2)
	go func() { io.CopyN(s, c, up); done <- struct{}{} }()
	go func() { io.CopyN(c, s, down); done <- struct{}{} }()
	<-done
}
