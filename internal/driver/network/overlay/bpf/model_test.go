package bpf

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"atoll/internal/driver"
)

// The model: a plain list of rules, walked from its begin, and a plain map of flows. It knows nothing of sets, lists,
// lengths or epochs, but must come to the same verdicts.

type modelRule struct {
	dir    Direction
	peer   uint32
	proto  uint8 // 0: all there is
	lo, hi uint16
}

type modelFlow struct {
	remote       netip.Addr
	proto        uint8
	lport, rport uint16
}

type model struct {
	rules  []modelRule
	closed [2]bool // has rules at all; else open
	flows  map[modelFlow]Direction
	asked  map[modelFlow]uint16
}

var modelPeers = []struct {
	addr   netip.Addr
	id     uint32 // by which rules know it
	mark   uint32 // with which its packets come
	family int
}{
	{nb4, nbID, nbID, 4}, {nb6, nbID, nbID, 6}, {addr("10.1.0.7"), 302, 302, 4}, {gw4, 1, 1, 4}, {gw6, 1, 1, 6},
	{far4, 2, 2, 4}, {far6, 2, 2, 6}, {out4, 65536, 2, 4}, {addr("192.0.2.200"), 65538, 2, 4}, {out6, 65537, 2, 6},
}

func (m *model) allows(d Direction, peer uint32, proto uint8, port uint16) bool {
	if !m.closed[d] {
		return true
	}
	for _, r := range m.rules {
		if r.dir == d && r.peer == peer && (r.proto == 0 || r.proto == proto && r.lo <= port && port <= r.hi) {
			return true
		}
	}
	return false
}

// verdict is what the wall should say to a well-formed packet, and remembers it.
func (m *model) verdict(d Direction, peer uint32, f modelFlow, asked uint16, answer bool) Reason {
	refused := [2]Reason{NoEgress, NoIngress}
	if began, known := m.flows[f]; known {
		if m.allows(began, peer, f.proto, m.asked[f]) {
			return Allowed
		}
		delete(m.flows, f)
		return refused[began]
	}
	if answer {
		return NoFlow
	}
	if !m.allows(d, peer, f.proto, asked) {
		return refused[d]
	}
	m.flows[f], m.asked[f] = d, asked
	return Allowed
}

var edges = []uint16{0, 1, 53, 80, 443, 444, 1023, 1024, 32767, 32768, 49151, 49152, 65534, 65535}

func randomRules(r *rand.Rand) *model {
	m := &model{flows: map[modelFlow]Direction{}, asked: map[modelFlow]uint16{}}
	for range r.IntN(12) {
		p := modelPeers[r.IntN(len(modelPeers))]
		ru := modelRule{dir: Direction(r.IntN(2)), peer: p.id, proto: []uint8{0, 1, 58, 6, 6, 6, 17, 17}[r.IntN(8)]}
		a, b := edges[r.IntN(len(edges))], edges[r.IntN(len(edges))]
		if r.IntN(3) == 0 {
			b = uint16(r.Uint32())
		}
		if ru.proto == 1 || ru.proto == 58 {
			a = map[uint8]uint16{1: 8 << 8, 58: 128 << 8}[ru.proto]
			b = a
		}
		ru.lo, ru.hi = min(a, b), max(a, b)
		m.rules = append(m.rules, ru)
	}
	m.closed = [2]bool{r.IntN(4) > 0, r.IntN(4) > 0}
	return m
}

// compile makes the tables of the rules, with IDs from base on.
func (m *model) compile(base uint32) driver.Change {
	c := driver.Change{Pairs: map[driver.PairKey]driver.Pair{}, Lists: map[driver.ListKey]uint32{}, Ports: map[netip.Addr]driver.Policy{}}
	sets := [2]uint32{base, base + 1}
	pol := driver.Policy{}
	if m.closed[Egress] {
		pol.Egress = sets[Egress]
	}
	if m.closed[Ingress] {
		pol.Ingress = sets[Ingress]
	}
	c.Ports[my4] = pol
	next := base + 2
	for i, r := range m.rules {
		k := driver.PairKey{Set: sets[r.dir], Peer: r.peer}
		p := c.Pairs[k]
		if r.proto == 0 {
			p.All = base + 100 + uint32(i)
			c.Pairs[k] = p
			continue
		}
		if p.List == 0 {
			p.List = next
			next++
		}
		for lo, hi := uint32(r.lo), uint32(r.hi); lo <= hi; {
			n := 16
			for n > 0 && lo&(1<<(17-n)-1) == 0 && lo+(1<<(17-n))-1 <= hi {
				n--
			}
			p.Lens |= 1 << n
			c.Lists[driver.ListKey{List: p.List, Proto: r.proto, Len: uint8(n), Port: uint16(lo)}] = base + 100 + uint32(i)
			lo += 1 << (16 - n)
		}
		c.Pairs[k] = p
	}
	return c
}

