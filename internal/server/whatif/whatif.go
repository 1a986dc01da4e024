// Package whatif is what the server does for plans beside making them: it decodes and
// authorizes questions, reads the pool, and cuts answers to what their caller may see.
//
// It starts no goroutine. It must never let an answer name what belongs to a tenant
// that the caller may not see.
package whatif

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/balance/exact"
	"atoll/internal/errs"
	"atoll/internal/plan"
	"atoll/internal/store"
)

const maxObjects = 2000

// Caller is who asks.
type Caller struct {
	Auth   *auth.Authority
	ID     auth.Identity
	Tenant string // of what names none
}

// Question decodes, checks and authorizes what was asked.
func (c Caller) Question(req *api.PlanRequest) (plan.Question, error) {
	q := plan.Question{Lose: req.Lose, Drain: req.Drain, Add: req.Add, Fit: req.Fit, Quota: req.Quota}
	if n := count(len(req.Objects) > 0, req.Lose != nil, req.Drain != nil, req.Add != nil, req.Fit != nil, req.Quota != nil); n != 1 {
		return q, errs.InvalidFields("plan", []errs.Field{{Field: "objects, lose, drain, add, fit, quota", Rule: "must be exactly one question", Example: `{"lose":{"nodes":["isle2"]}}`}})
	}
	if q.Exact = req.Exact; q.Exact {
		if len(req.Objects) == 0 {
			return q, errs.InvalidFields("plan", []errs.Field{{Field: "exact", Value: "true", Rule: "goes with objects", Example: `{"objects":[…],"exact":true}`}})
		}
		if err := c.wholePool(); err != nil { // it takes a core of the server for a while
			return q, err
		}
	}
	if l := req.Lose; l != nil && (l.Evacuate || l.Leave) {
		return q, errs.InvalidFields("plan", []errs.Field{{Field: "lose.evacuate, lose.leave", Value: "true", Rule: "go with drain only", Example: `{"drain":{"nodes":["isle2"],"evacuate":true}}`}})
	}
	switch {
	case req.Fit != nil:
		if req.Fit.Tenant == "" {
			req.Fit.Tenant = c.Tenant
		}
		if req.Fit.Tenant != "" {
			return q, c.checkFit(req.Fit)
		}
	case req.Quota != nil:
		ref := api.Ref{Kind: api.KindTenant, Name: req.Quota.Tenant}
		if err := c.Auth.Authorize(c.ID, api.VerbGet, api.KindTenant, auth.ScopeOfRef(api.VerbGet, ref)); err != nil {
			return q, err
		}
		return q, c.Auth.Authorize(c.ID, api.VerbList, api.KindInstance, ref.Name)
	case len(req.Objects) > 0:
		objs, err := c.planObjects(req)
		q.Objects = objs
		return q, err
	}
	if err := c.wholePool(); err != nil {
		return q, err
	}
	if req.Fit != nil {
		return q, c.checkFit(req.Fit)
	}
	return q, nil
}

func count(list ...bool) (n int) {
	for _, b := range list {
		if b {
			n++
		}
	}
	return n
}

// wholePool is the right to see all hosts and what runs on them.
func (c Caller) wholePool() error {
	if err := c.Auth.Authorize(c.ID, api.VerbList, api.KindNode, ""); err != nil {
		return err
	}
	return c.Auth.Authorize(c.ID, api.VerbList, api.KindInstance, "")
}

func (c Caller) checkFit(f *api.PlanFit) error {
	if f.Tenant != "" {
		if err := c.Auth.Authorize(c.ID, api.VerbList, api.KindInstance, f.Tenant); err != nil {
			return err
		}
	}
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "plan-fit", Tenant: f.Tenant, Labels: f.Labels}}, Spec: f.Spec}
	if in.Tenant == "" {
		in.Tenant = "plan"
	}
	if in.Spec.Image == "" {
		in.Spec.Image = "none" // where it would come from is not asked
	}
	return api.Check(in)
}

// planObjects decodes objects; the caller must be allowed to see what they are about.
func (c Caller) planObjects(req *api.PlanRequest) ([]api.Object, error) {
	if len(req.Objects) > maxObjects {
		return nil, errs.InvalidFields("plan", []errs.Field{{Field: "objects", Value: fmt.Sprint(len(req.Objects)), Rule: fmt.Sprintf("must be at most %d", maxObjects)}})
	}
	tenant := c.Tenant
	seen := map[api.Ref]bool{}
	out := make([]api.Object, len(req.Objects))
	for i, raw := range req.Objects {
		o, err := api.DecodeStrict(raw)
		if err != nil {
			return nil, fmt.Errorf("objects[%d]: %w", i, err)
		}
		d, _ := api.Lookup(string(o.ObjectKind()))
		m := o.Metadata()
		if d.Tenanted && m.Tenant == "" {
			m.Tenant = tenant
		}
		if in, ok := o.(*api.Instance); ok {
			if m.Name == "" {
				in.Name = fmt.Sprintf("new-%d", i+1)
			}
			in.UID, in.DeletedAt, in.Status = "", nil, api.InstanceStatus{}
		}
		scope, kind := m.Tenant, api.KindInstance
		if o.ObjectKind() == api.KindTenant {
			scope = m.Name
		}
		switch o.(type) {
		case *api.Node, *api.PriorityClass:
			if err := c.wholePool(); err != nil {
				return nil, err
			}
		default:
			if err := c.Auth.Authorize(c.ID, api.VerbList, kind, scope); err != nil {
				return nil, err
			}
		}
		if d.Tenanted && m.Tenant == "" {
			return nil, errs.InvalidFields(d.Singular()+" "+m.Name, []errs.Field{{Field: "metadata.tenant", Rule: "must name the tenant it belongs to (or ?tenant= in the URL)", Example: "acme"}})
		}
		if err := api.Check(o); err != nil {
			return nil, err
		}
		if ref := api.RefOf(o); seen[ref] {
			return nil, errs.New(errs.Invalid, "%s is there twice", ref)
		} else {
			seen[ref] = true
		}
		out[i] = o
	}
	return out, nil
}

