package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// What travels about traffic on networks of tenants: questions to the servers, the parts of
// them that hosts answer, and the answers.

// NetEnd is one end of a flow, by name as far as there is one and the reader may know it.
type NetEnd struct {
	Tenant   string `json:"tenant,omitempty" doc:"of the instance"`
	Instance string `json:"instance,omitempty" doc:"its name; empty: no instance, or one that the caller may not see"`
	Network  string `json:"network,omitempty" doc:"network of the tenant it is on"`
	Address  string `json:"address,omitempty"`
	Place    string `json:"place,omitempty" doc:"what is not an instance: host, outside, or dns and its name"`
}

// String is acme/web, 203.0.113.9, host or outside.
func (e NetEnd) String() string {
	switch {
	case e.Instance != "":
		return e.Tenant + "/" + e.Instance
	case e.Place == PlaceHost:
		return e.Place
	case e.Address != "":
		return e.Address
	case e.Place != "":
		return e.Place
	}
	return "?"
}

// Places of NetEnd.
const (
	PlaceHost    = "host"
	PlaceOutside = "outside"
)

// NetHop is what one place on the way says.
type NetHop struct {
	Node      string `json:"node,omitempty"`
	Instance  string `json:"instance,omitempty" doc:"whose wall it is: TENANT/NAME"`
	Direction string `json:"direction,omitempty" doc:"egress: the sender's wall; ingress: the receiver's; empty: a way between hosts"`
	Port      int    `json:"port,omitempty" doc:"index of the host's end of the wire in the network's namespace"`
	Known     bool   `json:"known" doc:"read from the tables of the kernel on that host; else judged by what is written"`
	Allowed   bool   `json:"allowed"`
	Text      string `json:"text" doc:"why, in words"`
	Rule      string `json:"rule,omitempty" doc:"that allows it"`
	Dry       string `json:"dry,omitempty" doc:"what groups that are only tried would change"`
	// Dropped counts by reason what this wall dropped since its instance started, whoever sent it.
	Dropped map[string]uint64 `json:"dropped,omitempty" doc:"packets this wall dropped since its instance started, by reason, whoever sent them"`
}

// NetVerdict answers whether one end may begin a flow to another.
type NetVerdict struct {
	From     NetEnd    `json:"from"`
	To       NetEnd    `json:"to"`
	Protocol string    `json:"protocol"`
	Port     uint16    `json:"port,omitempty"`
	Allowed  bool      `json:"allowed"`
	Complete bool      `json:"complete" doc:"every wall on the way was asked"`
	Reason   string    `json:"reason" doc:"one line"`
	Hint     string    `json:"hint,omitempty" doc:"what to do next"`
	Hops     []NetHop  `json:"hops,omitempty"`
	Notes    []string  `json:"notes,omitempty"`
	Flows    []NetFlow `json:"flows,omitempty" doc:"between the two, as the tables have them"`
	Refused  []NetFlow `json:"refused,omitempty" doc:"between the two, as they were seen lately"`
}

// NetFlow is a flow, or what was refused of one.
type NetFlow struct {
	At         time.Time `json:"at,omitzero" doc:"of a new or refused one"`
	Node       string    `json:"node" doc:"whose tables say so"`
	Seen       string    `json:"seen" doc:"at which end: egress, the one who began; ingress, the other"`
	From       NetEnd    `json:"from" doc:"who began"`
	To         NetEnd    `json:"to"`
	Protocol   string    `json:"protocol"`
	SourcePort uint16    `json:"sourcePort,omitempty"`
	Port       uint16    `json:"port,omitempty" doc:"the one that was asked for; of ICMP 0"`
	State      string    `json:"state,omitempty" doc:"of TCP"`
	Packets    uint64    `json:"packets"`
	Bytes      uint64    `json:"bytes"`
	AgeMS      int64     `json:"ageMs,omitempty"`
	IdleMS     int64     `json:"idleMs,omitempty"`
	Refused    string    `json:"refused,omitempty" doc:"why; empty: it is allowed"`
	Rule       string    `json:"rule,omitempty" doc:"that allows it; empty: none is needed"`
	Dry        bool      `json:"dry,omitempty" doc:"a group that is only tried would refuse it"`
}

