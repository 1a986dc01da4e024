package bpf

import (
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"atoll/internal/driver"
	"atoll/internal/sys/systest"
)

// onHost is systest.Apart, where the kernel loads eBPF at all.
func onHost(t testing.TB) bool {
	t.Helper()
	if why := cannotLoad(); os.Geteuid() == 0 && why != "" {
		t.Skip(why)
	}
	return systest.Apart(t)
}

// cannotLoad asks the kernel by the smallest program and map there are, so that a fault of
// ours is never taken for a kernel that cannot.
func cannotLoad() string {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return "no eBPF maps here: " + err.Error()
	}
	m.Close()
	return ""
}

// The world of the tests of single packets: one port, its neighbour, the outside.
const (
	vni  = 77
	myID = 300
	nbID = 301
	lo   = 1 // the interface that plays the port: every namespace has it
)

var (
	myMAC, nbMAC, gwMAC = [6]byte{2, 0, 0, 0, 0, 5}, [6]byte{2, 0, 0, 0, 0, 6}, [6]byte{2, 0, 0, 0, 0, 1}
	broadcast           = [6]byte{255, 255, 255, 255, 255, 255}
	my4, nb4, gw4       = addr("10.1.0.5"), addr("10.1.0.6"), addr("10.1.0.1")
	my6, nb6, gw6       = addr("fd00::5"), addr("fd00::6"), addr("fd00::1")
	out4, far4          = addr("192.0.2.9"), addr("198.51.100.9") // in a prefix of rules, and in none
	out6, far6          = addr("2001:db8::9"), addr("2001:db9::9")
	myLL                = addr("fe80::5")
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Sets, lists and rules of the tests.
const (
	setOut, setIn, setNone = 11, 12, 13
	ruleWeb, ruleOut       = 5, 6
	ruleHost, rulePing     = 7, 8
	ruleHigh, ruleDNS      = 9, 10
)

var rules = driver.Change{
	Put: []driver.Member{{Addr: nb4, Identity: nbID}, {Addr: nb6, Identity: nbID}, {Addr: my4, Identity: myID}, {Addr: my6, Identity: myID}},
	Pairs: map[driver.PairKey]driver.Pair{
		{Set: setOut, Peer: nbID}:   {List: 21, Lens: 1<<16 | 1<<2 | 1<<0},
		{Set: setOut, Peer: 65536}:  {All: ruleOut},
		{Set: setOut, Peer: 1}:      {List: 23, Lens: 1 << 16},
		{Set: setIn, Peer: nbID}:    {List: 22, Lens: 1 << 16},
		{Set: setIn, Peer: 1}:       {All: ruleHost},
		{Set: setIn, Peer: 65537}:   {List: 22, Lens: 1 << 16},
		{Set: setNone, Peer: 99999}: {All: 1},
	},
	Lists: map[driver.ListKey]uint32{
		{List: 21, Proto: 6, Len: 16, Port: 443}:       ruleWeb,
		{List: 21, Proto: 6, Len: 2, Port: 0xc000}:     ruleHigh, // 49152 to 65535
		{List: 21, Proto: 1, Len: 16, Port: 8 << 8}:    rulePing,
		{List: 21, Proto: 58, Len: 16, Port: 128 << 8}: rulePing,
		{List: 21, Proto: 17, Len: 0, Port: 0}:         ruleOut,
		{List: 22, Proto: 6, Len: 16, Port: 80}:        ruleWeb,
		{List: 22, Proto: 1, Len: 16, Port: 8 << 8}:    rulePing,
		{List: 23, Proto: 17, Len: 16, Port: 53}:       ruleDNS,
	},
	Prefixes: map[netip.Prefix]uint32{netip.MustParsePrefix("192.0.2.0/24"): 65536, netip.MustParsePrefix("2001:db8::/32"): 65537},
}

type world struct {
	testing.TB
	*Wall
	dir string
}

func newWorld(t testing.TB, cfg Config) *world {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "bpf")
	}
	w, err := Open(cfg)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := w.Remove(); err != nil {
			t.Error(err)
		}
	})
	return &world{t, w, cfg.Dir}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%+v", err)
	}
}

func thePort() Port {
	return Port{VNI: vni, MAC: myMAC, Addrs: []netip.Addr{my4, my6}, Identity: myID, Policy: driver.Policy{Egress: setOut, Ingress: setIn}}
}

// furnish makes lo the port, and the tables as above.
func (w *world) furnish() {
	w.Helper()
	w.must(w.SetDevice(lo, Device{VNI: vni, Gateways: []netip.Addr{gw4, gw6}}))
	w.must(w.Apply(vni, rules, nil))
	w.must(w.SetPort(lo, thePort()))
}

