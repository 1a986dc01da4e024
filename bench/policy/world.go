package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"

	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay/bpf"
)

const (
	vni      = 77
	identity = 300
	target   = 9 // the port that the packet is for: the first of every list
)

var (
	own    = netip.MustParseAddr("10.1.0.5")
	first  = netip.MustParseAddr("10.2.0.0") // the others are from here on
	mac    = [6]byte{2, 0, 0, 0, 0, 5}
	peerM  = [6]byte{2, 0, 0, 0, 0, 6}
	ports  = map[netip.Addr]int{own: 1} // lo plays the port
	policy = driver.Policy{Egress: 1}
)

// rules are so many: each of a number of others may be sent to on a number of ports.
type rules struct{ peers, ports int }

func nth(i int) netip.Addr {
	b := first.As4()
	return netip.AddrFrom4([4]byte{b[0], b[1], byte(i >> 8), byte(i)})
}

// change is the whole of them.
func (r rules) change() driver.Change {
	c := driver.Change{Pairs: map[driver.PairKey]driver.Pair{}, Lists: map[driver.ListKey]uint32{}}
	for p := range r.peers {
		id := uint32(1000 + p)
		c.Put = append(c.Put, driver.Member{Addr: nth(p), Identity: id})
		c.Pairs[driver.PairKey{Set: 1, Peer: id}] = driver.Pair{List: id, Lens: 1 << 16}
		for k := range r.ports {
			c.Lists[driver.ListKey{List: id, Proto: 17, Len: 16, Port: uint16(target + k)}] = uint32(1 + p*r.ports + k)
		}
	}
	return c
}

// wall makes one whose port is lo.
func (b *bench) wall(name string, r rules, v bpf.Vary) (*bpf.Wall, error) {
	w, err := bpf.Open(bpf.Config{Dir: filepath.Join(b.dir, name), Vary: v})
	if err != nil {
		return nil, err
	}
	if err := w.Apply(vni, r.change(), nil); err != nil {
		return nil, fmt.Errorf("%d rules: %w", r.peers*r.ports, err)
	}
	return w, w.SetPort(1, bpf.Port{VNI: vni, MAC: mac, Addrs: []netip.Addr{own}, Identity: identity, Policy: policy})
}

// change is a new set of one rule, which the port gets; the one before goes.
func change(i uint32, port uint16) driver.Change {
	set := 1_000_000 + i
	return driver.Change{
		Pairs:     map[driver.PairKey]driver.Pair{{Set: set, Peer: 1000}: {List: set, Lens: 1 << 16}},
		Lists:     map[driver.ListKey]uint32{{List: set, Proto: 17, Len: 16, Port: port}: set},
		Ports:     map[netip.Addr]driver.Policy{own: {Egress: set}},
		DropPairs: []driver.PairKey{{Set: set - 1, Peer: 1000}},
		DropLists: []driver.ListKey{{List: set - 1, Proto: 17, Len: 16, Port: 9}, {List: set - 1, Proto: 17, Len: 16, Port: 10}},
	}
}

// udpPacket is a frame from the port to the first of the others.
func udpPacket() []byte {
	b := append(append([]byte{}, peerM[:]...), mac[:]...)
	b = append(b, 8, 0)
	ip := make([]byte, 28+22)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], own.AsSlice())
	copy(ip[16:], first.AsSlice())
	binary.BigEndian.PutUint16(ip[20:], 1000)
	binary.BigEndian.PutUint16(ip[22:], target)
	binary.BigEndian.PutUint16(ip[24:], 30)
	return append(b, ip...)
}
