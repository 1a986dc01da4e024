package fabric

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"atoll/api"
	"atoll/internal/driver"
)

func foreign(last byte, mac byte, host string) driver.Member {
	return driver.Member{Addr: netip.AddrFrom4([4]byte{10, 1, 0, last}), MAC: [6]byte{2, 0, 0, 0, 0, mac}, Host: netip.MustParseAddr(host), Identity: driver.IdentityOutside}
}

// What routers tell of is on a network, but never in the place of what is the pool's own.
func TestLearned(t *testing.T) {
	w := newWorld(t)
	w.put(newNetwork("a", "main", 7))
	w.put(endpoint("a", "near", "n1", 3, nil, "main"))
	w.put(endpoint("a", "far", "n2", 2, nil, "main"))
	w.settle()
	ok := foreign(200, 200, "192.0.2.50")
	own := foreign(201, 0, "192.0.2.50")
	own.MAC = [6]byte{0x0a, 0x58, 0x0a, 0x01, 0, 2}
	gateway := foreign(202, 0, "192.0.2.50")
	gateway.MAC = driver.GatewayMAC
	other := foreign(210, 210, "192.0.2.50")
	other.Addr = netip.MustParseAddr("10.2.0.9")
	w.f.Learn(map[uint32][]driver.Member{7: {ok, own, gateway, other,
		foreign(2, 203, "192.0.2.50"),   // far's address
		foreign(1, 204, "192.0.2.50"),   // the gateway's
		foreign(0, 205, "192.0.2.50"),   // the network's
		foreign(206, 206, "192.0.2.2")}, // behind a host of the pool
		8: {foreign(207, 207, "192.0.2.50")}})
	w.settle()
	s := w.d.nets[7]
	if len(s.members) != 3 || s.members[ok.Addr] != ok || len(w.d.nets) != 1 {
		t.Fatalf("%+v", s.members)
	}
	// The pool gives an instance the address: it has it, and the other one has it again when it goes.
	w.put(endpoint("a", "late", "n2", 200, nil, "main"))
	w.settle()
	if m := s.members[ok.Addr]; m.Host != netip.MustParseAddr("192.0.2.2") || len(s.members) != 3 {
		t.Fatalf("%+v", s.members)
	}
	w.remove(api.KindEndpoint, "a", "late")
	w.settle()
	if s.members[ok.Addr] != ok {
		t.Fatalf("%+v", s.members)
	}
	// It moves to another host, also while calls fail; then nobody tells of it any more.
	moved := foreign(200, 201, "192.0.2.51")
	w.d.fail = 2
	w.f.Learn(map[uint32][]driver.Member{7: {moved}})
	w.settle()
	if s = w.d.nets[7]; s.members[ok.Addr] != moved {
		t.Fatalf("%+v", s.members)
	}
	w.f.Learn(nil)
	w.settle()
	if len(s.members) != 2 {
		t.Fatalf("%+v", s.members)
	}
}

// Whatever happens in whatever order, the pool's own members are as they would be if routers told nothing.
func TestLearnedNeverChangesTheOwn(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		w := newWorld(t)
		w.put(newNetwork("a", "main", 7))
		w.put(endpoint("a", "stays", "n1", 9, nil, "main"))
		own := map[int]string{9: "n1"}
		for range 30 {
			switch n := 2 + rnd.IntN(6); rnd.IntN(4) {
			case 0:
				var ms []driver.Member
				for range rnd.IntN(5) {
					ms = append(ms, foreign(byte(1+rnd.IntN(9)), byte(rnd.IntN(3)), "192.0.2."+string(rune('1'+rnd.IntN(5)))))
				}
				w.f.Learn(map[uint32][]driver.Member{7: ms})
			case 1:
				w.remove(api.KindEndpoint, "a", "e"+string(rune('0'+n)))
				delete(own, n)
			default:
				own[n] = []string{"n1", "n2", "n3"}[rnd.IntN(3)]
				w.put(endpoint("a", "e"+string(rune('0'+n)), own[n], n, nil, "main"))
			}
			if rnd.IntN(4) == 0 {
				w.d.fail = 1
			}
			w.settle()
			for n, host := range own {
				m := w.d.nets[7].members[netip.AddrFrom4([4]byte{10, 1, 0, byte(n)})]
				if m.Host.String() != "192.0.2."+host[1:] || m.MAC[5] != byte(n) || m.MAC[0] != 0x0a {
					t.Fatalf("seed %d: instance %d on %s is %+v", seed, n, host, m)
				}
			}
		}
	}
}
