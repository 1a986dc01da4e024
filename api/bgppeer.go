package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindBGPPeer is a router that hosts tell what is on them.
const KindBGPPeer Kind = "BGPPeer"

// BGPPeer is a router of the fabric around the pool, which hosts tell by BGP what is on
// them, and from which networks may learn who else is on them. Spec is the operator's;
// Status is gathered by a controller from what the hosts say of their sessions.
type BGPPeer struct {
	Head
	Spec   BGPPeerSpec   `json:"spec"`
	Status BGPPeerStatus `json:"status,omitzero"`
}

// BGPPeerSpec is who the peer is, and what it is told.
type BGPPeerSpec struct {
	Address  string            `json:"address" doc:"address of the router" example:"192.0.2.1"`
	Port     int               `json:"port,omitempty" doc:"its TCP port" default:"179" example:"1179"`
	ASN      uint32            `json:"asn" doc:"number of the router's autonomous system" example:"65001"`
	LocalASN uint32            `json:"localAsn" doc:"number of the hosts' autonomous system; the same in all peers of a host" example:"64512"`
	Nodes    map[string]string `json:"nodes,omitempty" doc:"hosts with all these labels have a session; none: all hosts" example:"{rack: r1}"`
	Families []string          `json:"families,omitempty" doc:"what is told: ipv4 and ipv6, floating addresses and networks that use their own addresses outside; evpn, networks of tenants and who is on them" example:"[ipv4, evpn]"`
	Password string            `json:"password,omitempty" doc:"name of the file with the password of the session (TCP MD5, RFC 2385) on the hosts, in /etc/atoll/bgp" example:"fabric"`
	HoldTime *Duration         `json:"holdTime,omitempty" doc:"a side that was not heard of for so long is lost" default:"30s" example:"9s"`
	Multihop int               `json:"multihop,omitempty" doc:"the router is so many hops away at most; 0: on a network of the host" example:"4"`
	Restart  *Duration         `json:"restart,omitempty" doc:"how long the router keeps what a host told it while the host's daemon restarts; 0s: not at all" default:"15s" example:"60s"`
	Import   []string          `json:"import,omitempty" doc:"networks that learn by evpn who else is on them, as tenant/network" example:"[acme/main]"`
	BFD      string            `json:"bfd,omitempty" doc:"fast detection of a lost router: none; there is no other yet" enum:"none" default:"none"`

	Description string `json:"description,omitempty" doc:"a note for people"`
}

// BGPPeerStatus is what the hosts say of it.
type BGPPeerStatus struct {
	Hosts       int          `json:"hosts,omitempty" doc:"hosts that are to have a session"`
	Established int          `json:"established,omitempty" doc:"those that have one"`
	Sessions    []BGPSession `json:"sessions,omitempty" doc:"of hosts, those without a session first; at most 256"`
}

// BGPSession is what a host says of its session with one peer. In the status of a node it
// names the peer, in that of a peer the node.
type BGPSession struct {
	Peer     string     `json:"peer,omitempty" doc:"name of the peer" example:"tor1"`
	Node     string     `json:"node,omitempty" doc:"name of the host" example:"isle1"`
	State    string     `json:"state" doc:"of the session, in BGP's words" example:"Established"`
	Since    *time.Time `json:"since,omitempty" doc:"when it came to be established"`
	Sent     int        `json:"sent,omitempty" doc:"prefixes that the router is told of now"`
	Received int        `json:"received,omitempty" doc:"prefixes that the router tells of now"`
	Imported int        `json:"imported,omitempty" doc:"addresses of those that became members of networks"`
	Error    string     `json:"error,omitempty" doc:"why there is no session, or why the last one ended"`
}

// BGPEstablished is BGPSession.State of a session that works.
const BGPEstablished = "Established"

// Families of BGPPeerSpec.
const (
	BGPIPv4 = "ipv4"
	BGPIPv6 = "ipv6"
	BGPEVPN = "evpn"
)

