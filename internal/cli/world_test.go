package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/verb"
	"atoll/internal/clock"
	"atoll/internal/control/workload"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

// world is a pool without a daemon: a store in memory, an actor that places and
// "runs" what is put there, and programs that are Go functions. It is the Client
// of every call in a test.
type world struct {
	*store.Mem
	t     testing.TB
	cpu   int64 // what its one node has
	wait  sync.WaitGroup
	stop  context.CancelFunc
	mu    sync.Mutex
	procs map[string]*proc // by UID
	files map[string][]byte
	uids  int
	stall chan struct{} // not nil: starts wait for it
	usage api.UsageReport
	drops []string // what Restore was given
}

// proc is one life of an instance.
type proc struct {
	in      *api.Instance
	out     []byte
	changed chan struct{}
	code    int
	stdin   *io.PipeReader
	feed    *io.PipeWriter
	signals chan string
	ended   chan struct{}
	read    atomic.Bool
}

func newWorld(t testing.TB, cpu int64) *world {
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{Mem: store.NewMem(), t: t, cpu: cpu, stop: cancel, procs: map[string]*proc{}, files: map[string][]byte{}}
	n := &api.Node{Head: api.Head{K: api.KindNode}}
	n.Name = "isle1"
	n.Status.Capacity = api.Resources{api.CPU: cpu, api.Memory: 8 << 30}
	n.Status.Allocatable = n.Status.Capacity
	n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
	n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
	w.put(n)
	id := &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity}, Spec: api.NodeIdentitySpec{KeyHash: "k", Role: api.RoleNode}}
	id.Name = "isle1"
	w.put(id)
	w.wait.Go(func() { w.run(ctx) })
	eng := reconcile.New(w.Mem, clock.Real{}, slog.New(slog.DiscardHandler), reconcile.Events{})
	for _, c := range workload.All(clock.Real{}) {
		eng.Add(c, 1)
	}
	w.wait.Go(func() { _ = eng.Run(ctx) })
	t.Cleanup(w.close)
	return w
}

// host is a node of this name in this boot.
func (w *world) host(name, boot string) {
	o, err := w.Get(context.Background(), api.Ref{Kind: api.KindNode, Name: "isle1"})
	if err != nil {
		w.t.Fatal(err)
	}
	n := api.Clone(o.(*api.Node))
	if n.Status.BootID = boot; n.Name != name {
		n.Name, n.UID = name, ""
	}
	w.put(n)
}

func (w *world) close() {
	w.stop()
	w.mu.Lock()
	for _, p := range w.procs {
		_ = p.feed.Close()
		_ = p.stdin.Close()
	}
	w.mu.Unlock()
	w.wait.Wait()
}

func (w *world) put(o api.Object) {
	w.stamp(o)
	if _, err := w.Commit(context.Background(), store.Set(o)); err != nil {
		w.t.Error(err)
	}
}

func (w *world) stamp(o api.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := o.Metadata()
	if m.UID == "" {
		w.uids++
		m.UID = fmt.Sprintf("%032x", w.uids)
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		m.CreatedAt = &now
		m.Generation = 1
		if d, _ := api.Lookup(string(o.ObjectKind())); slices.Contains(d.Finalizers, api.FinalizerWorkload) {
			m.Finalizers = d.Finalizers
		}
	}
}

// Commit stamps what is new, as the server does, and counts changes of a workload's spec.
func (w *world) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	for i, op := range ops {
		if op.Verb == store.Put && op.Object.Metadata().UID != "" && slices.Contains(op.Object.Metadata().Finalizers, api.FinalizerWorkload) {
			ops[i].Object = api.Clone(op.Object)
			ops[i].Object.Metadata().Generation++
			continue
		}
		if op.Verb == store.Put && op.Object.Metadata().UID == "" {
			ops[i].Object = api.Clone(op.Object)
			w.stamp(ops[i].Object)
		}
	}
	return w.Mem.Commit(ctx, ops...)
}

