package api

import (
	"fmt"
	"strconv"
	"strings"
)

// Protocols that rules name by a word, with IANA's numbers.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// PortRange is one entry of a rule's ports: a protocol and the ports it may use. For ICMP
// a port is type<<8 | code, as in tables (package driver).
type PortRange struct {
	Proto       uint8
	First, Last uint16 // 0 and 65535: all of the protocol
}

const portRule = "must be a protocol (tcp, udp, sctp, icmp, icmpv6 or a number from 1 to 255) and, for those with a name, / and a port, a range, or an ICMP type and code"

const portExample = "tcp/5432, udp/8000-8100, icmp/8, icmpv6/128, icmp/3/4, tcp, 47"

// ParsePorts reads tcp/5432, udp/8000-8100, tcp, icmp, icmp/8 (a type), icmp/3/4 (a type
// and a code), icmpv6/128, sctp/2905 and 47 (a protocol by its number).
func ParsePorts(s string) (PortRange, error) {
	word, rest, limited := strings.Cut(s, "/")
	r := PortRange{Last: 65535}
	switch word {
	case "tcp":
		r.Proto = ProtoTCP
	case "udp":
		r.Proto = ProtoUDP
	case "sctp":
		r.Proto = ProtoSCTP
	case "icmp":
		r.Proto = ProtoICMP
	case "icmpv6":
		r.Proto = ProtoICMPv6
	default:
		n, ok := number(word, 255)
		if !ok || n == 0 {
			return r, fmt.Errorf("%q is not a protocol", clip(word))
		}
		if r.Proto = uint8(n); limited {
			return r, fmt.Errorf("a protocol that is named by its number has no ports here; those with ports are tcp, udp and sctp")
		}
		return r, nil
	}
	switch {
	case !limited:
		return r, nil
	case r.Proto == ProtoICMP || r.Proto == ProtoICMPv6:
		return parseICMP(r, rest)
	}
	first, last, isRange := strings.Cut(rest, "-")
	if !isRange {
		last = first
	}
	a, okA := number(first, 65535)
	b, okB := number(last, 65535)
	if !okA || !okB || a == 0 {
		return r, fmt.Errorf("%q is not a port from 1 to 65535, or two with - between", clip(rest))
	}
	if a > b {
		return r, fmt.Errorf("the range %s ends before it begins", clip(rest))
	}
	r.First, r.Last = uint16(a), uint16(b)
	return r, nil
}

func parseICMP(r PortRange, s string) (PortRange, error) {
	kind, code, exact := strings.Cut(s, "/")
	t, ok := number(kind, 255)
	if !ok {
		return r, fmt.Errorf("%q is not an ICMP type from 0 to 255", clip(kind))
	}
	r.First, r.Last = uint16(t)<<8, uint16(t)<<8|255
	if exact {
		c, ok := number(code, 255)
		if !ok {
			return r, fmt.Errorf("%q is not an ICMP code from 0 to 255", clip(code))
		}
		r.First |= uint16(c)
		r.Last = r.First
	}
	return r, nil
}

// number reads decimal digits without sign or leading zeros.
func number(s string, most int) (int, bool) {
	if s == "" || len(s) > 5 || s[0] == '0' && s != "0" {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= most
}

// Has reports whether a packet of that protocol and port is meant.
func (r PortRange) Has(proto uint8, port uint16) bool {
	return r.Proto == proto && r.First <= port && port <= r.Last
}

// String says it in words: "tcp 5432", "udp 8000-8100", "icmp type 8", "protocol 47".
func (r PortRange) String() string {
	w := protoWord(r.Proto)
	switch {
	case r.First == 0 && r.Last == 65535:
		return w
	case r.Proto == ProtoICMP || r.Proto == ProtoICMPv6:
		if r.First == r.Last {
			return fmt.Sprintf("%s type %d code %d", w, r.First>>8, r.First&255)
		}
		return fmt.Sprintf("%s type %d", w, r.First>>8)
	case r.First == r.Last:
		return fmt.Sprintf("%s %d", w, r.First)
	}
	return fmt.Sprintf("%s %d-%d", w, r.First, r.Last)
}

func protoWord(p uint8) string {
	switch p {
	case ProtoTCP:
		return "tcp"
	case ProtoUDP:
		return "udp"
	case ProtoSCTP:
		return "sctp"
	case ProtoICMP:
		return "icmp"
	case ProtoICMPv6:
		return "icmpv6"
	}
	return fmt.Sprintf("protocol %d", p)
}
