package wire

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"atoll/internal/clock"
	"atoll/internal/tunnel"
)

// Whatever a node sends after the upgrade, the server's side neither crashes nor
// stays, and a handler sees only what a stream really carried.
func FuzzSession(f *testing.F) {
	syn := "\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00"
	data := "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x07\xff\x00\x00\x00\x02{}"
	for _, s := range []string{syn + data, syn + syn, data, "\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07", syn + "\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff", "\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\x01", syn + "\x00\x01\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00" + data, syn + "\x00\x01\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		s, err := NewServer(ours, Config{Clock: clock.Real{}, Silence: time.Second, MaxOpen: 8, MaxServe: 8})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		go func() {
			_, _ = theirs.Write(b)
			theirs.Close()
		}()
		_ = s.Run(ctx, func(_ context.Context, _ tunnel.Header, st *tunnel.Stream) error {
			for {
				if _, p, err := st.Read(); err != nil {
					return nil
				} else if len(p) > len(b) {
					t.Error("more came out than went in")
				}
			}
		})
		if ctx.Err() != nil {
			t.Fatal("the session did not end with its connection")
		}
	})
}

// Whatever answers at a server's address, a node gets an error or a tunnel.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: atoll-tunnel/1\r\n\r\nrest"))
	f.Add([]byte("HTTP/1.1 403 Forbidden\r\nContent-Length: 60\r\n\r\n{\"type\":\"urn:atoll:error:denied\",\"detail\":\"no\"}            "))
	f.Add([]byte("HTTP/1.1 101\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		br := bufio.NewReader(io.LimitReader(bytes.NewReader(b), maxAnswer))
		resp, err := http.ReadResponse(br, &http.Request{Method: "GET"})
		if err != nil {
			return
		}
		defer resp.Body.Close()
		if err := refusal(resp); err == nil || strings.TrimSpace(err.Error()) == "" && resp.ContentLength == 0 {
			t.Fatal("a refusal without a reason")
		}
	})
}
