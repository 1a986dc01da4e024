package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/tunnel"
)

// node is a fake agent: exec echoes its input in upper case and exits with 7,
// logs write two lines, usage reports one instance in each tenant.
func (f *fixture) node(name string) {
	ctx, cancel := context.WithCancel(context.Background())
	dial, wait := tunnel.Local(ctx, func(_ context.Context, h tunnel.Header, s *tunnel.Stream) error {
		switch h.Verb {
		case tunnel.VerbExec, tunnel.VerbAttach:
			return echo(h, s)
		case tunnel.VerbLogs:
			if h.Instance.Name == "broken" {
				return errs.New(errs.NotFound, "no log").WithHint("start it")
			}
			_, _ = s.Writer(api.ChanStdout).Write([]byte("one\n"))
			_, _ = s.Writer(api.ChanStderr).Write([]byte("two " + string(h.Params) + "\n"))
			return s.WriteJSON(api.ChanExit, api.StreamExit{})
		case tunnel.VerbImage, tunnel.VerbCopy:
			_ = s.Write(api.ChanMessage, h.Params)
			n := 0
			for {
				ch, p, err := s.Read()
				if err != nil {
					return nil
				}
				if n += len(p); ch == api.ChanStdin && len(p) == 0 {
					return s.WriteJSON(api.ChanExit, api.StreamExit{Code: n % 251})
				}
			}
		case tunnel.VerbUsage:
			r := api.UsageReport{Nodes: []api.NodeUsage{{Node: name}}}
			for _, tn := range []string{"acme", "acme/research", "demo"} {
				r.Tenants = append(r.Tenants, api.TenantUsage{Tenant: tn, CPUMilli: 100, Instances: 1})
				r.Instances = append(r.Instances, api.InstanceUsage{Ref: api.Ref{Kind: api.KindInstance, Tenant: tn, Name: "x"}, Node: name})
			}
			return s.WriteJSON(api.ChanStdout, r)
		}
		return errs.New(errs.Unsupported, "verb %s", h.Verb)
	})
	remove := f.hub.Register(name, dial)
	f.t.Cleanup(func() { remove(); cancel(); wait() })
}

func echo(h tunnel.Header, s *tunnel.Stream) error {
	_ = s.Write(api.ChanMessage, h.Params)
	for {
		ch, p, err := s.Read()
		switch {
		case err != nil:
			return nil
		case ch == api.ChanResize:
			_, _ = s.Writer(api.ChanStderr).Write(append([]byte("size "), p...))
		case ch == api.ChanSignal:
			return s.WriteJSON(api.ChanExit, api.StreamExit{Code: 143})
		case len(p) == 0: // the input is closed, the output still open
			_, _ = s.Writer(api.ChanStdout).Write([]byte("bye"))
			return s.WriteJSON(api.ChanExit, api.StreamExit{Code: 7})
		default:
			_, _ = s.Writer(api.ChanStdout).Write(bytes.ToUpper(p))
		}
	}
}

func (f *fixture) placed(tenant, name, node string) *api.Instance {
	f.t.Helper()
	in := readInstance(f.t, f.do(root(), "POST", "/v1/instances", encode(f.t, instance(tenant, name))).want(201))
	n := api.Clone(in)
	n.Status.Node = node
	if _, err := f.mem.Commit(f.t.Context(), store.Update(n)); err != nil {
		f.t.Fatal(err)
	}
	return n
}

// drain reads a stream to its end.
func drain(t *testing.T, c *remote.Conn) (out, errOut string, x api.StreamExit) {
	t.Helper()
	for {
		ch, p, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		switch ch {
		case api.ChanStdout:
			out += string(p)
		case api.ChanStderr:
			errOut += string(p)
		case api.ChanExit:
			if err := json.Unmarshal(p, &x); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(); !errors.Is(err, io.EOF) {
				t.Fatalf("after the exit: %v", err)
			}
			return out, errOut, x
		}
	}
}