// run gives one packet to a program.
func (w *world) run(prog string, packet []byte, mark uint32) (pass bool, markOut uint32) {
	w.Helper()
	out, err := w.Wall.run(prog, Trial{Ifindex: lo, Packet: packet, Mark: mark})
	if err != nil {
		w.Fatalf("%x: %v", packet, err)
	}
	return out.Passed, out.Mark
}

// sent and received give one packet to the port and say why it did not pass.
func (w *world) sent(packet []byte) Reason { return w.judged(progFrom, packet, 0, myID) }

func (w *world) received(packet []byte, from uint32) Reason {
	return w.judged(progTo, packet, from, 0)
}

func (w *world) judged(prog string, packet []byte, mark, after uint32) Reason {
	w.Helper()
	before := w.total()
	pass, got := w.run(prog, packet, mark)
	now := w.total()
	why := Allowed
	for r := range now {
		for range now[r] - before[r] {
			if why != Allowed {
				w.Fatalf("one packet was counted twice: %v and %v", why, Reason(r))
			}
			why = Reason(r)
		}
	}
	if pass != (why == Allowed) {
		w.Fatalf("passed: %v, but counted as %v", pass, why)
	}
	if pass && got != after {
		w.Fatalf("mark is %d after it passed, not %d", got, after)
	}
	return why
}

func (w *world) total() (sum [32]uint64) {
	w.Helper()
	ds, err := w.Drops()
	w.must(err)
	for _, d := range ds {
		for r, n := range d {
			sum[r] += n
		}
	}
	return sum
}

// Packets, made by hand.

func eth(dst, src [6]byte, typ uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	b = binary.BigEndian.AppendUint16(b, typ)
	return append(b, payload...)
}

type v4 struct {
	src, dst netip.Addr
	proto    byte
	options  int // in words
	off, id  uint16
}

func (h v4) with(payload []byte) []byte {
	b := make([]byte, 20+4*h.options)
	b[0] = 0x45 + byte(h.options)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(payload)))
	binary.BigEndian.PutUint16(b[4:], h.id)
	binary.BigEndian.PutUint16(b[6:], h.off)
	b[8], b[9] = 64, h.proto
	copy(b[12:], h.src.AsSlice())
	copy(b[16:], h.dst.AsSlice())
	for i := 20; i < len(b); i++ {
		b[i] = 1 // no operation
	}
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum>>16+sum)) // a bridge whose packets pass the host's filter drops others
	return append(b, payload...)
}

type v6 struct {
	src, dst netip.Addr
	next     byte
	hops     byte
}

func (h v6) with(payload []byte) []byte {
	b := make([]byte, 40)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = h.next, h.hops
	if h.hops == 0 {
		b[7] = 64
	}
	copy(b[8:], h.src.AsSlice())
	copy(b[24:], h.dst.AsSlice())
	return append(b, payload...)
}

const (
	fin = 1
	syn = 2
	rst = 4
	ack = 16
)

func tcp(sport, dport uint16, flags byte) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	b[12], b[13] = 5<<4, flags
	return b
}

func udp(sport, dport uint16) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], 20)
	return b
}

func icmp(typ, code byte, id uint16, payload ...byte) []byte {
	b := make([]byte, 8)
	b[0], b[1] = typ, code
	binary.BigEndian.PutUint16(b[4:], id)
	return append(b, payload...)
}

func arp(op uint16, sha [6]byte, spa, tpa netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, byte(op >> 8), byte(op)}
	b = append(append(b, sha[:]...), spa.AsSlice()...)
	return append(append(b, make([]byte, 6)...), tpa.AsSlice()...)
}

// ndmsg is a neighbour or router message about a target.
func ndmsg(typ byte, target netip.Addr) []byte {
	return append(append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...), 1, 1, 2, 0, 0, 0, 0, 5)
}

// ip wraps either family, from the port to a neighbour or back, by the addresses.
func ip(src, dst netip.Addr, proto byte, payload []byte) []byte {
	if src.Is4() {
		return v4{src: src, dst: dst, proto: proto}.with(payload)
	}
	return v6{src: src, dst: dst, next: proto}.with(payload)
}

func frame(dst, src [6]byte, packet []byte) []byte {
	if packet[0]>>4 == 6 {
		return eth(dst, src, 0x86dd, packet)
	}
	return eth(dst, src, 0x0800, packet)
}

// mine is a frame of the port; theirs one to it.
func mine(packet []byte) []byte   { return frame(gwMAC, myMAC, packet) }
func theirs(packet []byte) []byte { return frame(myMAC, gwMAC, packet) }
