package bpf

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Question is a new flow of one port that may be allowed or not.
type Question struct {
	Ifindex   int
	Direction Direction
	Remote    netip.Addr
	// Unbidden: it comes from outside to the port's own address, which nobody published.
	Unbidden bool
	// Identity the other side's packets carry, for Ingress; 0: the one its address has
	// among the members, or that of what is outside.
	Identity uint16
	Proto    uint8
	Port     uint16 // the destination's; for ICMP the type<<8 | code
}

// Verdict is what the tables say to a question, and by which entries.
type Verdict struct {
	Allowed bool
	Peer    uint32          // identity or number of the other side
	Set     uint32          // that was asked; 0: the direction is open
	Pair    *driver.Pair    // what the set says of the peer; nil: nothing
	Entry   *driver.ListKey // of the pair's list that allows it; nil: none did, or none was needed
	Rule    uint32          // that allows it; 0: none does, or none was needed
	Dry     *Verdict        // of the set that is asked and not obeyed; nil: there is none
}

// Judge finds the verdict on a new flow in the tables as they are in the kernel, by the
// same lookups as the programs. It does not ask whether the packet is well-formed, and counts nothing.
func (w *Wall) Judge(q Question) (Verdict, error) {
	if !q.Remote.IsValid() {
		return Verdict{}, errs.InvalidFields("question", []errs.Field{{Field: "remote", Rule: "must be an address", Example: "10.1.0.5"}})
	}
	p, err := w.portValue(q.Ifindex)
	if err != nil {
		return Verdict{}, err
	}
	peer, err := w.number(p.VNI, q.Remote, uint32(q.Identity), q.Direction)
	if err != nil {
		return Verdict{}, err
	}
	if peer == driver.IdentityNone {
		return Verdict{}, nil
	}
	v, err := w.ask(p.Set[q.Direction&1], peer, q)
	if v.Set == 0 && q.Direction == Ingress && (driver.Foreign(peer) || q.Unbidden) {
		v.Allowed = false
	}
	if err != nil || p.Dry[q.Direction&1] == 0 {
		return v, err
	}
	dry, err := w.ask(p.Dry[q.Direction&1], peer, q)
	v.Dry = &dry
	return v, err
}

// number is who an address belongs to: see the function of that name in judge.h.
func (w *Wall) number(vni uint32, a netip.Addr, known uint32, d Direction) (uint32, error) {
	if d == Egress {
		known = 0 // what it is sent to carries nothing
	}
	if known != 0 && known != driver.IdentityOutside && known != driver.IdentityPeer {
		return known, nil
	}
	var id uint32
	if known != driver.IdentityOutside {
		ok, err := lookup(w.wallMaps.Members, "members", memberKey{VNI: vni, Addr: wire(a)}, &id)
		if known == driver.IdentityPeer && id < driver.FirstPeer {
			return driver.IdentityNone, err
		}
		if ok || err != nil {
			return id, err
		}
	}
	ok, err := lookup(w.wallMaps.Prefixes, "prefixes", prefixKey{Bits: 160, VNI: vni, Addr: wire(a)}, &id)
	if err == nil && !ok {
		id = driver.IdentityOutside
	}
	return id, err
}

func (w *Wall) ask(set, peer uint32, q Question) (Verdict, error) {
	v := Verdict{Set: set, Peer: peer, Allowed: set == 0}
	if set == 0 {
		return v, nil
	}
	var pv pairValue
	if ok, err := lookup(w.wallMaps.Pairs, "pairs", pairKey{Set: set, Peer: peer}, &pv); !ok || err != nil {
		return v, err
	}
	v.Pair = &driver.Pair{All: pv.All, List: pv.List, Lens: pv.Lens}
	if pv.All != 0 {
		v.Allowed, v.Rule = true, pv.All
		return v, nil
	}
	if pv.List == 0 {
		return v, nil
	}
	for n := 16; n >= 0; n-- {
		if pv.Lens&(1<<n) == 0 {
			continue
		}
		k := driver.ListKey{List: pv.List, Proto: q.Proto, Len: uint8(n), Port: q.Port & uint16(uint32(0xffff0000)>>n)}
		if ok, err := lookup(w.wallMaps.Lists, "lists", listKeyOf(k), &v.Rule); err != nil {
			return v, err
		} else if ok {
			v.Allowed, v.Entry = true, &k
			return v, nil
		}
	}
	return v, nil
}

func lookup[K, V any](m *ebpf.Map, what string, k K, v *V) (bool, error) {
	err := m.Lookup(k, v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("table of %s: %w", what, err)
	}
	return true, nil
}
