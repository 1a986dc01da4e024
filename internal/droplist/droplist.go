// Package droplist keeps the drop list of one host as the store says: it follows drop rules, leaves out those whose
// time is over and those that would cut the host off, and tells the host's driver.Barrier of the others. It writes
// nothing to the store.
//
// Run owns all goroutines. While it does not run, the list stays as it is.
package droplist

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Deps is what a List is built from.
type Deps struct {
	Node    string
	Store   store.Store
	Clock   clock.Clock
	Log     *slog.Logger
	Barrier driver.Barrier
}

// List is one host's.
type List struct {
	Deps
	engine *reconcile.Engine

	mu      sync.Mutex // guards all below
	rules   map[string]netip.Prefix
	refused map[string]string // rule -> why
	empty   bool              // the host drops nothing, and the driver knows
}

// New makes it; no goroutine, no I/O.
func New(d Deps) *List {
	l := &List{Deps: d, rules: map[string]netip.Prefix{}, refused: map[string]string{}}
	l.engine = reconcile.New(d.Store, d.Clock, d.Log, reconcile.Events{})
	l.engine.Add(controller{l}, 1)
	return l
}

// Run works until ctx ends.
func (l *List) Run(ctx context.Context) error { return l.engine.Run(ctx) }

// controller is the List as the engine sees it.
type controller struct{ *List }

// Name is "droplist".
func (c controller) Name() string { return "droplist" }

// Watches the rules, and the hosts whose addresses are not to be dropped. The host's own object is what wakes it
// when there is no rule: an earlier life may have left a list.
func (c controller) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindDropRule}, {Kind: api.KindNode}}
}

// Owns nothing.
func (c controller) Owns() []api.Kind { return nil }

// Key makes all of them one name: the list is made as a whole.
func (c controller) Key(api.Ref) api.Ref { return api.Ref{Kind: api.KindDropRule, Name: "all"} }

// again is how often the host's own addresses are looked at while there are rules.
const again = time.Minute

// Reconcile makes the list anew.
func (c controller) Reconcile(ctx context.Context, s store.Store, _ api.Ref) (reconcile.Result, error) {
	rules, _, err := store.List[*api.DropRule](ctx, s, api.Selector{Kind: api.KindDropRule})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list drop rules: %w", err)
	}
	now := c.Clock.Now()
	rules = slices.DeleteFunc(rules, func(r *api.DropRule) bool { return r.Spec.Ended(now) })
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(rules) == 0 && c.empty {
		return reconcile.Result{}, nil
	}
	var kept map[netip.Addr]string
	if len(rules) > 0 {
		if kept, err = c.protected(ctx, s); err != nil {
			return reconcile.Result{}, err
		}
	}
	var list []netip.Prefix
	c.rules, c.refused = map[string]netip.Prefix{}, map[string]string{}
	next := again
	for _, r := range rules {
		p, ok := r.Spec.Parse()
		if !ok {
			continue // the server lets in none such
		}
		if r.Spec.ExpiresAt != nil {
			next = min(next, r.Spec.ExpiresAt.Sub(now))
		}
		if why := cuts(p, kept); why != "" && !r.Spec.Force {
			c.refused[r.Name] = why
			continue
		}
		c.rules[r.Name] = p
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	if err := c.Barrier.Drop(ctx, slices.Compact(list)); err != nil {
		if errors.Is(err, errs.Unsupported) || errors.Is(err, errs.Conflict) { // it does not get better by trying at once
			for name := range c.rules {
				c.refused[name] = err.Error()
			}
			c.rules = map[string]netip.Prefix{}
			c.Log.Warn("this host does not keep the drop list", "error", err)
			return reconcile.Result{Again: again, Poll: true}, nil
		}
		return reconcile.Result{}, fmt.Errorf("set the drop list: %w", err)
	}
	if c.empty = len(list) == 0; len(rules) == 0 {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{Again: max(next, time.Millisecond), Poll: next == again}, nil
}

// cuts names what of the pool a prefix has; "": nothing.
func cuts(p netip.Prefix, kept map[netip.Addr]string) string {
	var found []string
	for a, what := range kept {
		if p.Contains(a) {
			found = append(found, fmt.Sprintf("it has %s, %s", a, what))
		}
	}
	slices.Sort(found)
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

// protected are the addresses that the host needs, and whose they are.
func (c controller) protected(ctx context.Context, s store.Store) (map[netip.Addr]string, error) {
	own, err := c.Barrier.Own(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at the host's own addresses: %w", err)
	}
	out := map[netip.Addr]string{}
	nodes, _, err := store.List[*api.Node](ctx, s, api.Selector{Kind: api.KindNode})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			if x, err := netip.ParseAddr(a); err == nil {
				out[x.Unmap().WithZone("")] = "an address of host " + n.Name
			}
		}
	}
	for _, a := range own {
		if a = a.WithZone(""); out[a] == "" {
			out[a] = "an address of host " + c.Node + " or of its gateway"
		}
	}
	return out, nil
}

// Counts tells what the host does of the list.
func (l *List) Counts(ctx context.Context) []api.DropCount {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rules) == 0 && len(l.refused) == 0 {
		return nil
	}
	dropped, err := l.Barrier.Dropped(ctx)
	if err != nil {
		l.Log.Warn("cannot read the drop list", "error", err)
	}
	var out []api.DropCount
	for name, p := range l.rules {
		out = append(out, api.DropCount{Rule: name, Packets: dropped[p]})
	}
	for name, why := range l.refused {
		out = append(out, api.DropCount{Rule: name, Refused: why})
	}
	slices.SortFunc(out, func(a, b api.DropCount) int { return strings.Compare(a.Rule, b.Rule) })
	return out
}
