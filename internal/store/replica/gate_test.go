package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// gate is a pool that can be out of reach, and whose answers can get lost.
type gate struct {
	*store.Mem
	mute atomic.Bool // changes are made, but nobody is told
	gets atomic.Int64

	mu  sync.Mutex
	cut chan struct{} // closed while out of reach
}

func newGate() *gate { return &gate{Mem: store.NewMem(), cut: make(chan struct{})} }

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.cut:
	default:
		close(g.cut)
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.cut:
		g.cut = make(chan struct{})
	default:
	}
}

func (g *gate) lost() (<-chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.cut:
		return nil, errs.New(errs.Unavailable, "no server answers")
	default:
		return g.cut, nil
	}
}

func (g *gate) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	if _, err := g.lost(); err != nil {
		return nil, err
	}
	g.gets.Add(1)
	return g.Mem.Get(ctx, ref)
}

func (g *gate) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	if _, err := g.lost(); err != nil {
		return nil, 0, err
	}
	return g.Mem.List(ctx, sel)
}

func (g *gate) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if _, err := g.lost(); err != nil {
		return 0, err
	}
	rev, err := g.Mem.Commit(ctx, ops...)
	if g.mute.Load() {
		return 0, errs.New(errs.Unavailable, "did not answer: whether the change was made is not known")
	}
	return rev, err
}

func (g *gate) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	cut, err := g.lost()
	if err != nil {
		return err
	}
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-cut:
			cancel()
		case <-stop:
		}
	}()
	err = g.Mem.Watch(wctx, sel, rev, fn)
	if ctx.Err() == nil && wctx.Err() != nil {
		return errs.New(errs.Unavailable, "the connection broke")
	}
	return err
}

const self = "isle2"

func ref(k api.Kind, i int) api.Ref {
	return api.Ref{Kind: k, Tenant: "acme", Name: fmt.Sprint("w", i)}
}

// rig is a pool with one node and a model of what must come of it.
type rig struct {
	t     *testing.T
	g     *gate
	r     *Replica
	st    store.Store // as the agent writes
	path  string
	stop  func()
	lease atomic.Int64

	count int64
	specs map[int]int64 // spec.restarts as the pool wrote it last
	acks  map[int]ack
	lost  int // reports that went while the pool was out of reach
}

// ack is a report that the agent was told is kept.
type ack struct {
	uid        string
	generation int64
	starts     int64
}

func (g *rig) pool(ops ...store.Op) {
	g.t.Helper()
	if _, err := g.g.Mem.Commit(context.Background(), ops...); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) retake() {
	rev, err := g.g.Mem.Commit(context.Background(), store.Set(&api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: api.NodeLease(self).Name}}, Spec: api.LeaseSpec{Holder: self, State: api.LeaseHeld}}))
	if err != nil {
		g.t.Fatal(err)
	}
	g.lease.Store(rev)
}

func (g *rig) make(i int) {
	g.count++
	uid := fmt.Sprintf("%032d", g.count)
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Tenant: "acme", Name: fmt.Sprint("w", i), UID: uid}}, Spec: api.InstanceSpec{Image: "x"}}
	as := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: in.Meta}, Spec: api.AssignmentSpec{InstanceUID: uid, Node: self, Generation: 1}}
	g.pool(store.Set(in), store.Set(as))
	g.specs[i] = 0
}

func (g *rig) begin() {
	g.t.Helper()
	r, err := Open(Config{Node: self, Source: g.g, Path: g.path, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler), LeaseRev: g.lease.Load})
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	g.r, g.st = r, store.Fenced(r, api.NodeLease(self), g.lease.Load)
	g.stop = func() { cancel(); <-done }
}