func TestExec(t *testing.T) {
	f := newFixture(t, Config{})
	f.node("isle1")
	in := f.placed("acme", "web", "isle1")
	s, hs := f.served(as("ann"), false)
	ctx := background(t)
	c, err := s.InstanceStream(ctx, api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if ch, p, err := c.Read(); err != nil || ch != api.ChanMessage || !strings.Contains(string(p), `"argv":["cat"]`) {
		t.Fatalf("%d %s %v", ch, p, err)
	}
	_ = c.WriteJSON(api.ChanResize, api.TermSize{Cols: 80, Rows: 24})
	_, _ = c.Writer(api.ChanStdin).Write([]byte("hello "))
	big := bytes.Repeat([]byte("x"), 300<<10) // several messages, one after the other
	_ = c.Write(api.ChanStdin, big)
	_ = c.Write(api.ChanStdin, nil)
	out, errOut, x := drain(t, c)
	if out != "HELLO "+strings.ToUpper(string(big))+"bye" || errOut != `size {"cols":80,"rows":24}` || x.Code != 7 || x.Kind != "" {
		t.Fatalf("%d bytes, %q, %+v", len(out), errOut, x)
	}
	// A signal in a stream without input.
	if c, err = s.InstanceStream(ctx, api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"sleep"}}); err != nil {
		t.Fatal(err)
	}
	_ = c.Write(api.ChanSignal, []byte("TERM"))
	if _, _, x := drain(t, c); x.Code != 143 {
		t.Fatalf("%+v", x)
	}
	// Bad parameters end with an exit that says so.
	if c, err = s.InstanceStream(ctx, api.RefOf(in), "exec", api.ExecRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, _, x := drain(t, c); x.Kind != "invalid" || !strings.Contains(x.Message, "argv") {
		t.Fatalf("%+v", x)
	}
	// Messages on a channel that is the node's alone end the stream.
	if c, err = s.InstanceStream(ctx, api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"cat"}}); err != nil {
		t.Fatal(err)
	}
	_ = c.Write(api.ChanExit, []byte("{}"))
	for err == nil {
		_, _, err = c.Read()
	}
	if errors.Is(err, io.EOF) {
		t.Fatal("a forged exit was relayed")
	}
	// Rights and presence are answered before the stream opens, as problems.
	if _, err := s.InstanceStream(ctx, api.Ref{Kind: api.KindInstance, Tenant: "demo", Name: "web"}, "exec", api.ExecRequest{}); !errors.Is(err, errs.Denied) {
		t.Fatal(err)
	}
	if _, err := s.InstanceStream(ctx, api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: "no"}, "exec", api.ExecRequest{}); !errors.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	v, _ := f.served(as("vera"), false)
	for _, verb := range []string{"exec", "attach", "copy"} {
		if _, err := v.InstanceStream(ctx, api.RefOf(in), verb, struct{}{}); !errors.Is(err, errs.Denied) {
			t.Errorf("a viewer may %s: %v", verb, err)
		}
	}
	resp, err := hs.Client().Get(hs.URL + "/v1/instances/web/exec?tenant=acme")
	if err != nil || resp.StatusCode != 422 {
		t.Fatalf("a plain GET of a stream: %v %v", resp, err)
	}
	resp.Body.Close()
	f.streamsEnd()
}

