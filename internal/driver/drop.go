package driver

import (
	"context"
	"net/netip"
)

// Barrier drops packets by who sent them, where they enter the host and before it spends anything on them.
type Barrier interface {
	// Drop makes these the prefixes whose packets are dropped; none: everything passes, at no cost.
	Drop(ctx context.Context, prefixes []netip.Prefix) error
	// Dropped counts packets by prefix, since each is on the list.
	Dropped(ctx context.Context) (map[netip.Prefix]uint64, error)
	// Own are the host's own addresses, and those of its gateways.
	Own(ctx context.Context) ([]netip.Addr, error)
}
