package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/driver/drivertest"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

func TestConformance(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	drivertest.Network(t, func(t *testing.T) drivertest.NetworkHost {
		w := newWorld(t, Config{})
		t.Cleanup(func() {
			w.must(w.d.Teardown(context.Background()))
			w.clean()
		})
		return drivertest.NetworkHost{Network: w.d, Reopen: func() driver.Network { return w.reopen() },
			NetNS:   func() string { return w.namespace().Path() },
			Address: func(n int) string { return fmt.Sprintf("10.88.0.%d", n+1) }}
	})
}

// clean fails when anything of ours is left on the host.
func (w *world) clean() {
	w.t.Helper()
	h, err := netlink.Open()
	w.must(err)
	defer h.Close()
	links, err := h.Links()
	w.must(err)
	for _, l := range links {
		if strings.HasPrefix(l.Name, portPrefix) || l.Name == "atoll0" {
			w.t.Errorf("link %s (%s) is left", l.Name, l.Alias)
		}
	}
	if rules := sh(w.t, "", "nft", "list", "ruleset"); strings.Contains(rules, "atoll") {
		w.t.Errorf("rules are left:\n%s", rules)
	}
}

func TestTraffic(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	filtered, err := netlink.Sysctl("bridge/bridge-nf-call-iptables")
	values := []string{filtered}
	if err != nil {
		values = []string{"absent"}
	} else if filtered == "1" {
		values = []string{"1", "0"}
	}
	web := w.start(spec("web", "acme", "10.88.0.2", api.Port{Port: 80, Publish: 8080}, api.Port{Port: 80, Publish: 8080, Protocol: "udp"},
		api.Port{Port: 80, Publish: 8081, HostIP: "127.0.0.1"}, api.Port{Port: 80, Publish: 8081, HostIP: "127.0.0.1", Protocol: "udp"},
		api.Port{Port: 80, Publish: 8082, HostIP: hostIP}, api.Port{Port: 80, Publish: 8082, HostIP: hostIP, Protocol: "udp"}), 80, 81)
	peer := w.start(spec("peer", "acme", "10.88.0.3"), 80)
	foe := w.start(spec("foe", "evil", "10.88.0.4"), 80)
	w.serve(w.outside, "outside", "0.0.0.0:7000")
	w.serve(nil, "host", "0.0.0.0:7001")
	w.serve(nil, "loopback", "127.0.0.1:7002")
	for _, v := range values {
		if v != "absent" {
			_, err := netlink.SetSysctl("bridge/bridge-nf-call-iptables", v)
			w.must(err)
		}
		t.Run("brnf="+v, func(t *testing.T) {
			w.t = t
			w.outward(web)
			w.published(web, peer, foe)
			w.walls(web, peer, foe)
		})
	}
	w.t = t
}

func (w *world) outward(web *netlink.Namespace) {
	w.reach(web, outIP+":7000", "outside "+hostIP)
	if !w.ping(web, outIP) {
		w.t.Error("an instance cannot ping the outside")
	}
	w.reach(nil, "10.88.0.2:80", "web "+gwIP) // the host reaches instances: health checks do
}

func (w *world) published(web, peer, foe *netlink.Namespace) {
	w.reach(w.outside, hostIP+":8080", "web "+outIP)
	w.reach(nil, "127.0.0.1:8080", "web "+gwIP)
	w.reach(nil, hostIP+":8080", "web "+hostIP)
	w.reach(nil, gwIP+":8080", "web "+gwIP)
	for _, from := range []*netlink.Namespace{web, peer, foe} {
		w.reach(from, hostIP+":8080", "web "+gwIP)
		w.reach(from, gwIP+":8080", "web "+gwIP)
	}
	// On one address: only there.
	w.reach(nil, "127.0.0.1:8081", "web "+gwIP)
	w.reach(nil, hostIP+":8081", "")
	w.reach(w.outside, hostIP+":8081", "")
	w.reach(foe, gwIP+":8081", "")
	w.reach(w.outside, hostIP+":8082", "web "+outIP)
	w.reach(nil, "127.0.0.1:8082", "")
}