// Create answers with what was made.
func (w *world) Create(ctx context.Context, o api.Object) (api.Object, error) {
	if in, ok := o.(*api.Instance); ok && in.Name == "" {
		in = api.Clone(in)
		in.Name, o = "keen-crab", in
	}
	if err := api.Check(o); err != nil {
		return nil, err
	}
	if _, err := w.Commit(ctx, store.Create(o)); err != nil {
		return nil, err
	}
	made, err := w.Get(ctx, api.RefOf(o))
	if t, ok := made.(*api.Token); ok {
		t = api.Clone(t)
		t.Status.Secret = "atoll_" + t.Name + "_s3cret"
		return t, err
	}
	if t, ok := made.(*api.JoinToken); ok {
		t = api.Clone(t)
		t.Status.Secret = "atoll-join_" + t.Name + "_s3cret"
		return t, err
	}
	return made, err
}

// Delete marks instances and removes the rest.
func (w *world) Delete(ctx context.Context, ref api.Ref, rev int64) error {
	for {
		o, err := w.Get(ctx, ref)
		if err != nil {
			return err
		}
		_, in := o.(*api.Instance)
		if in || len(o.Metadata().Finalizers) > 0 {
			o = api.Clone(o)
			now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			o.Metadata().DeletedAt = &now
			if _, err = w.Commit(ctx, store.Update(o)); errors.Is(err, errs.Conflict) {
				continue
			}
			return err
		}
		_, err = w.Commit(ctx, store.Remove(ref, rev))
		return err
	}
}

// run places, starts, stops and removes.
func (w *world) run(ctx context.Context) {
	objs, rev, err := w.List(ctx, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return
	}
	for _, o := range objs {
		w.act(ctx, api.RefOf(o))
	}
	_ = w.Watch(ctx, api.Selector{Kind: api.KindInstance}, rev, func(ev store.Event) error {
		if !ev.Deleted {
			w.act(ctx, api.RefOf(ev.Object))
		}
		return nil
	})
}

func (w *world) act(ctx context.Context, ref api.Ref) {
	for {
		in, err := store.Get[*api.Instance](ctx, w, ref)
		if err != nil {
			return
		}
		err = w.actOnce(ctx, api.Clone(in))
		if !errors.Is(err, errs.Conflict) {
			if err != nil && ctx.Err() == nil {
				w.t.Errorf("world: %s: %v", ref, err)
			}
			return
		}
	}
}

func (w *world) actOnce(ctx context.Context, in *api.Instance) error {
	aref := api.RefOf(in)
	aref.Kind = api.KindAssignment
	w.mu.Lock()
	p := w.procs[in.UID]
	stall := w.stall
	w.mu.Unlock()
	if in.DeletedAt != nil {
		if p != nil {
			p.end(137)
		}
		ops := []store.Op{store.Remove(api.RefOf(in), store.Any)}
		if _, err := w.Get(ctx, aref); err == nil {
			ops = append(ops, store.Remove(aref, store.Any))
		}
		_, err := w.Commit(ctx, ops...)
		return err
	}
	if _, err := w.Get(ctx, aref); errs.KindOf(err) == errs.NotFound {
		a := w.decide(in)
		if _, err := w.Commit(ctx, store.Create(a)); err != nil {
			return err
		}
	}
	a, err := store.Get[*api.Assignment](ctx, w, aref)
	if err != nil || a.Spec.Node == "" {
		return err
	}
	if stall != nil {
		select {
		case <-stall:
		case <-ctx.Done():
			return nil
		}
	}
	was, before, start := in.Status.State, api.Clone(in), false
	in.Status.Node, in.Status.Generation = "isle1", in.Generation
	switch {
	case in.Spec.Stopped:
		if p != nil {
			p.end(0)
		}
		in.Status.State, in.Status.Reason = api.StateStopped, "Stopped"
	case p == nil || in.Status.RestartsIn < in.Spec.Restarts:
		if p != nil {
			p.end(137)
		}
		in.Status.RestartsIn = in.Spec.Restarts
		in.Status.Starts++
		now := time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)
		in.Status.State, in.Status.StartedAt, in.Status.Address = api.StateRunning, &now, "10.88.0.2"
		start = true
	case p.over() && was == api.StateStopped && in.Status.Reason == "Stopped": // what ended by itself stays ended
		in.Status.State, in.Status.Reason = api.StateRunning, ""
		start = true
	default:
		return nil
	}
	if !verb.Same(before, in) {
		if _, err = w.Mem.Commit(ctx, store.Update(in)); err != nil {
			return err
		}
	}
	if start { // what ends at once must not end before it was said to run
		w.launch(ctx, in)
	}
	return nil
}

