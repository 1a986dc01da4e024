package driver

import (
	"context"
	"net/netip"
	"time"

	"atoll/api"
)

// Inspector is a Fabric that tells what its tables say and what passes its wires. All of it
// is read from the kernel; nothing is changed but which events are told.
type Inspector interface {
	// Wires are those that are attached.
	Wires() ([]Wire, error)
	// Judge finds the verdict on a new flow of a wire in the kernel's tables. errs.NotFound when no wire has
	// the address.
	Judge(q Question) (Verdict, error)
	// Flows calls fn for each flow that is known, until it returns false.
	Flows(fn func(Flow) bool) error
	Counts() (Counts, error)
	// Events calls fn for each refused packet, each new flow of a logged rule, and the sample, until ctx ends,
	// which is no error. One caller at a time. errs.Unavailable while there is no network.
	Events(ctx context.Context, fn func(FlowEvent)) error
	// Sample has one of so many new flows told; 0: only those of logged rules. Telling is bounded.
	Sample(oneOf uint32) error
	// Log has the new flows that a rule allows told, or no more.
	Log(rule uint32, on bool) error
}

// Tapper is a Fabric that copies what passes a wire.
type Tapper interface {
	// Tap calls fn for each packet on the host's end of the wire that has an address, until ctx ends or fn
	// fails; lost is how many the kernel had no room for. From the instance also what the wall refuses is
	// seen, to it only what the wall lets pass.
	Tap(ctx context.Context, vni uint32, addr netip.Addr, snaplen int, fn func(Frame) error) (lost uint64, err error)
	// TapInside is the same at the first interface of a namespace, such as an instance's.
	TapInside(ctx context.Context, netns string, snaplen int, fn func(Frame) error) (lost uint64, err error)
}

// Prober is a Fabric that tries a path from inside a namespace.
type Prober interface {
	Reach(ctx context.Context, netns string, p Probe) (Reached, error)
}

// Frame is a packet as it was on a wire. Data is valid until the call returns.
type Frame struct {
	At   time.Time
	Data []byte // with its Ethernet header, as far as the snaplen
	Size int    // of the whole
}

// Wire is an instance's.
type Wire struct {
	VNI      uint32
	Port     int // interface index in the network's namespace
	Instance api.Ref
	Addrs    []netip.Addr
}

// Question is a new flow of the wire that has Local.
type Question struct {
	VNI           uint32
	Local, Remote netip.Addr
	Ingress       bool // Remote begins
	Unbidden      bool // from outside, to an address that is known there and that nobody published
	Proto         uint8
	Port          uint16 // the destination's; for ICMP type<<8 | code
}

// Verdict is what the tables say.
type Verdict struct {
	Port    int // of the wire
	Allowed bool
	Set     uint32   // that was asked; 0: the direction is open
	Rule    uint32   // that allows it; 0: none is needed, or none does
	Peer    uint32   // identity or number of the other side
	Dry     *Verdict // of the set that is only tried; nil: there is none
}

// Flow is an entry of the tables.
type Flow struct {
	VNI                   uint32
	Port                  int
	Local, Remote         netip.Addr
	LocalPort, RemotePort uint16
	Proto                 uint8
	Ingress               bool // Remote began
	Rule                  uint32
	Age, Idle             time.Duration
	Packets, Bytes        uint64 // both ways
	State                 string // of TCP
}

// FlowEvent is one packet of which the wall tells.
type FlowEvent struct {
	VNI              uint32
	Port             int
	Ingress          bool
	Refused          string // in words; "": a new flow that is allowed
	Judged           bool   // refused for want of a rule, not for what the packet is
	Dry              bool   // a set that is only tried would have refused it
	Proto            uint8
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Rule             uint32
	Length           uint32
}

// Counts are since the wall was made, or since the wire was.
type Counts struct {
	Rules map[uint32]uint64         // new flows that each rule has allowed
	Dry   map[uint32]DryCount       // by set
	Drops map[int]map[string]uint64 // by the wire's port, and reason in words
	Lost  uint64                    // events that were not told
}

// DryCount is what a set that is only tried would have done to new flows.
type DryCount struct{ Allowed, Refused uint64 }

// Probe is what is tried.
type Probe struct {
	To   netip.Addr
	Echo bool   // ICMP echoes, also of the largest size
	Port uint16 // a TCP connection; 0: none
}

// Reached is how far it came.
type Reached struct {
	Sent, Answered int
	RTT            time.Duration // median
	MTU            int           // of the interface inside
	Largest        int           // packet that passed, with its IP header
	TCP            string        // connected, refused, timeout, unreachable; "": not tried
	TCPTook        time.Duration
}