func (w *world) walls(web, peer, foe *netlink.Namespace) {
	w.reach(peer, "10.88.0.2:80", "web 10.88.0.3")
	if !w.ping(peer, "10.88.0.2") {
		w.t.Error("an instance cannot ping its own tenant's")
	}
	w.reach(foe, "10.88.0.2:80", "")
	w.reach(web, "10.88.0.4:80", "")
	if w.ping(foe, "10.88.0.2") || w.ping(web, "10.88.0.4") {
		w.t.Error("a ping crosses tenants")
	}
	// The host's own services, by whatever address; the outside still has them.
	for _, ip := range []string{gwIP, hostIP} {
		w.reach(web, ip+":7001", "")
	}
	w.reach(w.outside, hostIP+":7001", "host "+outIP)
	w.reach(nil, "127.0.0.1:7002", "loopback 127.0.0.1")
	if !w.ping(web, gwIP) {
		w.t.Error("an instance cannot ping its gateway")
	}
	// From outside straight to an instance's address: only published ports come in.
	w.reach(w.outside, "10.88.0.2:80", "")
	w.reach(w.outside, "10.88.0.2:8080", "")
	w.forged(web, peer, foe)
}

func (w *world) forged(web, peer, foe *netlink.Namespace) {
	mac := func(ip string) net.HardwareAddr { return netlink.PortMAC(netip.MustParseAddr(ip)) }
	atWeb, atLoopback, atHost := w.listen(web, "0.0.0.0:6000"), w.listen(nil, "127.0.0.1:6000"), w.listen(w.outside, "0.0.0.0:6000")
	w.inject(peer, frame{mac("10.88.0.3"), mac("10.88.0.2"), "10.88.0.3", "10.88.0.2", 6000})
	if got := atWeb(); got != "forged" {
		w.t.Fatalf("an honest frame did not arrive (%q): the others prove nothing", got)
	}
	for what, f := range map[string]frame{
		"another instance's address":         {mac("10.88.0.4"), mac("10.88.0.2"), "10.88.0.3", "10.88.0.2", 6000},
		"another instance's addresses":       {mac("10.88.0.3"), mac("10.88.0.2"), "10.88.0.3", "10.88.0.2", 6000},
		"the gateway's address":              {mac("10.88.0.4"), mac("10.88.0.2"), gwIP, "10.88.0.2", 6000},
		"an address of nobody":               {mac("10.88.0.4"), mac("10.88.0.2"), "10.88.9.9", "10.88.0.2", 6000},
		"round by the host":                  {mac("10.88.0.4"), mac(gwIP), "10.88.0.4", "10.88.0.2", 6000},
		"broadcast":                          {mac("10.88.0.4"), net.HardwareAddr{255, 255, 255, 255, 255, 255}, "10.88.0.4", "10.88.255.255", 6000},
		"another tenant's, to all of theirs": {mac("10.88.0.4"), net.HardwareAddr{255, 255, 255, 255, 255, 255}, "10.88.0.4", "10.88.0.2", 6000},
	} {
		w.inject(foe, f)
		if got := atWeb(); got != "" {
			w.t.Errorf("%s: the frame arrived", what)
		}
	}
	w.inject(foe, frame{mac("10.88.0.4"), mac(gwIP), "10.88.0.4", "127.0.0.1", 6000})
	w.inject(foe, frame{mac("10.88.0.4"), mac(gwIP), "127.0.0.1", "127.0.0.1", 6000})
	if got := atLoopback(); got != "" {
		w.t.Error("a frame from an instance reached the host's loopback")
	}
	w.inject(foe, frame{mac("10.88.0.4"), mac(gwIP), "10.88.0.4", outIP, 6000})
	if got := atHost(); got != "forged" {
		w.t.Errorf("an honest frame to the outside did not arrive (%q)", got)
	}
	w.inject(foe, frame{mac("10.88.0.4"), mac(gwIP), "203.0.113.7", outIP, 6000})
	if got := atHost(); got != "" {
		w.t.Error("an instance sent to the outside under a foreign address")
	}
	for _, p := range []*netlink.Namespace{peer, foe} { // nothing but IPv4 is carried
		got := w.listen(web, "[::]:6001")
		w.must(p.Do(func() error {
			c, err := net.Dial("udp6", "[ff02::1%eth0]:6001")
			if err != nil {
				return nil // no IPv6 here at all
			}
			defer c.Close()
			c.Write([]byte("forged"))
			return nil
		}))
		if got() != "" {
			w.t.Error("IPv6 is carried, past the wall")
		}
		w.made[len(w.made)-1].Close()
	}
	for _, c := range w.made[len(w.made)-5:] {
		c.Close()
	}
}

