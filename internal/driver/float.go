package driver

import (
	"context"
	"net/netip"

	"atoll/internal/errs"
)

// Floating is an address of the physical network that leads to an instance on this host.
type Floating struct {
	Addr   netip.Addr // IPv4
	Inside netip.Addr // the instance's own
	VNI    uint32     // the network that Inside is in; 0: the host's own bridge
	// Way is the address on the host's bridge by which that network is reached; whoever
	// makes it known is the fabric.
	Way netip.Addr
}

// Floater is a Network at which floating addresses arrive. Float says all of them, also after an earlier life of
// the daemon: the host answers for these on the physical network, and for no others of ours.
// What comes to one is judged as all that comes from outside, and what the instance sends out
// has it for its source. The instances need not be attached yet. Flows of one that is taken away end.
// errs.Unavailable when a network is not on the host yet: the others are in force.
type Floater interface {
	Float(ctx context.Context, all []Floating) error
}

// Arrivals is the part of a Fabric in it: it takes those of its networks and tells the Way of each.
type Arrivals interface {
	Arrive(ctx context.Context, all []Floating) ([]Floating, error)
}

// Float has addresses arrive at the bridge, and where they lead to a tenant's network, there.
func (b *beside) Float(ctx context.Context, all []Floating) error {
	f, ok := b.bridge.(Floater)
	if !ok {
		return errs.New(errs.Unsupported, "the network of this host takes no floating addresses")
	}
	var here, nets []Floating
	for _, x := range all {
		if x.VNI == 0 {
			here = append(here, x)
		} else {
			nets = append(nets, x)
		}
	}
	var late error
	if a, ok := b.fabric.(Arrivals); ok {
		ways, err := a.Arrive(ctx, nets)
		if err != nil && errs.KindOf(err) != errs.Unavailable {
			return err
		}
		here, late = append(here, ways...), err
	}
	if err := f.Float(ctx, here); err != nil {
		return err
	}
	return late
}
