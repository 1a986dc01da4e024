package bpf

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"atoll/internal/driver"
)

// collect reads events until the returned function is called, which gives them.
func (w *world) collect() func() []Event {
	w.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var mu sync.Mutex
	var got []Event
	done := make(chan error, 1)
	go func() {
		done <- w.Events(ctx, func(e Event) { mu.Lock(); got = append(got, e); mu.Unlock() })
	}()
	return func() []Event {
		time.Sleep(50 * time.Millisecond)
		stop()
		select {
		case err := <-done:
			if err != nil {
				w.Error(err)
			}
		case <-time.After(5 * time.Second):
			w.Fatal("Events does not end with its context")
		}
		return got
	}
}

func TestEvents(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	w.must(w.SetTelling(Telling{Rate: 1000, Burst: 100}))
	w.must(w.Wall.Log(ruleWeb, true))
	stop := w.collect()
	w.steps(nbID, step{"logged", false, ip(my4, nb4, 6, tcp(1000, 443, syn)), Allowed}, step{"its answer", true, ip(nb4, my4, 6, tcp(443, 1000, ack)), Allowed},
		step{"not logged", false, ip(my4, nb4, 17, udp(1000, 9)), Allowed}, step{"refused", true, ip(nb6, my6, 6, tcp(1000, 81, syn)), NoIngress})
	got := stop()
	if len(got) != 2 {
		t.Fatalf("%d events: %+v", len(got), got)
	}
	a, b := got[0], got[1]
	if a.Monotonic == 0 || b.Monotonic <= a.Monotonic {
		t.Errorf("times %d, %d", a.Monotonic, b.Monotonic)
	}
	a.Monotonic, b.Monotonic = 0, 0
	if want := (Event{Ifindex: lo, VNI: vni, Direction: Egress, Proto: 6, Src: my4, Dst: nb4, SrcPort: 1000, DstPort: 443, Peer: nbID, Rule: ruleWeb, Length: 58}); a != want {
		t.Errorf("told %+v\nwant %+v", a, want)
	}
	if want := (Event{Ifindex: lo, VNI: vni, Direction: Ingress, Reason: NoIngress, Proto: 6, Src: nb6, Dst: my6, SrcPort: 1000, DstPort: 81, Peer: nbID, Length: 78}); b != want {
		t.Errorf("told %+v\nwant %+v", b, want)
	}

	// One of ten new flows; a flood is cut off and counted.
	w.must(w.Wall.Log(ruleWeb, false))
	w.must(w.SetTelling(Telling{Sample: 10, Rate: 1, Burst: 1}))
	time.Sleep(10 * time.Millisecond)
	before, err := w.Lost()
	w.must(err)
	stop = w.collect()
	for i := range 100 {
		w.steps(nbID, step{"new", false, ip(my4, nb4, 6, tcp(uint16(2000+i), 443, syn)), Allowed})
	}
	got = stop()
	lost, err := w.Lost()
	w.must(err)
	// Each processor has its own count and its own share.
	if all := len(got) + int(lost-before); all < 8 || all > 10 || lost == before || len(got) == 0 {
		t.Errorf("%d told and %d lost of 100, one of ten", len(got), lost-before)
	}
	w.must(w.SetTelling(Telling{}))
	stop = w.collect()
	w.steps(nbID, step{"refused", true, ip(nb6, my6, 6, tcp(1000, 81, syn)), NoIngress})
	if got := stop(); len(got) != 0 {
		t.Errorf("told %v with telling switched off", got)
	}
}

// A dry set is asked and counted, never obeyed.
func TestDry(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	w.must(w.SetPolicy(lo, driver.Policy{Egress: setOut, IngressDry: setIn, EgressDry: setNone}))
	stop := w.collect()
	w.steps(nbID, step{"in, would be refused", true, ip(nb4, my4, 6, tcp(1000, 81, syn)), Allowed}, step{"the same flow", true, ip(nb4, my4, 6, tcp(1000, 81, ack)), Allowed},
		step{"in, would be allowed", true, ip(nb4, my4, 6, tcp(1000, 80, syn)), Allowed},
		step{"out, would be refused", false, ip(my4, nb4, 6, tcp(1000, 443, syn)), Allowed},
		step{"out, is refused", false, ip(my4, nb4, 6, tcp(1000, 442, syn)), NoEgress})
	got, err := w.DryHits()
	w.must(err)
	if got[setIn] != (DryHits{1, 1}) || got[setNone] != (DryHits{0, 1}) || len(got) != 2 {
		t.Errorf("counted %+v", got)
	}
	dry := 0
	for _, e := range stop() {
		if e.Dry {
			dry++
		}
	}
	if dry != 2 {
		t.Errorf("%d events of dry sets, want 2", dry)
	}
	v, err := w.Judge(Question{Ifindex: lo, Direction: Ingress, Remote: nb4, Proto: 6, Port: 81})
	w.must(err)
	if !v.Allowed || v.Dry == nil || v.Dry.Allowed || v.Dry.Pair == nil {
		t.Errorf("Judge says %+v", v)
	}
	w.must(w.ForgetDry([]uint32{setIn, setNone, 5555}))
	w.must(w.ForgetRules([]uint32{ruleWeb}))
	if got, _ := w.DryHits(); len(got) != 0 {
		t.Errorf("forgotten, but counted: %v", got)
	}
}

