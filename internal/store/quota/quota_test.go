package quota

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
	"atoll/internal/store/storetest"
)

var ctx = context.Background()

func TestStoreContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return New(store.NewMem()) })
}

func tenant(path string, change ...func(*api.TenantSpec)) *api.Tenant {
	t := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: path}}}
	for _, c := range change {
		c(&t.Spec)
	}
	return t
}

func limit(text string) func(*api.TenantSpec) {
	return func(s *api.TenantSpec) { s.Limit = res(text) }
}

func promise(text string) func(*api.TenantSpec) {
	return func(s *api.TenantSpec) { s.Guarantee = res(text) }
}

func res(text string) api.Resources {
	r, err := api.ParseResources(text)
	if err != nil {
		panic(err)
	}
	return r
}

func inst(tenant, name, requests string) *api.Instance {
	return &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Tenant: tenant, Name: name}}, Spec: api.InstanceSpec{Image: "busybox", Requests: res(requests)}}
}

func host(name, allocatable string) *api.Node {
	return &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}, Status: api.NodeStatus{Allocatable: res(allocatable)}}
}

func instRef(tenant, name string) api.Ref {
	return api.Ref{Kind: api.KindInstance, Tenant: tenant, Name: name}
}

type world struct {
	*Store
	t testing.TB
}

// newWorld is a pool of 10 cores and 10Gi (9 of them to give), as changed by ops.
func newWorld(t testing.TB, ops ...store.Op) world {
	w := world{New(store.NewMem()), t}
	w.ok(store.Create(host("isle1", "cpu=6,memory=6Gi,disk=100Gi")), store.Create(host("isle2", "cpu=4,memory=4Gi,disk=100Gi")))
	for _, op := range ops {
		w.ok(op)
	}
	return w
}

func (w world) ok(ops ...store.Op) {
	w.t.Helper()
	if _, err := w.Commit(ctx, ops...); err != nil {
		w.t.Fatalf("%v (hint: %s)", err, errs.HintOf(err))
	}
	w.balanced()
}

// balanced fails unless the ledgers equal a recount from scratch.
func (w world) balanced() {
	w.t.Helper()
	n, err := w.Recount(ctx)
	if err != nil || n != 0 {
		w.t.Fatalf("%d ledgers were wrong, %v", n, err)
	}
}

func (w world) no(kind errs.Kind, words string, ops ...store.Op) {
	w.t.Helper()
	_, err := w.Commit(ctx, ops...)
	if errs.KindOf(err) != kind || err == nil {
		w.t.Fatalf("got %v, want %s", err, kind)
	}
	text := err.Error() + " | " + errs.HintOf(err)
	for _, word := range strings.Split(words, "; ") {
		if !strings.Contains(text, word) {
			w.t.Errorf("%q is not in: %s", word, text)
		}
	}
	w.balanced()
}

func (w world) ledger(tenant string) api.LedgerSpec {
	w.t.Helper()
	l, err := store.Get[*api.Ledger](ctx, w, ledgerRef(tenant))
	if err != nil {
		w.t.Fatal(err)
	}
	return l.Spec
}

func (w world) tenantOf(path string) *api.Tenant {
	w.t.Helper()
	t, err := store.Get[*api.Tenant](ctx, w, tenantRef(path))
	if err != nil {
		w.t.Fatal(err)
	}
	return api.Clone(t)
}

