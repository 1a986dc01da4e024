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

// Bridge is a bridge as it should be.
type Bridge struct {
	Name string // up to 15 bytes
	ID   string // what follows AliasPrefix in its alias
	MAC  net.HardwareAddr
	MTU  int // bytes, > 0
	Addr netip.Prefix
}

// EnsureBridge makes the bridge exist and be as described, and returns its index.
// errs.Conflict when a link of that name is there and not ours.
func (h *Handle) EnsureBridge(b Bridge) (int, error) {
	l, err := h.Link(b.Name)
	switch {
	case errors.Is(err, errs.NotFound):
		if l, err = h.createBridge(b); err != nil {
			return 0, err
		}
	case err != nil:
		return 0, err
	case l.Kind != "bridge" || (l.Alias != "" && l.Alias != AliasPrefix+b.ID):
		return 0, notOurs(l)
	case l.Alias == "":
		// Ours from a life that was cut short between making and naming it, or someone
		// else's: only an empty one with the address we give (or none) is taken for ours.
		if !bytes.Equal(l.MAC, b.MAC) {
			return 0, notOurs(l)
		}
	}
	if l.Alias != AliasPrefix+b.ID || !l.Up || l.MTU != b.MTU || !bytes.Equal(l.MAC, b.MAC) {
		if err := h.setBridge(l.Index, b); err != nil {
			return 0, err
		}
	}
	have, err := h.Addrs(l.Index)
	if err != nil {
		return 0, err
	}
	for _, a := range have {
		if a.Addr().Is4() && a != b.Addr {
			if err := h.DelAddr(l.Index, a); err != nil {
				return 0, err
			}
		}
	}
	return l.Index, h.AddAddr(l.Index, b.Addr)
}

// DeleteBridge removes the bridge, named or not yet; nil when it is gone. One that is
// not ours stays, with errs.Conflict.
func (h *Handle) DeleteBridge(b Bridge) error {
	l, err := h.Link(b.Name)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.Kind != "bridge" || (l.ID() != b.ID && (l.Alias != "" || !bytes.Equal(l.MAC, b.MAC))) {
		return notOurs(l)
	}
	return h.DeleteIndex(l.Index)
}

func (h *Handle) createBridge(b Bridge) (Link, error) {
	req := h.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(b.Name)))
	// The address is set with the first message so that an unnamed bridge is known for ours.
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, b.MAC))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("bridge"))
	req.AddData(info)
	if err := do(req); err != nil {
		return Link{}, kernelError("create bridge "+b.Name, err)
	}
	return h.Link(b.Name)
}

func (h *Handle) setBridge(index int, b Bridge) error {
	req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(AliasPrefix+b.ID)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(b.MTU))))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, b.MAC))
	if err := do(req); err != nil {
		return kernelError("set up bridge "+b.Name, err)
	}
	return nil
}

// Port is one instance's cable: a veth from the bridge into its namespace.
type Port struct {
	Name   string           // of the host's end
	ID     string           // what follows AliasPrefix in its alias
	Bridge int              // index
	MTU    int              // bytes, > 0
	Peer   string           // name of the instance's end
	MAC    net.HardwareAddr // of the instance's end
	Addr   netip.Prefix     // of the instance's end
	GW     netip.Addr
}

// EnsurePort makes the cable exist between the bridge and the namespace, addressed and
// up on both ends, with a default route inside. host is the bridge's namespace.
// errs.NotFound when the bridge is gone.
func (h *Handle) EnsurePort(ns *Namespace, p Port) error {
	guest, err := OpenAt(ns)
	if err != nil {
		return err
	}
	defer guest.Close()
	err = h.createVeth(ns, p)
	if errors.Is(err, errs.Exists) {
		err = h.reuseVeth(guest, ns, p)
	}
	if err != nil {
		return err
	}
	host, err := h.Link(p.Name)
	if err != nil {
		return err
	}
	if err := h.plug(host.Index, p); err != nil {
		return err
	}
	if err := guest.configure(host.Peer, p); err != nil {
		return err
	}
	return h.settle(p.Name)
}

// createVeth makes both ends with one message: named, addressed, and the instance's
// end born in its own namespace.
func (h *Handle) createVeth(ns *Namespace, p Port) error {
	req := h.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(p.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(p.MTU))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("veth"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC) // not up yet: a veth refuses that before it has both ends
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(p.Peer))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(p.MTU)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, p.MAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.FD())))
	req.AddData(info)
	if err := do(req); err != nil {
		return kernelError("create veth "+p.Name, err)
	}
	return nil
}

