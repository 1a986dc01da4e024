package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/nft"
)

// The host's own bridge speaks IPv4 and translates. What goes out otherwise has a cable of its own between
// the network's namespace and the host, its way: IPv6, which is translated where the host has a way out
// itself, and everything of a network whose addresses are not translated at all.

const (
	wayName   = "way" // in the network's namespace
	wayPrefix = driver.WayPrefix
)

// inner is where the addresses of ways are from, one for each network: nobody else's (RFC 4193), and
// not to be a network's of a tenant (package api).
var inner = netip.MustParsePrefix("fd61:746f:6c6c::/96")

var privateInterfaces = []string{"docker", "br-", "cni", "podman", "virbr", "lxdbr", "lxcbr", "incusbr"}

func innerOf(vni uint32) netip.Addr {
	b := inner.Addr().As16()
	b[12], b[13], b[14], b[15] = byte(vni>>24), byte(vni>>16), byte(vni>>8), byte(vni)
	return netip.AddrFrom16(b)
}

func hostEnd(vni uint32) string { return fmt.Sprintf("%s%06x", wayPrefix, vni) }

// door says what way a network has; false: none.
func (n *network) door() (nft.Door, bool, error) {
	r := n.record
	switch r.Net.Egress {
	case driver.EgressDirect:
		return nft.Door{Cable: hostEnd(r.Net.VNI), Direct: r.Net.Prefixes, Published: r.entrances()}, true, n.d.apart(r.Net)
	case driver.EgressNAT:
		if !slices.ContainsFunc(r.Net.Prefixes, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			return nft.Door{}, false, nil
		}
		ups, err := n.d.host.Uplinks6()
		if err != nil || len(ups) == 0 {
			return nft.Door{}, false, err // who sends is told by the network's gateway that there is no way
		}
		d := nft.Door{Cable: hostEnd(r.Net.VNI), Inner: innerOf(r.Net.VNI)}
		for _, e := range r.entrances() {
			if e.To.Addr().Is6() {
				d.Published = append(d.Published, nft.Entrance{Proto: e.Proto, Port: e.Port, To: netip.AddrPortFrom(d.Inner, e.Port)})
			}
		}
		return d, true, nil
	}
	return nft.Door{}, false, nil
}

// apart refuses addresses that are the host's.
func (d *Driver) apart(n driver.Net) error {
	have, err := d.host.Addrs(0)
	if err != nil {
		return err
	}
	for _, p := range n.Prefixes {
		for _, a := range have {
			if p.Overlaps(a.Masked()) && !a.Addr().IsLinkLocalUnicast() {
				return errs.New(errs.Conflict, "%s of network %s, whose addresses are not translated, and %s of this host overlap", p, n.Ref, a).
					WithHint("make the network anew with other addresses, or with egress: nat")
			}
		}
	}
	return nil
}

// openWay makes the network's way.
func (n *network) openWay(d nft.Door) error {
	own := n.record.Net
	n.record.Door = &d
	if err := n.d.save(n.record); err != nil {
		return err
	}
	if err := n.d.setDoor(own.VNI, &d); err != nil { // rules before anything can pass
		return err
	}
	c := netlink.Cable{ID: wayID(own.VNI), MTU: n.mtu, Near: netlink.CableEnd{Name: d.Cable, MAC: wayMAC(own.VNI, 0)}, Far: netlink.CableEnd{Name: wayName, MAC: wayMAC(own.VNI, 1)}}
	if len(d.Direct) > 0 {
		c.Far.Prefixes, c.Far.Gateways = own.Prefixes, own.Gateways
	} else {
		c.Far.Prefixes = []netip.Prefix{netip.PrefixFrom(d.Inner, 128)}
	}
	for _, p := range c.Far.Prefixes {
		all, key := netip.PrefixFrom(netip.IPv4Unspecified(), 0), forward4Key
		if p.Addr().Is6() {
			all, key = netip.PrefixFrom(netip.IPv6Unspecified(), 0), forward6Key
		}
		c.Near.Prefixes = append(c.Near.Prefixes, all)
		if err := n.d.forwardOn(key); err != nil {
			return err
		}
	}
	if err := n.d.host.EnsureCable(n.ns, c); err != nil {
		return err
	}
	if len(d.Direct) > 0 {
		return nil
	}
	l, err := n.link.Link(wayName)
	if err != nil {
		return err
	}
	return n.link.AddAddr(l.Index, c.Far.Prefixes[0])
}

