package plan

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/balance/exact"
)

// solving gives a plan the real solver, where it is installed.
func solving(t *testing.T) Config {
	t.Helper()
	path, err := exact.Find()
	if err != nil {
		t.Skip(err)
	}
	c := config()
	c.Solve = func(ctx context.Context, p *exact.Problem) (exact.Solution, error) {
		return exact.Solve(ctx, path, p, 10*time.Second)
	}
	return c
}

// Placed one after the other by rule of thumb, the last one finds no room: the
// solver knows that all have.
func TestTheBestThereIs(t *testing.T) {
	cfg := solving(t)
	pool := Pool{Tenants: []*api.Tenant{{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "t", Revision: 1}}}}}
	for i := range 2 {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: fmt.Sprint("n", i)}}}
		n.Status.Allocatable = api.Resources{api.CPU: 12_000, api.Memory: 12 << 30, api.Instances: 100}
		n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
		n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
		pool.Nodes = append(pool.Nodes, n)
	}
	var objs []api.Object
	for i, cpu := range []int64{4, 6, 4, 6, 4} {
		objs = append(objs, &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprint("i", i), Tenant: "t"}},
			Spec: api.InstanceSpec{Image: "x", Requests: api.Resources{api.CPU: cpu * 1000, api.Memory: cpu << 30}}})
	}
	a, err := New(pool, cfg).Answer(context.Background(), Question{Objects: objs, Exact: true})
	if err != nil {
		t.Fatal(err)
	}
	if a.Placed != 4 || a.Exact == nil || a.Exact.Placed != 5 || a.Exact.Of != 5 || !a.Exact.Proven || a.Exact.Loose {
		t.Fatalf("placed %d, at best %+v", a.Placed, a.Exact)
	}
}

// Whatever is asked: what the rules of thumb place, without making anybody go, is
// never more than the best there is.
func TestNothingBeatsTheBest(t *testing.T) {
	cfg := solving(t)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		if n++; n > 15 {
			return // a process each
		}
		pool := drawPool(t, false)
		var objs []api.Object
		for i := range rapid.IntRange(1, 8).Draw(t, "asked") {
			in := drawInstance(t, fmt.Sprint("new", i), false)
			in.UID, in.Spec.Stopped, in.Spec.Priority = "", false, "c0"
			objs = append(objs, in)
		}
		a, err := New(pool, cfg).Answer(context.Background(), Question{Objects: objs, Exact: true})
		if err != nil {
			t.Fatal(err)
		}
		if a.Exact.Placed < a.Placed {
			t.Fatalf("placed %d, at best %+v", a.Placed, a.Exact)
		}
	})
}
