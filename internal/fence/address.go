package fence

import (
	"net/netip"
	"strings"

	"atoll/internal/sys/netlink"
)

// AddressGroup is how an address is written among the resource groups of an Item: past the deadline the
// host must not answer for it any more. It is no group that a tenant can have, and one that is never there, so
// that a watchdog of an earlier release finds nothing to stop in it.
func AddressGroup(root string, a netip.Addr) string { return root + addressDir + a.String() }

const addressDir = "/.address/"

// addressesOf are those among the groups of items.
func addressesOf(root string, items []Item) []netip.Addr {
	var out []netip.Addr
	for _, i := range items {
		for _, g := range i.Groups {
			if s, ok := strings.CutPrefix(g, root+addressDir); ok {
				if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
					out = append(out, a)
				}
			}
		}
	}
	return out
}

// disclaim lets go of addresses in the kernel.
func disclaim(all []netip.Addr) error {
	if len(all) == 0 {
		return nil
	}
	return netlink.Disclaim(all)
}