// Rights notes what of the objects the caller could not write.
func (c Caller) Rights(q plan.Question, pool plan.Pool, a *api.PlanAnswer) {
	there := map[api.Ref]bool{}
	for _, in := range pool.Instances {
		there[api.RefOf(in)] = true
	}
	for _, t := range pool.Tenants {
		there[api.RefOf(t)] = true
	}
	preempts := map[string]bool{}
	for _, x := range pool.Classes {
		there[api.RefOf(x)] = true
		preempts[x.Name] = x.Spec.Preempt
	}
	for _, x := range pool.Budgets {
		there[api.RefOf(x)] = true
	}
	for _, x := range pool.Nodes {
		there[api.RefOf(x)] = true
	}
	seen := map[string]bool{}
	for _, o := range q.Objects {
		verb := api.VerbCreate
		if there[api.RefOf(o)] {
			verb = api.VerbUpdate
		}
		err := c.Auth.Authorize(c.ID, verb, o.ObjectKind(), auth.ScopeOf(verb, o))
		if in, ok := o.(*api.Instance); ok && err == nil {
			grants := in.Spec.Grants()
			if preempts[in.Spec.Priority] {
				grants = append(grants, "priority:"+in.Spec.Priority)
			}
			err = c.Auth.Grants(c.ID, in.Tenant, grants)
		}
		if err != nil && !seen[err.Error()] {
			seen[err.Error()] = true
			a.Notes = append(a.Notes, err.Error())
		}
	}
}

// Pool reads what a plan is made of. Instances come after assignments, so that one
// that is placed meanwhile is taken for pending, not for placed and gone.
func Pool(ctx context.Context, s store.Store) (p plan.Pool, err error) {
	if p.Nodes, err = store.All[*api.Node](ctx, s, api.KindNode, err); err != nil {
		return p, err
	}
	p.Assignments, err = store.All[*api.Assignment](ctx, s, api.KindAssignment, err)
	p.Instances, err = store.All[*api.Instance](ctx, s, api.KindInstance, err)
	p.Ledgers, err = store.All[*api.Ledger](ctx, s, api.KindLedger, err)
	p.Tenants, err = store.All[*api.Tenant](ctx, s, api.KindTenant, err)
	p.Classes, err = store.All[*api.PriorityClass](ctx, s, api.KindPriorityClass, err)
	p.Budgets, err = store.All[*api.DisruptionBudget](ctx, s, api.KindDisruptionBudget, err)
	return p, err
}

// Cut leaves what the caller may see: of other tenants only how many.
func (c Caller) Cut(a *api.PlanAnswer) {
	if c.Auth.Allowed(c.ID, api.VerbList, api.KindInstance, "") && c.Auth.Allowed(c.ID, api.VerbList, api.KindNode, "") {
		return
	}
	may := func(tenant string) bool {
		return tenant != "" && c.Auth.Allowed(c.ID, api.VerbList, api.KindInstance, tenant)
	}
	kept := len(a.Evicted)
	a.Evicted = slices.DeleteFunc(a.Evicted, func(p api.PlanPlace) bool { return !may(p.Instance.Tenant) })
	a.EvictedOthers = kept - len(a.Evicted)
	a.Guarantees = slices.DeleteFunc(a.Guarantees, func(g api.PlanGuarantee) bool { return !may(g.Tenant) })
	for i := range a.Places {
		p := &a.Places[i]
		n := len(p.Evicts)
		p.Evicts = slices.DeleteFunc(p.Evicts, func(r api.Ref) bool { return !may(r.Tenant) })
		p.EvictsOthers = n - len(p.Evicts)
	}
	for _, d := range Decisions(a) {
		cutDecision(d)
	}
	if a.Spare != nil {
		a.Spare.Worst, a.Spare.Reason = nil, ""
	}
}

// Decisions lists those of an answer.
func Decisions(a *api.PlanAnswer) (out []*api.Decision) {
	for _, p := range append(slices.Clone(a.Places), a.Evicted...) {
		if p.Decision != nil {
			out = append(out, p.Decision)
		}
	}
	if a.Fit != nil && a.Fit.Decision != nil {
		out = append(out, a.Fit.Decision)
	}
	return out
}

// cutDecision takes out who else has a port.
func cutDecision(d *api.Decision) {
	cut := func(s string) string { s, _, _ = strings.Cut(s, " is taken by "); return s }
	for i := range d.Refusals {
		if r := &d.Refusals[i]; r.Policy == "ports" && r.Reason != cut(r.Reason) {
			r.Reason = cut(r.Reason) + " is taken"
		}
	}
	for i := range d.Nodes {
		if n := &d.Nodes[i]; strings.HasPrefix(n.Reason, "host port ") && n.Reason != cut(n.Reason) {
			n.Reason = cut(n.Reason) + " is taken"
		}
	}
}

// solverTime bounds what one exact answer may take.
const solverTime = 10 * time.Second

// Solver is the one that is installed on this host; nil when there is none.
func Solver() plan.Solver {
	path, err := exact.Find()
	if err != nil {
		return nil
	}
	return func(ctx context.Context, p *exact.Problem) (exact.Solution, error) {
		return exact.Solve(ctx, path, p, solverTime)
	}
}