// SeenLost is in Seen of a line that only says how many events of a host were not told.
const SeenLost = "lost"

// NetFlows are flows of many hosts.
type NetFlows struct {
	At      time.Time `json:"at"`
	Flows   []NetFlow `json:"flows"`
	Lost    uint64    `json:"lost,omitempty" doc:"events that no host had room for since it began to tell"`
	More    bool      `json:"more,omitempty" doc:"there are more than are told"`
	Missing []string  `json:"missing,omitempty" doc:"hosts that did not answer"`
}

// NetEdge sums the flows between two.
type NetEdge struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Ports   []string `json:"ports" doc:"those that were asked for, the busiest first"`
	Flows   int      `json:"flows"`
	Packets uint64   `json:"packets"`
	Bytes   uint64   `json:"bytes"`
	Refused uint64   `json:"refused" doc:"packets refused lately"`
	Why     string   `json:"why,omitempty" doc:"why the last of those was refused"`
}

// NetMap says who talks to whom.
type NetMap struct {
	At      time.Time `json:"at"`
	Edges   []NetEdge `json:"edges"`
	More    bool      `json:"more,omitempty"`
	Missing []string  `json:"missing,omitempty"`
}

// NetHit counts what one rule has allowed, or what a group that is only tried would have refused.
type NetHit struct {
	Group   string   `json:"group" doc:"TENANT/NAME"`
	Rule    string   `json:"rule,omitempty" doc:"such as ingress rule 1; empty: the group as a whole"`
	Text    string   `json:"text,omitempty"`
	Allowed uint64   `json:"allowed" doc:"new flows"`
	Refused uint64   `json:"refused,omitempty" doc:"new flows that a dry run would have refused"`
	DryRun  bool     `json:"dryRun,omitempty"`
	Log     bool     `json:"log,omitempty"`
	Samples []string `json:"samples,omitempty" doc:"some that would have been refused"`
}

// NetHits is that of all hosts together.
type NetHits struct {
	At      time.Time `json:"at"`
	Hits    []NetHit  `json:"hits"`
	Missing []string  `json:"missing,omitempty"`
}

// NetReach is what one protocol found on a real path.
type NetReach struct {
	Address  string `json:"address"`
	Sent     int    `json:"sent,omitempty" doc:"echo requests of small size"`
	Answered int    `json:"answered,omitempty"`
	RTTUS    int64  `json:"rttUs,omitempty" doc:"median round trip, microseconds"`
	MTU      int    `json:"mtu,omitempty" doc:"of the source's interface"`
	Largest  int    `json:"largest,omitempty" doc:"largest packet that passed unfragmented, in bytes with its IP header"`
	TCP      string `json:"tcp,omitempty" doc:"connected, refused, timeout or unreachable"`
	TCPUS    int64  `json:"tcpUs,omitempty"`
	Skipped  string `json:"skipped,omitempty" doc:"why no echo was sent"`
	Error    string `json:"error,omitempty"`
}

// NetCheck is a real path test.
type NetCheck struct {
	Verdict NetVerdict `json:"verdict" doc:"what the walls say"`
	Reaches []NetReach `json:"reaches,omitempty" doc:"one for each address family"`
	OK      bool       `json:"ok"`
	Fault   string     `json:"fault,omitempty" doc:"where it ends, in words"`
	Hint    string     `json:"hint,omitempty"`
}

// What a host is asked about its part of tenants' networks.
const (
	NetJudge  = "judge"  // NetHop for Local
	NetTables = "flows"  // NetFlows
	NetFollow = "follow" // a NetFlow a line, until the caller leaves
	NetCounts = "hits"   // NetHits
	NetRecord = "log"    // NetFlows of groups that log
	NetPath   = "reach"  // NetReach, from inside the instance
)

