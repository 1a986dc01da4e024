package resolve

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

const (
	arpa4 = ".in-addr.arpa."
	arpa6 = ".ip6.arpa."
)

// reverse reads a name below in-addr.arpa or ip6.arpa: all addresses that it stands for, or,
// where exact is false, that a name above it stands for. name is in lower case.
func reverse(name string) (p netip.Prefix, exact, ok bool) {
	if s, ok := strings.CutSuffix(name, arpa4); ok {
		p, exact = reverse4(strings.Split(s, "."))
		return p, exact, true
	}
	if s, ok := strings.CutSuffix(name, arpa6); ok {
		p, exact = reverse6(strings.Split(s, "."))
		return p, exact, true
	}
	return netip.Prefix{}, false, false
}

func reverse4(labels []string) (netip.Prefix, bool) {
	var b [4]byte
	n := 0
	for ; n < len(labels) && n < len(b); n++ {
		l := labels[len(labels)-1-n]
		v, err := strconv.ParseUint(l, 10, 8)
		if err != nil || l != strconv.FormatUint(v, 10) {
			break
		}
		b[n] = byte(v)
	}
	return netip.PrefixFrom(netip.AddrFrom4(b), 8*n), n == len(labels)
}

func reverse6(labels []string) (netip.Prefix, bool) {
	var b [16]byte
	n := 0
	for ; n < len(labels) && n < 2*len(b); n++ {
		l := labels[len(labels)-1-n]
		v, err := strconv.ParseUint(l, 16, 4)
		if err != nil || len(l) != 1 {
			break
		}
		b[n/2] |= byte(v) << (4 * (1 - n%2))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 4*n), n == len(labels)
}

// privates are addresses that mean something in one place only: what they are called is nobody
// else's business (RFC 6303, RFC 7793).
var privates = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
}

// private is the zone of a name that stands for private addresses; "" for others.
func private(name string, p netip.Prefix) string {
	for _, q := range privates {
		if q.Bits() <= p.Bits() && q.Overlaps(p) {
			return apex(name, p, q.Bits())
		}
	}
	return ""
}

// apex cuts a name to the shortest one that is within the first bits of p.
func apex(name string, p netip.Prefix, bits int) string {
	per := 8
	if p.Addr().Is6() {
		per = 4
	}
	labels := dns.Split(name) // two of them are the family's
	return name[labels[len(labels)-2-(bits+per-1)/per]:]
}
