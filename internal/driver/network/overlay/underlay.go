package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

// Outer is what the section of this driver says.
func (d *Driver) Outer() (netip.Addr, uint16) { return d.plan.tunnel, d.plan.port }

// Carry leads the tunnels by another address of the host. Each network's is made anew, which takes
// milliseconds, in which what is sent to other hosts is lost.
func (d *Driver) Carry(ctx context.Context, u driver.Underlay) error {
	old := d.under.Swap(&u)
	if old != nil && old.Local == u.Local {
		return nil
	}
	d.mu.Lock()
	var nets []*network
	for _, n := range d.nets {
		nets = append(nets, n)
	}
	d.mu.Unlock()
	var all error
	for _, n := range nets {
		if err := n.carry(ctx); err != nil {
			all = errors.Join(all, fmt.Errorf("network %s: %w", n.record.Net.Ref, err))
		}
	}
	if all != nil {
		d.under.CompareAndSwap(&u, old) // to be called again
	}
	return all
}

// local is the address by which tunnels go.
func (d *Driver) local() netip.Addr {
	if u := d.under.Load(); u != nil && u.Local.IsValid() {
		return u.Local
	}
	return d.plan.tunnel
}

// isHere reports whether a host's address is this host's: the store may still say one it had.
func (d *Driver) isHere(a netip.Addr) bool {
	u := d.under.Load()
	return a == d.plan.tunnel || a == d.local() || u != nil && slices.Contains(u.Also, a)
}

// carry has a network follow.
func (n *network) carry(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return nil
	}
	if err := n.base(ctx); err != nil {
		return err
	}
	for _, m := range n.members { // the tunnel is another
		if err := n.putPlace(m); err != nil {
			return err
		}
	}
	return nil
}

// refit has the wires take packets of the network's size. An instance's end that is not found belongs to
// one that has ended.
func (n *network) refit() error {
	for _, w := range n.record.Wires {
		l, err := n.link.Link(wireName(w))
		if errors.Is(err, errs.NotFound) || err == nil && l.MTU == n.mtu {
			continue
		}
		if err != nil {
			return err
		}
		if err := n.refitInside(w, l); err != nil {
			return err
		}
		if err := n.link.SetMTU(l.Index, n.mtu); err != nil {
			return err
		}
	}
	return nil
}

func (n *network) refitInside(w *wire, l netlink.Link) error {
	if w.NetNS == "" {
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
	guest, err := netlink.OpenAt(ns)
	if err != nil {
		return err
	}
	defer guest.Close()
	in, err := guest.Link(w.Name)
	if errors.Is(err, errs.NotFound) || err == nil && (in.Index != l.Peer || !bytes.Equal(in.MAC, w.MAC[:])) {
		return nil // the path is another's by now
	}
	if err != nil {
		return err
	}
	return guest.SetMTU(in.Index, n.mtu)
}
