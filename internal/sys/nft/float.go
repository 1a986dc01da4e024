package nft

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Floating is an address of the physical network that is an instance's.
type Floating struct {
	Addr netip.Addr
	// To is the instance on the bridge that it leads to; the zero Addr: it is routed as it is, to a
	// network that knows what to do with it, by the port Iface with MAC.
	To    netip.Addr
	Iface string
	MAC   [6]byte
}

// FloatingID marks the elements of floating addresses, as an instance's ID does its.
const FloatingID = "net-floating"

func floatingSets(inet *nftables.Table) []*nftables.Set {
	return []*nftables.Set{
		{Table: inet, Name: setFloat, Comment: "floating addresses that are here", KeyType: nftables.TypeIPAddr},
		{Table: inet, Name: mapFloat, Comment: "floating address -> instance on the bridge", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeIPAddr},
		{Table: inet, Name: mapUnder, Comment: "instance on the bridge -> its floating address", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeIPAddr},
	}
}

// floatingIn translates the destination, if it is a floating address.
func floatingIn(m *nftables.Set) rule {
	return rule{"to a floating address", join(ip4(), net(16, 4, reg1), get(m, reg1, reg1),
		one(&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1}))}
}

// snatTo gives the packet the source that the map has for it, if it has one.
func snatTo(m *nftables.Set) []expr.Any {
	return join(net(12, 4, reg1), get(m, reg1, reg1), one(&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1}))
}

func floatingEntries(all []Floating) map[slot]entry {
	out := map[slot]entry{}
	for _, f := range all {
		addr := string(f.Addr.AsSlice())
		out[slot{setFloat, addr}] = entry{id: FloatingID}
		if !f.To.IsValid() {
			out[slot{setPorts, string(ifname(f.Iface)) + string(f.MAC[:]) + "\x00\x00" + addr}] = entry{id: FloatingID}
			continue
		}
		to := string(f.To.AsSlice())
		out[slot{mapFloat, addr}] = entry{id: FloatingID, val: to}
		if s := (slot{mapUnder, to}); out[s].val == "" { // of several, the first is what it goes out with
			out[s] = entry{id: FloatingID, val: addr}
		}
	}
	return out
}

// SetFloating makes these the floating addresses, in one transaction.
func (t *Table) SetFloating(all []Floating) error {
	for _, f := range all {
		if !f.Addr.Is4() || f.To.IsValid() && !f.To.Is4() {
			return errs.New(errs.Invalid, "floating address %s to %s: both must be IPv4", f.Addr, f.To)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.sync(); err != nil {
		return err
	}
	return t.replace(FloatingID, floatingEntries(all))
}

// Floating lists the floating addresses that are here, also before Ensure.
func (t *Table) Floating() ([]netip.Addr, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.look(); err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, s := range t.has[FloatingID] {
		if a, ok := netip.AddrFromSlice([]byte(s.key)); ok && s.set == setFloat {
			out = append(out, a)
		}
	}
	return out, nil
}
