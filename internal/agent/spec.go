package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// spec gathers everything a driver needs.
func (a *Agent) spec(ctx context.Context, in *api.Instance, as *api.Assignment) (driver.Spec, error) {
	t, err := store.Get[*api.Tenant](ctx, a.Store, api.Ref{Kind: api.KindTenant, Name: in.Tenant})
	if err != nil {
		return driver.Spec{}, fmt.Errorf("read tenant %s: %w", in.Tenant, err)
	}
	if t.Status.UIDCount == 0 {
		return driver.Spec{}, errs.New(errs.Unavailable, "tenant %s has no range of user IDs yet", in.Tenant)
	}
	id := runtimeID(in.UID)
	pull := in.Spec.Pull
	if l, ok := a.look(id); ok && l.obs.Phase == driver.PhaseRunning && pull == "always" {
		pull = "missing" // what runs has its image; only its limits are brought in line
	}
	img, fetched, err := a.Images.Root(ctx, in.Tenant, in.Spec.Image, pull, func(p api.Progress) { a.pulling(id, p) })
	if err != nil {
		return driver.Spec{}, err
	}
	if fetched != nil {
		if err := a.commitImage(ctx, fetched); err != nil {
			return driver.Spec{}, err
		}
	}
	if err := a.ensureGroup(ctx, in.Tenant); err != nil {
		return driver.Spec{}, err
	}
	ids := driver.IDRange{Base: t.Status.UIDBase, Count: t.Status.UIDCount}
	mounts, err := a.mounts(ctx, in, ids)
	if err != nil {
		return driver.Spec{}, err
	}
	s := driver.Spec{
		ID: id, Instance: in, IDs: ids, Image: img, Generation: as.Spec.Generation, Mounts: mounts,
		Cgroup:  driver.Cgroup{Path: a.tenantGroup(in.Tenant) + "/" + id, OOMScoreAdj: oomScore(in.Spec.Class())},
		Network: driver.NetworkSpec{Mode: "bridge", Address: as.Spec.Address, Hostname: in.Spec.Hostname, DNS: a.DNS},
	}
	if in.Spec.OnNetworks() {
		s.Network.Mode = driver.ModeOverlay
		if s.Network.Interfaces, err = interfacesOf(as); err != nil {
			return driver.Spec{}, err
		}
		if err := a.names(ctx, as, &s.Network); err != nil {
			return driver.Spec{}, err
		}
	}
	if a.Bands != nil {
		s.Network.Bands = a.Bands(in)
	}
	s.CPUs, s.Mems = a.pin(id, in, as)
	if s.Network.Hostname == "" {
		s.Network.Hostname = in.Name
	}
	if n := in.Spec.Network(); n == api.NetworkNone || n == api.NetworkHost {
		s.Network.Mode = n
	}
	return s, nil
}

// interfacesOf reads what placement wrote.
func interfacesOf(as *api.Assignment) ([]driver.Interface, error) {
	var out []driver.Interface
	for _, i := range as.Spec.Interfaces {
		mac, err := net.ParseMAC(i.MAC)
		if err != nil || len(mac) != 6 {
			return nil, errs.New(errs.Internal, "assignment %s/%s: hardware address %q", as.Tenant, as.Name, i.MAC)
		}
		f := driver.Interface{Name: i.Name, VNI: i.VNI, MAC: [6]byte(mac)}
		for _, a := range []string{i.Address, i.Address6} {
			p, err := netip.ParsePrefix(a)
			if a != "" && err != nil {
				return nil, errs.New(errs.Internal, "assignment %s/%s: address %q", as.Tenant, as.Name, a)
			}
			if a != "" {
				f.Addrs = append(f.Addrs, p)
			}
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		return nil, errs.New(errs.Unavailable, "its place on its networks is not decided yet")
	}
	return out, nil
}

// names says whom an instance on networks of its tenant asks for names: its first network's gateways, which
// know the tenant's own (docs/dns.md).
func (a *Agent) names(ctx context.Context, as *api.Assignment, s *driver.NetworkSpec) error {
	s.DNS = nil
	for _, p := range s.Interfaces[0].Addrs {
		s.DNS = append(s.DNS, api.Gateway(p).String())
	}
	n, err := read[*api.Network](ctx, a.Store, api.Ref{Kind: api.KindNetwork, Tenant: as.Tenant, Name: as.Spec.Interfaces[0].Network})
	if err != nil {
		return err
	}
	if n != nil { // it is being removed otherwise
		s.Search = []string{n.EffectiveDomain()}
	}
	return nil
}

// progressEvery bounds how often readers are woken by a pull.
const progressEvery = 100 * time.Millisecond

// pulling notes how far a part of an image is, for attached readers.
func (a *Agent) pulling(id string, p api.Progress) {
	now := a.Clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lives[id]
	if l == nil {
		return // nobody is attached, and nothing was started yet
	}
	parts := make([]api.Progress, 0, len(l.pulling)+1) // readers hold the old slice
	for _, old := range l.pulling {
		if old.ID != p.ID {
			parts = append(parts, old)
		}
	}
	l.pulling = append(parts, p)
	if p.Phase == "done" || now.Sub(l.pulledAt) >= progressEvery {
		l.pulledAt = now
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// mounts makes the tenant's volumes exist and resolves them.
func (a *Agent) mounts(ctx context.Context, in *api.Instance, ids driver.IDRange) ([]driver.Mount, error) {
	var out []driver.Mount
	for _, v := range in.Spec.Volumes {
		if v.Name == "" {
			continue // host paths, tmpfs and ephemeral ones are the runtime's
		}
		if a.Storage == nil {
			return nil, errs.New(errs.Unsupported, "this node has no storage for volume %s", v.Name)
		}
		size := int64(0)
		if v.Size != "" {
			q, err := api.ParseQuantity(api.Disk, v.Size)
			if err != nil {
				return nil, errs.New(errs.Invalid, "volume %s: %w", v.Name, err)
			}
			size = q
		}
		m, err := a.Storage.Ensure(ctx, in.Tenant, v.Name, size, ids)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		m.Target, m.ReadOnly = v.Path, v.ReadOnly
		out = append(out, m)
	}
	return out, nil
}

func sortedNames[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}