// GrantBGP is the right to say with whom hosts speak BGP: who has it can have traffic of others sent elsewhere.
const GrantBGP = "network:bgp"

// MaxBGPSessions bounds the sessions in a peer's status, so that a peer of a thousand hosts stays small.
const MaxBGPSessions = 256

// Defaults of BGPPeerSpec.
const (
	BGPPort    = 179
	BGPHold    = 30 * time.Second
	BGPRestart = 15 * time.Second // a daemon is back within seconds; what is on a lost host moves then, too
)

// Grants lists the dangerous rights the spec needs.
func (s *BGPPeerSpec) Grants() []string { return []string{GrantBGP} }

// Speaks reports whether a family is told, with the default.
func (s *BGPPeerSpec) Speaks(family string) bool {
	if len(s.Families) == 0 {
		return family != BGPEVPN
	}
	return slices.Contains(s.Families, family)
}

// Hold is HoldTime with its default.
func (s *BGPPeerSpec) Hold() time.Duration { return durationOr(s.HoldTime, BGPHold) }

// RestartTime is Restart with its default.
func (s *BGPPeerSpec) RestartTime() time.Duration { return durationOr(s.Restart, BGPRestart) }

// At is where the router is spoken to. It is valid where Validate finds nothing.
func (s *BGPPeerSpec) At() netip.AddrPort {
	a, _ := netip.ParseAddr(s.Address) // checked by Validate
	port := s.Port
	if port == 0 {
		port = BGPPort
	}
	return netip.AddrPortFrom(a, uint16(port)) //nolint:gosec // checked by Validate
}

// Wants reports whether a host is to have a session.
func (p *BGPPeer) Wants(n *Node) bool {
	for k, v := range p.Spec.Nodes {
		if have, ok := n.Labels[k]; !ok || have != v {
			return false
		}
	}
	return p.DeletedAt == nil
}

func durationOr(d *Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return d.D()
}

// Bounds of BGPPeerSpec. RFC 4271 has no hold time below 3 s but 0, which never finds a lost peer;
// the time of a restart is a number of 12 bits (RFC 4724).
const (
	minHold      = 3 * time.Second
	maxHold      = 18 * time.Hour
	maxRestart   = 4095 * time.Second
	maxBGPImport = 1000
	transASN     = 23456 // stands for numbers of four bytes where a speaker knows only two (RFC 6793)
)

// Validate checks everything that can be judged from the spec alone.
func (p *BGPPeer) Validate() []errs.Field {
	s := &p.Spec
	f := labelFields("spec.nodes", s.Nodes)
	bad := func(field, value, rule, example string) {
		f = append(f, errs.Field{Field: "spec." + field, Value: clip(value), Rule: rule, Example: example})
	}
	if a, err := netip.ParseAddr(s.Address); err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		bad("address", s.Address, "must be the router's address, without port; not one that means something else on every host", "192.0.2.1")
	}
	if s.Port < 0 || s.Port > 65535 {
		bad("port", strconv.Itoa(s.Port), "must be 1 to 65535", "179")
	}
	for field, n := range map[string]uint32{"asn": s.ASN, "localAsn": s.LocalASN} {
		if n == 0 || n == transASN || n == 65535 || n == 1<<32-1 {
			bad(field, strconv.FormatUint(uint64(n), 10), "must be the number of an autonomous system, 1 to 4294967294; 23456 and 65535 are reserved", "64512")
		}
	}
	for i, x := range s.Families {
		if at := fmt.Sprintf("families[%d]", i); slices.Contains(s.Families[:i], x) {
			bad(at, x, "is there already", "")
		} else {
			f = append(f, oneOf("spec."+at, x, []string{BGPIPv4, BGPIPv6, BGPEVPN})...)
		}
	}
	if s.Password != "" && !ValidName(s.Password) {
		bad("password", "", "must be the name of a file in /etc/atoll/bgp on the hosts, not the password: "+nameRule, "fabric")
	}
	if d := s.Hold(); d < minHold || d > maxHold || d%time.Second != 0 {
		bad("holdTime", d.String(), "must be whole seconds, 3s to 18h", "30s")
	}
	if d := s.RestartTime(); d < 0 || d > maxRestart || d%time.Second != 0 {
		bad("restart", d.String(), "must be whole seconds, 0s to 4095s", "15s")
	}
	if s.Multihop < 0 || s.Multihop > 255 {
		bad("multihop", strconv.Itoa(s.Multihop), "must be 0 to 255", "4")
	}
	f = append(f, optional("spec.bfd", s.BFD, "none")...)
	return append(f, s.validateImport()...)
}

