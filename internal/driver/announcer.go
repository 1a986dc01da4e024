package driver

import (
	"context"
	"net/netip"
	"time"
)

// Announcer tells routers what is on this host, and hears from them who is on a network
// beside the pool's instances. It is told the whole each time and works out the difference.
// Without peers it runs nothing.
type Announcer interface {
	// Announce makes the sessions and the routes told in them be as they are said here.
	// Sessions with peers that are the same go on. What can be done is done also when
	// something cannot; a peer that cannot be spoken to is an error of its Session.
	Announce(ctx context.Context, a Announcing) error
	// Sessions says how it stands with each peer, in the order of Announcing.Peers.
	Sessions(ctx context.Context) ([]Session, error)
	// Learned is what routers tell of addresses of networks (EVPN routes of type 2), each
	// address of a network once, in the order of networks and addresses.
	Learned(ctx context.Context) ([]Learned, error)
	// Changed calls fn when Sessions or Learned may have another answer; it must not block.
	Changed(fn func())
	// Close ends all sessions so that peers keep what they were told, as after a death of
	// the daemon: what is on the host works on.
	Close() error
}

// GatewayMAC is the hardware address of every tenant network's gateway, on every host.
var GatewayMAC = [6]byte{0x0a, 0x58, 0x00, 0x00, 0x00, 0x01}

// Announcing is all that a host says by BGP.
type Announcing struct {
	ASN      uint32     // of this host
	RouterID netip.Addr // IPv4, the host's own among all speakers
	Peers    []Router
	Routes   []Announcement
}

// Router is a speaker of BGP with which this host has a session.
type Router struct {
	Name     string // of the object that says so
	At       netip.AddrPort
	ASN      uint32
	Families []Family
	Secret   string // name of the file with the password of the session; "": none
	Hold     time.Duration
	Multihop int           // hops to it at most; 0: it is on a network of the host
	Restart  time.Duration // how long it is to keep routes while the daemon restarts; 0: not
}

// Family is what kind of routes a session carries.
type Family string

// The families.
const (
	FamilyIPv4 Family = "ipv4"
	FamilyIPv6 Family = "ipv6"
	FamilyEVPN Family = "evpn"
)

// RouteKind is what a route says.
type RouteKind uint8

// The kinds of routes. Numbers of the EVPN ones are those of RFC 7432 and RFC 9136.
const (
	RouteUnicast   RouteKind = 0 // packets to Prefix go to NextHop
	RouteMember    RouteKind = 2 // Addr, with MAC, is on the network VNI, behind NextHop
	RouteMulticast RouteKind = 3 // NextHop takes part in the network VNI
	RoutePrefix    RouteKind = 5 // packets to Prefix, in the network VNI, may go to MAC behind NextHop
)

// Announcement is one route of this host. It is comparable: two that are equal say the same.
type Announcement struct {
	Kind    RouteKind
	Prefix  netip.Prefix
	NextHop netip.Addr
	// Of EVPN only.
	VNI    uint32
	Number uint16 // with RouterID, the route distinguisher: another one for each network of the host
	Target RouteTarget
	Addr   netip.Addr
	MAC    [6]byte
}

// RouteTarget says for whom an EVPN route is: 2 bytes of a number of an autonomous system, 4 of a network.
type RouteTarget struct {
	ASN    uint16
	Number uint32
}

// Session is how it stands with a peer.
type Session struct {
	Peer     string
	State    string // in BGP's words: Established; Active, it is tried; Idle, it is not
	Since    time.Time
	Sent     int // prefixes
	Received int
	Error    string // why there is none, or why the last one ended
}

// Learned is an address of a network that a router tells of.
type Learned struct {
	Peer string // who says so
	VNI  uint32
	Addr netip.Addr
	MAC  [6]byte
	Host netip.Addr // where packets to it go
}
