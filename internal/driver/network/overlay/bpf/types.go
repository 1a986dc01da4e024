package bpf

import (
	"fmt"
	"net/netip"
	"time"

	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Direction is seen from the instance.
type Direction uint8

// The directions.
const (
	Egress  Direction = dirFrom
	Ingress Direction = dirTo
)

func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// Reason is why a packet was dropped; 0: it was not.
type Reason uint8

// The reasons, in the order of maps.h.
const (
	Allowed Reason = iota
	NoPort
	Short
	SourceMAC
	VLAN
	Ethertype
	ARP
	Source
	Destination
	ND
	DHCP
	Fragment
	Options
	NoIdentity
	NoEgress
	NoIngress
	NoFlow
	ICMPType
	ConnLimit
	PacketLimit
	reasonCount
)

var reasons = [reasonCount]struct{ word, text string }{
	{"allowed", "allowed"},
	{"no-port", "the interface is no port"},
	{"short", "a header is cut off or says something impossible"},
	{"source-mac", "the sender's MAC address is not the instance's"},
	{"vlan", "a VLAN tag"},
	{"ethertype", "neither ARP, IPv4 nor IPv6"},
	{"arp", "an ARP message that speaks for another"},
	{"source", "the sender's address is not the instance's"},
	{"destination", "to all, to many, or to an address that is not the instance's"},
	{"nd", "a router advertisement, redirect, or neighbour that is not the instance"},
	{"dhcp", "an instance that answers as a DHCP server"},
	{"fragment", "a fragment whose first was not allowed, or that overlaps a header"},
	{"options", "IPv4 options, an unknown IPv6 extension, or a source route"},
	{"no-identity", "nobody knows who sent it"},
	{"egress", "no rule allows it to be sent"},
	{"ingress", "no rule allows it to be received"},
	{"no-flow", "an answer, or an ICMP error, to nothing"},
	{"icmp-type", "an ICMP message that only routers may send"},
	{"connection-limit", "too many new connections a second"},
	{"packet-limit", "too many packets a second"},
}

// String is one word, which metrics and people can use.
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r].word
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Text says it in words.
func (r Reason) Text() string {
	if int(r) < len(reasons) {
		return reasons[r].text
	}
	return r.String()
}

// Port is the host's end of one instance's cable.
type Port struct {
	VNI      uint32
	MAC      [6]byte      // the instance's
	Addrs    []netip.Addr // its own: at most one of each family
	Identity uint16       // driver.FirstIdentity or above
	Policy   driver.Policy
	Limits   Limits
	Behind   []netip.Prefix // it is the next hop to these: it may send and receive for them, as somebody outside
}

// Limits are of one port and each direction; 0: none.
type Limits struct {
	Connections uint32 // new ones a second
	Packets     uint32 // a second
}

func (p Port) check() error {
	var fs []errs.Field
	if p.VNI == 0 || p.VNI >= 1<<24 {
		fs = append(fs, errs.Field{Field: "vni", Value: fmt.Sprint(p.VNI), Rule: "must be 1 to 16777215", Example: "4096"})
	}
	if p.MAC == [6]byte{} || p.MAC[0]&1 != 0 {
		fs = append(fs, errs.Field{Field: "mac", Value: fmt.Sprintf("%x", p.MAC), Rule: "must be of one interface", Example: "02:00:0a:00:00:05"})
	}
	if p.Identity < driver.FirstIdentity {
		fs = append(fs, errs.Field{Field: "identity", Value: fmt.Sprint(p.Identity), Rule: fmt.Sprintf("must be %d or more", driver.FirstIdentity), Example: "256"})
	}
	v4, v6 := 0, 0
	for _, a := range p.Addrs {
		switch a = a.Unmap(); {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Zone() != "":
			fs = append(fs, errs.Field{Field: "addrs", Value: a.String(), Rule: "must be a unicast address of the network", Example: "10.1.0.5"})
		case a.Is4():
			v4++
		default:
			v6++
		}
	}
	if v4 > 1 || v6 > 1 || v4+v6 == 0 {
		fs = append(fs, errs.Field{Field: "addrs", Value: fmt.Sprint(p.Addrs), Rule: "must be one of each family at most, and one at least", Example: "[10.1.0.5 fd00::5]"})
	}
	return errs.InvalidFields("port", fs)
}

func (p Port) value() portValue {
	v := portValue{VNI: p.VNI, MAC: p.MAC, Identity: p.Identity}
	for _, a := range p.Addrs {
		if a = a.Unmap(); a.Is4() {
			v.Addr4 = a.As4()
		} else {
			v.Addr6 = a.As16()
			v.Flags |= flagHas6
		}
	}
	if p.Limits != (Limits{}) {
		v.Flags |= flagLimited
	}
	if len(p.Behind) > 0 {
		v.Flags |= flagHop
	}
	v.Set = [2]uint32{p.Policy.Egress, p.Policy.Ingress}
	v.Dry = [2]uint32{p.Policy.EgressDry, p.Policy.IngressDry}
	return v
}

func (v portValue) port() Port {
	p := Port{VNI: v.VNI, MAC: v.MAC, Identity: v.Identity,
		Policy: driver.Policy{Egress: v.Set[dirFrom], Ingress: v.Set[dirTo], EgressDry: v.Dry[dirFrom], IngressDry: v.Dry[dirTo]}}
	if v.Addr4 != [4]byte{} {
		p.Addrs = append(p.Addrs, netip.AddrFrom4(v.Addr4))
	}
	if v.Flags&flagHas6 != 0 {
		p.Addrs = append(p.Addrs, netip.AddrFrom16(v.Addr6))
	}
	return p
}

// Device is a network's bridge, by which the host's stack sends into it.
type Device struct {
	VNI      uint32
	Gateways []netip.Addr // at most one of each family
}

// Telling is which events are told. Everything told is bounded, for each CPU.
type Telling struct {
	Sample uint32 // one of so many new flows; 0: only those of logged rules
	Rate   uint32 // events a second and CPU; 0: none at all
	Burst  uint32 // that may come at once
}

// Event is one packet of which the wall tells.
type Event struct {
	Monotonic        uint64 // nanoseconds since the host started, without sleep
	Ifindex          int
	VNI              uint32
	Direction        Direction
	Reason           Reason // Allowed: a new flow
	Dry              bool   // a set that is not obeyed would have refused it
	Proto            uint8
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Peer             uint32 // identity or number of the other side; 0: not known at that point
	Rule             uint32 // that allowed it; 0: none was needed
	Length           uint32 // of the packet, with its Ethernet header
}

// Flow is an entry of the table of flows.
type Flow struct {
	Ifindex               int
	Local, Remote         netip.Addr
	LocalPort, RemotePort uint16
	Proto                 uint8
	Began                 Direction // who began it
	Rule, Peer            uint32
	Age, Idle             time.Duration
	Sent, Received        Amount // by the instance
	State                 string // of TCP: half-open, established, closing
	Stale                 bool   // it will be judged again with its next packet
}

// Amount of traffic.
type Amount struct{ Packets, Bytes uint64 }