func wayID(vni uint32) string { return fmt.Sprintf("way %d", vni) }

func wayMAC(vni uint32, end byte) net.HardwareAddr {
	return net.HardwareAddr{0x0a, 0x5b, end, byte(vni >> 16), byte(vni >> 8), byte(vni)}
}

func (n *network) closeWay() error {
	vni := n.record.Net.VNI
	if n.record.Door == nil {
		return nil
	}
	l, err := n.d.host.Link(hostEnd(vni))
	if err == nil && l.ID() == wayID(vni) {
		err = n.d.host.DeleteIndex(l.Index)
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if err := n.d.setDoor(vni, nil); err != nil {
		return err
	}
	n.record.Door = nil
	return n.d.save(n.record)
}

// setDoor writes the rules of all ways when one has changed; nil: the network has none.
func (d *Driver) setDoor(vni uint32, door *nft.Door) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	was, had := d.doors[vni]
	if d.wrote && (door == nil && !had || door != nil && had && reflect.DeepEqual(was, *door)) {
		return nil
	}
	if door == nil {
		delete(d.doors, vni)
	} else {
		d.doors[vni] = *door
	}
	err := d.writeDoors()
	d.wrote = err == nil
	return err
}

func (d *Driver) writeDoors() error {
	all := nft.Doors{Prefix: wayPrefix, Inner: inner, Private: privateInterfaces}
	for _, vni := range slices.Sorted(maps.Keys(d.doors)) {
		all.All = append(all.All, d.doors[vni])
	}
	return nft.SetDoors(all)
}

// Forwarding is a setting of the whole host. One that forwards IPv6 does not listen to routers any more, which
// may be where its own way out is from: those interfaces that do are told to go on. What was is written down
// first, in the directory that is gone at boot, as the settings are.
const (
	forward4Key = "ipv4/ip_forward"
	forward6Key = "ipv6/conf/all/forwarding"
)

func (d *Driver) forwardFile(key string) string {
	return filepath.Join(d.run, strings.ReplaceAll(key, "/", "-"))
}

func (d *Driver) forwardOn(key string) error {
	have, err := netlink.Sysctl(key)
	if err != nil || have == "1" {
		return err
	}
	var listen []string
	if key == forward6Key {
		links, err := d.host.Links()
		if err != nil {
			return err
		}
		for _, l := range links {
			k := "ipv6/conf/" + l.Name + "/accept_ra"
			if v, err := netlink.Sysctl(k); err == nil && v == "1" {
				listen = append(listen, k)
			}
		}
	}
	if err := os.WriteFile(d.forwardFile(key), []byte(strings.Join(append([]string{key}, listen...), "\n")), 0o600); err != nil {
		return errs.New(errs.Unavailable, "write down %s: %w", key, err)
	}
	for _, k := range listen {
		if _, err := netlink.SetSysctl(k, "2"); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	_, err = netlink.SetSysctl(key, "1")
	return err
}

// forwardBack undoes forwardOn.
func (d *Driver) forwardBack() error {
	for _, key := range []string{forward4Key, forward6Key} {
		b, err := os.ReadFile(d.forwardFile(key))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return errs.New(errs.Unavailable, "read what %s was: %w", key, err)
		}
		for _, k := range strings.Fields(string(b)) {
			was := "1"
			if k == key {
				was = "0"
			}
			if _, err := netlink.SetSysctl(k, was); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
		if err := removeFile(d.forwardFile(key)); err != nil {
			return err
		}
	}
	return nil
}
