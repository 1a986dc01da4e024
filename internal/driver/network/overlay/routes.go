package overlay

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"

	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

// Routes lead from a network's gateway to one of its members, on whatever host that is: the switch and the tunnel
// know. Where the member is, the wall lets it speak for what is behind it.

// setRoutes makes the routes of the network those it is to have.
func (n *network) setRoutes() error {
	have, err := n.link.Routes(n.record.Index)
	if err != nil {
		return err
	}
	want := map[netip.Prefix]netlink.Route{}
	for _, r := range n.record.Net.Routes {
		to := netlink.Route{To: r.To, Via: r.Via}
		if r.Via.IsValid() {
			to.Index = n.record.Index
		}
		want[r.To] = to
	}
	for _, r := range have {
		w, stays := want[r.To]
		if stays && w.Index == r.Index && w.Via == r.Via {
			delete(want, r.To)
			continue
		}
		if err := n.link.DropRoute(netlink.Route{To: r.To, Via: r.Via, Index: r.Index}); err != nil {
			return err
		}
	}
	for _, r := range want {
		if err := n.link.SetRoute(r); err != nil {
			return err
		}
	}
	return nil
}

// behind are the prefixes that a wire's instance speaks for.
func (n *network) behind(w *wire) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range n.record.Net.Routes {
		if slices.ContainsFunc(w.Addrs, func(a netip.Prefix) bool { return a.Addr() == r.Via }) {
			out = append(out, r.To)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr())*256 + a.Bits() - b.Bits() })
	return out
}

// rehop tells the wall of wires whose instances have become, or are not any more, next hops.
func (n *network) rehop() error {
	for _, w := range n.record.Wires {
		if now := n.behind(w); w.Up && !slices.Equal(now, w.Behind) {
			if err := n.setPort(w); err != nil {
				return err
			}
			if err := n.d.save(n.record); err != nil {
				return err
			}
		}
	}
	return nil
}

// forwards has the kernel of a next hop's namespace forward. Nothing is done for one whose namespace is gone, or whose
// instance has a kernel of its own: that one has to be told by its owner.
func (n *network) forwards(w *wire) error {
	if w.NetNS == "" || len(w.Behind) == 0 {
		return nil
	}
	ns, err := netlink.OpenNamespace(w.NetNS)
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Invalid) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.OpenAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	// The path may be another's by now: a process number is used again.
	if l, err := h.Link(w.Name); err != nil || l.Peer != w.Index || !bytes.Equal(l.MAC, w.MAC[:]) {
		return nil
	}
	return ns.Do(func() error {
		for _, key := range []string{forward4Key, forward6Key} {
			if _, err := netlink.SetSysctl(key, "1"); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
		return nil
	})
}
