package wire

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"atoll/internal/clock"
	"atoll/internal/tunnel"
)

// pinged counts the signs of life that are written to a connection.
type pinged struct {
	net.Conn
	n atomic.Int64
}

func (p *pinged) Write(b []byte) (int, error) {
	if len(b) == headSize && b[1] == 2 {
		p.n.Add(1)
	}
	return p.Conn.Write(b)
}

// A connection on which nothing is said stays, by signs of life from both sides; one
// over which something is sent all the time needs none.
func TestSignsOfLife(t *testing.T) {
	for _, busy := range []bool{false, true} {
		a, b := net.Pipe()
		near, far := &pinged{Conn: a}, &pinged{Conn: b}
		cfg := Config{Clock: clock.Real{}, Beat: 400 * time.Millisecond, Silence: 1500 * time.Millisecond}
		client, err := NewClient(near, cfg)
		if err != nil {
			t.Fatal(err)
		}
		server, err := NewServer(far, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		ended := make(chan error, 2)
		wg.Go(func() { ended <- client.Run(ctx, echo) })
		wg.Go(func() { ended <- server.Run(ctx, echo) })
		began := time.Now()
		if busy {
			conn, err := client.Open(ctx)
			if err != nil {
				t.Fatal(err)
			}
			s, err := tunnel.Open(conn, tunnel.Header{Verb: "echo"})
			if err != nil {
				t.Fatal(err)
			}
			for time.Since(began) < 3*time.Second {
				if err := s.Write(1, []byte("beat")); err != nil {
					t.Fatal(err)
				}
				if _, _, err := s.Read(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("busy=%v: the connection ended: %v", busy, err)
		case <-time.After(3*time.Second - time.Since(began)):
		}
		n := [2]int64{near.n.Load(), far.n.Load()}
		if busy && n[0]+n[1] > 4 || !busy && (n[0] < 2 || n[1] < 2) {
			t.Errorf("busy=%v: %v signs of life within 3 s", busy, n)
		}
		cancel()
		wg.Wait()
	}
}
