package netlink

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// claimProtocol marks routes to claimed addresses as ours (see rtnetlink(7), rtm_protocol).
const claimProtocol = 0x61

// A Claim is an address that this host answers for on the physical network though it is not its own:
// the host routes it on to Via on Link, and answers ARP for it on Links.
type Claim struct {
	Addr  netip.Addr
	Via   netip.Addr
	Link  int
	Links []int
}

// SetClaims makes these the claims of the host in whose namespace the calling process is. Neighbours
// are told of each that is new.
func SetClaims(want []Claim) error {
	have, err := claims()
	if err != nil {
		return err
	}
	keep := map[netip.Addr]Claim{}
	for _, c := range want {
		keep[c.Addr] = c
	}
	for a := range have {
		if _, ok := keep[a]; !ok {
			if err := Disclaim([]netip.Addr{a}); err != nil {
				return err
			}
		}
	}
	for _, c := range want {
		if err := claim(c, have[c.Addr]); err != nil {
			return err
		}
	}
	return nil
}

// claims reads where claimed addresses lead now.
func claims() (map[netip.Addr]netip.Addr, error) {
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: claimProtocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, kernelError("list claimed addresses", err)
	}
	out := map[netip.Addr]netip.Addr{}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, _ := netip.AddrFromSlice(r.Dst.IP)
		via, _ := netip.AddrFromSlice(r.Gw)
		out[a.Unmap()] = via.Unmap()
	}
	return out, nil
}

func claim(c Claim, was netip.Addr) error {
	// The route first: without it the host would not answer.
	r := &netlink.Route{Dst: &net.IPNet{IP: c.Addr.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: c.Via.AsSlice(), LinkIndex: c.Link, Protocol: claimProtocol, Table: unix.RT_TABLE_MAIN}
	if err := netlink.RouteReplace(r); err != nil {
		return kernelError("route claimed address "+c.Addr.String(), err)
	}
	for _, l := range c.Links {
		n := &netlink.Neigh{LinkIndex: l, Family: unix.AF_INET, Flags: netlink.NTF_PROXY, IP: c.Addr.AsSlice()}
		if err := netlink.NeighSet(n); err != nil && !errors.Is(err, unix.EEXIST) {
			return kernelError("answer for "+c.Addr.String(), err)
		}
		if was != c.Via {
			if err := tellNeighbours(l, c.Addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// Disclaim stops answering for addresses, whoever claimed them. Nil when nobody did.
func Disclaim(addrs []netip.Addr) error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return kernelError("list links", err)
	}
	var failed error
	for _, a := range addrs {
		for _, l := range links {
			n := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET, Flags: netlink.NTF_PROXY, IP: a.AsSlice()}
			if err := netlink.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
				failed = errors.Join(failed, kernelError("answer for "+a.String()+" no more", err))
			}
		}
		r := &netlink.Route{Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}, Protocol: claimProtocol, Table: unix.RT_TABLE_MAIN}
		if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = errors.Join(failed, kernelError("take away the route to "+a.String(), err))
		}
	}
	return failed
}

// LinksAt lists the links on which an address would be a neighbour: those with a prefix that contains
// it, but not the link except; none has one: those of the default routes.
func (h *Handle) LinksAt(a netip.Addr, except int) ([]int, error) {
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	var out []int
	for _, l := range links {
		if l.Index == except {
			continue
		}
		addrs, err := h.Addrs(l.Index)
		if err != nil {
			return nil, err
		}
		for _, p := range addrs {
			if p.Contains(a) && p.Bits() < 32 {
				out = append(out, l.Index)
				break
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	ups, err := h.Uplinks()
	for _, l := range ups {
		if l.Index != except {
			out = append(out, l.Index)
		}
	}
	return out, err
}

// tellNeighbours sends a gratuitous ARP (RFC 5944, section 4.6), so that whoever has the address in its
// table finds it here at once.
func tellNeighbours(link int, a netip.Addr) error {
	l, err := netlink.LinkByIndex(link)
	if err != nil {
		return kernelError("find link", err)
	}
	mac := l.Attrs().HardwareAddr
	if len(mac) != 6 {
		return nil // a link without ARP
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return kernelError("open packet socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrLinklayer{Ifindex: link, Halen: 6, Protocol: binary.NativeEndian.Uint16([]byte{0x08, 0x06})}
	for i := range 6 {
		to.Addr[i] = 0xff
	}
	for _, op := range []byte{1, 2} { // some hosts heed requests only, some replies only
		frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
		frame = append(frame, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, op)
		frame = append(append(frame, mac...), a.AsSlice()...)
		frame = append(append(frame, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), a.AsSlice()...)
		if err := unix.Sendto(fd, frame, 0, to); err != nil && !errors.Is(err, unix.ENETDOWN) {
			return kernelError("tell neighbours of "+a.String(), err)
		}
	}
	return nil
}

// ForgetFlows ends the kernel's memory of IPv4 flows that came to or went out under addresses, in the
// namespace of the calling thread.
func ForgetFlows(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return kernelError("open conntrack socket", err)
	}
	defer h.Close()
	f := flowsOf{}
	for _, a := range addrs {
		f[a] = true
	}
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f); err != nil && !errors.Is(err, errs.NotFound) {
		return kernelError("forget flows", err)
	}
	return nil
}

type flowsOf map[netip.Addr]bool

// MatchConntrackFlow reports whether the flow is to one of the addresses, or under it.
func (f flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	under, _ := netip.AddrFromSlice(flow.Reverse.DstIP)
	return f[to.Unmap()] || f[under.Unmap()]
}
