package netlink

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// SetXDP puts a program, by its file, on an interface, natively or in the generic way. It stays when the process ends.
// Unless replace says that what is there is ours, errs.Exists when there is one.
func (h *Handle) SetXDP(index, fd int, native, replace bool) error {
	flags := uint32(nl.XDP_FLAGS_SKB_MODE)
	if native {
		flags = nl.XDP_FLAGS_DRV_MODE
	}
	if !replace {
		flags |= nl.XDP_FLAGS_UPDATE_IF_NOEXIST
	}
	err := h.xdp(index, fd, flags)
	if errors.Is(err, unix.EBUSY) {
		return errs.New(errs.Exists, "set XDP program: %w", err)
	}
	if err != nil {
		return kernelError("set XDP program", err)
	}
	return nil
}

// UnsetXDP takes the program away again; the caller has seen that it is ours.
func (h *Handle) UnsetXDP(index int, native bool) error {
	flags := uint32(nl.XDP_FLAGS_SKB_MODE)
	if native {
		flags = nl.XDP_FLAGS_DRV_MODE
	}
	if err := h.xdp(index, -1, flags); err != nil && !errors.Is(err, unix.ENODEV) {
		return kernelError("remove XDP program", err)
	}
	return nil
}

func (h *Handle) xdp(index, fd int, flags uint32) error {
	req := h.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index) //nolint:gosec // an index
	req.AddData(msg)
	x := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	x.AddRtAttr(nl.IFLA_XDP_FD, nl.Uint32Attr(uint32(fd))) //nolint:gosec // -1 means none
	x.AddRtAttr(nl.IFLA_XDP_FLAGS, nl.Uint32Attr(flags))
	req.AddData(x)
	return do(req)
}

// XDP is the program on an interface, and whether it is there natively; 0 when there is none.
func (h *Handle) XDP(index int) (id uint32, native bool, err error) {
	req := h.request(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index) //nolint:gosec // an index
	req.AddData(msg)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return 0, false, kernelError("look for an XDP program", err)
	}
	for _, m := range msgs {
		if len(m) < unix.SizeofIfInfomsg {
			continue
		}
		for typ, v := range attrs(m[unix.SizeofIfInfomsg:]) {
			if typ&^unix.NLA_F_NESTED != unix.IFLA_XDP {
				continue
			}
			for t, w := range attrs(v) {
				switch t {
				case nl.IFLA_XDP_PROG_ID:
					id = uint32(u32(w)) //nolint:gosec // it is one
				case nl.IFLA_XDP_ATTACHED:
					native = len(w) == 1 && w[0] == nl.XDP_ATTACHED_DRV
				}
			}
		}
	}
	return id, native, nil
}

// Gateways are the next hops of all default routes, of both families.
func (h *Handle) Gateways() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		req := h.request(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(family))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, kernelError("list routes", err)
		}
		for _, m := range msgs {
			if len(m) < unix.SizeofRtMsg || m[1] != 0 {
				continue
			}
			for typ, v := range attrs(m[unix.SizeofRtMsg:]) {
				if a, ok := netip.AddrFromSlice(v); typ == unix.RTA_GATEWAY && ok {
					out = append(out, a)
				}
			}
		}
	}
	return out, nil
}
