package fabric

import (
	"context"
	"net/netip"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/segment"
)

// learnedRef is what the engine calls a change of what is learned.
var learnedRef = api.Ref{Kind: api.KindNetwork, Name: "*learned"}

// Learn says which members networks have beside the pool's instances, by number of the network: what routers
// tell of them. It replaces what it said before. An address, a hardware address or a host of
// the pool's own is never theirs.
func (f *Fabric) Learn(members map[uint32][]driver.Member) {
	f.mu.Lock()
	f.learned = members
	f.mu.Unlock()
	f.engine.Enqueue(controller{}.Name(), learnedRef)
}

// relearn tells the driver of what is learned.
func (f *Fabric) relearn(ctx context.Context) error {
	for _, n := range f.nets {
		if err := f.tell(ctx, n, driver.Change{}); err != nil {
			return err
		}
	}
	return nil
}

// besideOf is what of the learned may be on the network now.
func (f *Fabric) besideOf(n *network) map[netip.Addr]driver.Member {
	learned := f.learned[n.net.VNI]
	if len(learned) == 0 {
		return nil
	}
	addrs, macs, hosts := map[netip.Addr]bool{}, map[[6]byte]bool{{}: true, driver.GatewayMAC: true}, map[netip.Addr]bool{{}: true}
	for _, g := range n.net.Gateways {
		addrs[g] = true
	}
	for _, ms := range n.members {
		for _, m := range ms {
			addrs[m.Addr], macs[m.MAC], hosts[m.Host] = true, true, true
		}
	}
	out := map[netip.Addr]driver.Member{}
	for _, m := range learned {
		if addrs[m.Addr] || macs[m.MAC] || hosts[m.Host] {
			continue
		}
		for _, p := range n.net.Prefixes {
			if p.Contains(m.Addr) && m.Addr != p.Addr() {
				m.Identity = driver.IdentityOutside
				out[m.Addr] = m
			}
		}
	}
	return out
}

// change has the driver make a change, with what is learned: what makes way for the pool's own goes before, what
// has place again comes after.
func (f *Fabric) change(ctx context.Context, n *network, c driver.Change) error {
	now := f.besideOf(n)
	var gone, come driver.Change
	for a, m := range n.beside {
		if now[a] != m {
			gone.Drop = append(gone.Drop, a)
		}
	}
	for a, m := range now {
		if n.beside[a] != m {
			come.Put = append(come.Put, m)
		}
	}
	for _, part := range []driver.Change{gone, c, come} {
		if segment.Empty(part) {
			continue
		}
		if err := f.Driver.Change(ctx, n.net.VNI, part); err != nil {
			return err
		}
	}
	n.beside = now
	return nil
}
