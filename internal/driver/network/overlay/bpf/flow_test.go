package bpf

import (
	"net/netip"
	"testing"
	"time"

	"atoll/internal/driver"
)

type step struct {
	name   string
	to     bool // received, from nbID; else sent
	packet []byte
	want   Reason
}

func (w *world) steps(from uint32, ss ...step) {
	w.Helper()
	for _, s := range ss {
		var got Reason
		if s.to {
			got = w.received(theirs(s.packet), from)
		} else {
			got = w.sent(mine(s.packet))
		}
		if got != s.want {
			w.Errorf("%s: %v, want %v", s.name, got, s.want)
		}
	}
}

// Answers pass by the flow alone, and only to what was asked.
func TestFlows(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	for _, a := range [][2]netip.Addr{{my4, nb4}, {my6, nb6}} {
		my, nb := a[0], a[1]
		w.steps(nbID,
			step{"answer before the question", true, ip(nb, my, 6, tcp(443, 1000, syn|ack)), NoIngress},
			step{"question", false, ip(my, nb, 6, tcp(1000, 443, syn)), Allowed},
			step{"answer", true, ip(nb, my, 6, tcp(443, 1000, syn|ack)), Allowed},
			step{"on", false, ip(my, nb, 6, tcp(1000, 443, ack)), Allowed},
			step{"answer from another port", true, ip(nb, my, 6, tcp(444, 1000, ack)), NoIngress},
			step{"answer to another port", true, ip(nb, my, 6, tcp(443, 1001, ack)), NoIngress},
			step{"asked by the neighbour", true, ip(nb, my, 6, tcp(2000, 80, syn)), Allowed},
			step{"and answered", false, ip(my, nb, 6, tcp(80, 2000, syn|ack)), Allowed},
			step{"end", false, ip(my, nb, 6, tcp(1000, 443, fin|ack)), Allowed},
			step{"end of the other side", true, ip(nb, my, 6, tcp(443, 1000, fin|ack)), Allowed},
			step{"last word", false, ip(my, nb, 6, tcp(1000, 443, ack)), Allowed},
			step{"the answerer asks by the old ports", true, ip(nb, my, 6, tcp(443, 1000, syn)), NoIngress},
		)
	}
	w.steps(nbID,
		step{"ping", false, ip(my4, nb4, 1, icmp(8, 0, 7)), Allowed},
		step{"answer", true, ip(nb4, my4, 1, icmp(0, 0, 7)), Allowed},
		step{"another number", true, ip(nb4, my4, 1, icmp(0, 0, 8)), NoFlow},
		step{"asked with the same number", true, ip(nb4, my4, 1, icmp(8, 0, 7)), Allowed},
		step{"and answered", false, ip(my4, nb4, 1, icmp(0, 0, 7)), Allowed},
	)
	found := map[string]Flow{}
	w.must(w.Flows(time.Hour*10000, func(f Flow) bool {
		if f.Proto == 6 && f.Local == my6 {
			found[f.Began.String()] = f
		}
		return true
	}))
	eg, in := found["egress"], found["ingress"]
	if eg.Rule != ruleWeb || eg.Peer != nbID || eg.State != "closing" || eg.Sent.Packets != 4 || eg.Received.Packets != 2 || eg.RemotePort != 443 || eg.Sent.Bytes != 4*(14+40+24) {
		t.Errorf("flow begun here: %+v", eg)
	}
	if in.LocalPort != 80 || in.State != "half-open" || in.Received.Packets != 1 {
		t.Errorf("flow begun there: %+v", in)
	}
	hits, err := w.RuleHits()
	w.must(err)
	if hits[ruleWeb] != 4 || hits[rulePing] != 2 {
		t.Errorf("rules counted %v", hits)
	}
}

