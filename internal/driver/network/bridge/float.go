package bridge

import (
	"context"
	"fmt"
	"net/netip"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/nft"
)

// Float makes the host answer for floating addresses, and brings what comes to each to its instance,
// or to the cable of the network that it is on.
func (d *Driver) Float(_ context.Context, all []driver.Floating) error {
	if len(all) == 0 && !d.floated() {
		return d.sink()
	}
	b, err := d.ensureBase(false)
	if err != nil {
		return err
	}
	rules, claims, err := d.floating(all, b)
	if err != nil {
		return err
	}
	gone, err := d.table.Floating()
	if err != nil {
		return err
	}
	// An address is answered for only while the rules for it are there.
	had := map[netip.Addr]bool{}
	for _, f := range all {
		had[f.Addr] = true
	}
	var drop []netip.Addr
	for _, a := range gone {
		if !had[a] {
			drop = append(drop, a)
		}
	}
	if err := netlink.Disclaim(drop); err != nil {
		return err
	}
	if err := d.table.SetFloating(rules); err != nil {
		return err
	}
	if err := netlink.ForgetFlows(drop); err != nil {
		return err
	}
	if err := netlink.SetClaims(claims); err != nil {
		return err
	}
	d.mu.Lock()
	d.claims = claims
	d.mu.Unlock()
	return nil
}

func (d *Driver) floated() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.claims) > 0
}

// sink takes away what an earlier life left, without making anything.
func (d *Driver) sink() error {
	left, err := d.table.Floating()
	if err != nil {
		return err
	}
	if err := netlink.SetClaims(nil); err != nil {
		return err
	}
	if len(left) == 0 {
		return nil
	}
	if err := d.table.Unset(nft.FloatingID); err != nil {
		return err
	}
	return netlink.ForgetFlows(left)
}

func (d *Driver) floating(all []driver.Floating, b base) (rules []nft.Floating, claims []netlink.Claim, err error) {
	h, err := d.handle()
	if err != nil {
		return nil, nil, err
	}
	for _, f := range all {
		if !f.Addr.Is4() || d.plan.subnet.Contains(f.Addr) {
			return nil, nil, errs.New(errs.Invalid, "floating address %s must be IPv4 and not in %s", f.Addr, d.plan.subnet)
		}
		if l, err := h.LinkWith(f.Addr); err == nil {
			return nil, nil, errs.New(errs.Conflict, "floating address %s is the host's own, on %s", f.Addr, l.Name).WithHint("take it out of the address pool: atoll edit addresspool …")
		}
		r, via := nft.Floating{Addr: f.Addr, To: f.Inside}, f.Inside
		if f.VNI != 0 {
			via = f.Way
			r = nft.Floating{Addr: f.Addr, Iface: portName(driver.UplinkPrefix + fmt.Sprint(f.VNI)), MAC: [6]byte(netlink.PortMAC(f.Way))}
		}
		links, err := h.LinksAt(f.Addr, b.index)
		if err != nil {
			return nil, nil, err
		}
		rules = append(rules, r)
		claims = append(claims, netlink.Claim{Addr: f.Addr, Via: via, Link: b.index, Links: links})
	}
	return rules, claims, nil
}