// reuseVeth keeps an existing cable when both its ends are right, and makes a new one otherwise.
func (h *Handle) reuseVeth(guest *Handle, ns *Namespace, p Port) error {
	host, err := h.Link(p.Name)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if err == nil {
		if host.Kind != "veth" || (host.Alias != "" && host.ID() != p.ID) {
			return notOurs(host)
		}
		in, err := guest.Link(p.Peer)
		if err == nil && in.Index == host.Peer && in.Peer == host.Index && bytes.Equal(in.MAC, p.MAC) {
			return nil
		}
		if err := h.DeleteIndex(host.Index); err != nil {
			return err
		}
	}
	if err := h.createVeth(ns, p); err != nil {
		return fmt.Errorf("put %s into the instance's namespace: %w", p.Peer, err)
	}
	return nil
}

// plug names the host's end, puts it on the bridge and brings it up. The bridge learns
// nothing from it and floods nothing unknown to it: where its one address is stands in
// a fixed entry, so an instance neither sees nor attracts what is not meant for it.
func (h *Handle) plug(index int, p Port) error {
	req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(AliasPrefix+p.ID)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(p.MTU))))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(p.Bridge))))
	if err := do(req); err != nil {
		if errors.Is(err, unix.EINVAL) { // what the kernel says of a master that does not exist, among other things
			if links, lerr := h.Links(); lerr == nil && !slices.ContainsFunc(links, func(l Link) bool { return l.Index == p.Bridge }) {
				err = unix.ENODEV
			}
		}
		return kernelError(fmt.Sprintf("put %s on the bridge", p.Name), err)
	}
	req = h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg = nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	prot := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for _, f := range []int{nl.IFLA_BRPORT_LEARNING, nl.IFLA_BRPORT_UNICAST_FLOOD, nl.IFLA_BRPORT_MCAST_FLOOD} {
		prot.AddRtAttr(f, []byte{0})
	}
	prot.AddRtAttr(nl.IFLA_BRPORT_GUARD, []byte{1}) // a guest must not take part in spanning tree
	prot.AddRtAttr(nl.IFLA_BRPORT_MODE, []byte{1})  // with br_netfilter its own published port comes back out of the port it went in
	req.AddData(prot)
	if err := do(req); err != nil {
		return kernelError("set port flags of "+p.Name, err)
	}
	if err := h.neigh(unix.AF_BRIDGE, index, netip.Addr{}, p.MAC); err != nil {
		return err
	}
	return h.neigh(unix.AF_INET, p.Bridge, p.Addr.Addr(), p.MAC)
}

// neigh writes a fixed forwarding entry (AF_BRIDGE: mac is behind port index) or a
// fixed neighbour (AF_INET: ip on link index has mac).
func (h *Handle) neigh(fam, index int, ip netip.Addr, mac net.HardwareAddr) error {
	req := h.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(ndmsg(fam, index))
	if ip.IsValid() {
		req.AddData(nl.NewRtAttr(unix.NDA_DST, ip.AsSlice()))
	}
	req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, mac))
	if err := do(req); err != nil {
		return kernelError("fix the place of "+mac.String(), err)
	}
	return nil
}

// ForgetNeigh removes the fixed neighbour of an address; nil when there is none.
func (h *Handle) ForgetNeigh(bridge int, ip netip.Addr) error {
	req := h.request(unix.RTM_DELNEIGH, unix.NLM_F_ACK)
	req.AddData(ndmsg(unix.AF_INET, bridge))
	req.AddData(nl.NewRtAttr(unix.NDA_DST, ip.AsSlice()))
	if err := do(req); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return kernelError("forget neighbour "+ip.String(), err)
	}
	return nil
}

// ndMsg is struct ndmsg.
type ndMsg struct {
	family uint8
	index  int
	state  uint16
	flags  uint8
}

func ndmsg(fam, index int) *ndMsg {
	m := &ndMsg{family: uint8(fam), index: index, state: unix.NUD_PERMANENT}
	if fam == unix.AF_BRIDGE {
		m.state = unix.NUD_NOARP
		m.flags = unix.NTF_MASTER
	}
	return m
}

func (m *ndMsg) Len() int { return 12 }

func (m *ndMsg) Serialize() []byte {
	b := make([]byte, 12)
	b[0] = m.family
	nl.NativeEndian().PutUint32(b[4:], uint32(m.index))
	nl.NativeEndian().PutUint16(b[8:], m.state)
	b[10] = m.flags
	return b
}

// configure finishes the instance's side; it is made for a fresh namespace but safe in any.
func (h *Handle) configure(index int, p Port) error {
	if err := h.LoopbackUp(); err != nil {
		return err
	}
	if err := h.AddAddr(index, p.Addr); err != nil {
		return err
	}
	if err := h.SetUp(index); err != nil {
		return err
	}
	return h.AddDefaultRoute(index, p.GW)
}

// LoopbackUp brings lo up; it is the first link of every namespace.
func (h *Handle) LoopbackUp() error { return h.SetUp(1) }

// PortMAC derives the fixed hardware address of an IPv4 address: locally administered, unicast.
func PortMAC(ip netip.Addr) net.HardwareAddr {
	a := ip.As4()
	return net.HardwareAddr{0x02, 0xa7, a[0], a[1], a[2], a[3]}
}
