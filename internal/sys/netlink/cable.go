package netlink

import (
	"bytes"
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Cable joins two networks: what is for the prefixes behind its other end is routed there. Its ends have no
// addresses; each knows the other by one that is only said to be there.
type Cable struct {
	ID        string // what follows AliasPrefix in the aliases
	MTU       int
	Near, Far CableEnd
}

// CableEnd is one end, and the network that it is in.
type CableEnd struct {
	Name     string
	MAC      net.HardwareAddr
	Prefixes []netip.Prefix // of the network
	Gateways []netip.Addr   // its own addresses, one in each prefix
}

// beyond are the addresses by which each end sends to the other.
var beyond = []netip.Addr{netip.MustParseAddr("169.254.0.1"), netip.MustParseAddr("fe80::1")}

// EnsureCable makes the cable exist, up, with the routes on both sides. h is in the namespace of the near end.
func (h *Handle) EnsureCable(far *Namespace, c Cable) error {
	other, err := OpenAt(far)
	if err != nil {
		return err
	}
	defer other.Close()
	near, err := h.cable(other, far, c)
	if err != nil {
		return err
	}
	if err := h.cableEnd(near.Index, c, c.Near, c.Far); err != nil {
		return err
	}
	return other.cableEnd(near.Peer, c, c.Far, c.Near)
}

// cable keeps one that is right, or makes it anew.
func (h *Handle) cable(other *Handle, far *Namespace, c Cable) (Link, error) {
	have, err := h.Link(c.Near.Name)
	in, ferr := other.Link(c.Far.Name)
	if err == nil && ferr == nil && have.Peer == in.Index && in.Peer == have.Index && bytes.Equal(have.MAC, c.Near.MAC) && bytes.Equal(in.MAC, c.Far.MAC) && have.MTU == c.MTU && in.MTU == c.MTU {
		return have, nil
	}
	for _, l := range []struct {
		h    *Handle
		name string
		err  error
		is   Link
	}{{h, c.Near.Name, err, have}, {other, c.Far.Name, ferr, in}} {
		if l.err == nil {
			l.err = l.h.DeleteIndex(l.is.Index)
		}
		if l.err != nil && !errors.Is(l.err, errs.NotFound) {
			return Link{}, l.err
		}
	}
	req := h.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(c.Near.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(c.MTU)))) //nolint:gosec // a packet's size
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, c.Near.MAC))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("veth"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(c.Far.Name))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(c.MTU))) //nolint:gosec // a packet's size
	peer.AddRtAttr(unix.IFLA_ADDRESS, c.Far.MAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(far.FD())))
	req.AddData(info)
	if err := do(req); err != nil {
		return Link{}, kernelError("create cable "+c.Near.Name, err)
	}
	return h.Link(c.Near.Name)
}

// cableEnd brings one end up and routes what is for the other network to it.
func (h *Handle) cableEnd(index int, c Cable, own, other CableEnd) error {
	req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP //nolint:gosec // an index
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(AliasPrefix+c.ID)))
	if err := do(req); err != nil {
		return kernelError("bring up "+own.Name, err)
	}
	for _, a := range beyond {
		if err := h.entry(unix.RTM_NEWNEIGH, &ndMsg{family: uint8(family(a)), index: index, state: unix.NUD_PERMANENT}, a, other.MAC); err != nil { //nolint:gosec // a family
			return err
		}
	}
	for _, p := range other.Prefixes {
		r := Route{To: p, Via: beyond[0], Index: index}
		if p.Addr().Is6() {
			r.Via = beyond[1]
		}
		for i, g := range own.Gateways { // what the network itself says, such as that a packet is too large
			if i < len(own.Prefixes) && g.Is4() == p.Addr().Is4() {
				r.From = g
			}
		}
		if err := h.SetRoute(r); err != nil {
			return err
		}
	}
	return h.settle(own.Name)
}

// Route is a way to a prefix.
type Route struct {
	To    netip.Prefix
	Via   netip.Addr // of the next hop, which is taken to be behind the link; the zero Addr: the destination is
	Index int        // of the link; 0: nothing is let through
	From  netip.Addr // by which this side speaks, if it has something to say; zero: any
}

// SetRoute makes this the way to its prefix.
func (h *Handle) SetRoute(r Route) error {
	req := h.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(r.message())
	r.attributes(req)
	if err := do(req); err != nil {
		return kernelError("route to "+r.To.String(), err)
	}
	return nil
}

// DropRoute takes a way to a prefix away. Nil when it is not there.
func (h *Handle) DropRoute(r Route) error {
	req := h.request(unix.RTM_DELROUTE, unix.NLM_F_ACK)
	req.AddData(r.message())
	r.attributes(req)
	if err := do(req); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) {
		return kernelError("take the route to "+r.To.String()+" away", err)
	}
	return nil
}

func (r Route) message() *nl.RtMsg {
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len, msg.Protocol = uint8(family(r.To.Addr())), uint8(r.To.Bits()), routeProtocol //nolint:gosec // a family, a length
	switch {
	case r.Index == 0:
		msg.Type = unix.RTN_UNREACHABLE
	case r.Via.IsValid():
		msg.Flags = unix.RTNH_F_ONLINK
	case r.To.Addr().Is4():
		msg.Scope = unix.RT_SCOPE_LINK
	}
	return msg
}

func (r Route) attributes(req *nl.NetlinkRequest) {
	req.AddData(nl.NewRtAttr(unix.RTA_DST, r.To.Masked().Addr().AsSlice()))
	if r.Index != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(r.Index)))) //nolint:gosec // an index
	}
	if r.Via.IsValid() && r.Index != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Via.AsSlice()))
	}
	if r.From.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, r.From.AsSlice()))
	}
}

// routeProtocol marks our routes: what is set by an administrator has another.
const routeProtocol = 97

// Routes lists the ways that SetRoute made: those by a link, and those that lead nowhere, whose index is 0.
func (h *Handle) Routes(index int) ([]Route, error) {
	var out []Route
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		req := h.request(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(fam))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
		if err != nil {
			return nil, kernelError("list routes", err)
		}
		for _, m := range msgs {
			if r, ok := decodeRoute(m); ok && (r.Index == index || r.Index == 0) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// decodeRoute reads struct rtmsg and its attributes; false: it is none of ours.
func decodeRoute(m []byte) (r Route, ok bool) {
	if len(m) < unix.SizeofRtMsg || m[4] != unix.RT_TABLE_MAIN || m[5] != routeProtocol || m[7] != unix.RTN_UNICAST && m[7] != unix.RTN_UNREACHABLE {
		return r, false
	}
	to := netip.IPv4Unspecified()
	if m[0] == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	for typ, v := range attrs(m[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(v)
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			r.Index = u32(v)
		}
	}
	if m[7] == unix.RTN_UNREACHABLE {
		r.Index = 0
	}
	if int(m[1]) > to.BitLen() {
		return r, false
	}
	r.To = netip.PrefixFrom(to, int(m[1]))
	return r, r.To.IsValid()
}
