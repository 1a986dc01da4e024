// Package tell holds the verbs that explain: describe, why, events, explain, top, logs,
// api-resources.
//
// It starts goroutines only for the length of one verb and waits for them. It must
// never change anything.
package tell

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Why tells why something is as it is.
func Why() verb.Def {
	return verb.Def{
		Use: "why INSTANCE | KIND/NAME", Group: verb.GroupTell, Min: 1, Max: 1,
		Short:   "Say why something is as it is: where an instance runs, or why it does not",
		Example: "  atoll why instance/db\n  atoll why node/isle1\n  atoll why tenant/acme",
		Run:     runWhy, Complete: verb.CompleteObjects,
	}
}

func runWhy(ctx context.Context, c *verb.Call) error {
	arg := c.Args[0]
	if d, _, _, ok := parse.Ref(arg); !ok || d.Kind == api.KindInstance {
		r, err := c.Instance(ctx, arg)
		if err != nil {
			return err
		}
		o, err := c.Get(ctx, r)
		if err != nil {
			return err
		}
		return whyInstance(ctx, c, o.(*api.Instance), "")
	}
	r, err := c.Ref(ctx, arg)
	if err != nil {
		return err
	}
	o, err := c.Get(ctx, r)
	if err != nil {
		return err
	}
	switch o := o.(type) {
	case *api.Node:
		return whyNode(ctx, c, o)
	case *api.Tenant:
		return whyTenant(ctx, c, o)
	}
	return errs.New(errs.Unsupported, "there is nothing to explain about %s", r).WithHint("atoll describe %s", render.ShortRef(o))
}

// whyInstance tells where an instance is and why, line by line behind indent.
func whyInstance(ctx context.Context, c *verb.Call, in *api.Instance, indent string) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	r := api.RefOf(in)
	r.Kind = api.KindAssignment
	a, err := store.Get[*api.Assignment](ctx, cl, r)
	if err != nil && errs.KindOf(err) != errs.NotFound {
		return err
	}
	say := func(format string, args ...any) { c.Say("%s"+format, append([]any{indent}, args...)...) }
	if a == nil || a.Spec.InstanceUID != in.UID {
		say("%s was not looked at by the scheduler yet.", in.Name)
		return nil
	}
	say("%s", headline(in, a))
	if d := a.Spec.Decision; d != nil {
		fmt.Fprint(c.Out, verdicts(d, indent+"  "))
		if a.Spec.Node == "" {
			for _, l := range verb.Refusals(d) {
				say("  %s", l)
			}
			for _, h := range d.Hints {
				say("what would help: %s", h)
			}
		} else {
			for _, h := range d.Hints {
				say("  %s", h)
			}
		}
	}
	if e := a.Spec.Evict; e != nil {
		to := ""
		if e.To != "" {
			to = "; it should go to " + e.To
		}
		if e.Stay {
			say("It is stopped as long as %s is in maintenance, and starts there again: %s (atoll restore %s).", a.Spec.Node, e.Reason, a.Spec.Node)
		} else {
			say("It is to leave %s, to be placed anew: %s%s.", a.Spec.Node, e.Reason, to)
		}
	}
	if in.Status.Message != "" && in.StateOf() != api.StateRunning {
		say("On the node: %s", in.Status.Message)
	}
	for _, cond := range in.Status.Conditions {
		if !cond.Status {
			say("Note: %s", cmp.Or(cond.Message, cond.Type+" does not hold"))
		}
	}
	whyShare(ctx, c, cl, in, say)
	return nil
}

