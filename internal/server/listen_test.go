package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/server/door"
	"atoll/internal/store"
	"atoll/internal/store/remote"
)

// TestMain lets the test binary be a client under another account, see asAccount.
func TestMain(m *testing.M) {
	if socket := os.Getenv("ATOLL_TEST_SOCKET"); socket != "" {
		os.Exit(childRequest(socket, os.Getenv("ATOLL_TEST_PATH")))
	}
	os.Exit(m.Run())
}

func childRequest(socket, path string) int {
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	resp, err := c.Get("http://localhost" + path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode)
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		return 1
	}
	return 0
}

const nobody = 65534

// asAccount asks path over the socket as a host account.
func asAccount(t *testing.T, binary, socket string, uid uint32, path string) (status int, body string) {
	t.Helper()
	cmd := exec.Command(binary)
	cmd.Env = []string{"ATOLL_TEST_SOCKET=" + socket, "ATOLL_TEST_PATH=" + path}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true}}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	first, rest, _ := strings.Cut(string(out), "\n")
	if _, err := fmt.Sscan(first, &status); err != nil {
		t.Fatal(err)
	}
	return status, rest
}

// publicDir is a directory every account can enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "atoll-server-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyBinary(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "client")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Over the unix socket the kernel says who the caller is.
func TestPeerCredentials(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("changing accounts needs root")
	}
	account, err := user.LookupId(fmt.Sprint(nobody))
	if err != nil {
		t.Skip("this host has no account 65534")
	}
	dir := publicDir(t)
	binary := copyBinary(t, dir)
	f := newFixture(t, Config{Socket: filepath.Join(dir, "s"), MaxConns: 4})
	socket := f.run()
	ask := func(path string) (int, string) { return asAccount(t, binary, socket, nobody, path) }

	var p Problem
	status, body := ask("/v1/instances")
	if err := json.Unmarshal([]byte(body), &p); err != nil || status != 401 || !strings.Contains(p.Detail, account.Username) || p.Hint == "" {
		t.Fatalf("%d %s", status, body)
	}
	if status, _ = ask("/healthz"); status != 200 {
		t.Fatal(status)
	}
	r := f.remote(remote.Config{Socket: socket})
	ctx := background(t)
	u := user1(account.Username)
	if _, err := r.Create(ctx, u, ""); err != nil {
		t.Fatal(err)
	}
	if status, body = ask("/v1/whoami"); status != 200 || !strings.Contains(body, `"user":"guest"`) || strings.Contains(body, `"admin":true`) {
		t.Fatalf("%d %s", status, body)
	}
	if status, body = ask("/v1/instances?tenant=acme"); status != 403 {
		t.Fatalf("not bound yet: %d %s", status, body)
	}
	if _, err := r.Create(ctx, binding("guest", "viewer", "acme", "guest"), ""); err != nil {
		t.Fatal(err)
	}
	if status, body = ask("/v1/instances?tenant=acme"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if status, _ = ask("/v1/instances?tenant=demo"); status != 403 {
		t.Fatal(status)
	}
	if status, _ = asAccount(t, binary, socket, 0, "/v1/users"); status != 200 {
		t.Fatal(status)
	}
	if status, body = asAccount(t, binary, socket, 54321, "/v1/whoami"); status != 401 {
		t.Fatalf("an account without a name: %d %s", status, body)
	}
}

func user1(hostUser string) *api.User {
	u := user0("guest")
	u.Spec.HostUser = hostUser
	return u
}

