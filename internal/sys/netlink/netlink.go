// Package netlink is the door to the kernel's links, addresses, routes and
// network namespaces: just what the network drivers need, in few messages.
//
// Everything goes through a Handle, a socket that belongs to one network
// namespace for good; no call ever leaves a thread in another namespace. It
// starts no goroutines. It must never change or delete a link whose name and
// alias do not both say that it is ours: callers give names, this package checks
// the alias.
package netlink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// AliasPrefix starts the alias of every link we make, such as "atoll x1f3".
const AliasPrefix = "atoll "

// Handle is a socket into one network namespace. It may be used by many goroutines.
type Handle struct{ socks map[int]*nl.SocketHandle }

// Open opens the namespace the process runs in.
func Open() (*Handle, error) { return open(netns.None()) }

// OpenAt opens the namespace ns.
func OpenAt(ns *Namespace) (*Handle, error) { return open(netns.NsHandle(ns.FD())) }

func open(ns netns.NsHandle) (*Handle, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, kernelError("open netlink socket", err)
	}
	return &Handle{socks: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

// Close releases the socket.
func (h *Handle) Close() {
	for _, s := range h.socks {
		s.Close()
	}
}

func (h *Handle) request(typ, flags int) *nl.NetlinkRequest {
	return &nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr), Type: uint16(typ), Flags: unix.NLM_F_REQUEST | uint16(flags)},
		Sockets:  h.socks,
	}
}

func do(req *nl.NetlinkRequest) error {
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Link is what is known of one interface.
type Link struct {
	Name, Alias, Kind string
	Index             int
	Master            int // index of its bridge, 0 when none
	Peer              int // a veth's other end, as an index in that end's namespace
	MTU               int
	MAC               net.HardwareAddr
	Up                bool
}

// ID is what follows AliasPrefix in the alias; "" when the link is not ours.
func (l Link) ID() string {
	id, ok := strings.CutPrefix(l.Alias, AliasPrefix)
	if !ok {
		return ""
	}
	return id
}

// Link looks a link up by name; errs.NotFound when there is none.
func (h *Handle) Link(name string) (Link, error) {
	if len(name) >= unix.IFNAMSIZ {
		return Link{}, errs.New(errs.Invalid, "interface name %q is longer than %d bytes", name, unix.IFNAMSIZ-1)
	}
	req := h.request(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return Link{}, kernelError("look up link "+name, err)
	}
	if len(msgs) != 1 {
		return Link{}, errs.New(errs.Internal, "look up link %s: %d answers", name, len(msgs))
	}
	return decodeLink(msgs[0])
}

// Links lists every link of the namespace.
func (h *Handle) Links() ([]Link, error) {
	// A dump that ran into a change is repeated; the last one counts.
	for range 4 {
		req := h.request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, kernelError("list links", err)
		}
		out := make([]Link, 0, len(msgs))
		for _, m := range msgs {
			l, err := decodeLink(m)
			if err != nil {
				return nil, err
			}
			out = append(out, l)
		}
		return out, nil
	}
	return nil, errs.New(errs.Unavailable, "list links: they change too fast")
}

// decodeLink reads one RTM_NEWLINK message. The kernel wrote it, but a message
// cut short must be an error, not a panic.
func decodeLink(m []byte) (Link, error) {
	if len(m) < unix.SizeofIfInfomsg {
		return Link{}, errs.New(errs.Internal, "link message of %d bytes is too short", len(m))
	}
	info := nl.DeserializeIfInfomsg(m)
	l := Link{Index: int(info.Index), Up: info.Flags&unix.IFF_UP != 0}
	for typ, v := range attrs(m[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = cstring(v)
		case unix.IFLA_IFALIAS:
			l.Alias = cstring(v)
		case unix.IFLA_MASTER:
			l.Master = u32(v)
		case unix.IFLA_LINK:
			l.Peer = u32(v)
		case unix.IFLA_MTU:
			l.MTU = u32(v)
		case unix.IFLA_ADDRESS:
			l.MAC = net.HardwareAddr(append([]byte(nil), v...))
		case unix.IFLA_LINKINFO:
			for t, w := range attrs(v) {
				if t == nl.IFLA_INFO_KIND {
					l.Kind = cstring(w)
				}
			}
		}
	}
	return l, nil
}

