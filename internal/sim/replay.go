package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"sort"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
)

// History is a pool's own past, ready to be played again.
type History struct {
	Scenario *scenario.Scenario
	State    []api.Object
	Recorded []Recorded
	Assumed  int // of Recorded: known by their events only, requests assumed
	Taken    time.Time
}

// Since is when a replay begins.
type Since struct {
	at     time.Time
	before time.Duration
}

// From is a point in time.
func From(t time.Time) Since { return Since{at: t} }

// Before counts back from the last thing the backup knows.
func Before(d time.Duration) Since { return Since{before: d} }

// ReadHistory reads a backup (see store.Dump). What was there at since is the state
// to begin with; what came later comes again at its time. Of instances that came and
// went there is no more than their events: when, but not how much; they are assumed
// to have asked for what is usual with their tenant.
func ReadHistory(ctx context.Context, r io.Reader, begin Since) (*History, error) {
	mem := store.NewMem()
	if _, err := store.Load(ctx, mem, r, store.LoadOptions{}); err != nil {
		return nil, err
	}
	objs, _, err := mem.List(ctx, api.Selector{})
	if err != nil {
		return nil, err
	}
	h := &History{Taken: newest(objs)}
	if h.Taken.IsZero() {
		return nil, errs.New(errs.Invalid, "replay: nothing in the backup has a time")
	}
	since := begin.at
	if since.IsZero() {
		since = h.Taken.Add(-begin.before)
	}
	if !since.Before(h.Taken) {
		return nil, errs.InvalidFields("replay", []errs.Field{{Field: "since", Value: since.Format(time.RFC3339), Rule: "must be before the last thing the backup knows, " + h.Taken.Format(time.RFC3339), Example: "24h"}})
	}
	since = since.UTC()
	h.Scenario = &scenario.Scenario{Name: "replay", Description: "A pool's own state and history, played again.", Start: &since,
		Duration: api.Duration(max(h.Taken.Sub(since).Round(time.Second), time.Second))}
	h.hosts(objs)
	h.instances(objs, since)
	h.events(objs, since)
	if len(h.Scenario.Hosts) == 0 {
		return nil, errs.New(errs.Invalid, "replay: the backup has no nodes")
	}
	sort.SliceStable(h.Recorded, func(i, j int) bool { return h.Recorded[i].At < h.Recorded[j].At })
	return h, nil
}

// newest is the last moment anything tells of.
func newest(objs []api.Object) time.Time {
	var t time.Time
	see := func(x *time.Time) {
		if x != nil && x.After(t) {
			t = *x
		}
	}
	for _, o := range objs {
		see(o.Metadata().CreatedAt)
		switch x := o.(type) {
		case *api.Instance:
			see(x.Status.StartedAt)
			see(x.Status.FinishedAt)
		case *api.Event:
			see(&x.Spec.Last)
		}
	}
	return t
}

func (h *History) hosts(objs []api.Object) {
	for _, o := range objs {
		switch x := o.(type) {
		case *api.Node:
			g := scenario.HostGroup{Name: x.Name, Count: 1, Exact: true, Capacity: x.Status.Capacity, Reserve: x.Spec.Reserve, Devices: x.Status.Devices,
				Cells: x.Status.Cells, Labels: x.Labels, Taints: x.Spec.Taints, Region: x.Spec.Region, Rack: x.Spec.Rack, Cordoned: x.Spec.Cordoned,
				Overcommit: x.Spec.Overcommit, Power: scenario.Power{Idle: float64(x.Spec.IdleWatts), Max: float64(x.Spec.MaxWatts)}}
			if x.Spec.Zone != "" {
				g.Zones = []string{x.Spec.Zone}
			}
			if v, err := strconv.ParseFloat(x.Spec.Price, 64); err == nil {
				g.Price = v
			}
			h.Scenario.Hosts = append(h.Scenario.Hosts, g)
		case *api.Tenant:
			if x.DeletedAt == nil {
				h.Scenario.Tenants = append(h.Scenario.Tenants, scenario.Tenant{Name: x.Name, Guarantee: x.Spec.Guarantee, Limit: x.Spec.Limit, Weight: x.Spec.Weight})
			}
		}
	}
}

// plain makes an instance one that pretended hosts can run: the same requests,
// limits and placement, nothing of its content.
func plain(in *api.Instance) *api.Instance {
	out := api.Clone(in)
	out.Revision, out.Status, out.Finalizers, out.Annotations = 0, api.InstanceStatus{}, []string{"node"}, nil
	s := &out.Spec
	s.Image, s.Command, s.Entry, s.Env = "recorded", scenario.Program(), nil, nil
	s.Volumes, s.Health, s.AutoRm, s.Restart, s.StopSignal = nil, nil, false, "", ""
	return out
}

