package server

import (
	"context"
	"net/http"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/fence/bmc"
)

func (s *Server) powerRoute() *Route {
	return &Route{Method: "POST", Path: "/v1/nodes/{name}/power", ID: "powerNode",
		Doc:  "Switches a host by its management controller, or looks, and answers what the controller says in the end. Off cuts the power at once.",
		Verb: api.VerbUpdate, Def: def(api.KindNode), Body: typeJSON, Schema: "PowerRequest", Answer: typeJSON, Result: "PowerAnswer",
		handle: (*call).power}
}

// power does not go through the store: it is for people who stand before a host, and nothing follows from it for the pool.
func (c *call) power() error {
	o, err := c.read(c.target(), api.VerbUpdate)
	if err != nil {
		return err
	}
	n := o.(*api.Node)
	b, err := c.body()
	if err != nil {
		return err
	}
	var req api.PowerRequest
	if err := api.StrictInto("power", b, &req); err != nil {
		return err
	}
	if n.Spec.BMC == nil {
		return errs.New(errs.Conflict, "node %s has no management controller", n.Name).WithHint("set spec.bmc: atoll explain node.spec.bmc")
	}
	if c.Power == nil {
		return errs.New(errs.Unsupported, "this server switches no hosts").WithHint("ask the server of the control plane")
	}
	// One at a time for a host: two that pull at it learn nothing.
	release, ok := c.hold("power/"+n.Name, c.id, 1)
	if !ok {
		return errs.New(errs.Unavailable, "%s is switching %s already", c.id, n.Name).WithHint("wait for its answer")
	}
	defer release()
	p, err := c.Power(*n.Spec.BMC)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), 50*time.Second) // less than an answer may take
	defer cancel()
	st, err := bmc.Do(ctx, p, req.State)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, api.PowerAnswer{Node: n.Name, State: string(st)})
}
