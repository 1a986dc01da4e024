package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

// Networks that are peered are joined by a cable between their namespaces. What leaves one for the
// other's addresses keeps its sender's address, and goes on by the other's switch and tunnel. The
// gates at both ends let nothing pass but from the one's own addresses to the other's.

const cablePrefix = "pv"

// cableName is that of a cable's end in a network, by the network at its other end.
func cableName(vni uint32) string { return fmt.Sprintf("%s%06x", cablePrefix, vni) }

// cableMAC is that of a cable's end in a network.
func cableMAC(vni uint32) net.HardwareAddr {
	return net.HardwareAddr{0x0a, 0x5a, 0x00, byte(vni >> 16), byte(vni >> 8), byte(vni)}
}

// part cuts the cables to networks that this one is not joined with any more.
func (n *network) part() error { return cutCables(n.link, n.record.Net.Peers) }

func cutCables(h *netlink.Handle, but []driver.Peer) error {
	links, err := h.Links()
	if err != nil {
		return err
	}
	stay := map[string]bool{}
	for _, p := range but {
		stay[cableName(p.VNI)] = true
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, cablePrefix) && !stay[l.Name] {
			if err := h.DeleteIndex(l.Index); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
	}
	return nil
}

// joinPeers makes the cables to the networks this one is joined with. Whichever of two is here last makes theirs.
func (n *network) joinPeers() error {
	for _, p := range n.record.Net.Peers {
		if err := n.joinPeer(p); err != nil {
			return fmt.Errorf("join with network %d: %w", p.VNI, err)
		}
	}
	return nil
}

func (n *network) joinPeer(p driver.Peer) error {
	far, err := netlink.OpenNamespace(n.d.nsFile(p.VNI))
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Invalid) {
		return nil
	}
	if err != nil {
		return err
	}
	defer far.Close()
	mtu, err := switchMTU(far, p)
	if err != nil || mtu == 0 {
		return err
	}
	own := n.record.Net
	c := netlink.Cable{ID: fmt.Sprintf("cable %d %d", min(own.VNI, p.VNI), max(own.VNI, p.VNI)), MTU: min(mtu, n.mtu),
		Near: netlink.CableEnd{Name: cableName(p.VNI), MAC: cableMAC(own.VNI), Prefixes: own.Prefixes, Gateways: own.Gateways},
		Far:  netlink.CableEnd{Name: cableName(own.VNI), MAC: cableMAC(p.VNI), Prefixes: p.Prefixes, Gateways: gateways(p.Prefixes)}}
	return n.link.EnsureCable(far, c)
}

func gateways(ps []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range ps {
		out = append(out, api.Gateway(p))
	}
	return out
}

// switchMTU is that of the switch in a namespace; 0 while the network there is not as far.
func switchMTU(ns *netlink.Namespace, p driver.Peer) (int, error) {
	h, err := netlink.OpenAt(ns)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	l, err := h.Link(switchName)
	if errors.Is(err, errs.NotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	have, err := h.Addrs(l.Index)
	if err != nil {
		return 0, err
	}
	for _, x := range p.Prefixes {
		found := false
		for _, a := range have {
			found = found || a.Addr() == api.Gateway(x)
		}
		if !found {
			return 0, nil
		}
	}
	return l.MTU, nil
}
