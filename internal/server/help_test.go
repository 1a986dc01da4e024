package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/policy/binpack"
	"atoll/internal/policy/host"
	"atoll/internal/policy/port"
	"atoll/internal/policy/resource"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/tunnel"
)

// fixture is a server over a store in memory, with tenants acme and demo, and users
// ann (developer in acme), vera (viewer in acme), otto (operator), adam (admin role) and nora (nothing).
type fixture struct {
	*Server
	t     testing.TB
	mem   *store.Mem
	hub   *tunnel.Hub
	audit *records
}

type records struct {
	mu   sync.Mutex
	list []Record
}

func (r *records) add(x Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, x)
}

func (r *records) last() Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return Record{}
	}
	return r.list[len(r.list)-1]
}

func meta(name string) api.Meta { return api.Meta{Name: name} }

func user0(name string) *api.User {
	return &api.User{Head: api.Head{K: api.KindUser, Meta: meta(name)}}
}

func binding(name, role, tenant string, users ...string) *api.RoleBinding {
	return &api.RoleBinding{Head: api.Head{K: api.KindRoleBinding, Meta: meta(name)}, Spec: api.RoleBindingSpec{Role: role, Users: users, Tenant: tenant}}
}

func instance(tenant, name string) *api.Instance {
	return &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: tenant}}, Spec: api.InstanceSpec{Image: "busybox"}}
}

func tenantObj(name string) *api.Tenant {
	return &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: meta(name)}}
}

func newFixture(t testing.TB, cfg Config) *fixture {
	t.Helper()
	f := &fixture{t: t, mem: store.NewMem(), hub: tunnel.NewHub(), audit: &records{}}
	f.hub.Patience = 20 * time.Millisecond
	var ops []store.Op
	for _, r := range auth.BuiltinRoles() {
		ops = append(ops, store.Create(r))
	}
	for _, u := range []string{"ann", "vera", "otto", "adam", "nora"} {
		ops = append(ops, store.Create(user0(u)))
	}
	ops = append(ops, store.Create(tenantObj("acme")), store.Create(tenantObj("acme/research")), store.Create(tenantObj("demo")),
		store.Create(binding("ann", "developer", "acme", "ann")), store.Create(binding("vera", "viewer", "acme", "vera")),
		store.Create(identity("isle1", "k1", api.RoleNode)),
		store.Create(binding("otto", "operator", "", "otto")), store.Create(binding("adam", "admin", "", "adam")))
	if _, err := f.mem.Commit(context.Background(), ops...); err != nil {
		t.Fatal(err)
	}
	f.Server = New(Deps{Store: f.mem, Auth: auth.New(clock.Real{}, auth.Config{}), CA: auth.NewCA(t.TempDir(), clock.Real{}, rand.Reader), Hub: f.hub, Clock: clock.Real{}, Rand: rand.Reader,
		Version: "test", Audit: f.audit.add, Chain: chain()}, cfg)
	if err := f.LoadAuth(context.Background()); err != nil {
		t.Fatal(err)
	}
	return f
}

// chain is enough of the product's policies to plan by.
func chain() policy.Chain {
	return policy.Chain{Filters: []policy.Filter{host.New(), resource.New(), port.New()}, Scorers: []policy.Weighted{{Scorer: binpack.New(), Weight: 1}}}
}

func identity(name, key string, role api.JoinRole) *api.NodeIdentity {
	return &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: meta(name)}, Spec: api.NodeIdentitySpec{KeyHash: key, Role: role}}
}

func root() auth.Identity { return auth.Identity{User: "root", Admin: true, Via: "socket"} }

func as(name string) auth.Identity {
	switch name {
	case "root":
		return root()
	case "node":
		return auth.Identity{Node: "isle1", Key: "k1", Via: "certificate"}
	}
	return auth.Identity{User: name, Via: "socket"}
}

// reply is an answer.
type reply struct {
	*httptest.ResponseRecorder
	t testing.TB
}

func (r reply) json(v any) reply {
	r.t.Helper()
	if err := json.Unmarshal(r.Body.Bytes(), v); err != nil {
		r.t.Fatalf("%v in %s", err, r.Body)
	}
	return r
}

func (r reply) want(status int) reply {
	r.t.Helper()
	if r.Code != status {
		r.t.Fatalf("got %d, want %d: %s", r.Code, status, r.Body)
	}
	return r
}

func (r reply) problem(kind errs.Kind) Problem {
	r.t.Helper()
	var p Problem
	if r.Code < 400 {
		r.t.Fatalf("got %d %s, want %s", r.Code, r.Body, kind)
	}
	r.json(&p)
	if p.Type != ProblemType+string(kind) || r.Header().Get("Content-Type") != typeProblem || p.Title == "" || p.Detail == "" {
		r.t.Fatalf("got %+v, want %s", p, kind)
	}
	return p
}

// do sends a request; header is "Name: value" lines.
func (f *fixture) do(who auth.Identity, method, path, body string, header ...string) reply {
	f.t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, path, rd)
	for _, h := range header {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	f.As(who).ServeHTTP(w, req)
	return reply{w, f.t}
}

// run serves on a socket and, with tls, on a port of loopback.
func (f *fixture) run() (socket string) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				f.t.Errorf("server: %v", err)
			}
		case <-time.After(10 * time.Second):
			f.t.Error("the server does not stop")
		}
	})
	for range 500 {
		if f.Ready() {
			return f.cfg.Socket
		}
		time.Sleep(time.Millisecond)
	}
	f.t.Fatal("the server does not start")
	return ""
}

func socketConfig(t testing.TB) Config {
	return Config{Socket: filepath.Join(t.TempDir(), "s")}
}

func (f *fixture) remote(cfg remote.Config) *remote.Store {
	f.t.Helper()
	s, err := remote.New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(s.Close)
	return s
}

// served gives a client of the API as who, by HTTP over loopback.
func (f *fixture) served(who auth.Identity, full bool) (*remote.Store, *httptest.Server) {
	f.t.Helper()
	hs := httptest.NewServer(f.As(who))
	f.t.Cleanup(hs.Close)
	return f.remote(remote.Config{URL: hs.URL, Full: full}), hs
}

func encode(t testing.TB, o api.Object) string {
	t.Helper()
	b, err := api.Encode(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func background(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// nodePair is the certificate of a host, and by what it is known.
func nodePair(t testing.TB, ca *auth.CA, name string) (*tls.Certificate, *api.NodeIdentity) {
	t.Helper()
	key, csr := nodeRequest(t)
	r, err := auth.ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	id := identity(name, r.KeyHash, api.RoleNode)
	cert, err := ca.SignNode(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	return pairOf(t, cert, key), id
}

func nodeRequest(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func pairOf(t testing.TB, cert []byte, key *ecdsa.PrivateKey) *tls.Certificate {
	t.Helper()
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}))
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}