func newRig(t *testing.T, instances int) *rig {
	g := &rig{t: t, g: newGate(), path: filepath.Join(t.TempDir(), "replica", self), specs: map[int]int64{}, acks: map[int]ack{}}
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: self}}}
	g.pool(store.Create(n), store.Create(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "acme"}}}))
	g.retake()
	for i := range instances {
		g.make(i)
	}
	g.begin()
	return g
}

// report is what an agent does: it reads, and writes a status that nobody wrote before.
func (g *rig) report(i int) {
	ctx := context.Background()
	in, err := store.Get[*api.Instance](ctx, g.st, ref(api.KindInstance, i))
	if err != nil {
		return
	}
	as, err := store.Get[*api.Assignment](ctx, g.st, ref(api.KindAssignment, i))
	if err != nil || as.Spec.Node != self || in.UID != as.Spec.InstanceUID {
		return
	}
	next := api.Clone(in)
	g.count++
	next.Status.Node, next.Status.Assigned, next.Status.Starts = self, as.Spec.Generation, g.count
	if _, err := g.st.Commit(ctx, store.Update(next)); err != nil {
		return
	}
	g.acks[i] = ack{in.UID, as.Spec.Generation, g.count}
	if _, err := g.g.lost(); err != nil {
		g.lost++
	}
	seen, err := store.Get[*api.Instance](ctx, g.st, ref(api.KindInstance, i))
	if err == nil && seen.UID == in.UID && seen.Status.Starts < g.count {
		g.t.Fatalf("wrote starts %d, read %d", g.count, seen.Status.Starts)
	}
}

// edit is what the control plane does to an object.
func edit[T api.Object](g *rig, ref api.Ref, fn func(T)) {
	for {
		o, err := store.Get[T](context.Background(), g.g.Mem, ref)
		if err != nil {
			return
		}
		o = api.Clone(o)
		fn(o)
		switch _, err = g.g.Mem.Commit(context.Background(), store.Update(o)); {
		case err == nil:
			return
		case !errors.Is(err, errs.Conflict): // else the node was faster
			g.t.Fatal(err)
		}
	}
}

func (g *rig) step(what string, i int) {
	switch what {
	case "report":
		g.report(i)
	case "spec":
		edit(g, ref(api.KindInstance, i), func(in *api.Instance) { in.Spec.Restarts++; g.specs[i] = in.Spec.Restarts })
	case "doubt": // the pool gives its host up and says so
		edit(g, ref(api.KindInstance, i), func(in *api.Instance) {
			if in.Status.Starts >= g.acks[i].starts { // it has heard; what is still to be told must win
				delete(g.acks, i)
			}
			in.Status.State, in.Status.Starts = api.StateUnknown, -1
		})
	case "move":
		edit(g, ref(api.KindAssignment, i), func(as *api.Assignment) { as.Spec.Node = "isle3"; as.Spec.Generation++ })
		edit(g, ref(api.KindInstance, i), func(in *api.Instance) { in.Status.Node = "isle3"; in.Status.Starts = -1 })
	case "back":
		edit(g, ref(api.KindAssignment, i), func(as *api.Assignment) { as.Spec.Node = self; as.Spec.Generation++ })
	case "remove":
		_, _ = g.g.Mem.Commit(context.Background(), store.Remove(ref(api.KindInstance, i), store.Any), store.Remove(ref(api.KindAssignment, i), store.Any))
	case "make":
		g.make(i)
	case "cut":
		g.g.close()
	case "mend":
		g.g.open()
	case "mute":
		g.g.mute.Store(true)
	case "speak":
		g.g.mute.Store(false)
	case "expire": // the lease is the node's no more, and it does not know
		g.pool(store.Set(&api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: api.NodeLease(self).Name}}, Spec: api.LeaseSpec{Holder: self, State: api.LeaseExpired}}))
	case "retake":
		g.retake()
	case "compact":
		_ = g.g.Compact(context.Background(), g.g.Revision())
	case "kill": // without a word, maybe in the middle of a record
		g.stop()
		f, err := os.OpenFile(g.path, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.Write([]byte("\x00\x00\x01\x00torn")[:i+1])
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			g.t.Fatal(err)
		}
		g.begin()
	case "wait":
		time.Sleep(time.Duration(i*i) * 300 * time.Millisecond)
	}
}

