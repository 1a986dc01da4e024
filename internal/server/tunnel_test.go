package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/tunnel"
	"atoll/internal/tunnel/wire"

	crand "crypto/rand"
)

// tunnelled is a server on TLS, and the node isle1 connected to it over the network.
func tunnelled(t *testing.T, stream func(context.Context, string, tunnel.Header, *tunnel.Stream) error) (f *fixture, l *wire.Link, url string) {
	t.Helper()
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := port.Addr().String()
	port.Close()
	f = newFixture(t, Config{TLSAddr: addr, Advertise: []string{"https://" + addr}})
	f.CA = auth.NewCA(t.TempDir(), clock.Real{}, crand.Reader)
	f.NodeStream = stream
	f.run()
	url = "https://" + addr
	l = wire.NewLink(wire.LinkConfig{TLS: f.nodeTLS("isle1"), Clock: clock.Real{}, Rand: rand.New(rand.NewPCG(1, 1)),
		Handler: func(_ context.Context, h tunnel.Header, s *tunnel.Stream) error {
			if h.Verb == tunnel.VerbUsage {
				return s.WriteJSON(api.ChanStdout, api.UsageReport{})
			}
			return echo(h, s)
		}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	l.Set([]string{url})
	f.eventually("the node connects", func() bool { return len(f.hub.Nodes()) == 1 && l.States()[0].Connected })
	return f, l, url
}

func (f *fixture) nodeTLS(node string) *tls.Config {
	f.t.Helper()
	pem, err := f.CA.CertPEM()
	if err != nil {
		f.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	pair, id := nodePair(f.t, f.CA, node)
	if _, err := f.mem.Commit(f.t.Context(), store.Set(id)); err != nil {
		f.t.Fatal(err)
	}
	f.Auth.Put(id)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{*pair}}
}

func (f *fixture) eventually(what string, is func() bool) {
	f.t.Helper()
	for range 2000 {
		if is() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.t.Fatalf("not so: %s", what)
}

// A caller reaches an instance on a node that dialled in over the network, and the
// node reaches its server.
func TestTunnelOverTheNetwork(t *testing.T) {
	f, l, url := tunnelled(t, func(_ context.Context, node string, h tunnel.Header, s *tunnel.Stream) error {
		if h.Verb != "hello" {
			return errs.New(errs.Unsupported, "what is %s?", h.Verb)
		}
		return s.Write(api.ChanStdout, []byte("hello "+node))
	})
	in := f.placed("acme", "web", "isle1")
	c, err := f.socketAs("ann").InstanceStream(background(t), api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Write(api.ChanStdin, []byte("over the wire"))
	_ = c.Write(api.ChanStdin, nil)
	if out, _, x := drain(t, c); !strings.Contains(out, "OVER THE WIRE") || x.Code != 7 {
		t.Fatalf("%q %+v", out, x)
	}
	s, err := l.Open(t.Context(), url, tunnel.Header{Verb: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	if _, p, err := s.Read(); err != nil || string(p) != "hello isle1" {
		t.Fatalf("%s %v", p, err)
	}
	s.Close()
	if s, err = l.Open(t.Context(), url, tunnel.Header{Verb: "what"}); err != nil {
		t.Fatal(err)
	}
	if ch, p, err := s.Read(); err != nil || ch != api.ChanExit || !strings.Contains(string(p), "what is what?") {
		t.Fatalf("%d %s %v", ch, p, err)
	}
	s.Close()
	if got := f.do(root(), "GET", "/metrics", "").want(200).Body.String(); !strings.Contains(got, "atoll_http_tunnels 1") {
		t.Error("the tunnel is not counted")
	}
}

func (f *fixture) socketAs(user string) *remote.Store {
	s, _ := f.served(as(user), false)
	return s
}

// Only nodes, only as themselves, only over a connection that can be taken over, and
// only so many.
func TestTunnelRights(t *testing.T) {
	f := newFixture(t, Config{})
	for _, who := range []string{"root", "adam", "ann", "nora"} {
		p := f.do(as(who), "GET", wire.Path, "", "Connection: Upgrade", "Upgrade: "+wire.Protocol).problem(errs.Denied)
		if p.Hint == "" || f.audit.last().Kind != errs.Denied {
			t.Errorf("%s: %+v", who, p)
		}
	}
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, httptest.NewRequest("GET", wire.Path, nil))
	if p := (reply{w, t}).problem(errs.Unauthenticated); p.Hint == "" || w.Header().Get(api.HeaderNothingDone) == "" {
		t.Fatalf("%+v %v", p, w.Header())
	}
	f.do(as("node"), "GET", wire.Path+"?node=isle2", "").problem(errs.Invalid)
	f.do(as("node"), "GET", wire.Path, "", "Connection: Upgrade", "Upgrade: "+wire.Protocol).problem(errs.Unsupported)
	if n := f.hub.Nodes(); len(n) != 0 {
		t.Fatalf("connected: %v", n)
	}
	for range maxTunnels {
		release, ok := f.hold("tunnel", as("node"), maxTunnels)
		if !ok {
			t.Fatal("no room")
		}
		defer release()
	}
	f.do(as("node"), "GET", wire.Path, "", "Connection: Upgrade", "Upgrade: "+wire.Protocol).problem(errs.Unavailable)
}

// The connection ends with the server, and then nobody is connected.
func TestTunnelEndsWithTheServer(t *testing.T) {
	f := newFixture(t, Config{})
	hs := httptest.NewServer(f.As(as("node")))
	defer hs.Close()
	req, _ := http.NewRequestWithContext(t.Context(), "GET", hs.URL+wire.Path, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", wire.Protocol)
	resp, err := hs.Client().Do(req)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	f.eventually("the node is connected", func() bool { return len(f.hub.Nodes()) == 1 })
	resp.Body.Close()
	f.eventually("the node is gone", func() bool { return len(f.hub.Nodes()) == 0 })
	f.eventually("its end is in the audit log", func() bool { return f.audit.last().Status == http.StatusSwitchingProtocols })
	if r := f.audit.last(); r.Who.Node != "isle1" || r.Ref.Name != "isle1" {
		t.Fatalf("%+v", r)
	}
}

func TestServers(t *testing.T) {
	f := newFixture(t, Config{Advertise: []string{"https://isle1:7443"}})
	ask := func(who auth.Identity) (out Servers) {
		t.Helper()
		f.do(who, "GET", "/v1/servers", "").want(200).json(&out)
		return out
	}
	if got := ask(as("nora")); len(got.Endpoints) != 1 || got.Endpoints[0].URL != "https://isle1:7443" {
		t.Fatalf("%+v", got)
	}
	member := func(name string, s api.MemberSpec) *api.Member {
		return &api.Member{Head: api.Head{K: api.KindMember, Meta: meta(name)}, Spec: s}
	}
	f.put(member("isle3", api.MemberSpec{State: api.MemberVoter, API: "https://10.0.0.3:7443"}),
		member("isle2", api.MemberSpec{State: api.MemberVoter, API: "https://10.0.0.2:7443"}),
		member("isle4", api.MemberSpec{State: api.MemberLearner, API: "https://10.0.0.4:7443"}),
		member("isle5", api.MemberSpec{State: api.MemberVoter, Witness: true, API: "https://10.0.0.5:7443"}),
		member("isle6", api.MemberSpec{State: api.MemberVoter}))
	for _, who := range []auth.Identity{as("nora"), as("node"), root()} {
		got := ask(who)
		if len(got.Endpoints) != 2 || got.Endpoints[0] != (ServerURL{"isle2", "https://10.0.0.2:7443"}) || got.Endpoints[1].Name != "isle3" {
			t.Fatalf("%+v", got)
		}
	}
	if err := f.Auth.Check(as("nobody")); !errors.Is(err, errs.Unauthenticated) {
		t.Fatal(err)
	}
	f.do(as("nobody"), "GET", "/v1/servers", "").problem(errs.Unauthenticated)
}