func TestOpenTenantsAndDNS(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	no := false
	w := newWorld(t, Config{IsolateTenants: &no, DNS: true, Subnet: "10.88.0.0/24", MTU: 1300})
	a := w.start(spec("a", "acme", "10.88.0.2"), 80)
	w.start(spec("b", "evil", "10.88.0.3"), 80)
	w.serve(nil, "dns", gwIP+":53")
	w.reach(a, "10.88.0.3:80", "b 10.88.0.2")
	w.reach(a, gwIP+":53", "dns 10.88.0.2")
	w.reach(a, gwIP+":54", "")
	w.must(a.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil && i.MTU != 1300 {
			t.Errorf("MTU inside is %d, want 1300", i.MTU)
		}
		return err
	}))
}

// likeDocker is the part of what Docker 20 to 28 writes that matters here.
const likeDocker = `
table ip filter {
	chain DOCKER { }
	chain DOCKER-USER { counter return comment "someone's own" ; }
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		jump DOCKER-USER
		oifname "docker0" ct state related,established accept
		oifname "docker0" jump DOCKER
		iifname "docker0" oifname != "docker0" accept
	}
}
table ip nat {
	chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; ip saddr 172.17.0.0/16 oifname != "docker0" masquerade ; }
}
table inet admin { chain input { type filter hook input priority filter; policy accept; tcp dport 25 drop ; } ; }
`

func rulesWithoutCounters(t testing.TB) string {
	var out []string
	for _, l := range strings.Split(sh(t, "", "nft", "list", "ruleset"), "\n") {
		f := strings.Fields(l)
		for i := range f {
			if i >= 1 && (f[i-1] == "packets" || f[i-1] == "bytes") {
				f[i] = "n"
			}
		}
		out = append(out, strings.Join(f, " "))
	}
	return strings.Join(out, "\n")
}

func TestBesideDocker(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	sh(t, likeDocker, "nft", "-f", "-")
	before, exact := rulesWithoutCounters(t), sh(t, "", "nft", "list", "ruleset")
	web := w.start(spec("web", "acme", "10.88.0.2", api.Port{Port: 80, Publish: 8080}, api.Port{Port: 80, Publish: 8080, Protocol: "udp"}), 80)
	peer := w.start(spec("peer", "acme", "10.88.0.3"))
	w.serve(w.outside, "outside", "0.0.0.0:7000")
	works := func() {
		t.Helper()
		w.reach(web, outIP+":7000", "outside "+hostIP)
		w.reach(w.outside, hostIP+":8080", "web "+outIP)
		w.reach(nil, "127.0.0.1:8080", "web "+gwIP)
		w.reach(peer, hostIP+":8080", "web "+gwIP)
		w.reach(peer, "10.88.0.2:80", "web 10.88.0.3")
	}
	works()
	with := sh(t, "", "nft", "list", "chain", "ip", "filter", "DOCKER-USER")
	if strings.Count(with, `comment "atoll"`) != 4 || !strings.Contains(with, "someone's own") {
		t.Errorf("DOCKER-USER is not as it should be:\n%s", with)
	}
	// Docker restarts and empties its chain: dropped, until we look again.
	sh(t, "flush chain ip filter DOCKER-USER\n", "nft", "-f", "-")
	w.reach(w.outside, hostIP+":8080", "")
	w.must(w.d.Reconcile(context.Background()))
	works()
	w.must(w.d.Reconcile(context.Background()))
	if again := sh(t, "", "nft", "list", "chain", "ip", "filter", "DOCKER-USER"); strings.Count(again, `comment "atoll"`) != 4 {
		t.Errorf("our rules pile up:\n%s", again)
	}
	sh(t, "add rule ip filter DOCKER-USER counter return comment \"someone's own\"\n", "nft", "-f", "-")
	w.must(w.d.Teardown(context.Background()))
	if after := rulesWithoutCounters(t); after != before {
		t.Errorf("someone else's rules changed; before:\n%s\nafter:\n%s", before, after)
	}
	// Without traffic there are no counters to differ: byte for byte.
	sh(t, "flush ruleset\n"+likeDocker, "nft", "-f", "-")
	w.start(spec("quiet", "acme", "10.88.0.9", api.Port{Port: 80, Publish: 8080}))
	w.must(w.d.Teardown(context.Background()))
	if after := sh(t, "", "nft", "list", "ruleset"); after != exact {
		t.Errorf("not byte-identical; before:\n%s\nafter:\n%s", exact, after)
	}
}

