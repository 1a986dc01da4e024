package bpf

import (
	"encoding/binary"
	"net/netip"
	"structs"
)

// The shapes of maps.h, field by field; layout_test.go compares them with what the
// compiler made of those. Addresses are as on the wire, ports and numbers as the host counts.

const (
	dirFrom = 0 // from the instance: egress
	dirTo   = 1 // to the instance: ingress

	flagLimited = 1
	flagHas6    = 2
	flagHop     = 4
)

type portValue struct {
	_        structs.HostLayout
	VNI      uint32
	Life     uint32
	Epoch    [2]uint32
	Set      [2]uint32
	Dry      [2]uint32
	MAC      [6]byte
	Identity uint16
	Addr4    [4]byte
	Flags    uint32
	Addr6    [16]byte
}

type key4 struct {
	_             structs.HostLayout
	Ifindex       uint32
	Local, Remote [4]byte
	Lport, Rport  uint16
	Proto         uint32
}

type key6 struct {
	_             structs.HostLayout
	Ifindex       uint32
	Local, Remote [16]byte
	Lport, Rport  uint16
	Proto         uint32
}

type flowValue struct {
	_              structs.HostLayout
	Seen, Began    uint64
	Packets, Bytes [2]uint64
	Rule, Peer     uint32
	Epoch, Life    uint32
	Dir, State     uint8
	_              [6]uint8
}

type memberKey struct {
	_    structs.HostLayout
	VNI  uint32
	Addr [16]byte
}

type station struct {
	_   structs.HostLayout
	MAC [6]byte
	_   [2]byte
}

type prefixKey struct {
	_    structs.HostLayout
	Bits uint32
	VNI  uint32
	Addr [16]byte
}

type pairKey struct {
	_         structs.HostLayout
	Set, Peer uint32
}

type pairValue struct {
	_               structs.HostLayout
	All, List, Lens uint32
}

type listKey struct {
	_          structs.HostLayout
	List       uint32
	Proto, Len uint8
	Port       uint16
}

type deviceValue struct {
	_        structs.HostLayout
	VNI      uint32
	Gateway4 [4]byte
	Gateway6 [16]byte
}

type tally struct {
	_     structs.HostLayout
	Drops [32]uint64
}

type bucket struct {
	_           structs.HostLayout
	Cost, Burst uint64
	Due         [2]uint64
}

type limitValue struct {
	_              structs.HostLayout
	Conns, Packets bucket
}

type ruleValue struct {
	_      structs.HostLayout
	Flows  uint64
	Logged uint32
	_      uint32
}

type dryValue struct {
	_               structs.HostLayout
	Allowed, Denied uint64
}

type settings struct {
	_                     structs.HostLayout
	Sample, Lives         uint32
	EventCost, EventBurst uint64
}

type gauge struct {
	_                structs.HostLayout
	Due, Lost, Count uint64
}

const eventSize = 72

// decodeEvent reads a record of the ring buffer; false if it is none of ours.
func decodeEvent(b []byte) (Event, bool) {
	if len(b) < eventSize {
		return Event{}, false
	}
	n := binary.NativeEndian
	e := Event{
		Monotonic: n.Uint64(b), Src: unmap([16]byte(b[8:24])), Dst: unmap([16]byte(b[24:40])),
		Ifindex: int(n.Uint32(b[40:])), VNI: n.Uint32(b[44:]), Peer: n.Uint32(b[48:]), Rule: n.Uint32(b[52:]), Length: n.Uint32(b[56:]),
		SrcPort: n.Uint16(b[60:]), DstPort: n.Uint16(b[62:]),
		Direction: Direction(b[64]), Reason: Reason(b[65]), Proto: b[66], Dry: b[67] != 0,
	}
	return e, true
}

// wire is an address as the tables know it; IPv4 is mapped.
func wire(a netip.Addr) [16]byte { return a.As16() }

func unmap(b [16]byte) netip.Addr { return netip.AddrFrom16(b).Unmap() }