func TestLimitsHoldOnThePath(t *testing.T) {
	w := newWorld(t, store.Create(tenant("acme", limit("cpu=2,instances=3"))), store.Create(tenant("acme/lab", limit("cpu=1"))))
	w.ok(store.Create(inst("acme/lab", "a", "cpu=800m,memory=1Gi")))
	w.no(errs.Quota, "tenant acme/lab; cpu; 800m used; 300m asked; limit is 1; atoll tenant set acme/lab --limit cpu=1100m", store.Create(inst("acme/lab", "b", "cpu=300m")))
	w.ok(store.Create(inst("acme", "b", "cpu=1")))
	w.no(errs.Quota, "tenant acme:; cpu", store.Create(inst("acme", "c", "cpu=201m")))
	w.no(errs.Quota, "tenant acme:", store.Create(inst("acme", "c", "cpu=100m")), store.Create(inst("acme", "d", "cpu=101m")))
	w.ok(store.Create(inst("acme", "c", "cpu=200m")))
	w.no(errs.Quota, "instances; 3 used; 1 asked; limit is 3", store.Create(inst("acme/lab", "d", "")))
	if got := w.ledger("acme").Requested; got.String() != "cpu=2,memory=1Gi,instances=3" {
		t.Errorf("acme has %s", got)
	}
	if got := w.ledger("").Requested; got[api.CPU] != 2000 {
		t.Errorf("the pool has %s", got)
	}
	// What goes makes room, in the same commit, too.
	w.ok(store.Remove(instRef("acme", "c"), store.Any), store.Create(inst("acme/lab", "d", "cpu=200m")))
	w.ok(store.Remove(instRef("acme", "b"), store.Any))
	w.ok(store.Create(inst("acme", "e", "cpu=1")))
}

func TestStoppedInstancesOnlyCount(t *testing.T) {
	w := newWorld(t, store.Create(tenant("a", limit("cpu=1,instances=2"))))
	off := inst("a", "off", "cpu=1")
	off.Spec.Stopped = true
	w.ok(store.Create(off))
	w.ok(store.Create(inst("a", "on", "cpu=1")))
	on := api.Clone(off)
	on.Spec.Stopped = false
	w.no(errs.Quota, "cpu", store.Set(on))
	w.ok(store.Remove(instRef("a", "on"), store.Any))
	w.ok(store.Set(on))
	bigger := api.Clone(on)
	bigger.Spec.Requests = res("cpu=1500m")
	w.no(errs.Quota, "500m asked", store.Set(bigger))
	if got := w.ledger("a").Requested.String(); got != "cpu=1,instances=1" {
		t.Errorf("got %s", got)
	}
}

func TestTenantsThatAreNotThereOrClosed(t *testing.T) {
	w := newWorld(t, store.Create(tenant("a")), store.Create(tenant("a/b")))
	w.ok(store.Create(inst("a/b", "old", "")))
	stopped := inst("a/b", "stopped", "")
	stopped.Spec.Stopped = true
	w.ok(store.Create(stopped))
	w.no(errs.NotFound, "tenant x does not exist; atoll tenant create x", store.Create(inst("x", "i", "")))
	w.no(errs.NotFound, "tenant x does not exist; atoll tenant create x", store.Create(tenant("x/y")))
	a := w.tenantOf("a")
	a.Spec.Suspended = true
	w.ok(store.Update(a))
	w.no(errs.Denied, "tenant a is suspended", store.Create(inst("a/b", "i", "")))
	w.no(errs.Denied, "tenant a is suspended", store.Create(tenant("a/c")))
	started := api.Clone(stopped)
	started.Spec.Stopped = false
	w.no(errs.Denied, "suspended", store.Set(started))
	labelled := inst("a/b", "old", "")
	labelled.Labels = map[string]string{"x": "y"}
	w.ok(store.Set(labelled)) // what is there can be changed and removed
	w.ok(store.Remove(instRef("a/b", "old"), store.Any))
}

func TestTenantsAndWhatIsInThemInOneCommit(t *testing.T) {
	w := newWorld(t)
	w.ok(store.Create(inst("a/b", "i", "cpu=1")), store.Create(tenant("a/b")), store.Create(tenant("a", limit("cpu=2"))))
	w.no(errs.Quota, "tenant a:", store.Create(tenant("a/c")), store.Create(inst("a/c", "i", "cpu=1500m")))
	w.no(errs.Conflict, "tenant a/b is not empty: it has 1 instance", store.Remove(tenantRef("a/b"), store.Any))
	w.no(errs.Conflict, "tenant a is not empty; tenant a/b", store.Remove(tenantRef("a"), store.Any))
	w.ok(store.Remove(instRef("a/b", "i"), store.Any), store.Remove(tenantRef("a/b"), store.Any), store.Remove(tenantRef("a"), store.Any))
	if _, err := w.Get(ctx, ledgerRef("a")); !errors.Is(err, errs.NotFound) {
		t.Errorf("the ledger is left: %v", err)
	}
	w.ok(store.Create(tenant("a")))
}