// decide is a scheduler of one node.
func (w *world) decide(in *api.Instance) *api.Assignment {
	a := &api.Assignment{Head: api.Head{K: api.KindAssignment}}
	a.Name, a.Tenant = in.Name, in.Tenant
	d := &api.Decision{At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), TookUS: 400, Of: 1}
	a.Spec = api.AssignmentSpec{InstanceUID: in.UID, Generation: 1, Decision: d}
	if in.Spec.Requests[api.CPU] > w.cpu {
		d.Nodes = []api.NodeVerdict{{Node: "isle1", Reason: "not enough CPU"}}
		d.Refusals = []api.Refusal{{Policy: "resources", Reason: "not enough CPU", Nodes: 1, Best: "isle1: CPU 2 free of 2"}}
		d.Hints = []string{"at most --cpu 2"}
		return a
	}
	a.Spec.Node, d.Chosen, a.Spec.Address = "isle1", "isle1", "10.88.0.2"
	d.Nodes = []api.NodeVerdict{{Node: "isle1", Score: 0.81, Parts: map[string]float64{"fits": 0.9, "image": 1}}}
	return a
}

func (p *proc) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *proc) end(code int) {
	if !p.over() {
		p.code = code
		close(p.ended)
	}
}

// launch "runs" a command: echo, cat, sleep, fail N, trap, printenv.
func (w *world) launch(ctx context.Context, in *api.Instance) {
	p := &proc{in: in, changed: make(chan struct{}), signals: make(chan string, 8), ended: make(chan struct{})}
	p.stdin, p.feed = io.Pipe()
	w.mu.Lock()
	w.procs[in.UID] = p
	w.mu.Unlock()
	argv := in.Spec.Command
	if len(argv) == 0 {
		argv = []string{"sleep"}
	}
	w.wait.Go(func() {
		code := w.program(ctx, p, argv, in)
		w.mu.Lock()
		again := w.procs[in.UID] != p
		if !p.over() {
			p.end(code)
		}
		w.mu.Unlock()
		if !again {
			w.finish(ctx, api.RefOf(in), p)
		}
	})
}

func (w *world) program(ctx context.Context, p *proc, argv []string, in *api.Instance) int {
	switch argv[0] {
	case "echo":
		w.print(p, strings.Join(argv[1:], " ")+"\n")
	case "env":
		for _, e := range in.Spec.Env {
			w.print(p, e.Name+"="+e.Value+"\n")
		}
	case "fail":
		w.print(p, "failing\n")
		return 7
	case "cat":
		buf := make([]byte, 1024)
		for {
			n, err := p.stdin.Read(buf)
			if n > 0 {
				w.print(p, string(buf[:n]))
			}
			if err != nil {
				return 0
			}
		}
	case "trap":
		for i := 0; ; i++ {
			select {
			case s := <-p.signals:
				w.print(p, "got "+s+"\n")
				if i == 1 {
					return 3
				}
			case <-ctx.Done():
				return 137
			case <-p.ended:
				return 137
			}
		}
	default:
		select {
		case <-ctx.Done():
		case <-p.ended:
		}
		return 137
	}
	return 0
}

