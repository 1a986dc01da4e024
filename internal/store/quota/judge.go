package quota

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// judge brings the accounts to what they will be after the commit and refuses what
// breaks a rule. It changes the plan: amounts, and the host IDs of new tenants.
func (p *plan) judge(ctx context.Context) error {
	if err := p.tenants(ctx); err != nil {
		return err
	}
	if err := p.starts(ctx); err != nil {
		return err
	}
	for _, path := range ordered(p.accounts) {
		if err := p.limits(ctx, path); err != nil {
			return err
		}
	}
	if err := p.promises(ctx); err != nil {
		return err
	}
	if pool := p.accounts[""]; pool != nil && pool.touch {
		if err := p.pool(ctx, pool); err != nil {
			return err
		}
	}
	return nil
}

// changed lists the tenants the caller writes, parents first.
func (p *plan) changed() []string {
	var out []string
	for path, o := range p.owners {
		if o.opAt >= 0 {
			out = append(out, path)
		}
	}
	sort.Strings(out)
	return out
}

// tenants judges creation and removal of tenants.
func (p *plan) tenants(ctx context.Context) error {
	for _, path := range p.changed() {
		switch o := p.owners[path]; {
		case o.is == nil && o.was != nil:
			if err := p.empty(ctx, path); err != nil {
				return err
			}
		case o.was == nil && o.is != nil:
			if up := api.ParentTenant(path); up != "" {
				if err := p.open(ctx, up, "tenant "+path); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// empty refuses to remove a tenant with something inside.
func (p *plan) empty(ctx context.Context, path string) error {
	a := p.accounts[path]
	var inside []string
	if n := a.spec.Requested[api.Instances] + a.delta[api.Instances]; n > 0 {
		inside = append(inside, fmt.Sprintf("%d instance(s)", n))
	}
	list, _, err := store.List[*api.Tenant](ctx, p.s, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return err
	}
	for _, t := range list {
		if o := p.owners[t.Name]; t.Name != path && api.WithinTenant(t.Name, path) && (o == nil || o.is != nil) {
			inside = append(inside, "tenant "+t.Name)
		}
	}
	for name, o := range p.owners { // nested ones made in this very commit
		if o.was == nil && o.is != nil && name != path && api.WithinTenant(name, path) {
			inside = append(inside, "tenant "+name)
		}
	}
	if len(inside) == 0 {
		return nil
	}
	if len(inside) > 6 {
		inside = append(inside[:5], fmt.Sprintf("%d more", len(inside)-5))
	}
	return errs.New(errs.Conflict, "tenant %s is not empty: it has %s", path, strings.Join(inside, ", ")).
		WithHint("remove what is inside first")
}

// open refuses what is new in a tenant that is not there, suspended or going away.
func (p *plan) open(ctx context.Context, tenant, what string) error {
	for _, path := range api.TenantChain(tenant) {
		t, err := p.owner(ctx, path)
		switch {
		case err != nil:
			return err
		case t == nil:
			return errs.New(errs.NotFound, "%s: tenant %s does not exist", what, path).WithHint("create it: atoll tenant create %s", path)
		case t.DeletedAt != nil:
			return errs.New(errs.Denied, "%s: tenant %s is being removed", what, path).WithHint("wait until it is gone and create it again")
		case t.Spec.Suspended:
			return errs.New(errs.Denied, "%s: tenant %s is suspended: nothing new may be created or started in it", what, path).
				WithHint("whoever suspended it can lift that: atoll tenant set %s --suspended=false", path)
		}
	}
	return nil
}

func (p *plan) starts(ctx context.Context) error {
	var tenants []string
	for t := range p.started {
		tenants = append(tenants, t)
	}
	sort.Strings(tenants)
	for _, t := range tenants {
		if err := p.open(ctx, t, "instance "+t+"/"+p.started[t][0]); err != nil {
			return err
		}
	}
	return nil
}

// limits books what is requested and refuses what grows beyond the tenant's limit.
func (p *plan) limits(ctx context.Context, path string) error {
	a := p.accounts[path]
	used := a.spec.Requested
	for r, v := range a.delta {
		if v > 0 && used[r] > largest-v {
			return errs.New(errs.Quota, "tenant %s: %s: the sum is more than can be counted", path, r)
		}
	}
	a.spec.Requested, a.spec.Waiting = plus(used, a.delta), plus(a.spec.Waiting, a.waits)
	if path == "" || a.delta.zero() {
		return nil
	}
	t, err := p.owner(ctx, path)
	if err != nil || t == nil {
		return err // nothing new can be in it, see open; what is leaves freely
	}
	for _, r := range api.ResourceNames() {
		limit, bounded := t.Spec.Limit[r]
		if asked := a.delta[r]; bounded && asked > 0 && a.spec.Requested[r] > limit {
			return errs.New(errs.Quota, "tenant %s: %s: %s used, %s asked, the limit is %s", path, r,
				api.FormatQuantity(r, used[r]), api.FormatQuantity(r, asked), api.FormatQuantity(r, limit)).
				WithHint("raise the limit (atoll tenant set %s --limit %s=%s), or stop or delete something in it", path, r, api.FormatQuantity(r, a.spec.Requested[r]))
		}
	}
	return nil
}

// promises books guarantees with the parents and refuses promises nobody can keep.
func (p *plan) promises(ctx context.Context) error {
	for _, path := range p.changed() {
		o := p.owners[path]
		a := p.accounts[api.ParentTenant(path)]
		d := difference(guarantee(o.was), guarantee(o.is))
		sum := sums{}
		if err := sum.add(sums(a.spec.Promised), 1); err != nil {
			return err
		}
		if err := sum.add(d, 1); err != nil {
			return err
		}
		a.spec.Promised = plus(a.spec.Promised, d)
	}
	for _, path := range p.changed() { // both those who got and those who gave
		for _, of := range []string{path, api.ParentTenant(path)} {
			if err := p.keeps(ctx, of); err != nil {
				return err
			}
		}
	}
	return nil
}

// keeps refuses when a tenant has promised those inside more than it was promised itself.
func (p *plan) keeps(ctx context.Context, path string) error {
	if path == "" {
		return nil // the pool: see pool
	}
	t, err := p.owner(ctx, path)
	if err != nil || t == nil {
		return err
	}
	has := guarantee(t)
	for _, r := range api.ResourceNames() {
		if promised := p.accounts[path].spec.Promised[r]; promised > has[r] {
			return errs.New(errs.Quota, "tenant %s: %s: %s would be guaranteed to tenants inside it, its own guarantee is %s", path, r,
				api.FormatQuantity(r, promised), api.FormatQuantity(r, has[r])).
				WithHint("guarantees of nested tenants come out of their parent's: atoll tenant set %s --guarantee %s=%s, or lower theirs", path, r, api.FormatQuantity(r, promised))
		}
	}
	return nil
}

func guarantee(t *api.Tenant) api.Resources {
	if t == nil {
		return nil
	}
	return t.Spec.Guarantee
}
