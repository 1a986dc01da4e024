package server

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/plan"
	"atoll/internal/store"
)

const (
	maxPlanObjects = 2000
	// plansAtOnce bounds how much of the machine questions can take from the work itself.
	plansAtOnce = 2
	planSeed    = 1 // as placement's
	planTimeout = 30 * time.Second
)

func (s *Server) planRoute() *Route {
	return &Route{Method: "POST", Path: "/v1/plan", ID: "plan",
		Doc:  "Says what would be: where objects would land, what becomes of instances on lost or drained hosts, how many more fit. Changes nothing. Questions about hosts need the right to list nodes and instances of the pool.",
		Verb: api.VerbList, Def: def(api.KindInstance), Query: []Param{paramTenant}, Body: typeJSON, Schema: "PlanRequest", Answer: typeJSON, Result: "PlanAnswer",
		handle: (*call).plan, Example: `{"fit":{"spec":{"image":"busybox","requests":{"cpu":"2","memory":"4Gi"}}}}`}
}

// plan answers a question about the pool as it is.
func (c *call) plan() error {
	b, err := c.body()
	if err != nil {
		return err
	}
	var req api.PlanRequest
	if err := api.StrictInto("plan", b, &req); err != nil {
		return err
	}
	q, err := c.question(&req)
	if err != nil {
		return err
	}
	if len(c.Chain.Filters) == 0 {
		return errs.New(errs.Unsupported, "this server does not place instances, so it cannot plan").WithHint("ask the server of the control plane")
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), planTimeout)
	defer cancel()
	select {
	case c.plans <- struct{}{}:
		defer func() { <-c.plans }()
	case <-ctx.Done():
		return errs.New(errs.Unavailable, "other plans are being made: %w", ctx.Err()).WithHint("try again in a moment")
	}
	pool, err := c.poolNow(ctx)
	if err != nil {
		return err
	}
	cfg := plan.Config{Chain: c.Chain, Seed: planSeed, Keep: c.Keep}
	if known := c.planned.Load(); known != nil {
		cfg.Items = *known
	}
	p := plan.New(pool, cfg)
	items := p.Items()
	c.planned.Store(&items)
	a, err := p.Answer(ctx, q)
	if err != nil {
		return err
	}
	a.At = c.now()
	for _, d := range decisions(a) {
		d.At = a.At
	}
	c.cutPlan(a)
	return c.json(http.StatusOK, a)
}

// question decodes, checks and authorizes what was asked.
func (c *call) question(req *api.PlanRequest) (plan.Question, error) {
	q := plan.Question{Lose: req.Lose, Drain: req.Drain, Add: req.Add, Fit: req.Fit, Quota: req.Quota}
	if n := count(len(req.Objects) > 0, req.Lose != nil, req.Drain != nil, req.Add != nil, req.Fit != nil, req.Quota != nil); n != 1 {
		return q, errs.InvalidFields("plan", []errs.Field{{Field: "objects, lose, drain, add, fit, quota", Rule: "must be exactly one question", Example: `{"lose":{"nodes":["isle2"]}}`}})
	}
	switch {
	case req.Fit != nil:
		if req.Fit.Tenant == "" {
			req.Fit.Tenant = c.r.URL.Query().Get("tenant")
		}
		if req.Fit.Tenant != "" {
			return q, c.checkFit(req.Fit)
		}
	case req.Quota != nil:
		ref := api.Ref{Kind: api.KindTenant, Name: req.Quota.Tenant}
		if err := c.Auth.Authorize(c.id, api.VerbGet, api.KindTenant, auth.ScopeOfRef(api.VerbGet, ref)); err != nil {
			return q, err
		}
		return q, c.Auth.Authorize(c.id, api.VerbList, api.KindInstance, ref.Name)
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
func (c *call) wholePool() error {
	if err := c.Auth.Authorize(c.id, api.VerbList, api.KindNode, ""); err != nil {
		return err
	}
	return c.Auth.Authorize(c.id, api.VerbList, api.KindInstance, "")
}

func (c *call) checkFit(f *api.PlanFit) error {
	if f.Tenant != "" {
		if err := c.Auth.Authorize(c.id, api.VerbList, api.KindInstance, f.Tenant); err != nil {
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
func (c *call) planObjects(req *api.PlanRequest) ([]api.Object, error) {
	if len(req.Objects) > maxPlanObjects {
		return nil, errs.InvalidFields("plan", []errs.Field{{Field: "objects", Value: fmt.Sprint(len(req.Objects)), Rule: fmt.Sprintf("must be at most %d", maxPlanObjects)}})
	}
	tenant := c.r.URL.Query().Get("tenant")
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
			if err := c.Auth.Authorize(c.id, api.VerbList, kind, scope); err != nil {
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

// poolNow reads what a plan is made of. Instances come after assignments, so that one
// that is placed meanwhile is taken for pending, not for placed and gone.
func (c *call) poolNow(ctx context.Context) (p plan.Pool, err error) {
	if p.Nodes, err = all[*api.Node](ctx, c.Store, api.KindNode, err); err != nil {
		return p, err
	}
	p.Assignments, err = all[*api.Assignment](ctx, c.Store, api.KindAssignment, err)
	p.Instances, err = all[*api.Instance](ctx, c.Store, api.KindInstance, err)
	p.Ledgers, err = all[*api.Ledger](ctx, c.Store, api.KindLedger, err)
	p.Tenants, err = all[*api.Tenant](ctx, c.Store, api.KindTenant, err)
	p.Classes, err = all[*api.PriorityClass](ctx, c.Store, api.KindPriorityClass, err)
	p.Budgets, err = all[*api.DisruptionBudget](ctx, c.Store, api.KindDisruptionBudget, err)
	return p, err
}

func all[T api.Object](ctx context.Context, s store.Store, k api.Kind, before error) ([]T, error) {
	if before != nil {
		return nil, before
	}
	list, _, err := store.List[T](ctx, s, api.Selector{Kind: k})
	return list, err
}

// cutPlan leaves what the caller may see: of other tenants only how many.
func (c *call) cutPlan(a *api.PlanAnswer) {
	if c.Auth.Allowed(c.id, api.VerbList, api.KindInstance, "") && c.Auth.Allowed(c.id, api.VerbList, api.KindNode, "") {
		return
	}
	may := func(tenant string) bool {
		return tenant != "" && c.Auth.Allowed(c.id, api.VerbList, api.KindInstance, tenant)
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
	for _, d := range decisions(a) {
		cutDecision(d)
	}
	if a.Spare != nil {
		a.Spare.Worst, a.Spare.Reason = nil, ""
	}
}

// decisions lists those of an answer.
func decisions(a *api.PlanAnswer) (out []*api.Decision) {
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