// attrs walks a list of netlink attributes and stops at the first that does not fit.
func attrs(b []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(nl.NativeEndian().Uint16(b))
			typ := nl.NativeEndian().Uint16(b[2:]) & nl.NLA_TYPE_MASK
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(typ, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}

func u32(b []byte) int {
	if len(b) < 4 {
		return 0
	}
	return int(nl.NativeEndian().Uint32(b))
}

func cstring(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// Delete removes the link of that name and ID. Nil when it is gone already;
// errs.Conflict when a link of that name is not ours.
func (h *Handle) Delete(name, id string) error {
	l, err := h.Link(name)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// A cable without an alias is one whose maker was killed before it could name it.
	if l.ID() != id && !l.Nameless() {
		return notOurs(l)
	}
	return h.DeleteIndex(l.Index)
}

// Nameless tells a veth, or an ifb, that nobody named or plugged in. One whose name is of our making
// is a leftover of ours.
func (l Link) Nameless() bool {
	return (l.Kind == "veth" || l.Kind == "ifb") && l.Alias == "" && l.Master == 0
}

// DeleteIndex removes the link with that index. Nil when it is gone already.
// The caller has seen that it is ours.
func (h *Handle) DeleteIndex(index int) error {
	req := h.request(unix.RTM_DELLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	if err := do(req); err != nil && !errors.Is(err, unix.ENODEV) {
		return kernelError(fmt.Sprintf("delete link %d", index), err)
	}
	return nil
}

func notOurs(l Link) error {
	return errs.New(errs.Conflict, "interface %s exists and is not ours (alias %q)", l.Name, l.Alias).
		WithHint("rename or remove it, or give Atoll's bridge another name")
}

// AddAddr puts an address on a link; nil when it is there already.
func (h *Handle) AddAddr(index int, p netip.Prefix) error {
	req := h.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	msg := nl.NewIfAddrmsg(family(p.Addr()))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(p.Bits())
	if p.Addr().Is6() {
		msg.Flags = unix.IFA_F_NODAD // the store sees to it that it is nobody else's
	}
	req.AddData(msg)
	ip := p.Addr().AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip))
	if p.Addr().Is4() && p.Bits() < 31 {
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, lastAddr(p).AsSlice()))
	}
	if err := do(req); err != nil && !errors.Is(err, unix.EEXIST) {
		return kernelError("add address "+p.String(), err)
	}
	return nil
}

// Addrs lists the addresses of a link, 0 for all links.
func (h *Handle) Addrs(index int) ([]netip.Prefix, error) {
	req := h.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, kernelError("list addresses", err)
	}
	var out []netip.Prefix
	for _, m := range msgs {
		if p, i, ok := decodeAddr(m); ok && (index == 0 || i == index) {
			out = append(out, p)
		}
	}
	return out, nil
}

// LinkWith finds the link that has an address; errs.NotFound when none has.
func (h *Handle) LinkWith(a netip.Addr) (Link, error) {
	req := h.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return Link{}, kernelError("list addresses", err)
	}
	links, err := h.Links()
	if err != nil {
		return Link{}, err
	}
	for _, m := range msgs {
		p, index, ok := decodeAddr(m)
		if !ok || p.Addr() != a {
			continue
		}
		for _, l := range links {
			if l.Index == index {
				return l, nil
			}
		}
	}
	return Link{}, errs.New(errs.NotFound, "no interface of this host has the address %s", a)
}