// streamsEnd waits until no stream is counted any more.
func (f *fixture) streamsEnd() {
	f.t.Helper()
	for range 300 {
		f.mu.Lock()
		n := len(f.held)
		f.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	f.t.Fatal("streams are left over")
}

func TestExecWithoutNode(t *testing.T) {
	f := newFixture(t, Config{})
	lost := f.placed("acme", "lost", "isle9")
	s, _ := f.served(as("ann"), false)
	_, err := s.InstanceStream(background(t), api.RefOf(lost), "exec", api.ExecRequest{Argv: []string{"sh"}})
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(errs.HintOf(err), "isle9") {
		t.Fatal(err)
	}
	f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", "pending"))).want(201)
	c, err := s.InstanceStream(background(t), api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: "pending"}, "exec", api.ExecRequest{Argv: []string{"sh"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, x := drain(t, c); x.Kind != "conflict" || !strings.Contains(x.Hint, "why") {
		t.Fatalf("%+v", x)
	}
}

// The node goes away in the middle: the caller is told.
func TestNodeBreaksOff(t *testing.T) {
	f := newFixture(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	dial, wait := tunnel.Local(ctx, func(_ context.Context, _ tunnel.Header, s *tunnel.Stream) error {
		_, _ = s.Writer(api.ChanStdout).Write([]byte("part"))
		return s.Close()
	})
	f.hub.Register("isle1", dial)
	t.Cleanup(func() { cancel(); wait() })
	in := f.placed("acme", "web", "isle1")
	s, hs := f.served(as("ann"), false)
	c, err := s.InstanceStream(background(t), api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"sh"}})
	if err != nil {
		t.Fatal(err)
	}
	if out, _, x := drain(t, c); out != "part" || x.Kind != "unavailable" {
		t.Fatalf("%q %+v", out, x)
	}
	resp, err := hs.Client().Get(hs.URL + "/v1/instances/web/logs?tenant=acme")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Fatalf("half a log looks whole: %q", b)
	}
}

// A caller who leaves frees the node.
func TestCallerLeaves(t *testing.T) {
	f := newFixture(t, Config{})
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	dial, wait := tunnel.Local(ctx, func(_ context.Context, _ tunnel.Header, s *tunnel.Stream) error {
		defer close(ended)
		for {
			if _, _, err := s.Read(); err != nil {
				return nil
			}
		}
	})
	f.hub.Register("isle1", dial)
	t.Cleanup(func() { cancel(); wait() })
	in := f.placed("acme", "web", "isle1")
	s, _ := f.served(as("ann"), false)
	c, err := s.InstanceStream(background(t), api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"sh"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Write(api.ChanStdin, []byte("x"))
	c.Close()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the node's side is still open")
	}
	f.streamsEnd()
}

// attach with wait follows an instance that has no node yet.
func TestAttachWaits(t *testing.T) {
	f := newFixture(t, Config{AttachTimeout: 5 * time.Second})
	f.node("isle1")
	in := readInstance(t, f.do(as("ann"), "POST", "/v1/instances", encode(t, instance("acme", "web"))).want(201))
	s, _ := f.served(as("ann"), false)
	ctx := background(t)
	attach := func(name string) *remote.Conn {
		c, err := s.InstanceStream(ctx, api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: name}, "attach", api.AttachRequest{Logs: api.LogRequest{Wait: true}, Stdin: true})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := attach("web")
	_ = c.Write(api.ChanStdin, []byte("early ")) // waits in the pipe
	assign := func(node, uid string) {
		if _, err := f.mem.Commit(ctx, store.Set(&api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: "web", Tenant: "acme"}},
			Spec: api.AssignmentSpec{Node: node, InstanceUID: uid}})); err != nil {
			t.Error(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		time.Sleep(20 * time.Millisecond)
		assign("", in.UID)
		assign("isle9", "of an older instance")
		time.Sleep(20 * time.Millisecond)
		assign("isle1", in.UID)
	})
	wg.Wait()
	_ = c.Write(api.ChanStdin, nil)
	if out, _, x := drain(t, c); out != "EARLY bye" || x.Code != 7 {
		t.Fatalf("%q %+v", out, x)
	}
	// One that is removed before it starts.
	gone := readInstance(t, f.do(as("ann"), "POST", "/v1/instances", encode(t, instance("acme", "gone"))).want(201))
	c = attach("gone")
	time.Sleep(20 * time.Millisecond)
	if _, err := f.mem.Commit(ctx, store.Remove(api.RefOf(gone), store.Any)); err != nil {
		t.Fatal(err)
	}
	if _, _, x := drain(t, c); x.Kind != "not-found" {
		t.Fatalf("%+v", x)
	}
	// One that never gets a node, and a caller who leaves meanwhile.
	f.do(as("ann"), "POST", "/v1/instances", encode(t, instance("acme", "never"))).want(201)
	c = attach("never")
	c.Close()
	f.streamsEnd()
	f.cfg.AttachTimeout = 30 * time.Millisecond
	if _, _, x := drain(t, attach("never")); x.Kind != "timeout" {
		t.Fatalf("%+v", x)
	}
}

func TestPlainLogs(t *testing.T) {
	f := newFixture(t, Config{})
	f.node("isle1")
	f.placed("acme", "web", "isle1")
	f.placed("acme", "broken", "isle1")
	r := f.do(as("vera"), "GET", "/v1/instances/web/logs?tenant=acme&tail=5&follow=true", "").want(200)
	if got := r.Body.String(); !strings.HasPrefix(got, "one\ntwo ") || !strings.Contains(got, `"tail":5`) || !strings.Contains(got, `"follow":true`) {
		t.Fatal(got)
	}
	if p := f.do(as("vera"), "GET", "/v1/instances/broken/logs?tenant=acme", "").problem(errs.NotFound); p.Hint != "start it" {
		t.Fatalf("%+v", p)
	}
	f.do(as("vera"), "GET", "/v1/instances/web/logs?tenant=acme&tail=x", "").problem(errs.Invalid)
	s, _ := f.served(as("vera"), false)
	var b bytes.Buffer
	if err := s.Logs(background(t), api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: "web"}, api.LogRequest{}, &b); err != nil || !strings.HasPrefix(b.String(), "one\n") {
		t.Fatalf("%q %v", b.String(), err)
	}
}

