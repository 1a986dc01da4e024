package driver

import (
	"context"
	"net/netip"
)

// Underlay is by which of its addresses a host sends to the others what is for instances there.
type Underlay struct {
	Local netip.Addr   // the zero Addr: the one that is configured
	Also  []netip.Addr // by which others and the store may still call this host
}

// Carried is a Fabric whose tunnels can be led by another address of the host, such as one behind
// encryption. It is told before anything else, and whenever that changes.
type Carried interface {
	Fabric
	// Outer is the address that is configured, and the UDP port of tunnels; the zero Addr: there is none.
	Outer() (netip.Addr, uint16)
	// Carry leads all tunnels by that address, with what fits through there; instances and flows stay.
	// Others whose address is of another family are out of reach until they have one that is not.
	Carry(ctx context.Context, u Underlay) error
}