func TestForwardingIsGivenBack(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	for _, was := range []string{"0", "1"} {
		_, err := netlink.SetSysctl(forwardKey, was)
		w.must(err)
		w.start(spec("a", "acme", "10.88.0.2"))
		if now, _ := netlink.Sysctl(forwardKey); now != "1" {
			t.Errorf("was %s: forwarding is %s with an instance", was, now)
		}
		w.reopen()
		w.must(w.d.Teardown(context.Background()))
		if now, _ := netlink.Sysctl(forwardKey); now != was {
			t.Errorf("forwarding was %s and is %s after the teardown", was, now)
		}
		w.clean()
	}
}

// TestCutShort walks through every state a kill -9 can leave behind.
func TestCutShort(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	s := spec("a", "acme", "10.88.0.2", api.Port{Port: 80, Publish: 8080}, api.Port{Port: 80, Publish: 8080, Protocol: "udp"})
	port, err := w.d.portOf(s)
	w.must(err)
	states := map[string]func(){
		"rules only": func() {
			b, err := w.d.ensureBase(false)
			w.must(err)
			if b.index == 0 {
				t.Fatal("no bridge")
			}
			w.must(w.d.table.Set(port))
		},
		"nameless bridge": func() {
			sh(t, "", "ip", "link", "add", "atoll0", "address", netlink.PortMAC(w.d.plan.gateway).String(), "type", "bridge")
		},
		"nameless cable": func() {
			_, err := w.d.ensureBase(false)
			w.must(err)
			w.must(w.d.table.Set(port))
			sh(t, "", "ip", "link", "add", portName("a"), "type", "veth", "peer", "name", "left0")
		},
		"cable to a namespace that is gone": func() {
			ns := w.namespace()
			w.must(w.d.Attach(context.Background(), ns.Path(), s))
			w.must(ns.Close())
		},
		"limits without a cable": func() {
			_, err := w.d.ensureBase(false)
			w.must(err)
			w.must(w.d.table.Set(port))
			sh(t, "", "ip", "link", "add", turnName("a"), "type", "ifb")
		},
		"limits of an instance that ended": func() {
			ns := w.namespace()
			limited := s
			limited.Network.Bands = &[2]api.Band{{Limit: 1e8}, {Limit: 1e8}}
			w.must(w.d.Attach(context.Background(), ns.Path(), limited))
			w.must(ns.Close())
		},
		"cable without rules": func() {
			w.must(w.d.Attach(context.Background(), w.namespace().Path(), s))
			w.must(w.d.table.Delete())
		},
		"everything but the bridge": func() {
			w.must(w.d.Attach(context.Background(), w.namespace().Path(), s))
			sh(t, "", "ip", "link", "del", "atoll0")
		},
		"all rules flushed": func() {
			w.must(w.d.Attach(context.Background(), w.namespace().Path(), s))
			sh(t, "flush ruleset\n", "nft", "-f", "-")
		},
	}
	for name, leave := range states {
		t.Run(name, func(t *testing.T) {
			old := w.t
			w.t = t
			defer func() { w.t = old }()
			leave()
			w.reopen() // a new life: attaching again converges
			ns := w.start(s, 80)
			w.reach(w.outside, hostIP+":8080", "a "+outIP)
			w.must(w.d.Detach(context.Background(), "a"))
			ids, err := w.d.Observe(context.Background())
			w.must(err)
			if len(ids) != 0 {
				t.Errorf("after attach and detach there is still %v", ids)
			}
			w.must(w.d.Teardown(context.Background()))
			w.must(ns.Close())
			w.clean()
			leave()
			w.reopen() // or it is nobody's: observed, then detached
			ids, err = w.d.Observe(context.Background())
			w.must(err)
			if name != "nameless bridge" && fmt.Sprint(ids) != "[a]" && name != "cable to a namespace that is gone" && name != "all rules flushed" {
				t.Errorf("observed %v, want [a]", ids)
			}
			for _, id := range ids {
				w.must(w.d.Detach(context.Background(), id))
			}
			if ids, err = w.d.Observe(context.Background()); err != nil || len(ids) != 0 {
				t.Errorf("after detach there is still %v, %v", ids, err)
			}
			w.must(w.d.Teardown(context.Background()))
			w.clean()
		})
	}
}