func TestImageStreams(t *testing.T) {
	f := newFixture(t, Config{})
	f.node("isle1")
	s, _ := f.served(as("ann"), false)
	ctx := background(t)
	c, err := s.ImageStream(ctx, api.ImageRequest{Verb: "import", Tenant: "acme", Reference: "x"}, "")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Write(api.ChanStdin, bytes.Repeat([]byte("i"), 3<<20))
	_ = c.Write(api.ChanStdin, nil)
	if _, _, x := drain(t, c); x.Code != (3<<20)%251 {
		t.Fatalf("%+v", x)
	}
	if _, err := s.ImageStream(ctx, api.ImageRequest{Verb: "pull", Tenant: "demo", Reference: "x"}, ""); !errors.Is(err, errs.Denied) {
		t.Fatal(err)
	}
	for what, req := range map[string]api.ImageRequest{
		"denied":  {Verb: "pull", Tenant: "acme", Reference: "x", Shared: true},
		"invalid": {Verb: "pull", Tenant: "acme/research", Reference: "x"},
	} {
		path := "/v1/images/pull/stream?tenant=acme"
		c, err := s.Stream(ctx, strings.Split(path, "?")[0], map[string][]string{"tenant": {"acme"}}, req)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, x := drain(t, c); x.Kind != what {
			t.Errorf("%s: %+v", what, x)
		}
	}
	v, _ := f.served(as("vera"), false)
	if _, err := v.ImageStream(ctx, api.ImageRequest{Verb: "pull", Tenant: "acme", Reference: "x"}, ""); !errors.Is(err, errs.Denied) {
		t.Fatal(err)
	}
}

func TestUsage(t *testing.T) {
	f := newFixture(t, Config{})
	f.node("isle1")
	f.node("isle2")
	silent, release := context.WithCancel(context.Background())
	dial, wait := tunnel.Local(silent, func(ctx context.Context, _ tunnel.Header, s *tunnel.Stream) error {
		return errs.New(errs.Unavailable, "not now")
	})
	f.hub.Register("isle3", dial)
	t.Cleanup(func() { release(); wait() })
	get := func(who, q string) (r api.UsageReport) {
		f.do(as(who), "GET", "/v1/usage"+q, "").want(200).json(&r)
		return r
	}
	r := get("root", "")
	if len(r.Nodes) != 2 || len(r.Tenants) != 3 || r.Tenants[0].Tenant != "acme" || r.Tenants[0].CPUMilli != 200 || r.Tenants[0].Instances != 2 || len(r.Instances) != 6 {
		t.Fatalf("%+v", r)
	}
	r = get("ann", "")
	if len(r.Nodes) != 0 || len(r.Tenants) != 2 || len(r.Instances) != 4 {
		t.Fatalf("%+v", r)
	}
	if r = get("ann", "?tenant=acme/research"); len(r.Tenants) != 1 || len(r.Instances) != 2 {
		t.Fatalf("%+v", r)
	}
	f.do(as("ann"), "GET", "/v1/usage?tenant=demo", "").problem(errs.Denied)
	f.do(as("nora"), "GET", "/v1/usage", "").problem(errs.Denied)
}

