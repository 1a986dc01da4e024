package quota

import (
	"context"
	"maps"
	"reflect"
	"sort"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// account is a ledger while a plan is made. Its maps are replaced, never changed.
type account struct {
	tenant string
	was    *api.Ledger // as stored; nil: there is none yet
	had    api.LedgerSpec
	spec   api.LedgerSpec
	delta  sums // change of requested
	waits  sums // change of waiting
	touch  bool // write it even if it stays the same: who plans with the tenant must notice
	drop   bool
}

// owner is a tenant while a plan is made.
type owner struct {
	was, is *api.Tenant // nil: not there
	opAt    int         // index of the op that changes it; -1: none
}

// books are the accounts and tenants as read, once each, and as what was admitted in
// this turn leaves them.
type books struct {
	q        *Store
	accounts map[string]*account
	owners   map[string]*owner
	given    api.Resources // of the nodes; nil: not asked yet
}

func newBooks(q *Store) *books {
	return &books{q: q, accounts: map[string]*account{}, owners: map[string]*owner{}}
}

// plan is one caller's commit in the making.
type plan struct {
	*books
	s        store.Store
	ops      []store.Op // the caller's, with revisions pinned
	pinned   map[api.Ref]bool
	accounts map[string]*account // those it concerns, as they will be
	started  map[string][]string // by tenant: instances that are created or begin to use more
}

// plan reads what the ops change and sums up the differences.
func (b *books) plan(ctx context.Context, ops []store.Op) (*plan, error) {
	p := &plan{books: b, s: b.q.Store, ops: append([]store.Op(nil), ops...), pinned: map[api.Ref]bool{},
		accounts: map[string]*account{}, started: map[string][]string{}}
	for i := range p.ops {
		var err error
		switch op := &p.ops[i]; {
		case op.Verb == store.Check:
		case op.Target().Kind == api.KindInstance:
			err = p.instance(ctx, op)
		case op.Target().Kind == api.KindAddress:
			err = p.address(ctx, op)
		case op.Target().Kind == api.KindTenant:
			err = p.tenant(ctx, op, i)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// enter makes what a plan comes to the state that the next one starts from.
func (b *books) enter(p *plan) {
	for path, a := range p.accounts {
		if a.touch || a.drop {
			b.accounts[path] = a
		}
	}
}

// pin ties an op that would take any revision to the one the plan was made for.
// With have 0 a delete has nothing to delete, which Judge says.
func (p *plan) pin(op *store.Op, have int64) error {
	if err := store.Judge(*op, have); err != nil {
		return err
	}
	if op.Rev == store.Any {
		op.Rev = have
		p.pinned[op.Target()] = true
	}
	return nil
}

// pinned reads what an op is about, nil when it is not there, and ties the op to what was read.
func pinned[T api.Object](ctx context.Context, p *plan, op *store.Op) (T, error) {
	var none T
	was, found, err := before[T](ctx, p.s, *op)
	if err != nil {
		return none, err
	}
	have := int64(0)
	if found {
		have = was.Metadata().Revision
	} else {
		was = none
	}
	return was, p.pin(op, have)
}

func (p *plan) instance(ctx context.Context, op *store.Op) error {
	was, err := pinned[*api.Instance](ctx, p, op)
	if err != nil {
		return err
	}
	var is *api.Instance
	if op.Verb == store.Put {
		var ok bool
		if is, ok = op.Object.(*api.Instance); !ok {
			return errs.New(errs.Internal, "%s is a %T", op.Target(), op.Object)
		}
	}
	delta, err := change(usage(was), usage(is))
	if err != nil {
		return err
	}
	waits, err := change(waiting(was), waiting(is))
	if err != nil {
		return err
	}
	begins := is != nil && (was == nil || was.Spec.Stopped && !is.Spec.Stopped)
	if delta.zero() && waits.zero() && !begins {
		return nil
	}
	tenant := op.Target().Tenant
	if begins {
		p.started[tenant] = append(p.started[tenant], is.Name)
	}
	return p.charge(ctx, tenant, delta, waits)
}

// address counts those of a tenant: there are few in the world.
func (p *plan) address(ctx context.Context, op *store.Op) error {
	was, err := pinned[*api.Address](ctx, p, op)
	if err != nil {
		return err
	}
	delta := sums{}
	switch {
	case op.Verb == store.Put && was == nil:
		delta[api.Addresses] = 1
	case op.Verb == store.Delete && was != nil:
		delta[api.Addresses] = -1
	default:
		return nil
	}
	return p.charge(ctx, op.Target().Tenant, delta, sums{})
}

// charge books a difference on a tenant, those above it, and the pool.
func (p *plan) charge(ctx context.Context, tenant string, delta, waits sums) error {
	for _, path := range append(api.TenantChain(tenant), "") {
		a, err := p.account(ctx, path)
		if err != nil {
			return err
		}
		if err := a.delta.add(delta, 1); err != nil {
			return err
		}
		if err := a.waits.add(waits, 1); err != nil {
			return err
		}
		a.touch = true
	}
	return nil
}

func (p *plan) tenant(ctx context.Context, op *store.Op, at int) error {
	path := op.Target().Name
	// Its ledger and its parent's first: see the package comment.
	own, err := p.account(ctx, path)
	if err != nil {
		return err
	}
	up, err := p.account(ctx, api.ParentTenant(path))
	if err != nil {
		return err
	}
	pool, err := p.account(ctx, "")
	if err != nil {
		return err
	}
	was, err := pinned[*api.Tenant](ctx, p, op)
	if err != nil {
		return err
	}
	o := &owner{was: was, opAt: at}
	p.owners[path] = o
	if op.Verb == store.Delete {
		own.drop, up.touch, pool.touch = true, true, true
		return nil
	}
	var ok bool
	if o.is, ok = op.Object.(*api.Tenant); !ok {
		return errs.New(errs.Internal, "%s is a %T", op.Target(), op.Object)
	}
	if was != nil {
		if b := was.Status; o.is.Status.UIDBase != b.UIDBase || o.is.Status.UIDCount != b.UIDCount {
			o.is = api.Clone(o.is) // whoever writes a tenant cannot move its host IDs
			o.is.Status.UIDBase, o.is.Status.UIDCount = b.UIDBase, b.UIDCount
			op.Object = o.is
		}
		if reflect.DeepEqual(was.Spec, o.is.Spec) && (was.DeletedAt == nil) == (o.is.DeletedAt == nil) {
			return nil
		}
	}
	own.touch, pool.touch = true, true
	if was == nil || !maps.Equal(was.Spec.Guarantee, o.is.Spec.Guarantee) {
		up.touch = true
	}
	return nil
}

// account gives a tenant's account to change; its ledger is read once for all plans.
func (p *plan) account(ctx context.Context, tenant string) (*account, error) {
	if a := p.accounts[tenant]; a != nil {
		return a, nil
	}
	b := p.books.accounts[tenant]
	if b == nil {
		l, found, err := lookup[*api.Ledger](ctx, p.s, ledgerRef(tenant))
		if err != nil {
			return nil, err
		}
		b = &account{tenant: tenant}
		if found {
			b.was, b.spec = l, l.Spec
		}
		p.books.accounts[tenant] = b
	}
	a := &account{tenant: tenant, was: b.was, had: b.spec, spec: b.spec, delta: sums{}, waits: sums{}}
	p.accounts[tenant] = a
	return a, nil
}

// owner gives a tenant as it will be after the commit; nil when there is none.
func (p *plan) owner(ctx context.Context, path string) (*api.Tenant, error) {
	o, err := p.ownerOf(ctx, path)
	if err != nil {
		return nil, err
	}
	return o.is, nil
}

func (p *plan) ownerOf(ctx context.Context, path string) (*owner, error) {
	if o := p.owners[path]; o != nil {
		return o, nil
	}
	t, found, err := lookup[*api.Tenant](ctx, p.s, tenantRef(path))
	if err != nil {
		return nil, err
	}
	o := &owner{opAt: -1}
	if found {
		o.was, o.is = t, t
	}
	p.owners[path] = o
	return o, nil
}

// free reports whether nothing is to be counted or judged.
func (p *plan) free() bool {
	for _, a := range p.accounts {
		if a.touch || a.drop {
			return false
		}
	}
	return true
}

// ordered lists the accounts, parents before what is nested in them.
func ordered(accounts map[string]*account) []string {
	out := make([]string, 0, len(accounts))
	for t := range accounts {
		out = append(out, t)
	}
	sort.Strings(out)
	return out
}

// ledgers are the ops that write the books.
func (b *books) ledgers() []store.Op {
	var out []store.Op
	for _, path := range ordered(b.accounts) {
		a := b.accounts[path]
		switch {
		case a.drop && a.was != nil:
			out = append(out, store.Remove(ledgerRef(path), a.was.Revision))
		case a.drop || !a.touch:
		case a.was == nil:
			out = append(out, store.Create(&api.Ledger{Head: api.Head{K: api.KindLedger, Meta: api.Meta{Tenant: path, Name: api.LedgerName}}, Spec: a.spec}))
		default:
			l := *a.was // what it points to stays as it is
			l.Spec = a.spec
			out = append(out, store.Update(&l))
		}
	}
	return out
}