func (h *History) instances(objs []api.Object, since time.Time) {
	was := map[api.Ref]*api.Instance{}
	for _, o := range objs {
		in, ok := o.(*api.Instance)
		if !ok || in.DeletedAt != nil {
			continue
		}
		if in.CreatedAt != nil && in.CreatedAt.After(since) {
			h.Recorded = append(h.Recorded, Recorded{At: in.CreatedAt.Sub(since), Instance: plain(in)})
			continue
		}
		p := plain(in)
		was[api.RefOf(in)] = p
		h.State = append(h.State, p)
	}
	for _, o := range objs {
		a, ok := o.(*api.Assignment)
		if !ok || a.Spec.Node == "" {
			continue
		}
		if in := was[api.Ref{Kind: api.KindInstance, Tenant: a.Tenant, Name: a.Name}]; in != nil && in.UID == a.Spec.InstanceUID {
			next := api.Clone(a)
			next.Revision, next.Spec.Evict = 0, nil
			h.State = append(h.State, next)
		}
	}
}

// events finds instances of which nothing but their events is left.
func (h *History) events(objs []api.Object, since time.Time) {
	known, requests := map[api.Ref]bool{}, map[string][]*api.Instance{}
	for _, o := range objs {
		if in, ok := o.(*api.Instance); ok {
			known[api.RefOf(in)] = true
			requests[in.Tenant] = append(requests[in.Tenant], in)
		}
	}
	type span struct{ first, last time.Time }
	seen := map[api.Ref]span{}
	var refs []api.Ref
	for _, o := range objs {
		e, ok := o.(*api.Event)
		if !ok || e.Spec.About.Kind != api.KindInstance || known[e.Spec.About] {
			continue
		}
		s, again := seen[e.Spec.About]
		if !again {
			refs = append(refs, e.Spec.About)
			s = span{e.Spec.First, e.Spec.Last}
		}
		if e.Spec.First.Before(s.first) {
			s.first = e.Spec.First
		}
		if e.Spec.Last.After(s.last) {
			s.last = e.Spec.Last
		}
		seen[e.Spec.About] = s
	}
	tenants := map[string]bool{}
	for _, t := range h.Scenario.Tenants {
		tenants[t.Name] = true
	}
	for _, ref := range refs {
		s := seen[ref]
		if !tenants[ref.Tenant] || s.last.Before(since) {
			continue
		}
		h.Assumed++
		h.Recorded = append(h.Recorded, Recorded{At: max(s.first.Sub(since), 0), Lasts: max(s.last.Sub(s.first), time.Second), Instance: &api.Instance{
			Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: ref.Name, Tenant: ref.Tenant, UID: uidOf(ref), Generation: 1, Finalizers: []string{"node"}}},
			Spec: api.InstanceSpec{Image: "recorded", Command: scenario.Program(), Requests: typical(requests[ref.Tenant])}}})
	}
}

// uidOf makes a UID of a name; the first digits matter, they name it on its host.
func uidOf(ref api.Ref) string {
	sum := sha256.Sum256([]byte(ref.String()))
	return hex.EncodeToString(sum[:16])
}

// typical is the middle of what instances ask for, by CPU; nothing when there are none.
func typical(list []*api.Instance) api.Resources {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	sort.SliceStable(list, func(i, j int) bool { return list[i].Spec.Requests[api.CPU] < list[j].Spec.Requests[api.CPU] })
	return list[len(list)/2].Spec.Requests.Clone()
}

// Overlay lays the arrivals, faults, changes and policies of another scenario over the
// history, for "what if".
func (h *History) Overlay(o *scenario.Scenario) {
	s := h.Scenario
	if o.Name != "" {
		s.Name = o.Name
	}
	if o.Description != "" {
		s.Description = o.Description
	}
	if o.Duration > 0 {
		s.Duration = o.Duration
	}
	if o.Sample > 0 {
		s.Sample = o.Sample
	}
	if o.Seed != 0 {
		s.Seed = o.Seed
	}
	s.Hosts = append(s.Hosts, o.Hosts...)
	s.Tenants = append(s.Tenants, o.Tenants...)
	s.Arrivals = append(s.Arrivals, o.Arrivals...)
	s.Faults = append(s.Faults, o.Faults...)
	s.Changes = append(s.Changes, o.Changes...)
	s.Policies = o.Policies
}

// Ready fills in defaults and checks the whole.
func (h *History) Ready() error {
	h.Scenario.Defaults()
	return errs.InvalidFields("replay", h.Scenario.Validate())
}
