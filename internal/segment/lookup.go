package segment

import (
	"net/netip"

	"atoll/internal/driver"
)

// Peer is the other side as a table knows it.
type Peer struct {
	Identity uint32     // of a member, of a peered network's (IDs.Peer), or driver.IdentityHost; 0: outside
	Addr     netip.Addr // when it is outside
}

// Answer is what a set says.
type Answer struct {
	Allowed bool
	Rule    uint32 // 0: no set, or no rule
}

// Lookup judges with a table alone, in the way of the wall: the port's set, the pair of
// set and peer, and the list of ports, its longest entries first. Dry asks the set that
// is only tried, where there is one; else it answers as the other. Without a set everybody
// may, but for those of another tenant's network.
func Lookup(t *driver.Table, self netip.Addr, dir Direction, peer Peer, q Ask) Answer {
	policy, here := t.Ports[self]
	if !here {
		return Answer{}
	}
	set, dry := policy.Ingress, policy.IngressDry
	if dir == Egress {
		set, dry = policy.Egress, policy.EgressDry
	}
	if q.Dry && dry != 0 {
		set = dry
	}
	if set == 0 {
		return Answer{Allowed: dir == Egress || !driver.Foreign(peer.Identity)}
	}
	pair := t.Pairs[driver.PairKey{Set: set, Peer: number(t, peer)}]
	if pair.All != 0 {
		return Answer{true, pair.All}
	}
	for n := 16; n >= 0 && pair.List != 0; n-- {
		if pair.Lens&(1<<n) == 0 {
			continue
		}
		if rule, ok := t.Lists[driver.ListKey{List: pair.List, Proto: q.Proto, Len: uint8(n), Port: head(q.Port, uint8(n))}]; ok {
			return Answer{true, rule}
		}
	}
	return Answer{}
}

// Direction is whose side is asked.
type Direction int

// The directions.
const (
	Ingress Direction = ingress
	Egress  Direction = egress
)

// Ask is what is asked of a Peer.
type Ask struct {
	Proto uint8
	Port  uint16
	Dry   bool
}

// number is what the peer is known by: its identity, or the longest prefix around it.
func number(t *driver.Table, p Peer) uint32 {
	if p.Identity != 0 {
		return p.Identity
	}
	for n := p.Addr.BitLen(); n >= 0 && p.Addr.IsValid(); n-- {
		if around, err := p.Addr.Prefix(n); err == nil {
			if num, ok := t.Prefixes[around]; ok {
				return num
			}
		}
	}
	return driver.IdentityOutside
}
