package resolve

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

const (
	attemptFor = 2 * time.Second // one resolver has to answer
	askFor     = 5 * time.Second // all of them together: then askers have given up
	strayMost  = 64              // answers to other questions, after which a resolver is given up
)

// forwarder asks the host's resolvers. It is shared by all networks of the host.
type forwarder struct {
	clock clock.Clock
	ev    Events
	all   []netip.AddrPort
	cache *cache

	mu       sync.Mutex
	gateways map[netip.Addr]int // of networks here: to ask them is to ask ourselves
	good     int                // index of the one that answered last
	flights  map[key]*flight
	flying   map[string]int // of these, by tenant: none takes the places of all others
}

// flight is a question on its way, for all who ask it.
type flight struct {
	done chan struct{}
	msg  *dns.Msg // never changed; nil: nobody answered
}

func newForwarder(upstream []string, c clock.Clock, ev Events) *forwarder {
	f := &forwarder{clock: c, ev: ev, cache: newCache(cacheBytes), gateways: map[netip.Addr]int{}, flights: map[key]*flight{}, flying: map[string]int{}}
	for _, s := range upstream {
		if p, ok := upstreamAddress(s); ok {
			f.all = append(f.all, p)
		}
	}
	return f
}

// upstreamAddress reads an address, with a port where it is not 53.
func upstreamAddress(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), true
	}
	p, err := netip.ParseAddrPort(s)
	return p, err == nil
}

// claim notes addresses that are ours.
func (f *forwarder) claim(addrs []netip.Addr, by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range addrs {
		if f.gateways[a] += by; f.gateways[a] <= 0 {
			delete(f.gateways, a)
		}
	}
}

// targets are whom to ask, in that order.
func (f *forwarder) targets() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []netip.AddrPort
	for i := range f.all {
		if a := f.all[(i+f.good)%len(f.all)]; f.gateways[a.Addr()] == 0 {
			out = append(out, a)
		}
	}
	return out
}

func (f *forwarder) worked(a netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.good = max(slices.Index(f.all, a), 0)
}

// kept is an answer from before; nil: there is none.
func (f *forwarder) kept(k key) (*dns.Msg, uint32) { return f.cache.get(k, f.clock.Now()) }

// ask gives what a resolver says, nil when none does. Who asks what somebody of the tenant asks already
// waits for that answer; so a question that comes back to us ends here.
func (f *forwarder) ask(ctx context.Context, k key, q dns.Question) *dns.Msg {
	f.mu.Lock()
	fl := f.flights[k]
	if fl != nil {
		f.mu.Unlock()
		select {
		case <-fl.done:
			return fl.msg
		case <-ctx.Done():
			return nil
		}
	}
	if m, _ := f.kept(k); m != nil { // it landed since the asker looked
		f.mu.Unlock()
		return m
	}
	if f.flying[k.tenant] >= tenantFlights || len(f.flights) >= hostFlights {
		f.mu.Unlock()
		f.ev.dropped(DropBusy)
		return nil
	}
	fl = &flight{done: make(chan struct{})}
	f.flights[k] = fl
	f.flying[k.tenant]++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.flights, k)
		if f.flying[k.tenant]--; f.flying[k.tenant] == 0 {
			delete(f.flying, k.tenant)
		}
		f.mu.Unlock()
		close(fl.done)
	}()
	start := f.clock.Now()
	m, err := f.fly(ctx, k, q)
	f.ev.forwarded(f.clock.Now().Sub(start), err)
	if m != nil {
		f.cache.put(k, m, f.clock.Now())
	}
	fl.msg = m
	return m
}

// fly asks one resolver after the other.
func (f *forwarder) fly(ctx context.Context, k key, q dns.Question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	err := errs.New(errs.Unavailable, "this host has no resolvers")
	var last *dns.Msg
	for _, to := range f.targets() {
		m, e := f.attempt(ctx, to, k, q)
		if e != nil {
			err = errs.New(errs.Unavailable, "resolver %s: %w", to, e)
			continue
		}
		if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
			f.worked(to)
			return m, nil
		}
		last, err = m, errs.New(errs.Unavailable, "resolver %s: %s", to, dns.RcodeToString[m.Rcode])
	}
	if last != nil { // that it cannot be answered is kept for a moment as well
		last = &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}, Question: last.Question}
	}
	return last, err
}

// attempt asks one by UDP, and by TCP when the answer does not fit.
func (f *forwarder) attempt(ctx context.Context, to netip.AddrPort, k key, q dns.Question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptFor)
	defer cancel()
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: dns.Id(), RecursionDesired: true, CheckingDisabled: k.cd}, Question: []dns.Question{q}}
	m.SetEdns0(sizeUDP, k.do)
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	r, err := exchange(ctx, "udp", to, m, b)
	if err != nil || !r.Truncated {
		return r, err
	}
	m.Id = dns.Id()
	binary.BigEndian.PutUint16(b, m.Id)
	return exchange(ctx, "tcp", to, m, b)
}

// exchange asks from a socket of its own, so that the kernel chooses a port that nobody can guess and takes
// answers from that resolver only.
func exchange(ctx context.Context, network string, to netip.AddrPort, m *dns.Msg, b []byte) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	most := readUDP
	if network == "tcp" {
		most = dns.MaxMsgSize
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	buf := make([]byte, most)
	for range strayMost {
		n, err := receive(c, network, buf)
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, err
		}
		r := new(dns.Msg)
		if err := r.Unpack(buf[:n]); err != nil && !r.Truncated || !r.Response || r.Id != m.Id || !sameQuestion(r, m.Question[0]) {
			continue // not the answer to this
		}
		return r, nil
	}
	return nil, errs.New(errs.Unavailable, "it answers what it was not asked")
}

func receive(c net.Conn, network string, buf []byte) (int, error) {
	if network == "udp" {
		return c.Read(buf)
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return 0, err
	}
	return io.ReadFull(c, buf[:binary.BigEndian.Uint16(size[:])])
}
