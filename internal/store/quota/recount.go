package quota

import (
	"context"
	"errors"
	"maps"
	"sort"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// recountOps bounds one commit of Recount; etcd's default is 128.
const recountOps = 100

// Recount makes the ledgers anew from the objects and tells how many were wrong:
// after a backup was loaded, or when a check of the system asks for it. It waits
// for its turn like any commit; what others commit meanwhile makes it start over.
func (q *Store) Recount(ctx context.Context) (changed int, err error) {
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	wait := pauseMin
	for range attempts {
		var n int
		n, err = q.recount(ctx)
		changed += n
		if !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.Exists) && !errors.Is(err, errs.NotFound) {
			return changed, err
		}
		if err := q.Clock.Sleep(ctx, wait); err != nil {
			return changed, err
		}
		wait = min(2*wait, pauseMax)
	}
	return changed, errs.New(errs.Unavailable, "recount: the ledgers change too fast: %w", err).WithHint("try again")
}

func (q *Store) recount(ctx context.Context) (int, error) {
	// Ledgers first: a change of the objects after this reading changes a ledger, too, and is noticed.
	ledgers, _, err := store.List[*api.Ledger](ctx, q.Store, api.Selector{Kind: api.KindLedger})
	if err != nil {
		return 0, err
	}
	tenants, _, err := store.List[*api.Tenant](ctx, q.Store, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return 0, err
	}
	instances, _, err := store.List[*api.Instance](ctx, q.Store, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return 0, err
	}
	addresses, _, err := store.List[*api.Address](ctx, q.Store, api.Selector{Kind: api.KindAddress})
	if err != nil {
		return 0, err
	}
	want, err := count(tenants, instances, addresses)
	if err != nil {
		return 0, err
	}
	var ops []store.Op
	for _, l := range ledgers {
		spec, ok := want[l.Metadata().Tenant]
		delete(want, l.Metadata().Tenant)
		if !ok {
			ops = append(ops, store.Remove(api.RefOf(l), l.Revision))
			continue
		}
		if l.Spec.NextUID != 0 { // where to look next is known to the ledger alone
			spec.NextUID = l.Spec.NextUID
		}
		if same(l.Spec, spec) {
			continue
		}
		l = api.Clone(l)
		l.Spec = spec
		ops = append(ops, store.Update(l))
	}
	for t, spec := range want {
		if same(spec, api.LedgerSpec{}) {
			continue // made when there is something to note
		}
		ops = append(ops, store.Create(&api.Ledger{Head: api.Head{K: api.KindLedger, Meta: api.Meta{Tenant: t, Name: api.LedgerName}}, Spec: spec}))
	}
	sort.Slice(ops, func(i, j int) bool { return api.SortKey(ops[i].Target()) < api.SortKey(ops[j].Target()) })
	done := 0
	for len(ops) > 0 {
		n := min(recountOps, len(ops))
		if _, err := q.Store.Commit(ctx, ops[:n]...); err != nil {
			return done, err
		}
		done, ops = done+n, ops[n:]
	}
	return done, nil
}

func same(a, b api.LedgerSpec) bool {
	return maps.Equal(a.Requested, b.Requested) && maps.Equal(a.Waiting, b.Waiting) && maps.Equal(a.Promised, b.Promised) && maps.Equal(a.Reserved, b.Reserved) && a.NextUID == b.NextUID
}

// count makes every ledger from nothing but the objects.
func count(tenants []*api.Tenant, instances []*api.Instance, addresses []*api.Address) (map[string]api.LedgerSpec, error) {
	requested, waits, promised := map[string]sums{"": {}}, map[string]sums{"": {}}, map[string]sums{"": {}}
	guarantees := map[string]api.Resources{}
	next := uint32(0)
	for _, t := range tenants {
		guarantees[t.Name] = t.Spec.Guarantee
		for _, path := range []string{t.Name, api.ParentTenant(t.Name)} {
			if promised[path] == nil {
				promised[path] = sums{}
			}
		}
		if err := promised[api.ParentTenant(t.Name)].add(sums(t.Spec.Guarantee), 1); err != nil {
			return nil, err
		}
		if t.Status.UIDCount > 0 {
			next = max(next, t.Status.UIDBase+uidCount)
		}
	}
	for _, in := range instances {
		for _, path := range append(api.TenantChain(in.Tenant), "") {
			if requested[path] == nil {
				requested[path], waits[path] = sums{}, sums{}
			}
			if err := waits[path].add(waiting(in), 1); err != nil {
				return nil, err
			}
			if err := requested[path].add(usage(in), 1); err != nil {
				return nil, err
			}
		}
	}
	for _, a := range addresses {
		for _, path := range append(api.TenantChain(a.Tenant), "") {
			if requested[path] == nil {
				requested[path], waits[path] = sums{}, sums{}
			}
			if err := requested[path].add(sums{api.Addresses: 1}, 1); err != nil {
				return nil, err
			}
		}
	}
	out, reserved := map[string]api.LedgerSpec{}, api.Resources{}
	for path := range promised {
		out[path] = api.LedgerSpec{}
	}
	for path := range requested {
		out[path] = api.LedgerSpec{}
	}
	for path := range out {
		spec := api.LedgerSpec{Requested: plus(nil, requested[path]), Waiting: plus(nil, waits[path]), Promised: plus(nil, promised[path])}
		out[path] = spec
		if path != "" && api.ParentTenant(path) == "" {
			reserved = plus(reserved, sums(reserve(guarantees[path], firm(spec))))
		}
	}
	pool := out[""]
	pool.Reserved, pool.NextUID = reserved, next
	out[""] = pool
	return out, nil
}
