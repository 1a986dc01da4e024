package overlay

import (
	"context"
	"net/netip"
	"slices"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/nft"
)

// Arrive takes the floating addresses of instances on networks: what comes for one by the cable goes to its instance.
// Those of networks that are not here yet are kept until they are.
func (d *Driver) Arrive(ctx context.Context, all []driver.Floating) ([]driver.Floating, error) {
	want := map[uint32][]nft.Floating{}
	for _, f := range all {
		want[f.VNI] = append(want[f.VNI], nft.Floating{Addr: f.Addr, To: f.Inside})
	}
	nets, err := d.all()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.arrive = want
	d.mu.Unlock()
	ways := map[uint32]netip.Addr{}
	for _, n := range nets {
		way, err := n.arrive(ctx, want[n.record.Net.VNI])
		if err != nil {
			return nil, err
		}
		ways[n.record.Net.VNI] = way
	}
	var out []driver.Floating
	var late error
	for _, f := range all {
		if f.Way = ways[f.VNI]; !f.Way.IsValid() {
			late = errs.New(errs.Unavailable, "floating address %s: network %d is not on this host yet, or has no way out", f.Addr, f.VNI)
			continue
		}
		out = append(out, f)
	}
	return out, late
}

// arriving are the floating addresses of a network; said: they were told in this life.
func (d *Driver) arriving(vni uint32) (all []nft.Floating, said bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.arrive[vni], d.arrive != nil
}

// arrive brings the gate in line and tells the address of its cable.
func (n *network) arrive(ctx context.Context, want []nft.Floating) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.record.Floating
	if n.ns == nil && n.known {
		return netip.Addr{}, nil // it has been removed meanwhile
	}
	if !n.known || slices.Equal(want, was) {
		return n.record.Uplink, nil // a gate that is not known yet is made with all that is said until then
	}
	n.record.Floating = want
	if err := n.d.save(n.record); err != nil {
		return netip.Addr{}, err
	}
	if err := n.wayOut(ctx); err != nil {
		return netip.Addr{}, err
	}
	var gone []netip.Addr
	for _, f := range was {
		if !slices.Contains(want, f) {
			gone = append(gone, f.Addr)
		}
	}
	return n.record.Uplink, n.ns.Do(func() error { return netlink.ForgetFlows(gone) })
}
