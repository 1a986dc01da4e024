package join_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/server"
	"atoll/internal/store"
)

// pool is a real server over TLS whose clock the test moves.
type pool struct {
	t     *testing.T
	mem   *store.Mem
	clock *clock.Manual
	srv   *server.Server
	web   *httptest.Server
}

func newPool(t *testing.T) *pool {
	t.Helper()
	p := &pool{t: t, mem: store.NewMem(), clock: clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))}
	ca := auth.NewCA(t.TempDir(), p.clock, rand.Reader)
	// The name is not that by which the host reaches it.
	conf, err := ca.ServerTLS([]string{"isle1"})
	if err != nil {
		t.Fatal(err)
	}
	p.srv = server.New(server.Deps{Store: p.mem, Auth: auth.New(p.clock, auth.Config{}), CA: ca, Clock: p.clock, Rand: rand.Reader}, server.Config{Pool: api.PoolSettings{Subnet: "10.88.0.0/16"}, Advertise: []string{"https://192.0.2.9:7443"}})
	if err := p.srv.LoadAuth(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.web = httptest.NewUnstartedServer(p.srv.Handler())
	p.web.Listener = tls.NewListener(p.web.Listener, conf) // StartTLS would add a certificate of its own
	p.web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	p.web.Start()
	p.web.URL = strings.Replace(p.web.URL, "http:", "https:", 1)
	t.Cleanup(p.web.Close)
	return p
}

