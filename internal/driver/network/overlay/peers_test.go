package overlay

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"atoll/internal/driver"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

// onNet moves a box to 10.x.0.0/16 and fd00:x::/64.
func (b *box) onNet(x byte) *box {
	n := b.four.As4()[3]
	b.four, b.six = netip.AddrFrom4([4]byte{10, x, 0, n}), netip.MustParseAddr(fmt.Sprintf("fd00:%x::%x", x, n))
	b.mac = [6]byte{0x0a, 0x58, 10, x, 0, n}
	return b
}

// numbered is a LAN of 10.x.0.0/16.
func numberedLAN(vni uint32, tenant string, x byte, boxes ...*box) *lan {
	l := newLAN(vni, tenant, boxes...)
	l.net.Prefixes = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", x)), netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/64", x))}
	l.net.Gateways = gateways(l.net.Prefixes)
	return l
}

// pair is two networks, of which each host knows what it needs: where no box of one is, it has no instances.
type pair struct {
	a, b   *lan
	joined bool
	guest  uint32 // what a guest's identity is added to
	skip   map[*box]bool
}

func (p *pair) net(l, o *lan, x *host) driver.Net {
	n := l.net
	if !l.on(x) {
		n.Egress = driver.EgressNone
	}
	if p.joined {
		n.Peers = []driver.Peer{{VNI: o.net.VNI, Prefixes: o.net.Prefixes}}
	}
	return n
}

func (l *lan) on(x *host) bool {
	for _, b := range l.boxes {
		if b.host == x {
			return true
		}
	}
	return false
}

func (p *pair) tell(x *host) {
	for _, l := range []*lan{p.a, p.b} {
		o := p.a
		if l == p.a {
			o = p.b
		}
		if !l.on(x) && !p.joined {
			x.do(func(d *Driver) error { return d.Forget(x.t.Context(), l.net.VNI) })
			continue
		}
		ms := l.members()
		if p.joined && l.on(x) {
			for _, m := range o.members() {
				ms = append(ms, driver.Member{Addr: m.Addr, Identity: p.guest + m.Identity})
			}
			for b := range p.skip {
				ms = without(ms, b)
			}
		}
		x.do(func(d *Driver) error { return d.Replace(x.t.Context(), p.net(l, o, x), ms, l.of(x)) })
	}
}

func without(ms []driver.Member, b *box) []driver.Member {
	var out []driver.Member
	for _, m := range ms {
		if m.Addr != b.four && m.Addr != b.six {
			out = append(out, m)
		}
	}
	return out
}

// keep opens a connection from b to o and says, until it ends, whether what is sent comes back.
func (b *box) keep(t *testing.T, o *box, addr netip.Addr, port int) func() error {
	t.Helper()
	must(t, o.ns.Do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }() //nolint:errcheck // the other side sees it
			}
		}()
		return nil
	}))
	var c net.Conn
	must(t, b.ns.Do(func() error {
		var err error
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(addr, uint16(port)).String(), 3*time.Second) //nolint:gosec // a port
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return func() error {
		if err := c.SetDeadline(time.Now().Add(700 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 5))
		return err
	}
}

func TestPeeredNetworks(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 2)
	// A box of each on either host, so that every way is tried: over no tunnel, and over one of both.
	for name, on := range map[string][4]bool{"one on each host": {true, false, false, true}, "both on both": {true, true, true, true}, "both on one": {true, false, true, false}} {
		t.Run(name, func(t *testing.T) {
			var c struct{ as, bs []*box }
			for i, x := range hs {
				if on[i] {
					c.as = append(c.as, x.box("a"+x.name, byte(2+i), 256).onNet(1))
				}
				if on[2+i] {
					c.bs = append(c.bs, x.box("b"+x.name, byte(2+i), 300).onNet(2))
				}
			}
			p := &pair{a: numberedLAN(70011, "acme", 1, c.as...), b: numberedLAN(70012, "acme", 2, c.bs...), joined: true, guest: driver.FirstPeer + 7}
			for _, x := range hs {
				p.tell(x)
			}
			p.a.attach()
			p.b.attach()
			for _, b := range append(c.as, c.bs...) {
				b.serve(80)
			}
			for _, a := range c.as {
				for _, b := range c.bs {
					a.reaches(b, 80)
					b.reaches(a, 80)
				}
			}
			// The address is the sender's own.
			if got, err := ask(c.as[0].ns, c.bs[0].four, 80); err != nil || !strings.HasPrefix(got, c.bs[0].id+" "+c.as[0].four.String()+":") {
				t.Errorf("%q %v", got, err)
			}
			going := c.as[0].keep(t, c.bs[0], c.bs[0].six, 90)
			must(t, going())
			// A new life of the daemon takes it over; nothing is interrupted.
			hs[0].do(func(*Driver) error { hs[0].reopen(); return nil })
			p.tell(hs[0])
			must(t, going())
			// One host is behind with knowing who is there: whom nobody knows is refused.
			p.skip = map[*box]bool{c.as[0]: true}
			for _, x := range hs {
				p.tell(x)
			}
			c.as[0].misses(c.bs[0], 80)
			p.skip = nil
			for _, x := range hs {
				p.tell(x)
			}
			c.as[0].reaches(c.bs[0], 80)
			p.joined = false
			p.tell(hs[0])
			p.tell(hs[1])
			if err := going(); err == nil {
				t.Error("what went on goes on after they have parted")
			}
			c.as[0].misses(c.bs[0], 80)
			c.bs[0].misses(c.as[0], 80)
			for _, x := range hs {
				for _, b := range append(c.as, c.bs...) {
					x.do(func(d *Driver) error { return d.Detach(t.Context(), b.id) })
				}
				for _, vni := range []uint32{70011, 70012} {
					x.do(func(d *Driver) error { return d.Forget(t.Context(), vni) })
				}
			}
		})
	}
}