func TestGuarantees(t *testing.T) {
	w := newWorld(t, store.Create(tenant("a", promise("cpu=4,memory=2Gi"))))
	w.no(errs.Quota, "tenant a:; memory; 3Gi; own guarantee is 2Gi", store.Create(tenant("a/x", promise("memory=3Gi"))))
	w.ok(store.Create(tenant("a/x", promise("cpu=3"))))
	w.no(errs.Quota, "cpu; 4100m; own guarantee is 4", store.Create(tenant("a/y", promise("cpu=1100m"))))
	w.ok(store.Create(tenant("a/y", promise("cpu=1"))))
	a := w.tenantOf("a")
	a.Spec.Guarantee = res("cpu=3,memory=2Gi")
	w.no(errs.Quota, "tenant a", store.Update(a))
	w.no(errs.NoCapacity, "cpu; can guarantee 9 in all; at most 5", store.Create(tenant("b", promise("cpu=5001m"))))
	w.ok(store.Create(tenant("b", promise("cpu=5"))))
	w.no(errs.NoCapacity, "gpu", store.Create(tenant("c", promise("gpu=1"))))
	if got := w.ledger("").Promised.String(); got != "cpu=9,memory=2Gi" {
		t.Errorf("promised %s", got)
	}
	x := w.tenantOf("a/x")
	x.Spec.Guarantee = nil
	w.ok(store.Update(x))
	a = w.tenantOf("a")
	a.Spec.Guarantee = res("cpu=1")
	w.ok(store.Update(a))
	if got := w.ledger("").Reserved.String(); got != "cpu=6" {
		t.Errorf("reserved %s", got)
	}
}

func TestUnusedGuaranteesStayFree(t *testing.T) {
	w := newWorld(t, store.Create(tenant("a", promise("cpu=5"))), store.Create(tenant("b")))
	w.ok(store.Create(inst("b", "one", "cpu=4")))
	w.no(errs.NoCapacity, "1m CPU more; 0m of 9 is free", store.Create(inst("b", "two", "cpu=1m")))
	w.ok(store.Create(inst("b", "idle", ""))) // asks for nothing
	w.ok(store.Create(inst("a", "own", "cpu=5")))
	w.no(errs.NoCapacity, "CPU", store.Create(inst("a", "more", "cpu=1")))
	w.no(errs.NoCapacity, "CPU", store.Create(tenant("c", promise("cpu=1"))))
	w.ok(store.Remove(instRef("b", "one"), store.Any))
	w.ok(store.Create(inst("a", "more", "cpu=3")))
	w.no(errs.NoCapacity, "memory", store.Create(inst("a", "big", "memory=10Gi")))
	// A node that goes leaves everything as it is, but nothing more fits.
	w.ok(store.Remove(api.Ref{Kind: api.KindNode, Name: "isle2"}, store.Any))
	w.no(errs.NoCapacity, "CPU", store.Create(inst("b", "x", "cpu=1m")))
	w.ok(store.Remove(instRef("a", "more"), store.Any))
}

func TestWithoutNodesInstancesWaitAndNothingIsPromised(t *testing.T) {
	w := world{New(store.NewMem()), t}
	w.ok(store.Create(tenant("a")))
	w.ok(store.Create(inst("a", "i", "cpu=100,memory=1Ti")))
	w.no(errs.NoCapacity, "no nodes", store.Create(tenant("b", promise("cpu=1m"))))
}

func TestLoweredLimitsStopOnlyWhatIsNew(t *testing.T) {
	w := newWorld(t, store.Create(tenant("a", limit("cpu=4"))))
	w.ok(store.Create(inst("a", "i", "cpu=3")))
	a := w.tenantOf("a")
	a.Spec.Limit = res("cpu=1")
	w.ok(store.Update(a))
	w.no(errs.Quota, "3 used; limit is 1", store.Create(inst("a", "j", "cpu=1m")))
	w.ok(store.Create(inst("a", "j", "memory=1Gi")))
	smaller := inst("a", "i", "cpu=2")
	w.ok(store.Set(smaller))
}