func headline(in *api.Instance, a *api.Assignment) string {
	d := a.Spec.Decision
	if a.Spec.Node == "" {
		why := "no node can run it"
		if d != nil && len(d.Refusals) > 0 && verb.OfAll(d.Refusals[0]) {
			why = pendingFor(d.Refusals[0])
		}
		s := in.Name + " is pending: " + why
		if asked := render.Amounts(in.Spec.Requests); asked != "" {
			s += " (" + asked + " requested)"
		}
		if d != nil {
			s += fmt.Sprintf("; last tried %s, %s looked at", d.At.Local().Format(time.TimeOnly), render.Plural(d.Of, "node"))
		}
		return s + "."
	}
	state, since := "is placed on "+a.Spec.Node, ""
	switch st := in.StateOf(); st {
	case api.StateRunning:
		state = "runs on " + a.Spec.Node
		if in.Status.StartedAt != nil {
			since = " since " + in.Status.StartedAt.Local().Format(time.TimeOnly)
		}
	case api.StatePending:
	default:
		state = fmt.Sprintf("is %s on %s", st, a.Spec.Node)
	}
	s := fmt.Sprintf("%s %s%s (generation %d", in.Name, state, since, a.Spec.Generation)
	if d != nil {
		if d.TookUS > 0 {
			s += fmt.Sprintf(", placed in %s ms", render.TrimFloat(float64(d.TookUS)/1000, 2))
		}
		s += fmt.Sprintf(", of %s", render.Plural(d.Of, "node"))
	}
	return s + ")."
}

// pendingFor is what an instance waits for that is not a node's to give.
func pendingFor(r api.Refusal) string {
	switch r.Policy {
	case "preemption":
		return "it has a place as soon as others have left it"
	case "gang":
		return "its gang is placed as a whole"
	case "eviction":
		return "it left " + r.Best + " and is placed anew"
	case "pool":
		return "the pool keeps what is free for others"
	}
	return "it cannot be placed"
}

// verdicts is a line for each node that was looked at. Of a pool with more nodes than
// are kept one by one, the rest is counted.
func verdicts(d *api.Decision, indent string) string {
	t := &render.Table{}
	more := d.Of - len(d.Nodes)
	if more > 0 && d.Chosen == "" {
		return "" // the reasons are counted below; some nodes by name would say no more
	}
	possible := more
	for _, n := range d.Nodes {
		switch {
		case n.Reason != "":
			t.Row(indent+n.Node, "refused", n.Reason)
		case n.Node == d.Chosen:
			t.Row(indent+n.Node, "chosen", score(n))
		default:
			t.Row(indent+n.Node, "possible", score(n))
		}
	}
	if more <= 0 || len(d.Nodes) == 0 {
		return t.Text(false)
	}
	for _, r := range d.Refusals {
		possible -= r.Nodes
	}
	for _, n := range d.Nodes {
		if n.Reason != "" {
			possible++ // it is among the counted
		}
	}
	if possible > 0 {
		t.Row(indent+"…", "possible", "also "+render.Plural(possible, "more node"))
	}
	for _, l := range verb.Refusals(d) {
		t.Row(indent+"…", "refused", l)
	}
	return t.Text(false)
}

func score(n api.NodeVerdict) string {
	var parts []string
	for _, k := range render.SortedKeys(n.Parts) {
		parts = append(parts, fmt.Sprintf("%s %s", k, render.TrimFloat(n.Parts[k], 2)))
	}
	s := fmt.Sprintf("score %.2f", n.Score)
	if len(parts) > 0 {
		s += "  (" + strings.Join(parts, ", ") + ")"
	}
	return s
}

// whyShare tells what the instance may count on: its requests against its tenant's guarantee.
func whyShare(ctx context.Context, c *verb.Call, cl conn.Client, in *api.Instance, say func(string, ...any)) {
	t, err := store.Get[*api.Tenant](ctx, cl, api.Ref{Kind: api.KindTenant, Name: in.Tenant})
	if err != nil {
		return // not everybody may see it; the rest of the answer stands
	}
	var led *api.Ledger
	if l, err := store.Get[*api.Ledger](ctx, cl, api.Ref{Kind: api.KindLedger, Tenant: in.Tenant, Name: api.LedgerName}); err == nil {
		led = l
	}
	rep, _ := cl.Usage(ctx, in.Tenant) // without it the line is shorter
	i := slices.IndexFunc(rep.Tenants, func(u api.TenantUsage) bool { return u.Tenant == in.Tenant })
	for _, r := range []api.Resource{api.CPU, api.Memory} {
		name := map[api.Resource]string{api.CPU: "CPU", api.Memory: "Memory"}[r]
		asked := in.Spec.Requests[r]
		g, promised := t.Spec.Guarantee[r]
		var facts []string
		if promised {
			facts = append(facts, render.Amount(r, g))
		}
		if led != nil {
			facts = append(facts, render.Short(r, led.Spec.Requested[r])+" requested by "+in.Tenant)
		}
		if i >= 0 {
			used := rep.Tenants[i].CPUMilli
			if r == api.Memory {
				used = rep.Tenants[i].Memory
			}
			facts = append(facts, render.Short(r, used)+" used now")
		}
		tail := ""
		if len(facts) > 0 {
			tail = " (" + strings.Join(facts, ", ") + ")"
		}
		switch {
		case asked == 0:
			say("%s: nothing requested: it gets what is idle, and gives it back first%s.", name, tail)
		case !promised:
			say("%s: %s requested; %s has no guarantee%s.", name, api.HumanQuantity(r, asked), in.Tenant, tail)
		case asked > g || led != nil && led.Spec.Requested[r] > g:
			say("%s: %s requested; %s asks for more than its guarantee%s, so part of it is borrowed.", name, api.HumanQuantity(r, asked), in.Tenant, tail)
		default:
			say("%s: %s requested, inside %s's guarantee%s.", name, api.HumanQuantity(r, asked), in.Tenant, tail)
		}
	}
}

