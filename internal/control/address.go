package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

func fixedAddress(s *api.InstanceSpec) string {
	if len(s.Networks) == 0 {
		return ""
	}
	return s.Networks[0].Address
}

// addresses hands out host addresses of one IPv4 subnet. It goes round, so that an
// address is not used again right after it was given back.
//
// One address can be several instances': those of a host that brought them along from a
// pool of its own may have addresses that were given here, too. That does no harm where
// they are, as addresses mean something on their host only; who is placed anew gets another.
type addresses struct {
	prefix netip.Prefix
	ways   netip.Prefix
	next   netip.Addr
	byAddr map[netip.Addr]string   // -> instance UID
	also   map[netip.Addr][]string // -> UIDs of further ones that have it
	byUID  map[string]netip.Addr
}

func newAddresses(subnet string) (*addresses, error) {
	p, err := netip.ParsePrefix(subnet)
	if err != nil || !p.Addr().Is4() || p.Bits() > 29 {
		return nil, errs.New(errs.Invalid, "subnet %q: must be an IPv4 network of at least 8 addresses (example: 10.88.0.0/16)", subnet)
	}
	p = p.Masked()
	first := p.Addr().Next().Next() // .0 is the network, .1 the gateway
	return &addresses{prefix: p, ways: api.NetworkWays(p), next: first, byAddr: map[netip.Addr]string{}, also: map[netip.Addr][]string{}, byUID: map[string]netip.Addr{}}, nil
}

func (a *addresses) take(addr, uid string) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return
	}
	old, ok := a.byUID[uid]
	if ok && old == ip {
		return
	}
	if ok {
		a.drop(old, uid)
	}
	a.byUID[uid] = ip
	if a.byAddr[ip] == "" {
		a.byAddr[ip] = uid
	} else {
		a.also[ip] = append(a.also[ip], uid)
	}
}

func (a *addresses) free(uid string) {
	if ip, ok := a.byUID[uid]; ok {
		a.drop(ip, uid)
	}
}

// drop takes an address from one that has it.
func (a *addresses) drop(ip netip.Addr, uid string) {
	delete(a.byUID, uid)
	rest := slices.DeleteFunc(a.also[ip], func(o string) bool { return o == uid })
	if a.byAddr[ip] == uid {
		delete(a.byAddr, ip)
		if len(rest) > 0 {
			a.byAddr[ip], rest = rest[0], rest[1:]
		}
	}
	if a.also[ip] = rest; len(rest) == 0 {
		delete(a.also, ip)
	}
}

// give finds an address for an instance: the one that it alone has, the one it asks for, or the next free one.
func (a *addresses) give(uid, fixed string) (string, error) {
	if ip, ok := a.byUID[uid]; ok && len(a.also[ip]) == 0 && (fixed == "" || fixed == ip.String()) {
		return ip.String(), nil
	}
	if fixed != "" {
		ip, err := netip.ParseAddr(fixed)
		if err != nil || !a.usable(ip) {
			return "", fmt.Errorf("address %s is not a free host address of %s", fixed, a.prefix)
		}
		if owner := a.byAddr[ip]; owner != "" && (owner != uid || len(a.also[ip]) > 0) {
			return "", fmt.Errorf("address %s is in use", fixed)
		}
		a.take(fixed, uid)
		return fixed, nil
	}
	ip := a.next
	for range 1 << min(32-a.prefix.Bits(), 24) {
		if !a.prefix.Contains(ip) {
			ip = a.prefix.Addr() // round, and not at the first address that is left out
		}
		if a.usable(ip) && a.byAddr[ip] == "" {
			a.next = ip.Next()
			a.take(ip.String(), uid)
			return ip.String(), nil
		}
		ip = ip.Next()
	}
	return "", errors.New("no free address in " + a.prefix.String())
}

// usable excludes the network, the gateway, the broadcast address, and where networks of tenants have their ways out.
func (a *addresses) usable(ip netip.Addr) bool {
	if !a.prefix.Contains(ip) || ip == a.prefix.Addr() || ip == a.prefix.Addr().Next() || a.ways.IsValid() && a.ways.Contains(ip) {
		return false
	}
	return a.prefix.Contains(ip.Next()) && !strings.HasSuffix(ip.String(), ".255")
}
