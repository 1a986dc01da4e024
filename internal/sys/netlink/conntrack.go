package netlink

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetUDP drops the kernel's memory of UDP flows to the given ports of this host, or
// from and to an instance's address. UDP has no goodbye: without this a flow that was
// there before a port was published, or moved, would go its old way as long as it lasts.
func ForgetUDP(addr netip.Addr, ports []uint16) error {
	if len(ports) == 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return kernelError("open conntrack socket", err)
	}
	defer h.Close()
	var filters []netlink.CustomConntrackFilter
	for _, p := range ports {
		filters = append(filters, udpFlow{addr: addr, port: p})
	}
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filters...); err != nil {
		return kernelError("forget UDP flows", err)
	}
	return nil
}

type udpFlow struct {
	addr netip.Addr
	port uint16
}

// MatchConntrackFlow reports whether the flow goes to the port and not to where it leads now.
func (f udpFlow) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP || flow.Forward.DstPort != f.port {
		return false
	}
	to, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return ok && (!f.addr.IsValid() || to.Unmap() != f.addr)
}