// After a change of rules, what is still allowed goes on, and what is not ends with its next packet, answers too.
func TestEpochs(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	keep := ip(my4, nb4, 6, tcp(1000, 443, ack))
	lose := ip(my4, nb4, 17, udp(1000, 99))
	lost := ip(nb4, my4, 17, udp(99, 1000))
	inKeep, inLose := ip(nb4, my4, 6, tcp(2000, 80, syn)), ip(nb4, my4, 1, icmp(8, 0, 3))
	w.steps(nbID, step{"keep", false, keep, Allowed}, step{"lose", false, lose, Allowed}, step{"answered", true, lost, Allowed},
		step{"in, keep", true, inKeep, Allowed}, step{"in, lose", true, inLose, Allowed})
	next := driver.Change{
		Pairs:     map[driver.PairKey]driver.Pair{{Set: 41, Peer: nbID}: {List: 51, Lens: 1 << 16}, {Set: 42, Peer: nbID}: {List: 52, Lens: 1 << 16}},
		Lists:     map[driver.ListKey]uint32{{List: 51, Proto: 6, Len: 16, Port: 443}: 61, {List: 52, Proto: 6, Len: 16, Port: 80}: 62},
		Ports:     map[netip.Addr]driver.Policy{my4: {Egress: 41, Ingress: 42}},
		DropPairs: []driver.PairKey{{Set: setOut, Peer: nbID}, {Set: setIn, Peer: nbID}, {Set: 999, Peer: 9}, {Set: setOut, Peer: 65536}},
		DropLists: []driver.ListKey{{List: 21, Proto: 6, Len: 16, Port: 443}},
	}
	w.must(w.Apply(vni, next, map[netip.Addr]int{my4: lo}))
	ps, err := w.Pairs()
	w.must(err)
	for _, k := range next.DropPairs {
		if _, there := ps[k]; there {
			t.Errorf("pair %v is still there", k)
		}
	}
	w.steps(nbID, step{"answer of what was revoked", true, lost, NoEgress}, step{"the same once more: no flow any more", true, lost, NoIngress},
		step{"revoked", false, lose, NoEgress}, step{"kept", false, keep, Allowed},
		step{"in, kept, by its answer", false, ip(my4, nb4, 6, tcp(80, 2000, ack)), Allowed}, step{"in, kept", true, inKeep, Allowed}, step{"in, revoked", true, inLose, NoIngress})
	rule := uint32(0)
	w.must(w.Flows(0, func(f Flow) bool {
		if f.RemotePort == 443 {
			rule = f.Rule
		}
		return true
	}))
	if rule != 61 {
		t.Errorf("the flow is of rule %d after the change", rule)
	}
	// Another owner of the address, or another identity of the same one: no answer by the old flow.
	w.must(w.PutMembers(vni, []driver.Member{{Addr: nb4, Identity: 400}}))
	w.steps(400, step{"answer of another owner", true, ip(nb4, my4, 6, tcp(443, 1000, ack)), NoEgress})
	// A port without sets is open; another instance at the same interface inherits nothing.
	w.must(w.SetPolicy(lo, driver.Policy{}))
	w.steps(400, step{"open", false, lose, Allowed}, step{"open inwards", true, ip(nb4, my4, 17, udp(5, 6)), Allowed})
	w.must(w.DropPort(lo))
	p := thePort()
	p.Policy = driver.Policy{Egress: setNone, Ingress: setNone}
	w.must(w.SetPort(lo, p))
	w.steps(400, step{"nothing inherited", false, lose, NoEgress}, step{"nothing inherited inwards", true, lost, NoIngress})
}

func TestTimes(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{Times: Times{TCPIdle: 600 * time.Millisecond, TCPBrief: 100 * time.Millisecond, OneWay: 100 * time.Millisecond, BothWays: 600 * time.Millisecond, Fragment: 100 * time.Millisecond}})
	w.furnish()
	quick, slow := 200*time.Millisecond, 800*time.Millisecond
	answerT, answerU := ip(nb4, my4, 6, tcp(443, 1000, ack)), ip(nb4, my4, 17, udp(99, 1000))
	w.steps(nbID, step{"half open", false, ip(my4, nb4, 6, tcp(1000, 443, syn)), Allowed}, step{"one way", false, ip(my4, nb4, 17, udp(1000, 99)), Allowed})
	time.Sleep(quick)
	w.steps(nbID, step{"half open is over", true, answerT, NoIngress}, step{"one way is over", true, answerU, NoIngress})
	w.steps(nbID, step{"syn", false, ip(my4, nb4, 6, tcp(1000, 443, syn)), Allowed}, step{"syn ack", true, ip(nb4, my4, 6, tcp(443, 1000, syn|ack)), Allowed},
		step{"ack", false, ip(my4, nb4, 6, tcp(1000, 443, ack)), Allowed},
		step{"question", false, ip(my4, nb4, 17, udp(1000, 99)), Allowed}, step{"answer", true, answerU, Allowed})
	time.Sleep(quick)
	w.steps(nbID, step{"established", true, answerT, Allowed}, step{"both ways", true, answerU, Allowed})
	time.Sleep(slow)
	w.steps(nbID, step{"idle", true, answerT, NoIngress}, step{"both idle", true, answerU, NoIngress})
	w.steps(nbID, step{"again", false, ip(my4, nb4, 6, tcp(1000, 443, ack)), Allowed}, step{"answer", true, answerT, Allowed},
		step{"reset", true, ip(nb4, my4, 6, tcp(443, 1000, rst)), Allowed})
	time.Sleep(quick)
	w.steps(nbID, step{"closed", true, answerT, NoIngress})
}

