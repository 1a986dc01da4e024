package sim

import (
	"context"
	"time"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/sched"
	"atoll/internal/store"
)

const (
	// patience is how long a healthy host may take to remove what it was asked to.
	patience = 10 * time.Minute
	// probes bounds how many of those that wait are looked at in one check.
	probes = 20
	// large is a pool where those that wait are looked at with the samples only.
	large = 2000
)

// check looks at what changed since the last check. The rules:
//
//   - no host is given more than its rule allows;
//   - every instance that should be there is, and has one assignment;
//   - it runs on the host that names, once, and nowhere else;
//   - no two have the same address;
//   - nobody waits for a host while one has room.
func (w *World) check(ctx context.Context, sample bool) error {
	b := w.books
	for _, h := range b.moved {
		h.loaded = false
		w.checkHost(h)
	}
	b.moved = b.moved[:0]
	var again []*rec
	for _, r := range b.touched {
		r.touched = false
		if !w.checkRec(r) {
			again = append(again, r)
		}
	}
	b.checks += len(b.touched)
	b.touched = b.touched[:0]
	for _, r := range again {
		b.touch(r)
	}
	if sample && len(b.asgs) != b.decided {
		w.violate("there are %d assignments for %d instances that have one", len(b.asgs), b.decided)
	}
	if len(b.waiting) > 0 && b.changedAt && (sample || b.live < large) {
		return w.checkWaiting(ctx)
	}
	return nil
}

// checkHost holds a host to what it has.
func (w *World) checkHost(h *host) {
	b := w.books
	if !h.known {
		return
	}
	for i, name := range b.names {
		most := h.room[i]
		if i == b.cpu {
			most = allowed(h)
			if limit := percent(h.room[i], h.object.Spec.Overcommit.Guaranteed); h.usedFull > limit {
				w.violate("%s promises %s of CPU to the class guaranteed, its rule allows %s", h.name,
					api.FormatQuantity(name, h.usedFull), api.FormatQuantity(name, limit))
			}
		}
		if h.used[i] > most && (h.room[i] > 0 || i == b.gpu) {
			w.violate("%s is given %s of %s, its rule allows %s", h.name, api.FormatQuantity(name, h.used[i]), name, api.FormatQuantity(name, most))
		}
	}
}

// allowed is the CPU that may be promised on a host to all classes together.
func allowed(h *host) int64 {
	o := h.object.Spec.Overcommit
	return percent(h.room[h.cpu], max(o.Burstable, o.Guaranteed))
}

func percent(v int64, p int) int64 {
	if p == 0 {
		return v
	}
	return v * int64(p) / 100
}

// checkRec holds an instance to its rules; false: it has to be looked at again, as a
// host is still at work or cannot be reached.
func (w *World) checkRec(r *rec) bool {
	if !r.gone && !r.decided && !r.asked && !r.gaveUp && r.req != nil {
		w.violate("%s has no assignment, not even one that says why it waits", r.ref)
	}
	done := true
	for _, h := range r.on {
		switch {
		case h == r.node && !r.gone:
		case !h.reached() || h.busy(w.clk.Now()):
			done = false
		default:
			w.violate("%s runs on %s, but is assigned to %q", r.ref, h.name, r.nodeName)
		}
	}
	if r.asked && !r.gone && r.node != nil {
		if r.node.reached() && !r.node.busy(w.clk.Now()) && w.books.now-r.removal > patience {
			w.violate("%s should be gone since %s", r.ref, w.books.now-r.removal)
		}
		done = false
	}
	return done
}

// checkWaiting looks whether somebody waits in vain. What has room is found by adding
// up; whether the policies would really allow it is then asked of them, with a view
// of the pool made from scratch.
func (w *World) checkWaiting(ctx context.Context) error {
	b := w.books
	if b.leaving > 0 {
		return nil // room is being made for somebody: it is not free for others
	}
	b.changedAt = false
	var view *policy.View
	for _, r := range b.waiting[:min(len(b.waiting), probes)] {
		b.checks++
		if r.free && !w.roomFor(r) {
			continue
		}
		in, err := store.Get[*api.Instance](ctx, w.view, r.ref)
		if err != nil {
			return err
		}
		if in.Spec.Placement != nil && in.Spec.Placement.Gang != nil {
			continue // waits for its fellows
		}
		if view == nil {
			if view, err = w.scratch(ctx); err != nil {
				return err
			}
		}
		if p := sched.Plan(view, []*policy.Item{policy.ItemOf(in)}, w.chain, 1); p[0].Node != "" && !w.nominated(ctx) {
			w.violate("%s waits while %s has room", r.ref, p[0].Node)
		}
	}
	return nil
}

// nominated reports whether somebody waits for a place that was promised to it.
func (w *World) nominated(ctx context.Context) bool {
	for _, r := range w.books.waiting {
		a, err := store.Get[*api.Assignment](ctx, w.view, api.Ref{Kind: api.KindAssignment, Tenant: r.ref.Tenant, Name: r.ref.Name})
		if err == nil && a.Spec.Decision != nil && len(a.Spec.Decision.Refusals) > 0 && a.Spec.Decision.Refusals[0].Policy == "preemption" {
			return true
		}
	}
	return false
}

func (w *World) roomFor(r *rec) bool {
	b := w.books
	for _, h := range w.hosts {
		if !h.known || h.object.Closed() != "" || !h.object.Ready() {
			continue
		}
		fits := true
		for i, v := range r.req {
			most := h.room[i]
			if i == b.cpu {
				most = allowed(h)
			}
			fits = fits && (v == 0 || h.used[i]+v <= most)
		}
		if fits {
			return true
		}
	}
	return false
}

// scratch makes a view from what is in the store, as a new placement controller would.
func (w *World) scratch(ctx context.Context) (*policy.View, error) {
	v := policy.NewView()
	nodes, _, err := store.List[*api.Node](ctx, w.view, api.Selector{Kind: api.KindNode})
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		v.SetNode(n)
	}
	asg, _, err := store.List[*api.Assignment](ctx, w.view, api.Selector{Kind: api.KindAssignment})
	if err != nil {
		return nil, err
	}
	for _, a := range asg {
		if a.Spec.Node == "" {
			continue
		}
		in, err := store.Get[*api.Instance](ctx, w.view, api.Ref{Kind: api.KindInstance, Tenant: a.Tenant, Name: a.Name})
		if err != nil || in.UID != a.Spec.InstanceUID || in.Spec.Stopped {
			continue
		}
		v.Place(policy.ItemOf(in), a.Spec.Node, policy.AllocOf(&a.Spec))
	}
	return v, nil
}
