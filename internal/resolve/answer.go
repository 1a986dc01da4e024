package resolve

import (
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

const (
	ttl     = 5    // seconds that our own answers hold, also that there is none
	sizeUDP = 1232 // largest answer by UDP: it is not cut in pieces on any way that IPv6 goes
)

// asked is a question that was read and is one to answer, and what its answer is to look like.
type asked struct {
	id   uint16
	msg  *dns.Msg
	q    dns.Question
	name string // in lower case
	size int    // of the answer, in bytes
	edns bool
	do   bool // with signatures
}

// read takes a message apart. The answer is not nil where that is all there is to say; both are nil
// where nothing is.
func read(b []byte, tcp bool) (*asked, *dns.Msg) {
	if len(b) < 12 || b[2]&0x80 != 0 { // no header, or an answer: to answer it could go on for ever
		return nil, nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		bad := &dns.Msg{MsgHdr: dns.MsgHdr{Id: uint16(b[0])<<8 | uint16(b[1]), Response: true, Opcode: int(b[2]>>3) & 0xf, Rcode: dns.RcodeFormatError}}
		return nil, bad
	}
	a := &asked{id: m.Id, msg: m, size: dns.MinMsgSize}
	if opt := m.IsEdns0(); opt != nil {
		a.edns, a.do = true, opt.Do()
		a.size = min(max(int(opt.UDPSize()), dns.MinMsgSize), sizeUDP)
		if opt.Version() != 0 {
			return nil, a.reply(dns.RcodeBadVers)
		}
	}
	if tcp {
		a.size = dns.MaxMsgSize
	}
	switch {
	case m.Opcode != dns.OpcodeQuery:
		return nil, a.reply(dns.RcodeNotImplemented)
	case len(m.Question) != 1:
		return nil, a.reply(dns.RcodeFormatError)
	}
	a.q = m.Question[0]
	a.name = dns.CanonicalName(a.q.Name)
	if code := refusal(a.q); code != dns.RcodeSuccess {
		return nil, a.reply(code)
	}
	return a, nil
}

// refusal says of which questions nobody gets an answer.
func refusal(q dns.Question) int {
	switch t := q.Qtype; {
	case q.Qclass != dns.ClassINET:
		return dns.RcodeRefused
	case t == dns.TypeAXFR, t == dns.TypeIXFR: // a zone as a whole
		return dns.RcodeRefused
	case t == dns.TypeANY: // a small question with the largest of answers (RFC 8482)
		return dns.RcodeNotImplemented
	case t == dns.TypeNone, t == dns.TypeOPT, t >= 128 && t < 255: // not the types of any record
		return dns.RcodeFormatError
	}
	return dns.RcodeSuccess
}

// reply is an answer without records.
func (a *asked) reply(code int) *dns.Msg {
	r := &dns.Msg{MsgHdr: dns.MsgHdr{Id: a.id, Response: true, Opcode: a.msg.Opcode, RecursionDesired: a.msg.RecursionDesired, CheckingDisabled: a.msg.CheckingDisabled}}
	if len(a.msg.Question) == 1 {
		r.Question = a.msg.Question
	}
	if a.edns {
		r.SetEdns0(sizeUDP, a.do)
	}
	r.Rcode = code
	return r
}

// pack gives the bytes of an answer, cut to what the asker can take.
func pack(r *dns.Msg, size int) ([]byte, error) {
	r.Truncate(size)
	return r.Pack()
}

// own answers from a view; nil when the name is none of its.
func own(a *asked, f found) *dns.Msg {
	if f.zone == "" {
		return nil
	}
	r := a.reply(dns.RcodeSuccess)
	r.Authoritative = true
	if !f.exists {
		r.Rcode = dns.RcodeNameError
		r.Ns = []dns.RR{soa(f.zone)}
		return r
	}
	switch a.q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		r.Answer = addressRecords(a.q.Name, a.q.Qtype, f.addrs)
	case dns.TypePTR:
		for _, n := range f.names {
			r.Answer = append(r.Answer, &dns.PTR{Hdr: header(a.q.Name, dns.TypePTR), Ptr: n})
		}
	case dns.TypeSOA:
		if a.name == f.zone {
			r.Answer = []dns.RR{soa(f.zone)}
		}
	case dns.TypeNS:
		if a.name == f.zone {
			r.Answer = []dns.RR{&dns.NS{Hdr: header(f.zone, dns.TypeNS), Ns: nsLabels + "." + f.zone}}
			for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
				r.Extra = append(r.Extra, addressRecords(nsLabels+"."+f.zone, t, f.servers)...)
			}
		}
	}
	if len(r.Answer) == 0 {
		r.Ns = []dns.RR{soa(f.zone)}
	}
	return r
}

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

func addressRecords(name string, t uint16, addrs []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		switch {
		case a.Is4() && t == dns.TypeA:
			out = append(out, &dns.A{Hdr: header(name, t), A: net.IP(a.AsSlice())})
		case a.Is6() && t == dns.TypeAAAA:
			out = append(out, &dns.AAAA{Hdr: header(name, t), AAAA: net.IP(a.AsSlice())})
		}
	}
	return out
}

// soa tells how long an answer holds that there is none. Nobody copies a zone, so its serial never changes.
func soa(zone string) dns.RR {
	return &dns.SOA{Hdr: header(zone, dns.TypeSOA), Ns: nsLabels + "." + zone, Mbox: "hostmaster." + zone, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl}
}

// sameQuestion reports whether an answer is one to q.
func sameQuestion(r *dns.Msg, q dns.Question) bool {
	return len(r.Question) == 1 && r.Question[0].Qtype == q.Qtype && r.Question[0].Qclass == q.Qclass && dns.CanonicalName(r.Question[0].Name) == dns.CanonicalName(q.Name)
}

// passOn makes the answer for one asker out of what a resolver outside said. Records are shared with the cache and
// with other askers, so only their copies are changed.
func passOn(a *asked, said *dns.Msg, age uint32) *dns.Msg {
	r := a.reply(said.Rcode)
	r.RecursionAvailable = true
	older := func(in []dns.RR) []dns.RR {
		out := make([]dns.RR, 0, len(in))
		for _, rr := range in {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue // between two neighbours only
			}
			c := dns.Copy(rr)
			h := c.Header()
			h.Ttl -= min(h.Ttl, age)
			out = append(out, c)
		}
		return slices.Clip(out)
	}
	r.Answer, r.Ns = older(said.Answer), older(said.Ns)
	r.Extra = append(r.Extra, older(said.Extra)...)
	return r
}
