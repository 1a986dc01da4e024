package wire

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"testing"

	"atoll/api"
	"atoll/internal/tunnel"
)

// cpu is the processor time of this process: both sides run in it.
func cpu(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano() + u.Stime.Nano())
}

func perOp(b *testing.B, before float64) {
	b.ReportMetric((cpu(b)-before)/float64(b.N)/1000, "µs-cpu/op")
}

func connected(b *testing.B) *pool {
	p := newPool(b, Config{})
	l := p.link(LinkConfig{}, p.http.URL)
	p.await(l, p.http.URL, true)
	return p
}

// tlsPair is what the tunnel is compared with: the same TLS, nothing above it.
func tlsPair(b *testing.B) (client, server net.Conn) {
	p := newPool(b, Config{})
	conf, err := p.ca.ServerTLS([]string{"127.0.0.1"})
	if err != nil {
		b.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		b.Fatal(err)
	}
	got := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err == nil && c.(*tls.Conn).Handshake() == nil {
			got <- c
		}
		close(got)
	}()
	cc := p.tls("isle1")
	cc.ServerName = "127.0.0.1"
	client, err = tls.Dial("tcp", l.Addr().String(), cc)
	if err != nil {
		b.Fatal(err)
	}
	server = <-got
	b.Cleanup(func() { client.Close(); server.Close(); l.Close() })
	return client, server
}

const block = 64 << 10

// Bytes from a node through a tunnel stream, as logs and files go.
func BenchmarkTunnelBytes(b *testing.B) {
	s, err := connected(b).hub.Open(b.Context(), "isle1", tunnel.Header{Verb: "flood"})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.SetBytes(block)
	before := cpu(b)
	for b.Loop() {
		if _, p, err := s.Read(); err != nil || len(p) != block {
			b.Fatal(len(p), err)
		}
	}
	perOp(b, before)
}

func BenchmarkPlainTLSBytes(b *testing.B) {
	client, server := tlsPair(b)
	go func() {
		for buf := make([]byte, block); ; {
			if _, err := client.Write(buf); err != nil {
				return
			}
		}
	}()
	b.SetBytes(block)
	before := cpu(b)
	for buf := make([]byte, block); b.Loop(); {
		if _, err := io.ReadFull(server, buf); err != nil {
			b.Fatal(err)
		}
	}
	perOp(b, before)
}

// A small question and its answer over a stream that is open, as heartbeats are.
func BenchmarkTunnelRoundTrip(b *testing.B) {
	s, err := connected(b).hub.Open(b.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	msg := make([]byte, 64)
	before := cpu(b)
	for b.Loop() {
		if err := s.Write(api.ChanStdin, msg); err != nil {
			b.Fatal(err)
		}
		if _, _, err := s.Read(); err != nil {
			b.Fatal(err)
		}
	}
	perOp(b, before)
}

func BenchmarkPlainTLSRoundTrip(b *testing.B) {
	client, server := tlsPair(b)
	go func() {
		for buf := make([]byte, 64); ; {
			if _, err := io.ReadFull(client, buf); err != nil {
				return
			}
			if _, err := client.Write(buf); err != nil {
				return
			}
		}
	}()
	before := cpu(b)
	for buf := make([]byte, 64); b.Loop(); {
		if _, err := server.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(server, buf); err != nil {
			b.Fatal(err)
		}
	}
	perOp(b, before)
}

// A stream for every question.
func BenchmarkTunnelOpen(b *testing.B) {
	p := connected(b)
	before := cpu(b)
	for b.Loop() {
		s, err := p.hub.Open(b.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
		if err != nil {
			b.Fatal(err)
		}
		if err := chat(s, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
	perOp(b, before)
}