// NetAsk is a question to a host.
type NetAsk struct {
	What string `json:"what"`
	// judge and reach: the wall of Local on network VNI, and the other side.
	VNI     uint32 `json:"vni,omitempty"`
	Local   string `json:"local,omitempty"`
	Remote  string `json:"remote,omitempty"`
	Ingress bool   `json:"ingress,omitempty"`
	// Unbidden: from outside, to an address that is known there and that nobody published.
	Unbidden bool   `json:"unbidden,omitempty"`
	Proto    uint8  `json:"proto,omitempty"`
	Port     uint16 `json:"port,omitempty"` // for ICMP type<<8 | code
	Echo     bool   `json:"echo,omitempty"` // reach: the walls let echoes pass
	// flows, follow and log: "" is any.
	Tenant   string `json:"tenant,omitempty"`
	Network  string `json:"network,omitempty"`
	Instance string `json:"instance,omitempty"`
	Denied   bool   `json:"denied,omitempty"`
	Limit    int    `json:"limit,omitempty"`
}

// CaptureRequest asks for the packets on an instance's wire.
type CaptureRequest struct {
	Network string        `json:"network,omitempty"` // default: its first
	Count   int           `json:"count,omitempty"`   // packets; default 10,000
	For     time.Duration `json:"for,omitempty"`     // default 60 s
	Snaplen int           `json:"snaplen,omitempty"` // bytes of each; default 65,535
	Host    string        `json:"host,omitempty"`    // address at either end
	Port    uint16        `json:"port,omitempty"`    // at either end
	Proto   string        `json:"proto,omitempty"`   // tcp, udp, icmp or arp
}

// Bounds of a capture.
const (
	CaptureCount   = 10_000
	CaptureMost    = 10_000_000
	CaptureFor     = time.Minute
	CaptureLongest = time.Hour
	CaptureSnaplen = 65_535
)

// Defaults fills in what is not said.
func (r *CaptureRequest) Defaults() {
	if r.Count == 0 {
		r.Count = CaptureCount
	}
	if r.For == 0 {
		r.For = CaptureFor
	}
	if r.Snaplen == 0 {
		r.Snaplen = CaptureSnaplen
	}
}

// Validate checks the bounds, after Defaults.
func (r *CaptureRequest) Validate() []errs.Field {
	var f []errs.Field
	if r.Count < 1 || r.Count > CaptureMost {
		f = append(f, errs.Field{Field: "count", Value: strconv.Itoa(r.Count), Rule: fmt.Sprintf("must be 1 to %d packets", CaptureMost), Example: "1000"})
	}
	if r.For < time.Millisecond || r.For > CaptureLongest {
		f = append(f, errs.Field{Field: "duration", Value: r.For.String(), Rule: "must be at most " + CaptureLongest.String(), Example: "30s"})
	}
	if r.Snaplen < 64 || r.Snaplen > CaptureSnaplen {
		f = append(f, errs.Field{Field: "snaplen", Value: strconv.Itoa(r.Snaplen), Rule: fmt.Sprintf("must be 64 to %d bytes", CaptureSnaplen), Example: "256"})
	}
	if r.Host != "" {
		if _, err := netip.ParseAddr(r.Host); err != nil {
			f = append(f, errs.Field{Field: "host", Value: clip(r.Host), Rule: "must be an address", Example: "10.1.0.5"})
		}
	}
	switch r.Proto {
	case "", "tcp", "udp", "icmp", "arp":
	default:
		f = append(f, errs.Field{Field: "proto", Value: clip(r.Proto), Rule: "must be tcp, udp, icmp or arp", Example: "tcp"})
	}
	if r.Port != 0 && (r.Proto == "icmp" || r.Proto == "arp") {
		f = append(f, errs.Field{Field: "port", Value: strconv.Itoa(int(r.Port)), Rule: r.Proto + " has no ports"})
	}
	if r.Network != "" && !ValidName(r.Network) {
		f = append(f, errs.Field{Field: "network", Value: clip(r.Network), Rule: "must name a network of the tenant", Example: "main"})
	}
	return f
}

// NetProtocol is a protocol by its word; false: it is none that can be asked about.
func NetProtocol(word string) (uint8, bool) {
	n, ok := map[string]uint8{"tcp": 6, "udp": 17, "icmp": 1}[strings.ToLower(word)]
	return n, ok
}

// ProtocolWord is tcp, udp, icmp, or the number.
func ProtocolWord(proto uint8) string {
	switch proto {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 1, 58:
		return "icmp"
	}
	return strconv.Itoa(int(proto))
}