func TestBackupRoute(t *testing.T) {
	f := newFixture(t, Config{})
	s, _ := f.served(as("adam"), false)
	ctx := background(t)
	f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", "kept"))).want(201)
	var b bytes.Buffer
	if _, err := s.Backup(ctx, &b); err != nil || b.Len() == 0 {
		t.Fatalf("%d bytes, %v", b.Len(), err)
	}
	f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", "later"))).want(201)
	f.do(root(), "DELETE", "/v1/rolebindings/ann", "").want(200)
	if _, err := s.Restore(ctx, bytes.NewReader(b.Bytes())); !errors.Is(err, errs.Unsupported) {
		t.Fatal(err)
	}
	f.Base = f.mem
	if _, err := s.Restore(ctx, bytes.NewReader(b.Bytes()[:b.Len()-20])); !errors.Is(err, errs.Invalid) {
		t.Fatalf("half a backup: %v", err)
	}
	if rev, err := s.Restore(ctx, bytes.NewReader(b.Bytes())); err != nil || rev != f.mem.Revision() {
		t.Fatalf("%d %v", rev, err)
	}
	if got := f.names(as("ann"), "/v1/instances"); got != "acme/kept" { // ann is bound again
		t.Fatal(got)
	}
	for _, who := range []string{"otto", "ann", "node"} {
		f.do(as(who), "GET", "/v1/backup", "").problem(errs.Denied)
		f.do(as(who), "POST", "/v1/backup", "x").problem(errs.Denied)
	}
	// A store that fails on the way: the caller sees that the backup is not whole.
	f.Store = failing{f.mem}
	if _, err := s.Backup(ctx, &b); err == nil {
		t.Fatal("half a backup looks whole")
	}
}

// failing lists one object that cannot be written.
type failing struct{ store.Store }

func (f failing) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	objs, rev, err := f.Store.List(ctx, sel)
	return append(objs, unwritable{instance("acme", "x")}), rev, err
}

type unwritable struct{ *api.Instance }

// MarshalJSON fails.
func (unwritable) MarshalJSON() ([]byte, error) { return nil, errors.New("cannot be written") }

func TestMetricsRoute(t *testing.T) {
	f := newFixture(t, Config{})
	f.do(as("ann"), "GET", "/v1/instances", "").want(200)
	f.do(as("nora"), "GET", "/v1/instances", "").want(403)
	got := f.do(as("otto"), "GET", "/metrics", "").want(200).Body.String()
	for _, want := range []string{
		`atoll_http_requests_total{route="/v1/instances",method="GET",code="200"} 1`,
		`atoll_http_requests_total{route="/v1/instances",method="GET",code="403"} 1`,
		`atoll_http_request_seconds_count{route="/v1/instances",method="GET"} 2`, "atoll_http_inflight 1",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing", want)
		}
	}
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
	reply{w, t}.want(200)
}

// A host that has not dialled this server is waited for a moment; then whoever asks is sent
// to the others, before anything has begun there.
func TestStreamsOfANodeThatIsNotConnected(t *testing.T) {
	f, g := newFixture(t, Config{Advertise: []string{"https://10.0.0.1:7443"}}), newFixture(t, Config{})
	f.put(&api.Member{Head: api.Head{K: api.KindMember, Meta: meta("isle3")}, Spec: api.MemberSpec{State: api.MemberVoter, API: "https://10.0.0.3:7443"}})
	in := f.placed("acme", "web", "isle1")
	g.placed("acme", "web", "isle1")
	g.node("isle1")
	ctx := background(t)
	one, hs := f.served(as("ann"), false)
	exec := func(s *remote.Store) error {
		c, err := s.InstanceStream(ctx, api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"cat"}, Stdin: true})
		if err != nil {
			return err
		}
		defer c.Close()
		if _, _, err := c.Read(); err != nil { // what it was asked for
			return err
		}
		_ = c.Write(api.ChanStdin, nil)
		if out, _, x := drain(t, c); out != "bye" {
			return remote.ExitError(x)
		}
		return nil
	}
	err := exec(one)
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(errs.HintOf(err), "https://10.0.0.3:7443") || strings.Contains(errs.HintOf(err), "10.0.0.1") {
		t.Errorf("%v; %s", err, errs.HintOf(err))
	}
	if _, err := one.ImageStream(ctx, api.ImageRequest{Verb: "pull", Tenant: "acme"}, ""); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	_, hs2 := g.served(as("ann"), false)
	both := f.remote(remote.Config{Endpoints: []string{hs.URL, hs2.URL}})
	if err := exec(both); err != nil {
		t.Errorf("another server reaches it: %v", err)
	}
	// It dials while somebody waits.
	f.hub.Patience = 10 * time.Second
	late := time.AfterFunc(50*time.Millisecond, func() { f.node("isle1") })
	defer late.Stop()
	began := time.Now()
	if err := exec(one); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}