func decodeAddr(m []byte) (netip.Prefix, int, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return netip.Prefix{}, 0, false
	}
	bits, index := int(m[1]), int(nl.NativeEndian().Uint32(m[4:]))
	var local, addr netip.Addr
	for typ, v := range attrs(m[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			addr, _ = netip.AddrFromSlice(v)
		}
	}
	if !local.IsValid() {
		local = addr
	}
	if !local.IsValid() || bits > local.BitLen() {
		return netip.Prefix{}, 0, false
	}
	return netip.PrefixFrom(local, bits), index, true
}

// DelAddr takes an address off a link; nil when it is not there.
func (h *Handle) DelAddr(index int, p netip.Prefix) error {
	req := h.request(unix.RTM_DELADDR, unix.NLM_F_ACK)
	msg := nl.NewIfAddrmsg(family(p.Addr()))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(p.Bits())
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	if err := do(req); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return kernelError("remove address "+p.String(), err)
	}
	return nil
}

// SetUp brings a link up.
func (h *Handle) SetUp(index int) error {
	req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	if err := do(req); err != nil {
		return kernelError(fmt.Sprintf("bring up link %d", index), err)
	}
	return nil
}

// AddDefaultRoute sends everything without a better route to gw.
func (h *Handle) AddDefaultRoute(index int, gw netip.Addr) error {
	req := h.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	msg := nl.NewRtMsg()
	msg.Family = uint8(family(gw))
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, gw.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	if err := do(req); err != nil {
		return kernelError("add default route by "+gw.String(), err)
	}
	return nil
}

// Uplinks lists the links that an IPv4 default route of the main table uses, best first.
func (h *Handle) Uplinks() ([]Link, error) { return h.uplinks(unix.AF_INET) }

// Uplinks6 is the same of IPv6.
func (h *Handle) Uplinks6() ([]Link, error) { return h.uplinks(unix.AF_INET6) }

func (h *Handle) uplinks(family int) ([]Link, error) {
	req := h.request(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(family))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, kernelError("list routes", err)
	}
	best := map[int]int{} // link -> lowest metric
	for _, m := range msgs {
		if oif, metric, ok := decodeDefault(m); ok {
			if old, seen := best[oif]; !seen || metric < old {
				best[oif] = metric
			}
		}
	}
	if len(best) == 0 {
		return nil, nil
	}
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, l := range links {
		if _, ok := best[l.Index]; ok {
			out = append(out, l)
		}
	}
	sortBy(out, func(a, b Link) bool { return best[a.Index] < best[b.Index] })
	return out, nil
}

func decodeDefault(m []byte) (oif, metric int, ok bool) {
	if len(m) < unix.SizeofRtMsg || m[1] != 0 || m[4] != unix.RT_TABLE_MAIN || m[7] != unix.RTN_UNICAST {
		return 0, 0, false
	}
	for typ, v := range attrs(m[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_OIF:
			oif = u32(v)
		case unix.RTA_PRIORITY:
			metric = u32(v)
		}
	}
	return oif, metric, oif != 0
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

func sortBy(l []Link, less func(a, b Link) bool) {
	for i := 1; i < len(l); i++ {
		for j := i; j > 0 && less(l[j], l[j-1]); j-- {
			l[j], l[j-1] = l[j-1], l[j]
		}
	}
}

// kernelError gives an errno its kind.
func kernelError(step string, err error) error {
	var no syscall.Errno
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, os.ErrNotExist):
		return errs.New(errs.NotFound, "%s: %w", step, err)
	case errors.Is(err, unix.EEXIST):
		return errs.New(errs.Exists, "%s: %w", step, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return errs.New(errs.Denied, "%s: %w", step, err).WithHint("this needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN")
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return errs.New(errs.Unsupported, "%s: %w", step, err).WithHint("the kernel lacks it: modprobe bridge veth, or use a kernel that has them")
	case errors.As(err, &no) && no.Temporary():
		return errs.New(errs.Unavailable, "%s: %w", step, err)
	}
	return fmt.Errorf("%s: %w", step, err)
}