// end lets the pool answer and looks at what has become of everything.
func (g *rig) end() {
	ctx := context.Background()
	g.g.open()
	g.g.mute.Store(false)
	g.retake()
	time.Sleep(30 * time.Second)
	synctest.Wait()
	if n := g.r.Pending(); n != 0 || g.r.Away() {
		g.t.Fatalf("%d reports wait, away %v", n, g.r.Away())
	}
	for i, want := range g.specs {
		in, err := store.Get[*api.Instance](ctx, g.g.Mem, ref(api.KindInstance, i))
		if err != nil {
			continue // removed
		}
		if in.Spec.Restarts != want || in.Spec.Image != "x" {
			g.t.Errorf("%s: the spec is %+v, the pool wrote restarts %d", in.Name, in.Spec, want)
		}
		as, err := store.Get[*api.Assignment](ctx, g.g.Mem, ref(api.KindAssignment, i))
		if err != nil {
			g.t.Fatal(err)
		}
		a := g.acks[i]
		switch {
		case as.Spec.Node == self && a.uid == in.UID && a.generation == as.Spec.Generation:
			if in.Status.Starts < a.starts { // more: it was made, and only the answer was an error
				g.t.Errorf("%s: starts %d, but %d was acknowledged", in.Name, in.Status.Starts, a.starts)
			}
		case as.Spec.Node != self && in.Status.Starts != -1:
			g.t.Errorf("%s moved on, but its status is this node's: %+v", in.Name, in.Status)
		}
	}
	for _, sel := range Parts(self) {
		want, _, err := g.g.Mem.List(ctx, sel)
		if err != nil {
			g.t.Fatal(err)
		}
		got, _, err := g.r.List(ctx, sel)
		if err != nil {
			g.t.Fatal(err)
		}
		if len(got) != len(want) {
			g.t.Fatalf("%s: %d objects, the pool has %d", sel.Kind, len(got), len(want))
		}
		for j := range want {
			if !sameJSON(got[j], want[j]) {
				g.t.Errorf("kept %+v\nthe pool has %+v", got[j], want[j])
			}
		}
	}
	g.r.mu.Lock()
	for ref, b := range g.r.st.base {
		if !b.followed && !g.r.named(b.obj) {
			g.t.Errorf("%s is kept for nothing", ref)
		}
	}
	g.r.mu.Unlock()
	g.stop()
}

// However the pool comes and goes, and whatever both sides do meanwhile: in the end they
// agree, nothing the agent was told is kept is lost unless the pool decided anew, and
// nothing that is the pool's has changed.
func TestBothSidesAgreeInTheEnd(t *testing.T) {
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) [2]int {
		return [2]int{int(rapid.Uint64().Draw(t, "what") % uint64(len(weights))), rapid.IntRange(0, 3).Draw(t, "which")}
	}), 30, 90)
	late := 0
	rapid.Check(t, func(rt *rapid.T) {
		plan := steps.Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, 4)
			for _, s := range plan {
				g.step(weights[s[0]], s[1])
			}
			g.end()
			late += g.lost
		})
		if t.Failed() {
			var said []string
			for _, s := range plan {
				said = append(said, fmt.Sprint(weights[s[0]], " ", s[1]))
			}
			fmt.Println("after", said)
			t.FailNow()
		}
	})
	if late < 100 {
		t.Errorf("only %d reports while out of reach: this tests nothing", late)
	}
}

var weights = []string{"report", "report", "report", "report", "report", "report", "wait", "wait", "wait", "spec", "doubt", "move", "back", "remove", "make",
	"cut", "cut", "mend", "mute", "speak", "expire", "retake", "compact", "kill"}
