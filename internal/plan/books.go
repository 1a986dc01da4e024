package plan

import (
	"context"
	"errors"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/store"
	"atoll/internal/store/quota"
)

// books is a pool as a store that forgets what is written: admission itself can be
// asked what it would say.
type books struct {
	pool Pool
	keep policy.Keep
	refs map[api.Ref]api.Object // tenants and ledgers
}

func (p *Plan) books() *books {
	b := &books{pool: p.pool, keep: p.cfg.Keep, refs: map[api.Ref]api.Object{}}
	for _, t := range p.pool.Tenants {
		b.refs[api.RefOf(t)] = t
	}
	for _, l := range p.pool.Ledgers {
		b.refs[api.RefOf(l)] = l
	}
	return b
}

// Get finds a tenant, ledger or instance.
func (b *books) Get(_ context.Context, ref api.Ref) (api.Object, error) {
	if o, ok := b.refs[ref]; ok {
		return o, nil
	}
	if ref.Kind == api.KindInstance {
		for _, in := range b.pool.Instances {
			if in.Name == ref.Name && in.Tenant == ref.Tenant {
				return in, nil
			}
		}
	}
	return nil, errs.New(errs.NotFound, "%s does not exist", ref)
}

// List gives all of a kind that admission looks at.
func (b *books) List(_ context.Context, sel api.Selector) ([]api.Object, int64, error) {
	var out []api.Object
	switch sel.Kind {
	case api.KindNode:
		for _, n := range b.pool.Nodes {
			out = append(out, n)
		}
	case api.KindTenant:
		for _, t := range b.pool.Tenants {
			out = append(out, t)
		}
	case api.KindLedger:
		for _, l := range b.pool.Ledgers {
			out = append(out, l)
		}
	default:
		return nil, 0, errs.New(errs.Unsupported, "%s is not in the books", sel.Kind)
	}
	return out, 1, nil
}

// Commit takes everything and keeps nothing.
func (b *books) Commit(context.Context, ...store.Op) (int64, error) { return 1, nil }

// Watch has nothing to tell.
func (b *books) Watch(context.Context, api.Selector, int64, func(store.Event) error) error {
	return errs.New(errs.Unsupported, "books are not watched")
}

// judge says why the server would refuse a commit; nil when it would not.
func (b *books) judge(ctx context.Context, ops []store.Op) (*api.PlanRefusal, error) {
	if len(ops) == 0 {
		return nil, nil
	}
	q := quota.New(b)
	q.Reserve = quota.Reserve{Buffer: b.keep.Buffer, Spare: b.keep.Spare}
	_, err := q.Commit(ctx, ops...)
	var e *errs.Error
	switch {
	case err == nil:
		return nil, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &e):
		return &api.PlanRefusal{Kind: string(errs.KindOf(err)), Message: err.Error(), Hint: errs.HintOf(err)}, nil
	}
	return nil, err
}

// op writes an object over what is there.
func (b *books) op(ctx context.Context, o api.Object) store.Op {
	have, err := b.Get(ctx, api.RefOf(o))
	n := api.Clone(o)
	if err != nil {
		n.Metadata().Revision = 0
		return store.Create(n)
	}
	was := have.Metadata()
	m := n.Metadata()
	m.Revision, m.UID, m.DeletedAt = was.Revision, was.UID, was.DeletedAt
	if t, ok := n.(*api.Tenant); ok {
		t.Status = have.(*api.Tenant).Status
	}
	return store.Update(n)
}
