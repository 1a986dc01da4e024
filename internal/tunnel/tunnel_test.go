package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

// named is a dial whose streams answer with a name.
func named(t *testing.T, name string) Dial {
	dial, wait := Local(t.Context(), func(_ context.Context, _ Header, s *Stream) error { return s.Write(api.ChanStdout, []byte(name)) })
	t.Cleanup(wait)
	return dial
}

func ask(t *testing.T, h *Hub) string {
	t.Helper()
	s, err := h.Open(t.Context(), "isle1", Header{Verb: VerbUsage})
	if err != nil {
		return string(errs.KindOf(err))
	}
	defer s.Close()
	_, p, err := s.Read()
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// A node that has not dialled yet is waited for, for a while; it is reached as soon as it has.
func TestHubWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub()
		for _, node := range []string{"isle1", ""} {
			began := time.Now()
			if _, err := h.Open(t.Context(), node, Header{Verb: VerbUsage}); errs.KindOf(err) != errs.Unavailable || time.Since(began) != 2*time.Second {
				t.Errorf("%q: %v after %s", node, err, time.Since(began))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := h.Await(ctx, "isle1"); err == nil || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		began = time.Now()
		go func() {
			time.Sleep(500 * time.Millisecond)
			h.Register("isle2", named(t, "another"))
			time.Sleep(500 * time.Millisecond)
			h.Register("isle1", named(t, "it"))
		}()
		if got := ask(t, h); got != "it" || time.Since(began) != time.Second {
			t.Errorf("%s after %s", got, time.Since(began))
		}
		if err := h.Await(t.Context(), ""); err != nil || time.Since(began) != time.Second {
			t.Error(err)
		}
	})
}

// A node is back before the end of its old connection is noticed: that end must not
// take the new one away. Whatever the order, the newest that is left is used.
func TestHubNewestWins(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		h := NewHub()
		names := []string{"a", "b", "c"}
		removes := []func(){}
		for _, n := range names {
			removes = append(removes, h.Register("isle1", named(t, n)))
		}
		gone := map[int]bool{}
		check := func() {
			t.Helper()
			want := string(errs.Unavailable)
			for i, n := range names {
				if !gone[i] {
					want = n
				}
			}
			if got := ask(t, h); got != want {
				t.Errorf("order %v, gone %v: got %s, want %s", order, gone, got, want)
			}
		}
		check()
		for _, i := range order {
			removes[i]()
			removes[i]() // harmless
			gone[i] = true
			check()
		}
		if n := h.Nodes(); len(n) != 0 {
			t.Errorf("left: %v", n)
		}
	}
}

func TestHubPassesOverDyingConnections(t *testing.T) {
	h := NewHub()
	h.Register("isle1", named(t, "alive"))
	h.Register("isle1", func(context.Context) (net.Conn, error) { return nil, io.ErrClosedPipe })
	if got := ask(t, h); got != "alive" {
		t.Fatal(got)
	}
	if _, err := h.Open(t.Context(), "isle2", Header{}); !errors.Is(err, errs.Unavailable) || errs.HintOf(err) == "" {
		t.Fatal(err)
	}
}

// Frames of every size arrive whole, whether sent in one piece or in several.
func TestFrames(t *testing.T) {
	a, b := net.Pipe()
	from, to := NewStream(a), NewStream(b)
	sizes := []int{0, 1, small - 1, small, small + 1, medium, medium + 1, 100_000, MaxFrame, MaxFrame + 7}
	go func() {
		for i, n := range sizes {
			if err := from.Write(byte(i), bytes.Repeat([]byte{byte(i)}, n)); err != nil {
				t.Error(err)
			}
		}
		from.Close()
	}()
	got := map[byte]int{}
	for {
		ch, p, err := to.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.Trim(string(p), string(rune(ch))) != "" {
			t.Fatalf("channel %d carries other bytes", ch)
		}
		got[ch] += len(p)
	}
	for i, n := range sizes {
		if got[byte(i)] != n {
			t.Errorf("frame of %d bytes: %d arrived", n, got[byte(i)])
		}
	}
}

// scripted is a connection whose peer has sent some bytes and left.
type scripted struct{ io.Reader }

func (scripted) Write(p []byte) (int, error)      { return len(p), nil }
func (scripted) Close() error                     { return nil }
func (scripted) LocalAddr() net.Addr              { return nil }
func (scripted) RemoteAddr() net.Addr             { return nil }
func (scripted) SetDeadline(time.Time) error      { return nil }
func (scripted) SetReadDeadline(time.Time) error  { return nil }
func (scripted) SetWriteDeadline(time.Time) error { return nil }

// Whatever a peer sends, a stream neither crashes nor reads without a bound, and a
// handler runs only after a whole header.
func FuzzServe(f *testing.F) {
	f.Add([]byte("\xff\x00\x00\x00\x0f{\"verb\":\"exec\"}\x00\x00\x00\x00\x02hi"))
	f.Add([]byte("\xff\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Serve(t.Context(), scripted{bytes.NewReader(b)}, func(_ context.Context, _ Header, s *Stream) error {
			if len(b) < 7 || b[0] != chanHeader {
				t.Fatal("a handler ran without a header")
			}
			for {
				if _, p, err := s.Read(); err != nil {
					return nil
				} else if len(p) > len(b) {
					t.Fatal("more came out than went in")
				}
			}
		})
		if err == nil && (len(b) < 7 || b[0] != chanHeader) {
			t.Fatal("served without a header")
		}
	})
}
