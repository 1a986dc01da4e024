package netlink

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// KindWireguard is a link of the kernel's WireGuard; a process has one of KindTun.
const (
	KindWireguard = "wireguard"
	KindTun       = "tun"
)

// CreateWireguard makes a link of the kernel's WireGuard. errs.Unsupported where the kernel has none; errs.Exists when
// there is a link of that name.
func (h *Handle) CreateWireguard(name string) error {
	req := h.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte(KindWireguard))
	req.AddData(info)
	err := do(req)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
		return errs.New(errs.Unsupported, "the kernel has no WireGuard: %w", err)
	}
	if err != nil {
		return kernelError("create WireGuard "+name, err)
	}
	return nil
}

// ProbeWireguard makes a link of the kernel's WireGuard in a namespace that is thrown away.
func ProbeWireguard() error {
	ns, err := NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := OpenAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.CreateWireguard("probe0")
}

// Dress names a link of WireGuard as ours, addresses it and brings it up. What is right already is left alone.
func (h *Handle) Dress(l Link, id string, mtu int, addr netip.Prefix) error {
	if l.Alias != AliasPrefix+id || !l.Up || l.MTU != mtu {
		req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index, msg.Flags, msg.Change = int32(l.Index), unix.IFF_UP, unix.IFF_UP //nolint:gosec // an index
		req.AddData(msg)
		req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(AliasPrefix+id)))
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))) //nolint:gosec // a packet's size
		if err := do(req); err != nil {
			return kernelError("set up "+l.Name, err)
		}
	}
	return h.setAddrs(l.Index, []netip.Prefix{addr})
}

// SetMTU sets the size of packets of a link.
func (h *Handle) SetMTU(index, mtu int) error {
	req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index) //nolint:gosec // an index
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))) //nolint:gosec // a packet's size
	if err := do(req); err != nil {
		return kernelError("set the MTU of a link", err)
	}
	return nil
}