func (s *BGPPeerSpec) validateImport() []errs.Field {
	if len(s.Import) > maxBGPImport {
		return []errs.Field{{Field: "spec.import", Value: strconv.Itoa(len(s.Import)), Rule: fmt.Sprintf("must be at most %d networks", maxBGPImport)}}
	}
	var f []errs.Field
	for i, x := range s.Import {
		if !strings.Contains(x, "/") || !validNetworkName(x) {
			f = append(f, errs.Field{Field: fmt.Sprintf("spec.import[%d]", i), Value: clip(x), Rule: "must be tenant/network", Example: "acme/main"})
		}
	}
	if len(s.Import) > 0 && !s.Speaks(BGPEVPN) {
		f = append(f, errs.Field{Field: "spec.import", Value: clip(s.Import[0]), Rule: "needs the family evpn: addresses of other families are not learned", Example: "families: [evpn]"})
	}
	return f
}

func bgpPeerDefinition() *Definition {
	peer := func(fn func(p *BGPPeer) string) func(Object, time.Time) string {
		return func(o Object, _ time.Time) string { return fn(o.(*BGPPeer)) }
	}
	return &Definition{
		Kind: KindBGPPeer, Plural: "bgppeers", Aliases: []string{"bgp"},
		Doc: "A router that hosts tell by BGP what is on them.",
		New: func() Object { return &BGPPeer{Head: Head{K: KindBGPPeer}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "ADDRESS", Value: peer(func(p *BGPPeer) string { return p.Spec.Address })},
			{Name: "ASN", Value: peer(func(p *BGPPeer) string { return strconv.FormatUint(uint64(p.Spec.ASN), 10) })},
			{Name: "LOCAL-ASN", Value: peer(func(p *BGPPeer) string { return strconv.FormatUint(uint64(p.Spec.LocalASN), 10) })},
			{Name: "FAMILIES", Value: peer(func(p *BGPPeer) string {
				if len(p.Spec.Families) == 0 {
					return BGPIPv4 + "," + BGPIPv6
				}
				return strings.Join(p.Spec.Families, ",")
			})},
			{Name: "ESTABLISHED", Value: peer(func(p *BGPPeer) string {
				return fmt.Sprintf("%d/%d", p.Status.Established, p.Status.Hosts)
			})},
			{Name: "PREFIXES", Value: peer(func(p *BGPPeer) string {
				sent, received := 0, 0
				for _, s := range p.Status.Sessions {
					sent, received = sent+s.Sent, received+s.Received
				}
				return fmt.Sprintf("%d out, %d in", sent, received)
			})},
			{Name: "ERROR", Value: peer(func(p *BGPPeer) string {
				for _, s := range p.Status.Sessions { // those without a session come first
					if s.Error != "" && s.State != BGPEstablished {
						return s.Node + ": " + clip(s.Error)
					}
				}
				return "-"
			})},
			{Name: "DESCRIPTION", Wide: true, Value: peer(func(p *BGPPeer) string { return dash(p.Spec.Description) })},
			{Name: "AGE", Value: ageColumn},
		},
	}
}