func TestLimits(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	p := thePort()
	p.Limits = Limits{Connections: 20}
	w.must(w.SetPort(lo, p))
	passed, refused := 0, 0
	for i := range 60 {
		switch got := w.sent(mine(ip(my4, nb4, 6, tcp(uint16(1000+i), 443, syn)))); got {
		case Allowed:
			passed++
		case ConnLimit:
			refused++
		default:
			t.Fatal(got)
		}
	}
	if passed < 20 || passed > 30 || refused == 0 {
		t.Errorf("%d of 60 connections with a limit of 20 a second", passed)
	}
	for range 100 { // what is known is no new connection
		w.steps(nbID, step{"known", false, ip(my4, nb4, 6, tcp(1000, 443, ack)), Allowed})
	}
	w.steps(nbID, step{"the other direction has its own", true, ip(nb4, my4, 6, tcp(5, 80, syn)), Allowed})
	p.Limits = Limits{Packets: 50}
	w.must(w.SetPort(lo, p))
	passed = 0
	for range 200 {
		if w.sent(mine(ip(my4, nb4, 6, tcp(1000, 443, ack)))) == Allowed {
			passed++
		}
	}
	if passed < 50 || passed > 70 {
		t.Errorf("%d of 200 packets with a limit of 50 a second", passed)
	}
	p.Limits = Limits{}
	w.must(w.SetPort(lo, p))
	for range 100 {
		w.steps(nbID, step{"unlimited", false, ip(my4, nb4, 6, tcp(1000, 443, ack)), Allowed})
	}
}

// Input that cannot be right is refused with what is wrong; full tables say so.
func TestRefusals(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{Sizes: Sizes{Members: 16}})
	w.furnish()
	for name, change := range map[string]func(*Port){
		"vni":       func(p *Port) { p.VNI = 0 },
		"big vni":   func(p *Port) { p.VNI = 1 << 24 },
		"mac":       func(p *Port) { p.MAC[0] = 1 },
		"identity":  func(p *Port) { p.Identity = 1 },
		"two of v4": func(p *Port) { p.Addrs[1] = nb4 },
		"none":      func(p *Port) { p.Addrs = nil },
		"multicast": func(p *Port) { p.Addrs[0] = addr("224.0.0.1") },
		"link":      func(p *Port) { p.Addrs[1] = addr("fe80::1") },
	} {
		p := thePort()
		change(&p)
		if err := w.SetPort(lo, p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := w.SetPolicy(4711, driver.Policy{}); err == nil {
		t.Error("policy of no port: no error")
	}
	if err := w.PutLists(map[driver.ListKey]uint32{{List: 1, Proto: 6, Len: 8, Port: 0x1234}: 1}); err == nil {
		t.Error("bits below a prefix: no error")
	}
	if err := w.PutMembers(vni, []driver.Member{{Addr: nb4}}); err == nil {
		t.Error("identity 0: no error")
	}
	var err error
	for i := range 100 {
		a := my4.As4()
		a[2] = byte(i + 1)
		if err = w.PutMembers(vni, []driver.Member{{Addr: netip.AddrFrom4(a), Identity: 300}}); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("a table of 16 took 100 members")
	}
	t.Log(err)
}

// The Go side's shapes are those of the compiled object, byte by byte.
func TestLayout(t *testing.T) {
	spec, err := loadWall()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]uintptr{
		"ports": {4, unsafe.Sizeof(portValue{})}, "flows4": {unsafe.Sizeof(key4{}), unsafe.Sizeof(flowValue{})}, "flows6": {unsafe.Sizeof(key6{}), unsafe.Sizeof(flowValue{})},
		"members": {unsafe.Sizeof(memberKey{}), 4}, "stations": {unsafe.Sizeof(memberKey{}), unsafe.Sizeof(station{})}, "prefixes": {unsafe.Sizeof(prefixKey{}), 4}, "pairs": {unsafe.Sizeof(pairKey{}), unsafe.Sizeof(pairValue{})},
		"lists": {unsafe.Sizeof(listKey{}), 4}, "devices": {4, unsafe.Sizeof(deviceValue{})}, "tallies": {4, unsafe.Sizeof(tally{})},
		"limits": {4, unsafe.Sizeof(limitValue{})}, "rules": {4, unsafe.Sizeof(ruleValue{})}, "dries": {4, unsafe.Sizeof(dryValue{})},
		"settings": {4, unsafe.Sizeof(settings{})}, "gauges": {4, unsafe.Sizeof(gauge{})},
	} {
		m := spec.Maps[name]
		if uintptr(m.KeySize) != want[0] || uintptr(m.ValueSize) != want[1] {
			t.Errorf("%s: %d and %d bytes in C, %d and %d in Go", name, m.KeySize, m.ValueSize, want[0], want[1])
		}
	}
	if n := int(reasonCount); n > 32 {
		t.Errorf("%d reasons, and a tally has room for 32", n)
	}
	for r := range reasonCount {
		if reasons[r].word == "" || reasons[r].text == "" {
			t.Errorf("reason %d has no name", r)
		}
	}
	for _, name := range []string{progFrom, progTo, progHost, progVXLAN} {
		if p := spec.Programs[name]; p == nil || p.Type != ebpf.SchedCLS || p.License != "Dual MIT/GPL" {
			t.Errorf("program %s: %+v", name, p)
		}
	}
}

// What comes out of the ring is of our own making, but nobody may fall over it.
func FuzzDecodeEvent(f *testing.F) {
	f.Add(make([]byte, eventSize))
	f.Add(make([]byte, eventSize-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := decodeEvent(b)
		if ok != (len(b) >= eventSize) {
			t.Fatalf("%d bytes: %v", len(b), ok)
		}
		if ok && (!e.Src.IsValid() || !e.Dst.IsValid() || e.Reason.String() == "" || e.Reason.Text() == "" || e.Direction.String() == "") {
			t.Fatalf("%+v", e)
		}
	})
}
