package dhcp

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"atoll/api"
)

// leaseTime is for how long an answer holds. The addresses are the instance's as long as it is; but a guest asks again
// after half of it, and so learns of a new MTU or domain. It is long, so that guests outlive the absence of the daemon.
const leaseTime = 24 * time.Hour

// lease is all there is to say to one interface of one instance: what the pool decided, and nothing of what is asked.
type lease struct {
	mac       [6]byte
	four, six netip.Prefix // address and length; invalid: none
	first     bool         // its gateways are the way out, and answer for names
	host      string
	domain    string
	mtu       int
}

// leasesOf are those of all instances here that are on a network.
func leasesOf(n *api.Network, here []*api.Endpoint) map[[6]byte]lease {
	out := map[[6]byte]lease{}
	for _, e := range here {
		for i, f := range e.Spec.Interfaces {
			mac, err := net.ParseMAC(f.MAC)
			if f.Network != n.Name || err != nil || len(mac) != 6 {
				continue
			}
			l := lease{mac: [6]byte(mac), first: i == 0, host: e.Name, domain: strings.ToLower(n.EffectiveDomain())}
			if p, err := netip.ParsePrefix(f.Address); err == nil && p.Addr().Is4() {
				l.four = p
			}
			if p, err := netip.ParsePrefix(f.Address6); err == nil && p.Addr().Is6() {
				l.six = p
			}
			out[l.mac] = l
		}
	}
	return out
}

// resolvers are those of one family.
func (l lease) resolver(p netip.Prefix) netip.Addr {
	if !l.first || !p.IsValid() {
		return netip.Addr{}
	}
	return api.Gateway(p)
}

// wireName is a domain as DNS writes it.
func wireName(domain string) []byte {
	var b []byte
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 {
			return nil
		}
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}