func whyNode(ctx context.Context, c *verb.Call, n *api.Node) error {
	switch {
	case !n.Ready():
		c.Say("%s is not ready: nothing is placed on it.", n.Name)
	case n.Spec.Maintenance != nil:
		c.Say("%s is ready, but in maintenance: it is being emptied, or was (atoll get drain/%s; atoll restore %s).", n.Name, n.Name, n.Name)
	case n.Spec.Cordoned:
		c.Say("%s is ready, but cordoned: what runs stays, nothing new comes (atoll node uncordon %s).", n.Name, n.Name)
	default:
		c.Say("%s is ready: instances can be placed on it.", n.Name)
	}
	for _, t := range n.Spec.Taints {
		c.Say("  taint %s keeps away what does not tolerate it", t)
	}
	for _, cond := range n.Status.Conditions {
		if !cond.Status {
			c.Say("  %s: %s", cond.Type, cmp.Or(cond.Message, cond.Reason, "does not hold"))
		}
	}
	for _, d := range n.Status.Drivers {
		c.Say("  %s %s: %s", d.Type, d.Name, render.Dash(strings.TrimSpace(d.Version+" "+render.Pairs(d.Features))))
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	sel := api.Selector{Kind: api.KindInstance, Fields: map[string]string{"status.node": n.Name}}
	list, _, err := cl.List(ctx, sel)
	if err == nil {
		c.Say("  %s here; allocatable: %s", render.Plural(len(list), "instance"), render.Dash(n.Status.Allocatable.String()))
	}
	return err
}

func whyTenant(ctx context.Context, c *verb.Call, t *api.Tenant) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	if t.Spec.Suspended {
		c.Say("%s is suspended: nothing new may be created or started in it.", t.Name)
	}
	c.Say("%s is guaranteed %s, may use at most %s, and gets idle share with weight %d.", t.Name,
		cmp.Or(render.Amounts(t.Spec.Guarantee), "nothing"), cmp.Or(render.Amounts(t.Spec.Limit), "all there is"), t.Spec.EffectiveWeight())
	l, err := store.Get[*api.Ledger](ctx, cl, api.Ref{Kind: api.KindLedger, Tenant: t.Name, Name: api.LedgerName})
	if err != nil && errs.KindOf(err) != errs.NotFound {
		return err
	}
	if l != nil {
		c.Say("  admitted: %s", cmp.Or(render.Amounts(l.Spec.Requested), "nothing"))
		if len(l.Spec.Promised) > 0 {
			c.Say("  promised to the tenants inside: %s", render.Amounts(l.Spec.Promised))
		}
		for _, r := range l.Spec.Requested.Over(t.Spec.Limit) {
			c.Say("  over its limit of %s: nothing that needs more is admitted", render.Amount(r, t.Spec.Limit[r]))
		}
	}
	for _, cond := range t.Status.Conditions {
		c.Say("  %s: %s", cond.Type, cmp.Or(cond.Message, cond.Reason))
	}
	return nil
}