func TestFragments(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	part := func(id, off uint16, more bool, b []byte) []byte {
		o := off / 8
		if more {
			o |= 0x2000
		}
		return v4{src: my4, dst: nb4, proto: 17, id: id, off: o}.with(b)
	}
	six := func(id uint32, off uint16, more bool, b []byte) []byte {
		return ip(my6, nb6, 44, cat(fragHeader(17, off, more, id), b))
	}
	rest := make([]byte, 16)
	w.steps(nbID,
		step{"later without its first", false, part(1, 24, false, rest), Fragment},
		step{"first", false, part(1, 0, true, cat(udp(1, 2), rest[:4])), Allowed},
		step{"later", false, part(1, 24, true, rest), Allowed},
		step{"of another packet", false, part(2, 24, false, rest), Fragment},
		step{"first without a header", false, part(3, 0, true, rest[:4]), Short},
		step{"first that is refused", false, v4{src: my4, dst: far4, proto: 17, id: 4, off: 0x2000}.with(cat(udp(1, 2), rest[:4])), NoEgress},
		step{"and its rest", false, v4{src: my4, dst: far4, proto: 17, id: 4, off: 3}.with(rest), Fragment},
		step{"one that overlaps the header", false, v4{src: my4, dst: nb4, proto: 6, id: 1, off: 1}.with(rest), Fragment},
		step{"later over 6 without its first", false, six(1, 24, false, rest), Fragment},
		step{"first over 6", false, six(1, 0, true, cat(udp(1, 2), rest[:4])), Allowed},
		step{"later over 6", false, six(1, 24, false, rest), Allowed},
		step{"of another packet over 6", false, six(2, 24, false, rest), Fragment},
		step{"extension in a fragment", false, ip(my6, nb6, 44, cat(fragHeader(60, 0, true, 9), ext(17), udp(1, 2))), Options},
		step{"spoofed later", false, v4{src: nb4, dst: nb4, proto: 17, id: 1, off: 3}.with(rest), Source},
	)
	in := func(id, off uint16, b []byte) []byte {
		return v4{src: nb4, dst: my4, proto: 6, id: id, off: off}.with(b)
	}
	w.steps(nbID, step{"in, first", true, in(5, 0x2000, tcp(2000, 80, syn)), Allowed}, step{"in, later", true, in(5, 3, rest), Allowed},
		step{"in, other", true, in(6, 3, rest), Fragment})
	w.must(w.Again(lo))
	w.steps(nbID, step{"later, after a change of rules", false, part(1, 24, true, rest), Fragment})
}

// An ICMP error is as allowed as the packet it is about.
func TestICMPErrors(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	w.steps(nbID, step{"udp", false, ip(my4, nb4, 17, udp(1000, 99)), Allowed}, step{"tcp over 6", false, ip(my6, nb6, 6, tcp(1000, 443, syn)), Allowed},
		step{"ping", false, ip(my4, nb4, 1, icmp(8, 0, 7)), Allowed}, step{"in", true, ip(nb4, my4, 6, tcp(2000, 80, syn)), Allowed})
	router4, router6 := addr("203.0.113.1"), addr("2001:db9::1")
	w.steps(2, // from a router outside
		step{"too big, of mine", true, ip(router4, my4, 1, icmp(3, 4, 0, ip(my4, nb4, 17, udp(1000, 99))...)), Allowed},
		step{"time exceeded, of mine", true, ip(router4, my4, 1, icmp(11, 0, 0, ip(my4, nb4, 1, icmp(8, 0, 7))...)), Allowed},
		step{"of what I never sent", true, ip(router4, my4, 1, icmp(3, 4, 0, ip(my4, nb4, 17, udp(1000, 98))...)), NoFlow},
		step{"of what another sent", true, ip(router4, my4, 1, icmp(3, 4, 0, ip(nb4, my4, 17, udp(1000, 99))...)), NoFlow},
		step{"of an error", true, ip(router4, my4, 1, icmp(3, 4, 0, ip(my4, nb4, 1, icmp(3, 0, 7))...)), NoFlow},
		step{"cut off", true, ip(router4, my4, 1, icmp(3, 4, 0, ip(my4, nb4, 17, udp(1000, 99))[:20]...)), Short},
		step{"too big over 6", true, ip(router6, my6, 58, icmp(2, 0, 0, ip(my6, nb6, 6, tcp(1000, 443, ack))...)), Allowed},
		step{"over 6 of what I never sent", true, ip(router6, my6, 58, icmp(2, 0, 0, ip(my6, nb6, 6, tcp(1000, 442, ack))...)), NoFlow},
	)
	w.steps(nbID,
		step{"I refuse what came", false, ip(my4, nb4, 1, icmp(3, 3, 0, ip(nb4, my4, 6, tcp(2000, 80, syn))...)), Allowed},
		step{"I refuse what never came", false, ip(my4, nb4, 1, icmp(3, 3, 0, ip(nb4, my4, 6, tcp(2001, 80, syn))...)), NoFlow},
	)
	w.must(w.SetPolicy(lo, driver.Policy{Egress: setNone, Ingress: setNone}))
	w.steps(2, step{"after the flow was revoked", true, ip(router4, my4, 1, icmp(3, 4, 0, ip(my4, nb4, 17, udp(1000, 99))...)), NoFlow})
}