// The socket is taken over from a dead server only.
func TestSocketTakeover(t *testing.T) {
	cfg := socketConfig(t)
	f := newFixture(t, cfg)
	f.run()
	other := New(Deps{Store: f.mem, Auth: auth.New(clock.Real{}, auth.Config{}), Clock: clock.Real{}, Rand: rand.Reader}, cfg)
	if err := other.Run(t.Context()); !errors.Is(err, errs.Conflict) {
		t.Fatalf("two servers on one socket: %v", err)
	}
	fi, err := os.Stat(cfg.Socket)
	if err != nil || fi.Mode().Perm() != 0o666 {
		t.Fatalf("%v %v", fi.Mode(), err)
	}
	dead := socketConfig(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead.Socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	newFixture(t, dead).run()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := newFixture(t, Config{Socket: file})
	if err := g.Run(t.Context()); err == nil {
		t.Fatal("a file was taken for a socket")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Fatal("a file that is not ours was removed")
	}
}

// HTTP/1.1 and unencrypted HTTP/2 both work on the socket.
func TestSocketProtocols(t *testing.T) {
	f := newFixture(t, socketConfig(t))
	socket := f.run()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	for want, p := range map[string]*http.Protocols{"HTTP/1.1": &h1, "HTTP/2.0": &h2} {
		tr := &http.Transport{DialContext: dial, Protocols: p}
		resp, err := (&http.Client{Transport: tr}).Get("http://localhost/version")
		if err != nil || resp.Proto != want || resp.StatusCode != 200 {
			t.Errorf("%s: %v %v", want, resp, err)
			continue
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
	}
}

func TestTLS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	f := newFixture(t, Config{TLSAddr: addr, Heartbeat: 20 * time.Millisecond})
	ca := auth.NewCA(t.TempDir(), clock.Real{}, rand.Reader)
	f.CA = ca
	f.node("isle1")
	in := f.placed("acme", "web", "isle1")
	var tok api.Token
	f.do(root(), "POST", "/v1/tokens", `{"metadata":{"name":"ci"},"spec":{"user":"ann","tenant":"acme"}}`).want(201).json(&tok)
	f.run()
	pem, err := ca.CertPEM()
	if err != nil {
		t.Fatal(err)
	}
	ctx := background(t)
	s := f.remote(remote.Config{URL: "https://" + addr, CA: pem, Token: tok.Status.Secret})
	w, err := s.WhoAmI(ctx)
	if err != nil || w.User != "ann" || w.Via != "token" || w.Token != "ci" {
		t.Fatalf("%+v %v", w, err)
	}
	if _, _, err := s.List(ctx, api.Selector{Kind: api.KindInstance}); err != nil {
		t.Fatal(err)
	}
	c, err := s.InstanceStream(ctx, api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Write(api.ChanStdin, nil)
	if out, _, x := drain(t, c); out != "bye" || x.Code != 7 {
		t.Fatalf("%q %+v", out, x)
	}
	// A watch over HTTP/2 lives longer than a request may take, and hears of changes.
	got := make(chan string, 1)
	wctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(wctx, api.Selector{Kind: api.KindInstance, Tenant: "acme"}, f.mem.Revision(), func(ev store.Event) error {
			got <- ev.Object.Metadata().Name
			return nil
		})
	}()
	time.Sleep(30 * time.Millisecond)
	f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", "new"))).want(201)
	if name := <-got; name != "new" {
		t.Fatal(name)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	// Who cannot say who they are, and who is lied to.
	if _, err := f.remote(remote.Config{URL: "https://" + addr, CA: pem}).WhoAmI(ctx); !errors.Is(err, errs.Unauthenticated) {
		t.Fatal(err)
	}
	if _, err := f.remote(remote.Config{URL: "https://" + addr, CA: pem, Token: "atoll_ci_wrong"}).WhoAmI(ctx); !errors.Is(err, errs.Unauthenticated) {
		t.Fatal(err)
	}
	if _, err := f.remote(remote.Config{URL: "https://" + addr, Token: tok.Status.Secret}).WhoAmI(ctx); !errors.Is(err, errs.Unauthenticated) || !strings.Contains(err.Error(), "unknown authority") {
		t.Fatal(err)
	}
	if _, err := remote.New(remote.Config{URL: "http://example.org", Token: "x"}); !errors.Is(err, errs.Invalid) {
		t.Fatal("a token would travel in the clear")
	}
	// Nodes show certificates.
	pair, id := nodePair(t, ca, "isle1")
	n := f.remote(remote.Config{URL: "https://" + addr, CA: pem, Cert: pair, Full: true})
	if _, err = n.WhoAmI(ctx); !errors.Is(err, errs.Unauthenticated) {
		t.Fatalf("a certificate is enough without an identity: %v", err)
	}
	if _, err := f.mem.Commit(ctx, store.Set(id)); err != nil {
		t.Fatal(err)
	}
	if w, err = n.WhoAmI(ctx); err != nil || w.Node != "isle1" {
		t.Fatalf("%+v %v", w, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	if conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}); err == nil {
		conn.Close()
		t.Fatal("TLS 1.2 is accepted")
	}
}

// Requests that never end, and connections without number, are cut.
func TestSlowAndMany(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lim := door.Limit(l, 3)
	t.Cleanup(func() { lim.Close() })
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := lim.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	var conns []net.Conn
	for range 5 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for range 3 {
		<-accepted
	}
	_ = conns[4].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conns[4].Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the fifth connection is open: %v", err)
	}
	select {
	case <-accepted:
		t.Fatal("too many connections were accepted")
	default:
	}

	cfg := socketConfig(t)
	cfg.BodyTimeout = 50 * time.Millisecond
	socket := newFixture(t, cfg).run()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /v1/instances HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(b), "422") {
		t.Fatalf("%q %v", b, err)
	}
}

// Watches and streams may last; only requests and answers must be quick.
func TestLongCallsOutliveTimeouts(t *testing.T) {
	cfg := socketConfig(t)
	cfg.BodyTimeout, cfg.WriteTimeout, cfg.Heartbeat = 80*time.Millisecond, 80*time.Millisecond, 20*time.Millisecond
	f := newFixture(t, cfg)
	f.node("isle1")
	in := f.placed("acme", "web", "isle1")
	socket := f.run()
	s := f.remote(remote.Config{Socket: socket})
	ctx := background(t)
	c, err := s.InstanceStream(ctx, api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	var bodies []*bufio.Scanner
	for _, p := range []*http.Protocols{&h1, &h2} {
		tr := &http.Transport{Protocols: p, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("http://localhost/v1/instances?watch=true&rev=" + fmt.Sprint(f.mem.Revision()))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		bodies = append(bodies, bufio.NewScanner(resp.Body))
	}
	time.Sleep(400 * time.Millisecond)
	if _, err := s.Create(ctx, instance("acme", "late"), ""); err != nil {
		t.Fatal(err)
	}
	for i, sc := range bodies {
		for found := false; !found; found = strings.Contains(sc.Text(), `"late"`) {
			if !sc.Scan() {
				t.Fatalf("watch %d ended: %v", i, sc.Err())
			}
		}
	}
	_ = c.Write(api.ChanStdin, nil)
	if out, _, x := drain(t, c); out != "bye" || x.Code != 7 {
		t.Fatalf("%q %+v", out, x)
	}
}
