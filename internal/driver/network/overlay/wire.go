package overlay

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"

	"atoll/api"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

// attach makes an instance's wire. first: its gateways are the instance's way out.
func (n *network) attach(ctx context.Context, ns *netlink.Namespace, w *wire, first bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return errs.New(errs.Unavailable, "the network is not ready on this host yet")
	}
	i := slices.IndexFunc(n.record.Wires, func(o *wire) bool { return o.key() == w.key() })
	var old *wire
	if i >= 0 {
		old = n.record.Wires[i]
		w.Index = old.Index
	} else {
		w.Index = n.d.index()
	}
	if err := n.ready(w); err != nil {
		return err
	}
	if other := n.clash(w); other != "" {
		return errs.New(errs.Conflict, "a published port of %s is that of instance %s already", w.ID, other)
	}
	if i >= 0 {
		n.record.Wires[i] = w
	} else {
		n.record.Wires = append(n.record.Wires, w)
	}
	if err := n.d.save(n.record); err != nil {
		return err
	}
	wire := netlink.Wire{Name: wireName(w), ID: w.key(), Index: w.Index, Bridge: n.record.Index, MTU: n.mtu, Peer: w.Name, MAC: net.HardwareAddr(w.MAC[:]), Addrs: w.Addrs}
	if first {
		wire.Gateways = n.record.Net.Gateways
	}
	if err := n.link.EnsureWire(ns, wire, func() error { return errors.Join(n.wallUp(w), n.shape(w)) }); err != nil {
		return err
	}
	w.Up = true
	if err := n.forwards(w); err != nil {
		return err
	}
	if err := n.d.save(n.record); err != nil {
		return err
	}
	if len(w.Ports) > 0 || old != nil && len(old.Ports) > 0 {
		return n.wayOut(ctx)
	}
	return nil
}

// ready refuses a wire of which the wall does not know yet what it may do.
func (n *network) ready(w *wire) error {
	for _, a := range w.Addrs {
		if _, ok := n.policies[a.Addr()]; !ok {
			return errs.New(errs.Unavailable, "what %s may do on the network is not known on this host yet", a.Addr())
		}
		if m := n.members[a.Addr()]; m.Identity == 0 || m.MAC != w.MAC {
			return errs.New(errs.Unavailable, "whose %s is on the network is not known on this host yet", a.Addr())
		}
	}
	return nil
}

// clash names another instance with the same published port.
func (n *network) clash(w *wire) string {
	for _, o := range n.record.Wires {
		if o.ID == w.ID {
			continue
		}
		for _, p := range o.Ports {
			if slices.ContainsFunc(w.Ports, func(q api.Port) bool { return q.PublishKey() == p.PublishKey() }) {
				return o.ID
			}
		}
	}
	return ""
}

// wallUp tells the wall about a wire and puts it there.
func (n *network) wallUp(w *wire) error {
	if err := n.setPort(w); err != nil {
		return err
	}
	return n.d.wall.Attach(n.ns, w.Index, bpf.RoleInstance)
}

func (n *network) setPort(w *wire) error {
	w.Behind = n.behind(w)
	p := bpf.Port{VNI: n.record.Net.VNI, MAC: w.MAC, Limits: w.Most, Behind: w.Behind}
	for _, a := range w.Addrs {
		p.Addrs = append(p.Addrs, a.Addr())
		p.Identity, p.Policy = uint16(n.members[a.Addr()].Identity), n.policies[a.Addr()] //nolint:gosec // an own member's: 16 bits
	}
	if err := n.d.wall.SetPort(w.Index, p); err != nil {
		return err
	}
	return n.forwards(w)
}

// fortify puts the wall of this life on a wire that is there. The tables it looks up are those it had.
func (n *network) fortify(w *wire) error {
	l, err := n.link.Link(wireName(w))
	if errors.Is(err, errs.NotFound) || err == nil && l.Index != w.Index {
		return nil // its instance has ended; it is attached anew, or detached
	}
	if err != nil {
		return err
	}
	return errors.Join(n.d.wall.Attach(n.ns, w.Index, bpf.RoleInstance), n.shape(w))
}

// detach removes an instance's wires.
func (n *network) detach(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var gone []*wire
	for _, w := range n.record.Wires {
		if w.ID == id {
			gone = append(gone, w)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	ns, err := netlink.OpenNamespace(n.d.nsFile(n.record.Net.VNI))
	if err == nil {
		err = unplug(ns, gone)
		ns.Close()
	}
	if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) {
		return err
	}
	entrances := false
	for _, w := range gone {
		if err := n.d.wall.DropPort(w.Index); err != nil {
			return err
		}
		entrances = entrances || len(w.Ports) > 0
	}
	n.record.Wires = slices.DeleteFunc(n.record.Wires, func(w *wire) bool { return w.ID == id })
	if entrances && n.known { // before the record forgets them
		if err := n.wayOut(ctx); err != nil {
			return err
		}
	}
	return n.d.save(n.record)
}

// unplug deletes the links over a socket of their own: the kernel answers a deletion only after
// every CPU has let go of the link, and nobody else should wait for that.
func unplug(ns *netlink.Namespace, ws []*wire) error {
	h, err := netlink.OpenAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, w := range ws {
		for _, name := range []string{wireName(w), turnName(w)} {
			l, err := h.Link(name)
			if err == nil {
				err = h.DeleteIndex(l.Index)
			}
			if err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.Unavailable, "record of a network: %w", err)
	}
	return nil
}