// Random rules, random packets that often meet flows there are, and changes of rules between them.
func TestModel(t *testing.T) {
	if !onHost(t) {
		return
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, Config{})
	w.furnish()
	w.must(w.PutMembers(vni, []driver.Member{{Addr: addr("10.1.0.7"), Identity: 302}}))
	w.must(w.PutPrefixes(vni, map[netip.Prefix]uint32{netip.MustParsePrefix("192.0.2.128/25"): 65538}))
	m := randomRules(r)
	count := map[Reason]int{}
	for table := range 60 {
		next := randomRules(r)
		next.flows, next.asked = m.flows, m.asked // what was allowed goes on, if it still is
		m = next
		c := m.compile(uint32(1000 * (table + 1)))
		w.must(w.Apply(vni, c, map[netip.Addr]int{my4: lo}))
		for range 150 {
			count[w.onePacket(r, m)]++
		}
	}
	for _, want := range []Reason{Allowed, NoEgress, NoIngress, NoFlow, SourceMAC, Source} {
		if count[want] < 20 {
			t.Errorf("%v came up only %d times: the test is weak (%v)", want, count[want], count)
		}
	}
	t.Log(count)
}

// onePacket compares wall, Judge and model on a random packet.
func (w *world) onePacket(r *rand.Rand, m *model) Reason {
	w.Helper()
	d := Direction(r.IntN(2))
	p := modelPeers[r.IntN(len(modelPeers))]
	my := my4
	if p.family == 6 {
		my = my6
	}
	f := modelFlow{remote: p.addr, proto: []uint8{6, 17, 1}[r.IntN(3)]}
	a, b := []uint16{1000, 80, 443}[r.IntN(3)], edges[r.IntN(len(edges))]
	if r.IntN(2) == 0 {
		a, b = b, a
	}
	if d == Egress && f.proto == 17 && (a == 67 || a == 547) {
		a = 1000
	}
	f.lport, f.rport = a, b
	asked, answer := b, false
	if d == Ingress {
		asked = a
	}
	var l4 []byte
	sp, dp := a, b
	if d == Ingress {
		sp, dp = b, a
	}
	switch f.proto {
	case 6:
		l4 = tcp(sp, dp, ack)
	case 17:
		l4 = udp(sp, dp)
	case 1:
		id := uint16(r.IntN(3))
		answer = r.IntN(2) == 0
		types := [2]byte{8, 0}
		if p.family == 6 {
			f.proto, types = 58, [2]byte{128, 129}
		}
		asked = uint16(types[0]) << 8
		typ := types[0]
		if answer {
			typ = types[1]
		}
		l4 = icmp(typ, 0, id)
		// Who asked is told by the side the number is on; 0xffff cannot come up here.
		if (d == Egress) != answer {
			f.lport, f.rport = id+1, 0
		} else {
			f.lport, f.rport = 0, id+1
		}
	}
	src, dst := my, p.addr
	if d == Ingress {
		src, dst = dst, src
	}
	want := Allowed
	packet := mine(ip(src, dst, f.proto, l4))
	if d == Ingress {
		packet = theirs(ip(src, dst, f.proto, l4))
	}
	switch r.IntN(12) {
	case 0:
		want = Destination
		at := 0
		if d == Egress {
			want, at = SourceMAC, 6
		}
		packet[at+r.IntN(6)] ^= byte(2 << r.IntN(7))
	case 1:
		want = Destination
		if d == Egress {
			want = Source
		}
		at := map[bool]int{true: 26, false: 22}[p.family == 4]
		if d == Ingress {
			at += len(src.AsSlice())
		}
		packet[at+len(src.AsSlice())-1] ^= byte(1 << r.IntN(8))
	default:
		want = m.verdict(d, p.id, f, asked, answer)
	}
	got, mark := Allowed, p.mark
	if d == Egress {
		got = w.sent(packet)
	} else {
		got = w.received(packet, mark)
	}
	what := fmt.Sprintf("%v %s proto %d local %d remote %d asked %d answer %v, rules %+v closed %v", d, p.addr, f.proto, f.lport, f.rport, asked, answer, m.rules, m.closed)
	if got != want {
		w.Fatalf("the wall says %v, the model %v: %s", got, want, what)
	}
	v, err := w.Judge(Question{Ifindex: lo, Direction: d, Remote: p.addr, Identity: uint16(mark), Proto: f.proto, Port: asked})
	w.must(err)
	if plain := m.allows(d, p.id, f.proto, asked); v.Allowed != plain || v.Peer != p.id {
		w.Fatalf("Judge says %+v, the model %v: %s", v, plain, what)
	}
	if v.Entry != nil && bits.OnesCount16(v.Entry.Port) > int(v.Entry.Len) {
		w.Fatalf("entry %+v", *v.Entry)
	}
	return got
}