func (w *world) print(p *proc, s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p.out = append(p.out, s...)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (w *world) finish(ctx context.Context, ref api.Ref, p *proc) {
	for ctx.Err() == nil {
		in, err := store.Get[*api.Instance](ctx, w, ref)
		if err != nil || in.UID != p.in.UID || in.DeletedAt != nil {
			return
		}
		in = api.Clone(in)
		in.Status.State = api.StateStopped
		if p.code != 0 && !in.Spec.Stopped {
			in.Status.State = api.StateFailed
		}
		in.Status.ExitCode = &p.code
		if _, err = w.Mem.Commit(ctx, store.Update(in)); errors.Is(err, errs.Conflict) {
			continue
		}
		if in.Spec.AutoRm { // who runs it attached reads its end first
			for i := 0; i < 400 && !p.read.Load() && ctx.Err() == nil; i++ {
				time.Sleep(5 * time.Millisecond)
			}
			_ = w.Delete(ctx, ref, store.Any)
		}
		return
	}
}

// Stream serves streams as a node does.
func (w *world) Stream(ctx context.Context, r conn.StreamRequest) (conn.Stream, error) {
	if r.Verb != tunnel.VerbImage {
		if _, err := w.Get(ctx, r.Instance); err != nil {
			return nil, err
		}
	}
	params, err := json.Marshal(r.Params)
	if err != nil {
		return nil, err
	}
	dial, _ := tunnel.Local(ctx, func(ctx context.Context, h tunnel.Header, s *tunnel.Stream) error { return w.serve(ctx, h, s) })
	hub := tunnel.NewHub()
	hub.Register("isle1", dial)
	s, err := hub.Open(ctx, "isle1", tunnel.Header{Verb: r.Verb, Instance: r.Instance, Params: params})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (w *world) serve(ctx context.Context, h tunnel.Header, s *tunnel.Stream) error {
	switch h.Verb {
	case tunnel.VerbAttach, tunnel.VerbLogs:
		return w.attach(ctx, h, s)
	case tunnel.VerbExec:
		return w.exec(ctx, h, s)
	case tunnel.VerbImage:
		return w.image(ctx, h, s)
	case tunnel.VerbCopy:
		return w.copy(h, s)
	}
	return errs.New(errs.Unsupported, "no %s here", h.Verb)
}

func (w *world) find(ctx context.Context, ref api.Ref) (*proc, error) {
	for range 400 {
		in, err := store.Get[*api.Instance](ctx, w, ref)
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		p := w.procs[in.UID]
		w.mu.Unlock()
		if p != nil {
			return p, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, errs.New(errs.Timeout, "%s did not start", ref)
}

func (w *world) attach(ctx context.Context, h tunnel.Header, s *tunnel.Stream) error {
	var req api.AttachRequest
	if err := json.Unmarshal(h.Params, &req); err != nil {
		return err
	}
	logs := h.Verb == tunnel.VerbLogs
	if logs {
		if err := json.Unmarshal(h.Params, &req.Logs); err != nil {
			return err
		}
	}
	p, err := w.find(ctx, h.Instance)
	if err != nil {
		return err
	}
	go w.listen(s, p)
	sent := 0
	for {
		w.mu.Lock()
		out, changed := p.out[sent:], p.changed
		w.mu.Unlock()
		if len(out) > 0 {
			if err := s.Write(api.ChanStdout, out); err != nil {
				return err
			}
			sent += len(out)
			continue
		}
		if logs && !req.Logs.Follow {
			return s.WriteJSON(api.ChanExit, api.StreamExit{})
		}
		select {
		case <-p.ended:
			w.mu.Lock()
			more := len(p.out) > sent
			w.mu.Unlock()
			if !more {
				p.read.Store(true)
				return s.WriteJSON(api.ChanExit, api.StreamExit{Code: p.code})
			}
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *world) listen(s *tunnel.Stream, p *proc) {
	for {
		ch, b, err := s.Read()
		switch {
		case err != nil:
			return
		case ch == api.ChanStdin && len(b) == 0:
			_ = p.feed.Close()
		case ch == api.ChanStdin:
			_, _ = p.feed.Write(b)
		case ch == api.ChanSignal:
			p.signals <- string(b)
		case ch == api.ChanResize:
			w.print(p, "size "+string(b)+"\n")
		}
	}
}

func (w *world) exec(ctx context.Context, h tunnel.Header, s *tunnel.Stream) error {
	var req api.ExecRequest
	if err := json.Unmarshal(h.Params, &req); err != nil {
		return err
	}
	if _, err := w.find(ctx, h.Instance); err != nil {
		return err
	}
	fmt.Fprintf(s.Writer(api.ChanStdout), "%s in %s env %v dir %s user %s\n", strings.Join(req.Argv, " "), h.Instance.Name, req.Env, req.Workdir, req.User)
	fmt.Fprintf(s.Writer(api.ChanStderr), "complaint\n")
	if req.Stdin {
		for {
			ch, b, err := s.Read()
			if err != nil || ch == api.ChanStdin && len(b) == 0 {
				break
			}
			if ch == api.ChanStdin {
				_ = s.Write(api.ChanStdout, b)
			}
		}
	}
	code := 0
	if req.Argv[0] == "false" {
		code = 1
	}
	return s.WriteJSON(api.ChanExit, api.StreamExit{Code: code})
}

func (w *world) image(ctx context.Context, h tunnel.Header, s *tunnel.Stream) error {
	var req api.ImageRequest
	if err := json.Unmarshal(h.Params, &req); err != nil {
		return err
	}
	if req.Reference == "missing" {
		return errs.New(errs.NotFound, "no registry has %s", req.Reference).WithHint("check the name")
	}
	if req.Verb == "import" {
		b, err := readStdin(s)
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.files["image/"+req.Reference] = b
		w.mu.Unlock()
	}
	if req.Verb == "export" {
		w.mu.Lock()
		b := w.files["image/"+req.Reference]
		w.mu.Unlock()
		if err := s.Write(api.ChanStdout, b); err != nil {
			return err
		}
		return s.WriteJSON(api.ChanExit, api.StreamExit{})
	}
	for _, p := range []api.Progress{{ID: "3f1c", Phase: "pulling", Current: 1 << 20, Total: 4 << 20}, {ID: "3f1c", Phase: "done", Current: 4 << 20, Total: 4 << 20}} {
		if err := s.WriteJSON(api.ChanMessage, p); err != nil {
			return err
		}
	}
	img := &api.Image{Head: api.Head{K: api.KindImage}}
	img.Tenant, img.Name = req.Tenant, api.ImageName(req.Reference)
	img.Spec.Reference = req.Reference
	img.Status = api.ImageStatus{Digest: "sha256:0123456789abcdef", Size: 4 << 20, Layers: 1}
	w.stamp(img)
	if _, err := w.Commit(ctx, store.Set(img)); err != nil {
		return err
	}
	return s.WriteJSON(api.ChanExit, api.StreamExit{})
}

func readStdin(s *tunnel.Stream) ([]byte, error) {
	var all []byte
	for {
		ch, b, err := s.Read()
		if err != nil {
			return nil, err
		}
		if ch == api.ChanStdin {
			if len(b) == 0 {
				return all, nil
			}
			all = append(all, b...)
		}
	}
}

// copy keeps tars by path: a path under which one was put is a directory with it.
func (w *world) copy(h tunnel.Header, s *tunnel.Stream) error {
	var req api.CopyRequest
	if err := json.Unmarshal(h.Params, &req); err != nil {
		return err
	}
	if req.In {
		b, err := readStdin(s)
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.files[req.Path] = b
		w.mu.Unlock()
		return s.WriteJSON(api.ChanExit, api.StreamExit{})
	}
	w.mu.Lock()
	b, ok := w.files[req.Path]
	w.mu.Unlock()
	if !ok {
		return errs.New(errs.NotFound, "%s is not there", req.Path)
	}
	if err := s.Write(api.ChanStdout, b); err != nil {
		return err
	}
	return s.WriteJSON(api.ChanExit, api.StreamExit{})
}

// Usage is what the test put there, and every tenant's guarantee.
func (w *world) Usage(ctx context.Context, _ string) (api.UsageReport, error) {
	list, _, err := store.List[*api.Tenant](ctx, w, api.Selector{Kind: api.KindTenant})
	w.mu.Lock()
	defer w.mu.Unlock()
	rep := w.usage
	if len(rep.Tenants) == 0 {
		for _, t := range list {
			rep.Tenants = append(rep.Tenants, api.TenantUsage{Tenant: t.Name, Guarantee: t.Spec.Guarantee, Limit: t.Spec.Limit})
		}
	}
	return rep, err
}

// Plan needs a scheduler, which only the real server has.
func (w *world) Plan(context.Context, string, api.PlanRequest) (api.PlanAnswer, error) {
	return api.PlanAnswer{}, errs.New(errs.Unsupported, "no plans here")
}

// Power finds no management controller.
func (w *world) Power(ctx context.Context, node string, _ api.PowerRequest) (api.PowerAnswer, error) {
	if _, err := w.Get(ctx, api.Ref{Kind: api.KindNode, Name: node}); err != nil {
		return api.PowerAnswer{}, err
	}
	return api.PowerAnswer{}, errs.New(errs.Conflict, "node %s has no management controller", node)
}

// WhoAmI is root.
func (w *world) WhoAmI(context.Context) (conn.Identity, error) {
	return conn.Identity{User: "root", Admin: true}, nil
}

// ServerVersion is fixed.
func (w *world) ServerVersion(context.Context) (string, error) { return "0.1.0-test", nil }

// Backup writes something to recognise.
func (w *world) Backup(_ context.Context, out io.Writer) error {
	_, err := io.WriteString(out, "the state\n")
	return err
}

// Restore keeps what it was given.
func (w *world) Restore(_ context.Context, r io.Reader) error {
	b, err := io.ReadAll(r)
	w.drops = append(w.drops, string(b))
	return err
}

// JoinInfo is fixed.
func (w *world) JoinInfo(context.Context) (api.JoinInfo, error) {
	return api.JoinInfo{Endpoints: []string{"https://10.0.0.1:7443"}, Pin: "sha256//" + strings.Repeat("A", 43) + "="}, nil
}

// RemoveNode removes what is empty.
func (w *world) RemoveNode(ctx context.Context, name string, force, _ bool) error {
	list, _, err := w.List(ctx, api.Selector{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": name}})
	if err == nil && len(list) > 0 && !force {
		err = errs.New(errs.Conflict, "host %s has instances assigned to it: %d", name, len(list)).WithHint("empty it first: atoll drain %s", name)
	}
	if err != nil {
		return err
	}
	return w.Delete(ctx, api.Ref{Kind: api.KindNode, Name: name}, store.Any)
}

// RevokeNode notes why.
func (w *world) RevokeNode(ctx context.Context, name, why string) error {
	o, err := w.Get(ctx, api.Ref{Kind: api.KindNodeIdentity, Name: name})
	if err != nil {
		return err
	}
	n := api.Clone(o.(*api.NodeIdentity))
	n.Spec.Revoked = why + "."
	_, err = w.Commit(ctx, store.Update(n))
	return err
}

// Upgrade is not what this world does.
func (w *world) Upgrade(context.Context, api.UpgradeRequest) (*api.Upgrade, error) {
	return nil, errs.New(errs.Unsupported, "this server does not upgrade its pool")
}

// SendVersion takes nothing in.
func (w *world) SendVersion(context.Context, string, io.Reader) (api.UpgradeUpload, error) {
	return api.UpgradeUpload{}, errs.New(errs.Unsupported, "this server does not upgrade its pool")
}

// Net tells nothing: the world has no networks.
func (w *world) Net(context.Context, string, url.Values, any) error {
	return errs.New(errs.Unsupported, "this server knows no traffic")
}

// FollowFlows tells nothing either.
func (w *world) FollowFlows(context.Context, url.Values) (conn.Stream, error) {
	return nil, errs.New(errs.Unsupported, "this server knows no traffic")
}

// Close does nothing: the world outlives a call.
func (w *world) Close() error { return nil }

var _ conn.Client = (*world)(nil)
