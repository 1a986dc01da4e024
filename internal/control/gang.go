package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
	"atoll/internal/sched"
	"atoll/internal/store"
)

// A gang is placed when all its members are there and all of them fit, in one
// commit. Until then its members hold nothing, so gangs cannot wait for each other.

type gangKey struct{ tenant, name string }

func gangOf(s *api.InstanceSpec) *api.Gang {
	if s.Placement == nil {
		return nil
	}
	return s.Placement.Gang
}

func (p *Placement) joinGang(in *api.Instance) {
	g := gangOf(&in.Spec)
	if g == nil {
		return
	}
	k := gangKey{in.Tenant, g.Name}
	if p.gangs[k] == nil {
		p.gangs[k] = map[string]bool{}
	}
	p.gangs[k][in.UID], p.ganged[in.UID] = true, k
}

func (p *Placement) leaveGang(uid string) {
	k, ok := p.ganged[uid]
	if !ok {
		return
	}
	delete(p.ganged, uid)
	if delete(p.gangs[k], uid); len(p.gangs[k]) == 0 {
		delete(p.gangs, k)
	}
}

// waitingGang lists a gang's members without a node, in a fixed order.
func (p *Placement) waitingGang(k gangKey) []*policy.Item {
	var out []*policy.Item
	for _, it := range p.pending {
		if g := gangOf(it.Spec); g != nil && it.Ref.Tenant == k.tenant && g.Name == k.name {
			out = append(out, it)
		}
	}
	slices.SortFunc(out, func(a, b *policy.Item) int { return strings.Compare(api.SortKey(a.Ref), api.SortKey(b.Ref)) })
	return out
}

// gangCommit bounds the ops of one transaction; a larger gang is committed in
// parts, and what a crash leaves out is placed by the next look, as its gang is complete.
const gangCommit = 50

func (p *Placement) placeGang(ctx context.Context, s store.Store, in *api.Instance, a *api.Assignment) (reconcile.Result, error) {
	g := gangOf(&in.Spec)
	left := api.DefaultGangTimeout
	if g.Timeout != nil {
		left = g.Timeout.D()
	}
	if a != nil && a.Spec.Since != nil {
		left -= p.clock.Now().Sub(*a.Spec.Since)
	}
	if left <= 0 {
		return p.failGang(ctx, s, in, a)
	}
	if !p.claim(in) {
		return reconcile.Result{Again: 100 * time.Millisecond}, nil // another member places all
	}
	defer p.release(in)
	members, err := p.waitingMembers(ctx, s, in)
	if err != nil {
		return reconcile.Result{}, err
	}
	prs, here, fits := p.proposeGang(in, members)
	var res reconcile.Result
	if !fits {
		pr := p.gangWaits(in, a, here)
		res, err = p.commit(ctx, s, pr)
		res.Again, res.Poll = min(retryPending, left), left > retryPending
		return res, err
	}
	for len(prs) > 0 && err == nil {
		n := min(len(prs), gangCommit)
		var r reconcile.Result
		r, err = p.commit(ctx, s, prs[:n]...)
		res.Also = append(res.Also, r.Also...)
		prs = prs[n:]
	}
	p.mu.Lock()
	for _, pr := range prs { // after an error: none of the rest
		p.takeBack(pr)
	}
	p.mu.Unlock()
	return res, err
}

// claim makes a caller the only one who places a gang.
func (p *Placement) claim(in *api.Instance) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := gangKey{in.Tenant, gangOf(&in.Spec).Name}
	if p.busy[k] {
		return false
	}
	p.busy[k] = true
	return true
}

func (p *Placement) release(in *api.Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, gangKey{in.Tenant, gangOf(&in.Spec).Name})
}

