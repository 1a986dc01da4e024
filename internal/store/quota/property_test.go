package quota

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// After any commits, admitted or refused, the ledgers equal a recount, and what is
// admitted obeys every rule.
func TestLedgersEqualARecount(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := world{New(store.NewMem()), t}
		w.ok(store.Create(host("n", "cpu=10,memory=10Gi")))
		for range rapid.IntRange(1, 40).Draw(r, "commits") {
			var ops []store.Op
			for range rapid.IntRange(1, 3).Draw(r, "ops") {
				ops = append(ops, anyOp(r))
			}
			_, err := w.Commit(ctx, ops...)
			switch k := errs.KindOf(err); {
			case err == nil, k == errs.Quota, k == errs.NoCapacity, k == errs.Denied, k == errs.NotFound, k == errs.Exists, k == errs.Invalid:
			case errors.Is(err, errs.Conflict):
			default:
				r.Fatalf("%v: %v", ops, err)
			}
			if n, err := w.Recount(ctx); n != 0 || err != nil {
				r.Fatalf("after %v: %d ledgers were wrong, %v", ops, n, err)
			}
			obeys(r, w)
		}
	})
}

var paths = []string{"a", "b", "a/x", "a/y", "a/x/p"}

func anyOp(r *rapid.T) store.Op {
	path := rapid.SampledFrom(paths).Draw(r, "tenant")
	switch rapid.IntRange(0, 9).Draw(r, "op") {
	case 0:
		return store.Remove(tenantRef(path), store.Any)
	case 1, 2, 3:
		tn := tenant(path, promise(fmt.Sprintf("cpu=%dm", 500*rapid.IntRange(0, 10).Draw(r, "guarantee"))),
			limit(fmt.Sprintf("cpu=%dm,instances=%d", 5000+500*rapid.IntRange(0, 6).Draw(r, "limit"), rapid.IntRange(1, 4).Draw(r, "count"))))
		tn.Spec.Suspended = rapid.IntRange(0, 9).Draw(r, "suspended") == 0
		return store.Set(tn)
	case 4, 5:
		return store.Remove(instRef(path, rapid.SampledFrom([]string{"i", "j", "k"}).Draw(r, "name")), store.Any)
	}
	in := inst(path, rapid.SampledFrom([]string{"i", "j", "k"}).Draw(r, "name"), fmt.Sprintf("cpu=%dm,memory=%dMi", rapid.IntRange(0, 3000).Draw(r, "cpu"), rapid.IntRange(0, 4096).Draw(r, "memory")))
	in.Spec.Stopped = rapid.Bool().Draw(r, "stopped")
	if rapid.Bool().Draw(r, "create") {
		return store.Create(in)
	}
	return store.Set(in)
}

// obeys checks the rules on the objects themselves.
func obeys(r *rapid.T, w world) {
	tenants, _, err := store.List[*api.Tenant](ctx, w, api.Selector{Kind: api.KindTenant})
	if err != nil {
		r.Fatal(err)
	}
	instances, _, err := store.List[*api.Instance](ctx, w, api.Selector{Kind: api.KindInstance})
	if err != nil {
		r.Fatal(err)
	}
	byName, promised, bases := map[string]*api.Tenant{}, map[string]int64{}, map[uint32]string{}
	for _, t := range tenants {
		byName[t.Name] = t
		promised[api.ParentTenant(t.Name)] += t.Spec.Guarantee[api.CPU]
		if other, twice := bases[t.Status.UIDBase]; twice || t.Status.UIDBase == 0 {
			r.Fatalf("%s and %s have host IDs from %d", t.Name, other, t.Status.UIDBase)
		}
		bases[t.Status.UIDBase] = t.Name
	}
	requested := map[string]api.Resources{}
	for _, in := range instances {
		if byName[in.Tenant] == nil {
			r.Fatalf("instance %s in a tenant that is not there", in.Tenant)
		}
		if !in.Spec.Stopped {
			requested[top(in.Tenant)] = requested[top(in.Tenant)].Add(in.Spec.Requests)
		}
	}
	pool := map[api.Resource]int64{}
	for _, t := range tenants {
		if up := api.ParentTenant(t.Name); up != "" && byName[up] == nil {
			r.Fatalf("tenant %s without its parent", t.Name)
		}
		if promised[t.Name] > t.Spec.Guarantee[api.CPU] {
			r.Fatalf("tenant %s has %d and promised %d", t.Name, t.Spec.Guarantee[api.CPU], promised[t.Name])
		}
		if api.ParentTenant(t.Name) == "" {
			for _, res := range shared {
				pool[res] += max(t.Spec.Guarantee[res], requested[t.Name][res])
			}
		}
	}
	if pool[api.CPU] > 9000 || pool[api.Memory] > 9<<30 {
		r.Fatalf("the pool gave away %v", pool)
	}
}
