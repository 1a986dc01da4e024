package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/segment"
	"atoll/internal/store"
)

// ConditionResolved is a security group's: whether everything exists that its rules name.
const ConditionResolved = "Resolved"

// Groups says in the status of security groups what of theirs names nobody.
type Groups struct {
	clock clock.Clock
	seen  map[string]int64  // revision by which a tenant's groups were looked at
	wrote map[api.Ref]int64 // revision of a status that is ours
}

// NewGroups makes the controller.
func NewGroups(d Deps) *Groups {
	return &Groups{clock: d.Clock, seen: map[string]int64{}, wrote: map[api.Ref]int64{}}
}

// Name is "security groups".
func (c *Groups) Name() string { return "security groups" }

// Watches groups, and networks and peerings, which groups name.
func (c *Groups) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNetwork}, {Kind: api.KindSecurityGroup}, {Kind: api.KindPeering}}
}

// Owns the status of groups.
func (c *Groups) Owns() []api.Kind { return []api.Kind{api.KindSecurityGroup} }

// Reconcile looks at all groups of a tenant of which one, or a network, has changed.
func (c *Groups) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	o, err := s.Get(ctx, ref)
	switch {
	case errors.Is(err, errs.NotFound):
		delete(c.wrote, ref)
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	case o.Metadata().Revision <= c.seen[ref.Tenant] || o.Metadata().Revision == c.wrote[ref]:
		return reconcile.Result{}, nil // nothing new in it
	}
	return reconcile.Result{}, c.look(ctx, s, ref.Tenant)
}

// statusesAtOnce is how many are written by one commit.
const statusesAtOnce = 64

func (c *Groups) look(ctx context.Context, s store.Store, tenant string) error {
	w := &segment.World{Networks: map[segment.Net]*segment.Network{}, Groups: map[segment.GroupRef]*api.SecurityGroupSpec{}, Names: map[segment.Name]segment.Resolved{}}
	networks, rev, err := store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork}) // peers are others'
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	peerings, _, err := store.List[*api.Peering](ctx, s, api.Selector{Kind: api.KindPeering})
	if err != nil {
		return fmt.Errorf("list peerings: %w", err)
	}
	peered := api.Peered(peerings)
	for _, n := range networks {
		ref := segment.Net{Tenant: n.Tenant, Name: n.Name}
		x := &segment.Network{Net: ref, Prefixes: n.Spec.Prefixes(), Closed: n.Spec.Closed(), Direct: n.Spec.Egress == "direct"}
		for _, p := range peered[api.RefOf(n)] {
			x.Peers = append(x.Peers, segment.Net{Tenant: p.Tenant, Name: p.Name})
		}
		w.Networks[ref] = x
	}
	groups, _, err := store.List[*api.SecurityGroup](ctx, s, api.Selector{Kind: api.KindSecurityGroup, Tenant: tenant})
	if err != nil {
		return fmt.Errorf("list security groups of %s: %w", tenant, err)
	}
	for _, g := range groups {
		w.Groups[segment.GroupRef{Tenant: g.Tenant, Name: g.Name}] = &g.Spec
		for _, list := range [][]api.SecurityRule{g.Spec.Ingress, g.Spec.Egress} {
			for i := range list {
				for _, p := range list[i].Peers() {
					if p.DNS != "" { // hosts resolve it; nothing is known of that here
						w.Names[segment.Name{DNS: p.DNS}] = segment.Resolved{}
					}
				}
			}
		}
	}
	var ops []store.Op
	for _, g := range groups {
		if next := c.judged(w, g); next != nil && len(ops) < statusesAtOnce {
			ops = append(ops, store.Update(next))
		}
	}
	if len(ops) == 0 {
		c.seen[tenant] = rev
		return nil
	}
	wrote, err := s.Commit(ctx, ops...)
	if err != nil {
		return fmt.Errorf("write status of security groups of %s: %w", tenant, err)
	}
	if len(ops) == statusesAtOnce {
		return nil // what was written brings us back for the rest
	}
	c.seen[tenant] = rev
	for _, op := range ops {
		c.wrote[op.Target()] = wrote
	}
	return nil
}

// judged is the group with another status; nil when that is as it was.
func (c *Groups) judged(w *segment.World, g *api.SecurityGroup) *api.SecurityGroup {
	cond := api.Condition{Type: ConditionResolved, Status: true, Since: c.clock.Now().UTC()}
	if ws := w.Warnings(segment.GroupRef{Tenant: g.Tenant, Name: g.Name}); len(ws) > 0 {
		cond.Status, cond.Reason, cond.Message = false, "NamesNobody", warningText(ws)
	}
	for _, old := range g.Status.Conditions {
		if old.Type == cond.Type && old.Status == cond.Status && old.Message == cond.Message {
			return nil
		}
	}
	next := api.Clone(g)
	next.Status.Conditions = api.SetCondition(g.Status.Conditions, cond)
	return next
}

const warningsShown = 5

func warningText(ws []segment.Warning) string {
	var out []string
	for i, x := range ws {
		if i == warningsShown {
			out = append(out, fmt.Sprintf("and %d more", len(ws)-i))
			break
		}
		out = append(out, x.Field+": "+x.Text)
	}
	return strings.Join(out, "; ")
}