func (p *pool) admin(method, path, body string, out any) {
	p.t.Helper()
	w := httptest.NewRecorder()
	p.srv.As(auth.Identity{User: "root", Admin: true}).ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	if w.Code >= 300 {
		p.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	if out != nil {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *pool) token(name, spec string) string {
	p.t.Helper()
	var tok api.JoinToken
	p.admin("POST", "/v1/jointokens", `{"metadata":{"name":"`+name+`"},"spec":`+spec+`}`, &tok)
	return tok.Status.Secret
}

func (p *pool) deps() join.Deps { return join.Deps{Clock: p.clock, Rand: rand.Reader} }

func (p *pool) join(dir, token, node string) (*join.Identity, bool, error) {
	return join.Do(p.t.Context(), p.deps(), join.Request{Dir: dir, URLs: []string{p.web.URL}, Token: token, Node: node, Version: "test"})
}

// call is what a host does with its identity: a call of the API.
func (p *pool) call(id *join.Identity) (int, string) {
	p.t.Helper()
	tr := &http.Transport{TLSClientConfig: id.TLS(), DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Get(p.web.URL + "/v1/nodes/" + id.Node())
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestJoin(t *testing.T) {
	p, dir := newPool(t), t.TempDir()
	if _, err := join.Load(dir, p.deps()); !errors.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	id, joined, err := p.join(dir, p.token("a", `{"uses":1}`), "isle2")
	if err != nil || !joined || id.Node() != "isle2" || id.Role() != api.RoleNode || id.Pool().Subnet != "10.88.0.0/16" || id.Endpoints()[0] != p.web.URL || len(id.Endpoints()) != 2 {
		t.Fatalf("%+v %v %v", id, joined, err)
	}
	if code, body := p.call(id); code != 200 {
		t.Fatal(code, body)
	}
	for f, mode := range map[string]os.FileMode{"pki/node.key": 0o600, "pki/node.crt": 0o600, "pki/ca.crt": 0o600, "join.json": 0o600} {
		if i, err := os.Stat(filepath.Join(dir, f)); err != nil || i.Mode().Perm() != mode {
			t.Error(f, i, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "join.json")); err != nil || strings.Contains(string(b), "atoll-join") {
		t.Fatalf("%s %v", b, err)
	}
	// Again, with a token that is used up, with any other, and after a restart.
	used := p.token("b", `{"uses":1}`)
	if id, joined, err = p.join(dir, used, "isle2"); err != nil || joined || id.Node() != "isle2" {
		t.Fatal(joined, err)
	}
	if _, _, err := p.join(dir, used, "isle3"); !errors.Is(err, errs.Conflict) || !strings.Contains(errs.HintOf(err), "atoll node remove isle2") {
		t.Fatal(err)
	}
	// A crash before join.json: the same token, used up, lets it in again.
	if err := os.Remove(filepath.Join(dir, "join.json")); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(dir, "pki/node.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, joined, err = p.join(dir, p.token("c", `{}`), "isle2"); err != nil || !joined {
		t.Fatal(joined, err)
	}
	if again, err := os.ReadFile(filepath.Join(dir, "pki/node.key")); err != nil || string(again) != string(key) {
		t.Error("another key was made")
	}
	// Removed, it joins as new, with the key it has.
	p.admin("DELETE", "/v1/nodes/isle2", "", nil)
	if code, body := p.call(id); code != 401 || !strings.Contains(body, "removed") {
		t.Fatal(code, body)
	}
	if _, joined, err = p.join(dir, p.token("d", `{}`), "isle2"); err != nil || !joined {
		t.Fatal(joined, err)
	}
}

func TestRefusals(t *testing.T) {
	p, other := newPool(t), newPool(t)
	word := other.token("a", `{}`)
	if _, _, err := p.join(t.TempDir(), word, "isle2"); !errors.Is(err, errs.Unauthenticated) || !errors.Is(err, auth.ErrOtherPool) || errs.HintOf(err) == "" {
		t.Fatalf("a token of another pool: %v", err)
	}
	// A host keeps to its pool.
	dir := t.TempDir()
	if _, _, err := p.join(dir, p.token("a", `{}`), "isle2"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.join(dir, word, "isle2"); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "another pool") {
		t.Fatal(err)
	}
	for _, own := range []string{"etcd", "pki/ca.key"} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, own), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.join(dir, p.token("own"+own[:2], `{}`), "isle3"); !errors.Is(err, errs.Conflict) || !strings.Contains(errs.HintOf(err), "atolld down --data") {
			t.Fatalf("%s: %v", own, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "pki/node.key")); err == nil {
			t.Error("a refused join left something")
		}
	}
	for _, u := range [][]string{nil, {"http://isle1:7443"}, {"isle1"}, {"https://u@isle1"}, {"https://isle1/x"}} {
		if _, _, err := join.Do(t.Context(), p.deps(), join.Request{Dir: t.TempDir(), URLs: u, Token: word, Node: "isle2"}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", u, err)
		}
	}
	if _, _, err := join.Do(t.Context(), p.deps(), join.Request{Dir: t.TempDir(), URLs: []string{"https://127.0.0.1:1"}, Token: p.token("z", `{}`), Node: "isle4"}); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	// The first server is down, the second answers and is asked first from then on.
	id, _, err := join.Do(t.Context(), p.deps(), join.Request{Dir: t.TempDir(), URLs: []string{"https://127.0.0.1:1", p.web.URL}, Token: p.token("y", `{}`), Node: "isle5"})
	if err != nil || id.Endpoints()[0] != p.web.URL {
		t.Fatal(err)
	}
}

// A certificate is renewed long before it ends, and also after it has ended; never for
// a key that was revoked or replaced.
func TestRenewal(t *testing.T) {
	p, dir := newPool(t), t.TempDir()
	id, _, err := p.join(dir, p.token("a", `{}`), "isle2")
	if err != nil {
		t.Fatal(err)
	}
	first := id.Certificate().Leaf.SerialNumber.String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- id.Run(ctx, slog.New(slog.DiscardHandler)) }()
	began := p.clock.Now()
	p.until("renewed", func() bool { return id.Certificate().Leaf.SerialNumber.String() != first })
	if d := p.clock.Now().Sub(began); d < 4*time.Hour || d > 9*time.Hour {
		t.Errorf("renewed after %s", d)
	}
	if code, body := p.call(id); code != 200 {
		t.Fatal(code, body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// The host was off for a week.
	p.clock.Advance(7 * 24 * time.Hour)
	if code, _ := p.call(id); code == 200 {
		t.Fatal("an ended certificate is taken")
	}
	id, err = join.Load(dir, p.deps())
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, body := p.call(id); code != 200 {
		t.Fatal(code, body)
	}
	// Revoked: turned away with the next request, and no new certificate.
	p.admin("POST", "/v1/nodes/isle2/revoke", `{"why":"stolen"}`, nil)
	if code, body := p.call(id); code != 401 || !strings.Contains(body, "stolen") {
		t.Fatal(code, body)
	}
	if err := id.Renew(t.Context()); !errors.Is(err, errs.Unauthenticated) || id.Refused() == nil {
		t.Fatal(err)
	}
	// Another machine takes the name: the old one stays out, the new one is in.
	next, _, err := p.join(t.TempDir(), p.token("b", `{"node":"isle2"}`), "isle2")
	if err != nil {
		t.Fatal(err)
	}
	if code, body := p.call(id); code != 401 || !strings.Contains(body, "another key") {
		t.Fatal(code, body)
	}
	if code, body := p.call(next); code != 200 {
		t.Fatal(code, body)
	}
	// Run goes on asking, and comes back when the host is let in again.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	p.clock.Advance(12 * time.Hour)
	go func() { done <- id.Run(ctx, slog.New(slog.DiscardHandler)) }()
	p.until("refused", func() bool { return strings.Contains(errs.HintOf(id.Refused()), "--node isle2") })
	if _, _, err := p.join(dir, p.token("c", `{"node":"isle2"}`), "isle2"); err != nil {
		t.Fatal(err)
	}
	p.until("good again", func() bool { return id.Refused() == nil })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// until moves the clock to what somebody waits for, until it has happened.
func (p *pool) until(what string, happened func() bool) {
	p.t.Helper()
	for range 2000 {
		if happened() {
			return
		}
		if at, ok := p.clock.Next(); ok {
			p.clock.Advance(at.Sub(p.clock.Now()))
		}
		time.Sleep(2 * time.Millisecond)
	}
	p.t.Fatalf("never %s", what)
}

// Whatever is in the files, Load says so and does not fall over.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"node":"isle2","role":"node","endpoints":["https://10.0.0.1:7443"]}`), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(`{"node":"../x"}`), []byte(""))
	f.Fuzz(func(t *testing.T, rec, cert []byte) {
		dir := t.TempDir()
		if _, err := join.KeyHash(dir, rand.Reader); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"join.json": rec, "pki/ca.crt": cert, "pki/node.crt": cert} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := join.Load(dir, join.Deps{Clock: clock.Real{}, Rand: rand.Reader}); err == nil {
			t.Fatal("loaded")
		}
	})
}
