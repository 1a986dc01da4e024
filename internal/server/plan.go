package server

import (
	"context"
	"net/http"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/plan"
	"atoll/internal/server/whatif"
)

const (
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
	release, ok := c.hold("plan", c.id, 1)
	if !ok {
		return errs.New(errs.Unavailable, "%s has a plan in the making already", c.id).WithHint("wait for its answer")
	}
	defer release()
	b, err := c.body()
	if err != nil {
		return err
	}
	var req api.PlanRequest
	if err := api.StrictInto("plan", b, &req); err != nil {
		return err
	}
	caller := whatif.Caller{Auth: c.Auth, ID: c.id, Tenant: c.r.URL.Query().Get("tenant")}
	q, err := caller.Question(&req)
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
	pool, err := whatif.Pool(ctx, c.Store)
	if err != nil {
		return err
	}
	cfg := plan.Config{Chain: c.Chain, Seed: planSeed, Keep: c.Keep, Solve: whatif.Solver()}
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
	for _, d := range whatif.Decisions(a) {
		d.At = a.At
	}
	caller.Rights(q, pool, a)
	caller.Cut(a)
	return c.json(http.StatusOK, a)
}
