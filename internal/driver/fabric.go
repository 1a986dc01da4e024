package driver

import (
	"context"
	"io"
	"net"
	"net/netip"

	"atoll/api"
)

// Fabric is a Network that knows networks of tenants. It is told about a network before
// the first instance is attached to it: Replace says all there is to know, also after
// an earlier life of the daemon; Change what changed since. Each call leaves the kernel
// with a state that is right for what was said before or after, never open in between.
// The tables below are compiled from security groups (package segment) and are looked
// up in the kernel as they are (docs/adr/0016-tenant-networks.md).
type Fabric interface {
	Network
	// Known is what Probe found since the host was started, if it did: Probe may take a second,
	// for which a daemon that starts anew need not wait.
	Known(ctx context.Context) (api.Capability, bool)
	// Replace makes the network exist as it is said here, and forgets everything else
	// about it. Flows that are still allowed go on.
	Replace(ctx context.Context, n Net, members []Member, t Table) error
	// Change brings a network that Replace made up to date.
	Change(ctx context.Context, vni uint32, c Change) error
	// Forget removes a network that has no instances here any more. Nil when already gone.
	Forget(ctx context.Context, vni uint32) error
	// Nets lists the networks that are here.
	Nets(ctx context.Context) ([]uint32, error)
	// NextID is a number from which on IDs of sets and lists are new on this host.
	NextID(ctx context.Context) (uint32, error)
	// Settle is called when Replace was called for all networks that are to be here: what
	// an earlier life left in the tables goes.
	Settle(ctx context.Context) error
}

// Upstream is a Network that reaches what is outside by another network of the host. It is
// told before anything else.
type Upstream interface{ Through(Network) }

// Listener is a Fabric that opens sockets in a network, at addresses that the host has there. errs.Unavailable
// while the network is not on the host. When the network leaves the host they are closed, if their
// users have not done it: an open socket keeps a network's namespace alive.
type Listener interface {
	Listen(vni uint32, at netip.AddrPort) (net.Listener, error)
	ListenPacket(vni uint32, at netip.AddrPort) (net.PacketConn, error)
}

// Asked is a Fabric that hears what instances ask to learn who they are: DHCP, DHCPv6 and router solicitations. They
// come as whole frames past the wall, which has seen to it that their source hardware address is that
// of the port, and that nobody but the host hears them. errs.Unavailable while the network is not on the host;
// when it leaves, the sockets are closed as those of Listener are.
type Asked interface {
	Questions(vni uint32, six bool) (Questions, error)
}

// Questions is an open socket of one network and one address family. Read gives one frame, Write sends one from the gateway.
type Questions interface {
	io.ReadWriteCloser
	MAC() [6]byte // of the gateway
	MTU() int     // of the network as it is now
}

// Net is one tenant's network as a host makes it.
type Net struct {
	VNI      uint32
	Ref      api.Ref
	Prefixes []netip.Prefix // at most one of each family
	Gateways []netip.Addr   // this host's address in each prefix, the same on every host
	MTU      int            // of instances' interfaces; 0: as large as the uplink lets it be
	Egress   Egress
	Peers    []Peer // networks that it is joined with on this host
	Routes   []Route
}

// Route is a way out of a network by one of its members. That member, if it is here, may send and receive
// for these addresses, and its kernel forwards.
type Route struct {
	To  netip.Prefix
	Via netip.Addr // of a member; the zero Addr: there is no way
}

// Peer is a network that is joined with another one on this host: packets go from one to the other by a
// cable between them, with the sender's address, by which the other side knows who it is.
// Both are here, and each has the other for a Peer.
type Peer struct {
	VNI      uint32
	Prefixes []netip.Prefix
}

// Egress is how a network reaches the outside.
type Egress string

// The ways out.
const (
	EgressNAT    Egress = "nat"    // by the host's address
	EgressDirect Egress = "direct" // by its own addresses
	EgressNone   Egress = "none"
)

// Identities that are the same in every network; see docs/adr/0016-tenant-networks.md.
const (
	IdentityNone     = 0                 // unknown: refused
	IdentityHost     = 1                 // the gateway, that is, the host itself
	IdentityOutside  = 2                 // beyond the gateway
	IdentityPeer     = 3                 // on a peered network: packets say no more, and the number is found by the address
	IdentityUnbidden = 4                 // outside, and to an address that is not translated: packets say so, and without a rule it is refused
	FirstIdentity    = 256               // of a set of labels
	FirstPrefix      = 1 << 16           // of a prefix in rules; on this host only
	FirstPeer        = 1 << 31           // of a set of labels on a peered network; on this host only
	FirstForeign     = FirstPeer | 1<<30 // the same, on one of another tenant
)

// Foreign reports whether a number is of another tenant's instances, which reach nobody without a rule.
func Foreign(n uint32) bool { return n >= FirstForeign }

// Member is an address of a network, wherever in the pool it is.
type Member struct {
	Addr     netip.Addr
	MAC      [6]byte
	Host     netip.Addr // where packets to it are sent; the zero Addr: it is here, or is a peer's behind the gateway, and then has no MAC
	Identity uint32
}

// Table is what one network's instances on one host may do. IDs of sets, lists and rules are
// not 0, are unique on the host, and mean the same as long as they are in a Table:
// what a set or list of an ID holds never changes, so that a port goes from one to the
// next in one step.
type Table struct {
	Ports    map[netip.Addr]Policy // of instances that are here, by their address
	Pairs    map[PairKey]Pair
	Lists    map[ListKey]uint32 // -> rule
	Prefixes map[netip.Prefix]uint32
}

// Policy is what judges new flows of one port. A direction without a set is open.
type Policy struct {
	Ingress, Egress       uint32 // sets; 0: open
	IngressDry, EgressDry uint32 // sets that are asked and counted, not obeyed; 0: none
}

// PairKey is a set and who is on the other side.
type PairKey struct{ Set, Peer uint32 }

// Pair is what a set says about one peer. No Pair: no.
type Pair struct {
	All  uint32 // the rule that allows every protocol and port; 0: none does
	List uint32 // the list of ports that are allowed; 0: none
	Lens uint32 // bit n is set when the list has entries of length n, 0 to 16
}

// ListKey is an entry of a list: a protocol and the first Len bits of a port. For ICMP
// the port is type<<8 | code. Port's other bits are 0.
type ListKey struct {
	List  uint32
	Proto uint8 // IANA's number
	Len   uint8 // 0 to 16
	Port  uint16
}

// Change is what is new in a network. What is put is there before a Policy that needs it
// is in force, and what is dropped goes after: lists, pairs, then prefixes and members, then
// ports are put, and then dropped in the opposite order.
type Change struct {
	Net          *Net // nil: as it was
	Put          []Member
	Drop         []netip.Addr
	Ports        map[netip.Addr]Policy
	DropPorts    []netip.Addr
	Pairs        map[PairKey]Pair
	DropPairs    []PairKey
	Lists        map[ListKey]uint32
	DropLists    []ListKey
	Prefixes     map[netip.Prefix]uint32
	DropPrefixes []netip.Prefix
}