// What another tenant may is what a group says.
func TestPeeredTenants(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 2)
	a1, b2 := hs[0].box("a1", 2, 256).onNet(1), hs[1].box("b2", 3, 300).onNet(2)
	p := &pair{a: numberedLAN(70011, "acme", 1, a1), b: numberedLAN(70012, "lab", 2, b2), joined: true, guest: driver.FirstForeign + 7}
	for _, x := range hs {
		p.tell(x)
	}
	p.a.attach()
	p.b.attach()
	a1.serve(80)
	b2.serve(80)
	a1.misses(b2, 80)
	b2.misses(a1, 80)
	// Set 1 lets a1's labels in on port 80, and nobody else.
	p.b.table.Pairs = map[driver.PairKey]driver.Pair{{Set: 1, Peer: p.guest + 256}: {All: 5}}
	p.b.policy[b2.four] = driver.Policy{Ingress: 1}
	p.tell(hs[1])
	a1.reaches(b2, 80)
	b2.misses(a1, 80)
	going := a1.keep(t, b2, b2.four, 90)
	must(t, going())
	// A host of the other side that has not heard of the end of it refuses from then on, too.
	p.joined = false
	p.tell(hs[1])
	if err := going(); err == nil {
		t.Error("it goes on")
	}
	a1.misses(b2, 80)
}

// A box cannot speak as somebody on the other network, and nothing but the networks' own addresses passes between them.
func TestNobodyIsBelievedByACable(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 1)
	a1, b1 := hs[0].box("a1", 2, 256).onNet(1), hs[0].box("b1", 3, 300).onNet(2)
	p := &pair{a: numberedLAN(70011, "acme", 1, a1), b: numberedLAN(70012, "acme", 2, b1), joined: true, guest: driver.FirstPeer + 7}
	p.tell(hs[0])
	p.a.attach()
	p.b.attach()
	b1.serve(80)
	a1.reaches(b1, 80)
	// Another network is joined with b, and with a not: by b there is no way to it.
	c1 := hs[0].box("c1", 4, 400).onNet(3)
	l := numberedLAN(70013, "acme", 3, c1)
	l.net.Peers = []driver.Peer{{VNI: 70012, Prefixes: p.b.net.Prefixes}}
	hs[0].do(func(d *Driver) error {
		return d.Replace(t.Context(), l.net, append(l.members(), driver.Member{Addr: b1.four, Identity: driver.FirstPeer + 9}, driver.Member{Addr: b1.six, Identity: driver.FirstPeer + 9}), l.of(hs[0]))
	})
	n := p.net(p.b, p.a, hs[0])
	n.Peers = append(n.Peers, driver.Peer{VNI: 70013, Prefixes: l.net.Prefixes})
	hs[0].do(func(d *Driver) error {
		return d.Change(t.Context(), 70012, driver.Change{Net: &n, Put: []driver.Member{{Addr: c1.four, Identity: driver.FirstPeer + 11}, {Addr: c1.six, Identity: driver.FirstPeer + 11}}})
	})
	l.attach()
	c1.serve(80)
	b1.reaches(c1, 80)
	c1.reaches(b1, 80)
	// a1 says that c's addresses are behind its gateway, which sends to b.
	must(t, hs[0].d.nets[70011].ns.Do(func() error {
		h, err := netlink.OpenAt(hs[0].d.nets[70011].ns)
		if err != nil {
			return err
		}
		defer h.Close()
		cable, err := h.Link(cableName(70012))
		if err != nil {
			return err
		}
		return h.SetRoute(netlink.Route{To: netip.MustParsePrefix("10.3.0.0/16"), Via: netip.MustParseAddr("169.254.0.1"), Index: cable.Index})
	}))
	if got, err := askFor(a1.ns, c1.four, 80, 900*time.Millisecond); err == nil {
		t.Errorf("through a network that is joined with both: %q", got)
	}
}