// waitingMembers reads the gang's members that have no node, with their assignments.
func (p *Placement) waitingMembers(ctx context.Context, s store.Store, in *api.Instance) (map[*api.Instance]*api.Assignment, error) {
	p.mu.Lock()
	p.joinGang(in)
	p.pend(p.item(in))
	var refs []api.Ref
	for ref, it := range p.pending {
		if g := gangOf(it.Spec); g != nil && it.Ref.Tenant == in.Tenant && g.Name == gangOf(&in.Spec).Name {
			refs = append(refs, ref)
		}
	}
	p.mu.Unlock()
	out := map[*api.Instance]*api.Assignment{}
	for _, ref := range refs {
		m, err := store.Get[*api.Instance](ctx, s, ref)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", ref, err)
		}
		as, err := store.Get[*api.Assignment](ctx, s, api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name})
		if errors.Is(err, errs.NotFound) {
			as = nil
		} else if err != nil {
			return nil, fmt.Errorf("read assignment of %s: %w", ref, err)
		}
		if m.DeletedAt == nil && !m.Spec.Stopped && (as == nil || as.Spec.Node == "") {
			out[m] = as
		}
	}
	return out, nil
}

// proposeGang places all waiting members in the view, or none. here is how many members there are.
func (p *Placement) proposeGang(in *api.Instance, members map[*api.Instance]*api.Assignment) (prs []*proposal, here int, fits bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	here = len(p.gangs[gangKey{in.Tenant, gangOf(&in.Spec).Name}])
	if here < gangOf(&in.Spec).Size {
		return nil, here, false
	}
	start := p.clock.Now()
	for m, as := range members {
		prs = append(prs, &proposal{in: m, item: p.item(m), old: as})
	}
	sortProposals(prs)
	fits = true
	for i, pr := range prs {
		if p.view.Keeps(pr.item, p.keep) == "" {
			pr.Placement = p.planner.Decide(pr.item)
		}
		pr.Decision.At = start
		p.addressFor(pr)
		if pr.Node == "" {
			for _, done := range prs[:i] {
				p.takeBack(done)
			}
			return nil, here, false
		}
		p.view.Place(pr.item, pr.Node, pr.Alloc)
	}
	return prs, here, fits
}

// gangWaits says why the gang is not placed.
func (p *Placement) gangWaits(in *api.Instance, a *api.Assignment, here int) *proposal {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := gangOf(&in.Spec)
	it := p.item(in)
	pr := &proposal{in: in, item: it, old: a}
	if here < g.Size {
		pr.Placement = sched.Placement{Item: it, Decision: api.Decision{Of: len(p.view.Nodes),
			Refusals: []api.Refusal{{Policy: "gang", Reason: fmt.Sprintf("%d of %d members of gang %s are there", here, g.Size, g.Name), Nodes: len(p.view.Nodes)}},
			Hints:    []string{fmt.Sprintf("create %d more instances with placement.gang.name %s", g.Size-here, g.Name)}}}
	} else {
		pr.Placement = p.planner.Decide(it)
		pr.Node, pr.Alloc, pr.Decision.Chosen = "", policy.Alloc{}, ""
		pr.Decision.Refusals = append([]api.Refusal{{Policy: "gang", Reason: fmt.Sprintf("not all members of gang %s fit at once", g.Name), Nodes: len(p.view.Nodes)}}, pr.Decision.Refusals...)
		pr.Decision.Hints = append(pr.Decision.Hints, "atoll plan fit shows how many of them fit now")
	}
	pr.Decision.At = p.clock.Now()
	return pr
}

// failGang ends the wait of one member; the others find the same when they are looked
// at. Its assignment goes, so that another try waits anew.
func (p *Placement) failGang(ctx context.Context, s store.Store, in *api.Instance, a *api.Assignment) (reconcile.Result, error) {
	next := api.Clone(in)
	now := p.clock.Now().UTC()
	g := gangOf(&in.Spec)
	next.Status.State, next.Status.Reason, next.Status.FinishedAt, next.Status.Generation = api.StateFailed, api.ReasonGangTimeout, &now, in.Generation
	next.Status.Message = fmt.Sprintf("gang %s was not placed in time; 'atoll restart' tries again", g.Name)
	if _, err := s.Commit(ctx, store.Update(next), store.Remove(api.RefOf(a), a.Revision)); err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("fail %s: %w", api.RefOf(in), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unpend(api.RefOf(in), in.UID)
	p.leaveGang(in.UID)
	return reconcile.Result{}, nil
}

func sortProposals(prs []*proposal) {
	slices.SortFunc(prs, func(a, b *proposal) int {
		return strings.Compare(api.SortKey(a.item.Ref), api.SortKey(b.item.Ref))
	})
}