func TestHostIDsAreDisjoint(t *testing.T) {
	w := newWorld(t)
	var ops []store.Op
	for i := range 20 {
		ops = append(ops, store.Create(tenant(fmt.Sprint("t", i))))
	}
	w.ok(ops...)
	w.ok(store.Create(tenant("t1/x")))
	w.ok(store.Remove(tenantRef("t5"), store.Any))
	w.ok(store.Create(tenant("t5")))
	list, _, err := store.List[*api.Tenant](ctx, w, api.Selector{Kind: api.KindTenant})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]bool{}
	for _, tn := range list {
		b := tn.Status.UIDBase
		if b < uidFirst || b%uidCount != 0 || tn.Status.UIDCount != uidCount || seen[b] {
			t.Errorf("%s has %d+%d", tn.Name, b, tn.Status.UIDCount)
		}
		seen[b] = true
	}
	if b := w.tenantOf("t5").Status.UIDBase; b != uidFirst+21*uidCount {
		t.Errorf("the range of a removed tenant was given away soon: %d", b)
	}
	// Nobody can move a range by writing the tenant.
	moved := w.tenantOf("t1")
	before := moved.Status.UIDBase
	moved.Status.UIDBase, moved.Status.UIDCount = 0, 0
	moved.Spec.Weight = 7
	w.ok(store.Update(moved))
	if got := w.tenantOf("t1").Status; got.UIDBase != before || got.UIDCount != uidCount {
		t.Errorf("got %+v", got)
	}
}

func TestFreeBase(t *testing.T) {
	full := func(from, to uint32) (out []uint32) {
		for b := from; b <= to; b += uidCount {
			out = append(out, b)
		}
		return out
	}
	for name, c := range map[string]struct {
		next  uint32
		taken []uint32
		want  uint32
		ok    bool
	}{
		"first":        {0, nil, uidFirst, true},
		"next":         {uidFirst + 3*uidCount, []uint32{uidFirst}, uidFirst + 3*uidCount, true},
		"taken":        {uidFirst, full(uidFirst, uidFirst+2*uidCount), uidFirst + 3*uidCount, true},
		"overlap":      {uidFirst, []uint32{uidFirst - 100}, uidFirst - 100 + uidCount, true},
		"wrap":         {uidLast + 1, []uint32{uidFirst}, uidFirst + uidCount, true},
		"wrap to hole": {uidLast, append(full(uidFirst, uidFirst+4*uidCount), uidLast), uidFirst + 5*uidCount, true},
		"all":          {0, full(uidFirst, uidLast), 0, false},
		"hostile":      {1<<32 - 1, []uint32{1<<32 - 1}, uidFirst, true},
	} {
		got, ok := freeBase(c.next, c.taken)
		if got != c.want || ok != c.ok {
			t.Errorf("%s: %d %v, want %d %v", name, got, ok, c.want, c.ok)
		}
	}
}

func TestConflictsOfTheCallerAreReturned(t *testing.T) {
	w := newWorld(t, store.Create(tenant("a")))
	w.ok(store.Create(inst("a", "i", "cpu=1")))
	i, err := store.Get[*api.Instance](ctx, w, instRef("a", "i"))
	if err != nil {
		t.Fatal(err)
	}
	next := api.Clone(i)
	next.Spec.Requests = res("cpu=2")
	w.ok(store.Update(next))
	w.no(errs.Conflict, "changed meanwhile", store.Update(next))
	w.no(errs.Conflict, "changed meanwhile", store.Remove(instRef("a", "i"), i.Revision))
	w.no(errs.Exists, "exists", store.Create(inst("a", "i", "cpu=1")))
	w.no(errs.NotFound, "", store.Remove(instRef("a", "nobody"), store.Any))
	w.no(errs.Conflict, "", store.Create(inst("a", "j", "")), store.Expect(instRef("a", "i"), 1))
	claimed := api.Clone(next)
	claimed.Revision = 1 << 40 // a revision that never was
	w.no(errs.Conflict, "changed meanwhile", store.Update(claimed))
	w.no(errs.Invalid, "counted", store.Create(inst("a", "huge", "memory=7Ei")))
}

