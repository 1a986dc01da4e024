package netlink

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// A network of a tenant is a namespace with a switch (a bridge), a tunnel (a VXLAN device) and
// wires (veth pairs) into instances. Where what is, is written into the tables: the
// switch learns and floods nothing.

// Switch is a network's bridge.
type Switch struct {
	Name  string
	ID    string // what follows AliasPrefix in its alias
	Index int    // unique on the host, so that programs know the network by it
	MAC   net.HardwareAddr
	MTU   int
	Addrs []netip.Prefix // the gateway's
}

// EnsureSwitch makes the bridge exist and be as described. h is the
// network's namespace, in which everything is ours.
func (h *Handle) EnsureSwitch(s Switch) error {
	l, err := h.Link(s.Name)
	if err == nil && l.Index != s.Index {
		if err = h.DeleteIndex(l.Index); err == nil {
			err = errs.New(errs.NotFound, "%s had another index", s.Name)
		}
	}
	if errors.Is(err, errs.NotFound) {
		l, err = h.createSwitch(s)
	}
	if err != nil {
		return err
	}
	if l.Alias != AliasPrefix+s.ID || !l.Up || l.MTU != s.MTU || !bytes.Equal(l.MAC, s.MAC) {
		if err := h.setBridge(l.Index, Bridge{Name: s.Name, ID: s.ID, MAC: s.MAC, MTU: s.MTU}); err != nil {
			return err
		}
	}
	return h.setAddrs(l.Index, s.Addrs)
}

func (h *Handle) createSwitch(s Switch) (Link, error) {
	req := h.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(s.Index) //nolint:gosec // an index
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(s.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, s.MAC))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(unix.IFLA_BR_MCAST_SNOOPING, []byte{0}) // groups are not forwarded at all
	req.AddData(info)
	if err := do(req); err != nil {
		return Link{}, kernelError("create switch "+s.Name, err)
	}
	return h.Link(s.Name)
}

// setAddrs makes these the link's addresses, besides link-local ones.
func (h *Handle) setAddrs(index int, want []netip.Prefix) error {
	have, err := h.Addrs(index)
	if err != nil {
		return err
	}
	for _, a := range have {
		if !a.Addr().IsLinkLocalUnicast() && !slices.Contains(want, a) {
			if err := h.DelAddr(index, a); err != nil {
				return err
			}
		}
	}
	for _, a := range want {
		if !slices.Contains(have, a) {
			if err := h.AddAddr(index, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// Tunnel is a network's VXLAN device. Its group policy field carries the packet mark.
type Tunnel struct {
	Name  string
	VNI   uint32
	Local netip.Addr // of this host
	Port  uint16     // UDP
	MTU   int
}

// id is what a tunnel is known by: of a device only the MTU can be changed.
func (t Tunnel) id() string { return fmt.Sprintf("tunnel %d %s %d", t.VNI, t.Local, t.Port) }

// EnsureTunnel makes the device exist in the network's namespace and on its switch; its packets go
// through the namespace of h, the host's. It returns the index there. errs.Exists while there is
// one of the same number in another namespace, such as one that the kernel is taking down.
func (h *Handle) EnsureTunnel(ns *Namespace, bridge int, t Tunnel) (int, error) {
	in, err := OpenAt(ns)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	l, err := in.Link(t.Name)
	if err == nil && l.ID() != t.id() {
		if err = in.DeleteIndex(l.Index); err == nil {
			err = errs.New(errs.NotFound, "%s was of another kind", t.Name)
		}
	}
	if errors.Is(err, errs.NotFound) {
		if err = h.createTunnel(ns, t); err == nil {
			l, err = in.Link(t.Name)
		}
	}
	if err != nil {
		return 0, err
	}
	if l.ID() == t.id() && l.Master == bridge && l.Up && l.MTU == t.MTU {
		return l.Index, nil
	}
	if err := in.portUp(l.Index, bridge, t.MTU, t.id()); err != nil {
		return 0, err
	}
	return l.Index, in.quiet(l.Index, 0)
}

func (h *Handle) createTunnel(ns *Namespace, t Tunnel) error {
	req := h.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(t.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(t.MTU)))) //nolint:gosec // a packet's size
	req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.FD()))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(unix.IFLA_VXLAN_ID, nl.Uint32Attr(t.VNI))
	local := unix.IFLA_VXLAN_LOCAL
	if t.Local.Is6() {
		local = unix.IFLA_VXLAN_LOCAL6
		data.AddRtAttr(unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, []byte{0})
	}
	data.AddRtAttr(local, t.Local.AsSlice())
	data.AddRtAttr(unix.IFLA_VXLAN_PORT, []byte{byte(t.Port >> 8), byte(t.Port)})
	data.AddRtAttr(unix.IFLA_VXLAN_LEARNING, []byte{0})
	data.AddRtAttr(unix.IFLA_VXLAN_GBP, nil)
	req.AddData(info)
	if err := do(req); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return errs.New(errs.Conflict, "UDP port %d of this host is in use by another overlay", t.Port).
				WithHint("choose another port for networks of tenants, the same on all hosts: tunnelPort in the section of driver overlay")
		}
		return kernelError("create tunnel "+t.Name, err)
	}
	return nil
}