// TestFlushedWhileRunning: somebody runs "nft flush ruleset"; the next attach, of any
// instance, puts back the rules of all.
func TestFlushedWhileRunning(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	w.start(spec("a", "acme", "10.88.0.2", api.Port{Port: 80, Publish: 8080}, api.Port{Port: 80, Publish: 8080, Protocol: "udp"}), 80)
	w.reach(w.outside, hostIP+":8080", "a "+outIP)
	sh(t, "flush ruleset\n", "nft", "-f", "-")
	w.reach(w.outside, hostIP+":8080", "")
	w.start(spec("b", "acme", "10.88.0.3"))
	w.reach(w.outside, hostIP+":8080", "a "+outIP)
}

// TestBridgeGoneWhileRunning: the same life notices with the next attach.
func TestBridgeGoneWhileRunning(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	w.start(spec("a", "acme", "10.88.0.2"))
	sh(t, "", "ip", "link", "del", "atoll0")
	p := []api.Port{{Port: 80, Publish: 8080}, {Port: 80, Publish: 8080, Protocol: "udp"}}
	w.start(spec("b", "acme", "10.88.0.3", p...), 80)
	w.reach(w.outside, hostIP+":8080", "b "+outIP)
	w.reach(nil, "127.0.0.1:8080", "b "+gwIP)
}

// TestUDPFlowFollows: a client that keeps asking from one port before the port is
// published, and after it moved to another instance, gets its answers.
func TestUDPFlowFollows(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	w.start(spec("first", "acme", "10.88.0.8"))
	ask := func(want string) {
		t.Helper()
		w.must(w.outside.Do(func() error {
			c, err := net.DialUDP("udp4", &net.UDPAddr{Port: 5000}, &net.UDPAddr{IP: net.ParseIP(hostIP), Port: 5353})
			if err != nil {
				return err
			}
			defer c.Close()
			c.Write([]byte("?"))
			c.SetReadDeadline(time.Now().Add(wait))
			buf := make([]byte, 64)
			n, _ := c.Read(buf)
			if got := string(buf[:n]); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			return nil
		}))
	}
	ask("")
	p := api.Port{Port: 80, Publish: 5353, Protocol: "udp"}
	w.start(spec("a", "acme", "10.88.0.2", p), 80)
	ask("a " + outIP)
	w.must(w.d.Detach(context.Background(), "a"))
	w.start(spec("b", "acme", "10.88.0.3", p), 80)
	ask("b " + outIP)
}