func TestAStatusWritesNoLedger(t *testing.T) {
	w := newWorld(t, store.Create(tenant("a")))
	w.ok(store.Create(inst("a", "i", "cpu=1")))
	i, err := store.Get[*api.Instance](ctx, w, instRef("a", "i"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := w.Get(ctx, ledgerRef("a"))
	if err != nil {
		t.Fatal(err)
	}
	i = api.Clone(i)
	i.Status.State = api.StateRunning
	w.ok(store.Update(i))
	after, err := w.Get(ctx, ledgerRef("a"))
	if err != nil || after.Metadata().Revision != l.Metadata().Revision {
		t.Errorf("ledger at %d, was %d, %v", after.Metadata().Revision, l.Metadata().Revision, err)
	}
}

func TestRecountRepairs(t *testing.T) {
	m := store.NewMem()
	w := world{New(m), t}
	w.ok(store.Create(host("n", "cpu=10,memory=10Gi")))
	w.ok(store.Create(tenant("a", promise("cpu=1"))), store.Create(tenant("a/b")))
	w.ok(store.Create(inst("a/b", "i", "cpu=2")))
	for _, op := range []store.Op{ // behind admission's back, as a restored backup would
		store.Create(inst("a/b", "j", "cpu=1")),
		store.Remove(ledgerRef("a"), store.Any),
		store.Create(&api.Ledger{Head: api.Head{K: api.KindLedger, Meta: api.Meta{Tenant: "ghost", Name: api.LedgerName}}}),
	} {
		if _, err := m.Commit(ctx, op); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := w.Recount(ctx); n != 4 || err != nil { // a, a/b, the pool, ghost
		t.Fatal(n, err)
	}
	w.balanced()
	if got := w.ledger("a"); got.Requested.String() != "cpu=3,instances=2" || len(got.Promised) > 0 {
		t.Errorf("got %+v", got)
	}
	if got := w.ledger("").Reserved.String(); got != "cpu=3" {
		t.Errorf("reserved %s", got)
	}
}

// 100 creates at once at the edge of a quota never exceed it.
func edge(t *testing.T, s store.Store) {
	w := world{New(s), t}
	w.ok(store.Create(host("n", "cpu=100,memory=100Gi")), store.Create(tenant("a", limit("instances=37"))), store.Create(tenant("a/b")), store.Create(tenant("c", limit("cpu=2"))))
	other := New(s) // another process with a turn of its own
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[string]int{}
	for i := range 100 {
		wg.Go(func() {
			q, in := w.Store, inst([]string{"a", "a/b", "c"}[i%3], fmt.Sprint("i", i), "cpu=100m")
			if i%2 == 0 {
				q = other
			}
			_, err := q.Commit(ctx, store.Create(in))
			if err != nil && !errors.Is(err, errs.Quota) {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				won[top(in.Tenant)]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	list, _, err := store.List[*api.Instance](ctx, s, api.Selector{Kind: api.KindInstance})
	if err != nil || won["a"] != 37 || won["c"] != 20 || len(list) != 57 {
		t.Fatalf("%v were admitted, %d are there, %v", won, len(list), err)
	}
	w.balanced()
}

func TestConcurrentCreatesMem(t *testing.T) { edge(t, store.NewMem()) }

func openEtcd(t testing.TB) *etcdstore.Store {
	s, err := etcdstore.Open(ctx, etcdstore.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// mirror runs a cache over s until the test ends.
func mirror(t testing.TB, s store.Store) *store.Cache {
	c := store.NewCache(s)
	run, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- c.Run(run) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	if err := c.WaitLoaded(run); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConcurrentCreatesEtcd(t *testing.T)      { edge(t, openEtcd(t)) }
func TestConcurrentCreatesEtcdCache(t *testing.T) { edge(t, mirror(t, openEtcd(t))) }

// An instance is created in one transaction of etcd.
func TestCreateIsOneRevision(t *testing.T) {
	s := openEtcd(t)
	w := world{New(mirror(t, s)), t}
	w.ok(store.Create(tenant("a")), store.Create(tenant("a/b")))
	_, before, err := s.List(ctx, api.Selector{Kind: api.KindNode})
	if err != nil {
		t.Fatal(err)
	}
	rev, err := w.Commit(ctx, store.Create(inst("a/b", "i", "cpu=1")))
	if err != nil || rev != before+1 {
		t.Fatalf("revision %d after %d, %v", rev, before, err)
	}
}

func benchCreate(b *testing.B, s store.Store, writers int) {
	q := New(s)
	if _, err := q.Commit(ctx, store.Create(host("n", "cpu=1000000,memory=1Ei")), store.Create(tenant("a")), store.Create(tenant("a/b"))); err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	b.ResetTimer()
	for w := range writers {
		wg.Go(func() {
			for i := w; i < b.N; i += writers {
				if _, err := q.Commit(ctx, store.Create(inst("a/b", fmt.Sprint("i", i), "cpu=1m,memory=1Mi"))); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkCreateMem(b *testing.B)           { benchCreate(b, store.NewMem(), 1) }
func BenchmarkCreateEtcd(b *testing.B)          { benchCreate(b, openEtcd(b), 1) }
func BenchmarkCreateEtcdCache(b *testing.B)     { benchCreate(b, mirror(b, openEtcd(b)), 1) }
func BenchmarkCreateEtcdCacheBy32(b *testing.B) { benchCreate(b, mirror(b, openEtcd(b)), 32) }

// A new pool begins anywhere, at a whole range that can be handed out; an old one goes on where it was.
func TestUIDStart(t *testing.T) {
	seen := map[uint32]bool{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], r.Uint32())
		at, err := UIDStart(bytes.NewReader(b[:]))
		if base, ok := freeBase(at, nil); err != nil || at%uidCount != 0 || !ok || base != at {
			t.Fatalf("%d: %d %v %v", at, base, ok, err)
		}
		seen[at] = true
	}
	if len(seen) < 900 {
		t.Errorf("%d different starts of 1000", len(seen))
	}
	if _, err := UIDStart(bytes.NewReader(nil)); err == nil {
		t.Error("chance failed, and it began all the same")
	}
}

// A tenant that comes from another pool keeps its range, and gets none that overlaps.
func TestRangesOfHostIDsAreKept(t *testing.T) {
	w := newWorld(t, store.Create(tenant("old")))
	from := func(path string, base, n uint32) *api.Tenant {
		tn := tenant(path)
		tn.Status.UIDBase, tn.Status.UIDCount = base, n
		return tn
	}
	w.ok(store.Create(from("a", 1<<24, uidCount)), store.Create(from("b", 1<<24+uidCount, uidCount)), store.Create(tenant("fresh")))
	if got := w.tenantOf("a").Status.UIDBase; got != 1<<24 {
		t.Fatal(got)
	}
	if a, b := w.tenantOf("fresh").Status.UIDBase, w.tenantOf("old").Status.UIDBase; a == b || a >= 1<<24 && a < 1<<24+2*uidCount {
		t.Fatal(a, b)
	}
	w.no(errs.Conflict, "those of tenant a", store.Create(from("c", 1<<24+5, uidCount)))
	w.no(errs.Conflict, "those of tenant d", store.Create(from("d", 1<<25, uidCount)), store.Create(from("e", 1<<25, uidCount)))
	w.no(errs.Invalid, "host user IDs", store.Create(from("f", 1<<26, 7)))
	w.no(errs.Invalid, "host user IDs", store.Create(from("f", 0, uidCount)))
	w.no(errs.Invalid, "host user IDs", store.Create(from("f", 1<<32-1, uidCount)))
}

// A host that comes with what it runs brings the room for it along, in the same commit.
func TestNodesOfACommitCount(t *testing.T) {
	w := newWorld(t, store.Create(tenant("acme"))) // 10Gi, 9 of them to give
	big := store.Create(inst("acme", "big", "memory=20Gi"))
	w.no(errs.NoCapacity, "", big)
	w.no(errs.NoCapacity, "", store.Create(host("isle3", "cpu=8,memory=12Gi")), big) // 22Gi, of which a tenth is kept
	w.ok(store.Create(host("isle3", "cpu=8,memory=16Gi")), big)
	w.no(errs.NoCapacity, "", store.Create(inst("acme", "more", "memory=6Gi")))
	w.ok(store.Create(inst("acme", "more", "memory=3Gi")))
}