// portUp puts a link on the switch, names it and brings it up.
func (h *Handle) portUp(index, bridge, mtu int, id string) error {
	req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP //nolint:gosec // an index
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(AliasPrefix+id)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))       //nolint:gosec // a packet's size
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge)))) //nolint:gosec // an index
	if err := do(req); err != nil {
		return kernelError("put "+id+" on the switch", err)
	}
	return nil
}

// quiet makes a port of the switch one that learns and floods nothing: who asks who has an
// address is answered by the wall, at the port where it is asked. guard: what is behind it takes no part in spanning tree.
func (h *Handle) quiet(index int, guard byte) error {
	req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index) //nolint:gosec // an index
	req.AddData(msg)
	prot := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for _, f := range []int{nl.IFLA_BRPORT_LEARNING, nl.IFLA_BRPORT_UNICAST_FLOOD, nl.IFLA_BRPORT_MCAST_FLOOD, nl.IFLA_BRPORT_BCAST_FLOOD} {
		prot.AddRtAttr(f, []byte{0})
	}
	prot.AddRtAttr(nl.IFLA_BRPORT_GUARD, []byte{guard})
	req.AddData(prot)
	if err := do(req); err != nil {
		return kernelError(fmt.Sprintf("set the flags of port %d", index), err)
	}
	return nil
}

// Wire is an instance's cable to the switch.
type Wire struct {
	Name     string // of the switch's end
	ID       string // what follows AliasPrefix in its alias
	Index    int    // of the switch's end: unique on the host, so that programs know the port by it
	Bridge   int    // the switch
	MTU      int
	Peer     string // name of the instance's end
	MAC      net.HardwareAddr
	Addrs    []netip.Prefix // of the instance's end
	Gateways []netip.Addr   // default routes by the instance's end; none: it has another way out
}

// EnsureWire makes the cable exist between the switch and the instance's namespace, up on both ends
// and addressed inside. before is called when the switch's end exists and is not on the switch
// yet: nothing can pass. h is the network's namespace.
func (h *Handle) EnsureWire(ns *Namespace, w Wire, before func() error) error {
	guest, err := OpenAt(ns)
	if err != nil {
		return err
	}
	defer guest.Close()
	peer, err := h.wire(guest, ns, w)
	if err != nil {
		return err
	}
	if err := before(); err != nil {
		return err
	}
	if err := h.portUp(w.Index, w.Bridge, w.MTU, w.ID); err != nil {
		return err
	}
	if err := h.quiet(w.Index, 1); err != nil {
		return err
	}
	if err := h.fdb(w.Index, w.MAC, netip.Addr{}); err != nil {
		return err
	}
	if err := guest.LoopbackUp(); err != nil {
		return err
	}
	if err := guest.setAddrs(peer, w.Addrs); err != nil {
		return err
	}
	if err := guest.SetUp(peer); err != nil {
		return err
	}
	for _, gw := range w.Gateways {
		if err := guest.AddDefaultRoute(peer, gw); err != nil {
			return err
		}
	}
	return h.settle(w.Name)
}

// settle has a cable carry packets at once. The kernel sees to it after both ends are up, by a work that on a
// busy host runs milliseconds later: what is sent to the end that was up first is lost until then. Since Linux 6.8
// it does the work for a link when it is asked about that link.
func (h *Handle) settle(name string) error {
	_, err := h.Link(name)
	return err
}

// wire keeps a cable that is right, or makes it anew, and returns the index of the instance's end.
func (h *Handle) wire(guest *Handle, ns *Namespace, w Wire) (int, error) {
	have, err := h.Link(w.Name)
	if err == nil {
		in, gerr := guest.Link(w.Peer)
		if have.Index == w.Index && gerr == nil && in.Index == have.Peer && in.Peer == have.Index && bytes.Equal(in.MAC, w.MAC) && in.MTU == w.MTU {
			return in.Index, nil
		}
		if err = h.DeleteIndex(have.Index); err != nil {
			return 0, err
		}
	} else if !errors.Is(err, errs.NotFound) {
		return 0, err
	}
	req := h.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(w.Index) //nolint:gosec // an index
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(w.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(w.MTU)))) //nolint:gosec // a packet's size
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("veth"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(w.Peer))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(w.MTU))) //nolint:gosec // a packet's size
	peer.AddRtAttr(unix.IFLA_ADDRESS, w.MAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.FD())))
	req.AddData(info)
	if err := do(req); err != nil {
		return 0, kernelError("create wire "+w.Name, err)
	}
	if have, err = h.Link(w.Name); err != nil {
		return 0, err
	}
	return have.Peer, nil
}