func TestForeignBridgeIsLeftAlone(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	sh(t, "", "ip", "link", "add", "atoll0", "type", "bridge")
	err := w.d.Attach(context.Background(), w.namespace().Path(), spec("a", "acme", "10.88.0.2"))
	if !errors.Is(err, errs.Conflict) || errs.HintOf(err) == "" {
		t.Errorf("attach on someone else's bridge: %v, want a conflict with a hint", err)
	}
	w.must(w.d.Teardown(context.Background()))
	if out := sh(t, "", "ip", "link", "show", "atoll0"); !strings.Contains(out, "atoll0") {
		t.Error("the teardown took someone else's bridge")
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"bridge name": {Bridge: "has space"}, "long bridge": {Bridge: "sixteen-letters-"}, "host bits": {Subnet: "10.88.0.1/16"}, "small": {Subnet: "10.88.0.0/31"},
		"IPv6": {Subnet: "fd00::/64"}, "MTU": {MTU: 100}, "private": {PrivateInterfaces: []string{""}},
	} {
		if _, err := New(driver.Deps{}, c); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	d, err := New(driver.Deps{}, Config{Subnet: "10.88.0.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{"10.88.0.0": false, "10.88.0.1": false, "10.88.0.2": true, "10.88.0.254": true, "10.88.0.255": false, "10.88.1.2": false, "::1": false} {
		if got := d.plan.instance(netip.MustParseAddr(addr)); got != want {
			t.Errorf("address %s: %v, want %v", addr, got, want)
		}
	}
}

func FuzzPortOf(f *testing.F) {
	d, err := New(driver.Deps{}, Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("10.88.0.2", "tcp", "127.0.0.1", uint16(80), uint16(8080))
	f.Add("10.88.0.300", "sctp", "::1", uint16(0), uint16(1))
	f.Add("::ffff:10.88.0.2", "udp", "::ffff:192.0.2.1", uint16(1), uint16(1))
	f.Fuzz(func(t *testing.T, addr, proto, hostIP string, port, publish uint16) {
		p, err := d.portOf(spec("a", "acme", addr, api.Port{Port: port, Publish: publish, Protocol: proto, HostIP: hostIP}))
		if err != nil {
			return
		}
		if !d.plan.instance(p.Addr) {
			t.Errorf("address %s got through", p.Addr)
		}
		for _, pub := range p.Published {
			if pub.HostIP.IsValid() && !pub.HostIP.Is4() {
				t.Errorf("host address %s got through", pub.HostIP)
			}
		}
	})
}

func BenchmarkAttach(b *testing.B) {
	if !systest.Apart(b) {
		return
	}
	w := newWorld(b, Config{})
	for i := range 100 { // beside a hundred others
		w.start(spec(fmt.Sprintf("old%d", i), "acme", fmt.Sprintf("10.88.1.%d", i+2), api.Port{Port: 80, Publish: uint16(20000 + i)}))
	}
	s := spec("a", "acme", "10.88.0.2", api.Port{Port: 80, Publish: 8080})
	attach := func() *netlink.Namespace {
		ns := w.namespace()
		w.must(w.d.Attach(context.Background(), ns.Path(), s))
		return ns
	}
	detach := func() { w.must(w.d.Detach(context.Background(), "a")) }
	b.Run("attach", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			ns := w.namespace()
			b.StartTimer()
			w.must(w.d.Attach(context.Background(), ns.Path(), s))
			b.StopTimer()
			detach()
			ns.Close()
			b.StartTimer()
		}
	})
	b.Run("detach-live", func(b *testing.B) { // the namespace is still there: the kernel takes its time
		for range b.N {
			b.StopTimer()
			ns := attach()
			b.StartTimer()
			detach()
			b.StopTimer()
			ns.Close()
			b.StartTimer()
		}
	})
	b.Run("detach-ended", func(b *testing.B) { // as after an instance has ended: the cable went with its namespace
		h, err := netlink.Open()
		w.must(err)
		defer h.Close()
		for range b.N {
			b.StopTimer()
			attach().Close()
			for {
				if _, err := h.Link(portName("a")); errors.Is(err, errs.NotFound) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			b.StartTimer()
			detach()
		}
	})
}
