package wire

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/auth/authtest"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

// pool is a server with real TLS, and what a node needs to reach it.
type pool struct {
	t    testing.TB
	hub  *tunnel.Hub
	ca   *auth.CA
	http *httptest.Server
	cfg  Config
	up   atomic.Int64 // connections taken so far

	mu       sync.Mutex
	refuse   error // answered instead of an upgrade
	sessions []*Session
	node     tunnel.Handler // what nodes open
}

func newPool(t testing.TB, cfg Config) *pool {
	t.Helper()
	return poolOf(t, cfg, auth.NewCA(t.TempDir(), clock.Real{}, rand.Reader))
}

func poolOf(t testing.TB, cfg Config, ca *auth.CA) *pool {
	t.Helper()
	cfg.Clock = clock.Real{}
	p := &pool{t: t, hub: tunnel.NewHub(), ca: ca, cfg: cfg}
	conf, err := p.ca.ServerTLS([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	conf.NextProtos = []string{"http/1.1"}
	p.http = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	addr := p.http.Listener.Addr().String()
	p.http.Listener = tls.NewListener(p.http.Listener, conf) // not StartTLS: it would show its own certificate
	p.http.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	p.http.Start()
	p.http.URL = "https://" + addr
	t.Cleanup(func() {
		p.drop()
		p.http.Close()
	})
	return p
}

func (p *pool) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	refuse, fn := p.refuse, p.node
	p.mu.Unlock()
	id, ok := auth.Certificate(r.TLS)
	if !ok {
		refuse = errs.New(errs.Unauthenticated, "who are you?")
	}
	if refuse != nil {
		w.WriteHeader(errs.HTTPStatus(refuse))
		_ = json.NewEncoder(w).Encode(map[string]string{"type": "urn:atoll:error:" + string(errs.KindOf(refuse)), "detail": refuse.Error()})
		return
	}
	conn, err := Upgrade(w, r)
	if err != nil {
		w.WriteHeader(errs.HTTPStatus(err))
		return
	}
	s, err := NewServer(conn, p.cfg)
	if err != nil {
		p.t.Error(err)
		return
	}
	p.mu.Lock()
	p.sessions = append(p.sessions, s)
	p.mu.Unlock()
	defer p.hub.Register(id.Node, s.Open)()
	p.up.Add(1)
	_ = s.Run(r.Context(), func(ctx context.Context, h tunnel.Header, st *tunnel.Stream) error {
		if fn == nil {
			return errs.New(errs.Unsupported, "no streams of nodes")
		}
		return fn(ctx, h, st)
	})
}

// drop breaks every connection.
func (p *pool) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		s.Close()
	}
	p.sessions = nil
}

func (p *pool) tls(node string) *tls.Config {
	p.t.Helper()
	pem, err := p.ca.CertPEM()
	if err != nil {
		p.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	pair, _ := authtest.Node(p.t, p.ca, node)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }}
}

// link runs a node that is connected to the endpoints.
func (p *pool) link(cfg LinkConfig, endpoints ...string) *Link {
	p.t.Helper()
	cfg.Clock, cfg.Rand = clock.Real{}, mrand.New(mrand.NewPCG(1, 2))
	if cfg.TLS == nil {
		cfg.TLS = p.tls("isle1")
	}
	if cfg.Handler == nil {
		cfg.Handler = echo
	}
	l := NewLink(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	p.t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			p.t.Error("the link does not stop")
		}
	})
	l.Set(endpoints)
	return l
}

func (p *pool) await(l *Link, endpoint string, connected bool) State {
	p.t.Helper()
	var st State
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		for _, s := range l.States() {
			if s.Endpoint == endpoint {
				st = s
			}
		}
		if st.Endpoint != "" && st.Connected == connected {
			if !connected || len(p.hub.Nodes()) > 0 {
				return st
			}
		}
	}
	p.t.Fatalf("%s does not become connected=%v: %+v", endpoint, connected, st)
	return st
}

// echo sends back what it gets, and ends when its input does; verb "flood" sends without end.
func echo(_ context.Context, h tunnel.Header, s *tunnel.Stream) error {
	switch h.Verb {
	case "flood":
		for block := make([]byte, 64<<10); ; {
			if err := s.Write(api.ChanStdout, block); err != nil {
				return err
			}
		}
	case "fail":
		return errs.New(errs.NotFound, "nothing of that name").WithHint("look elsewhere")
	}
	for {
		ch, p, err := s.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(p) == 0 {
			return s.WriteJSON(api.ChanExit, api.StreamExit{Code: 7})
		}
		if err := s.Write(ch, p); err != nil {
			return err
		}
	}
}

// proxy forwards connections until it is told to stop: then they stay open, and
// nothing passes.
type proxy struct {
	l      net.Listener
	frozen atomic.Bool
	block  chan struct{}
}

func newProxy(t testing.TB, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, block: make(chan struct{})}
	t.Cleanup(func() { l.Close(); close(p.block) })
	pipe := func(dst, src net.Conn) {
		defer dst.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if p.frozen.Load() {
				<-p.block
				return
			}
			if err != nil {
				return
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			go pipe(a, b)
			go pipe(b, a)
		}
	}()
	return p
}

func (p *proxy) url() string { return "https://" + p.l.Addr().String() }