// fdb says that what is sent to mac leaves by a port of the switch; with a host, through that port,
// which is the tunnel, to that host.
func (h *Handle) fdb(port int, mac net.HardwareAddr, host netip.Addr) error {
	if err := h.entry(unix.RTM_NEWNEIGH, &ndMsg{family: unix.AF_BRIDGE, index: port, state: unix.NUD_NOARP, flags: unix.NTF_MASTER}, netip.Addr{}, mac); err != nil {
		return err
	}
	if !host.IsValid() {
		return nil
	}
	return h.entry(unix.RTM_NEWNEIGH, &ndMsg{family: unix.AF_BRIDGE, index: port, state: unix.NUD_PERMANENT, flags: unix.NTF_SELF}, host, mac)
}

// entry writes or removes one entry of the tables of forwarding and neighbours.
func (h *Handle) entry(typ int, m *ndMsg, dst netip.Addr, mac net.HardwareAddr) error {
	flags := unix.NLM_F_ACK
	if typ == unix.RTM_NEWNEIGH {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	req := h.request(typ, flags)
	req.AddData(m)
	if dst.IsValid() {
		req.AddData(nl.NewRtAttr(unix.NDA_DST, dst.AsSlice()))
	}
	if mac != nil {
		req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, mac))
	}
	err := do(req)
	if typ == unix.RTM_DELNEIGH && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)) {
		return nil
	}
	if err != nil {
		return kernelError(fmt.Sprintf("entry of %s %s on link %d", mac, dst, m.index), err)
	}
	return nil
}

// Place is where an address of a network is.
type Place struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
	Host netip.Addr // behind the tunnel; the zero Addr: on a wire of this host
}

// PutPlace writes an address into the tables of a switch. Behind a wire, the wire has its own entry
// of the hardware address already.
func (h *Handle) PutPlace(bridge, tunnel int, p Place) error {
	if p.Host.IsValid() {
		if err := h.fdb(tunnel, p.MAC, p.Host); err != nil {
			return err
		}
	}
	return h.entry(unix.RTM_NEWNEIGH, &ndMsg{family: uint8(family(p.Addr)), index: bridge, state: unix.NUD_PERMANENT}, p.Addr, p.MAC) //nolint:gosec // a family
}

// DropPlace takes an address out of the tables. last: nothing else has its hardware address.
func (h *Handle) DropPlace(bridge, tunnel int, p Place, last bool) error {
	if err := h.entry(unix.RTM_DELNEIGH, &ndMsg{family: uint8(family(p.Addr)), index: bridge}, p.Addr, nil); err != nil || !last { //nolint:gosec // a family
		return err
	}
	return h.ForgetTunnelled(tunnel, p.MAC)
}

// ForgetTunnelled takes a hardware address off the tunnel: what had it is gone, or is on a wire now.
func (h *Handle) ForgetTunnelled(tunnel int, mac net.HardwareAddr) error {
	if tunnel == 0 {
		return nil
	}
	if err := h.entry(unix.RTM_DELNEIGH, &ndMsg{family: unix.AF_BRIDGE, index: tunnel, flags: unix.NTF_SELF}, netip.Addr{}, mac); err != nil {
		return err
	}
	return h.entry(unix.RTM_DELNEIGH, &ndMsg{family: unix.AF_BRIDGE, index: tunnel, flags: unix.NTF_MASTER}, netip.Addr{}, mac)
}

// Places lists the fixed neighbours of a switch: the addresses that PutPlace wrote.
func (h *Handle) Places(bridge int) (map[netip.Addr]string, error) {
	out := map[netip.Addr]string{}
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		req := h.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddData(&ndMsg{family: uint8(fam)})
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
		if err != nil {
			return nil, kernelError("list neighbours", err)
		}
		for _, m := range msgs {
			if a, mac, ok := decodeNeighbour(m, bridge); ok {
				out[a] = mac.String()
			}
		}
	}
	return out, nil
}

// decodeNeighbour reads struct ndmsg and its attributes; ok for a fixed neighbour on the link.
func decodeNeighbour(m []byte, link int) (a netip.Addr, mac net.HardwareAddr, ok bool) {
	if len(m) < 12 || int(nl.NativeEndian().Uint32(m[4:])) != link || nl.NativeEndian().Uint16(m[8:])&unix.NUD_PERMANENT == 0 {
		return a, nil, false
	}
	for typ, v := range attrs(m[12:]) {
		switch typ {
		case unix.NDA_DST:
			a, ok = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			mac = slices.Clone(v)
		}
	}
	return a, mac, ok && len(mac) == 6
}
