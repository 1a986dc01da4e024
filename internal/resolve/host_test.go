package resolve

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay"
	"atoll/internal/errs"
	"atoll/internal/segment"
	"atoll/internal/store"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// box is an instance on a network.
type box struct {
	t      *testing.T
	tenant string
	vni    uint32
	ns     *netlink.Namespace
}

var (
	boxFour = netip.MustParseAddr("10.1.0.5")
	boxSix  = netip.MustParseAddr("fd00:1::5")
	boxMAC  = [6]byte{0x0a, 0x58, 10, 1, 0, 5}
)

func newBox(t *testing.T, tenant string, vni uint32) *box {
	t.Helper()
	ns, err := netlink.NewNamespace()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return &box{t: t, tenant: tenant, vni: vni, ns: ns}
}

// appear makes the box's network on the host, with the box on it. Nobody may talk with anybody there; names may be asked for.
func (b *box) appear(d *overlay.Driver) {
	b.t.Helper()
	n := driver.Net{VNI: b.vni, Ref: api.Ref{Kind: api.KindNetwork, Tenant: b.tenant, Name: "main"}, Egress: driver.EgressNone,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")}}
	next, err := d.NextID(b.t.Context())
	must(b.t, err)
	c := segment.New(segment.NewIDs(next), segment.Network{Net: segment.Net{Tenant: b.tenant, Name: "main"}, Prefixes: n.Prefixes, Closed: true})
	c.SetIdentity(256, &segment.Identity{Tenant: b.tenant, Network: segment.Net{Tenant: b.tenant, Name: "main"}})
	c.SetInstance(boxFour, 256)
	c.SetInstance(boxSix, 256)
	host := netip.MustParseAddr("127.0.0.1")
	must(b.t, d.Replace(b.t.Context(), n, []driver.Member{{Addr: boxFour, MAC: boxMAC, Host: host, Identity: 256}, {Addr: boxSix, MAC: boxMAC, Host: host, Identity: 256}}, c.Table()))
	must(b.t, d.Attach(b.t.Context(), b.ns.Path(), driver.Spec{ID: b.tenant + "-db", Instance: &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "db", Tenant: b.tenant}}},
		Network: driver.NetworkSpec{Mode: driver.ModeOverlay, Interfaces: []driver.Interface{{Name: "eth0", VNI: b.vni, MAC: boxMAC, Addrs: []netip.Prefix{netip.PrefixFrom(boxFour, 16), netip.PrefixFrom(boxSix, 64)}}}}}))
}

// ask asks a gateway from inside, until there is an answer.
func (b *box) ask(network, gateway, name string) string {
	b.t.Helper()
	var last error
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); {
		var c net.Conn
		err := b.ns.Do(func() error {
			var err error
			c, err = net.DialTimeout(network, net.JoinHostPort(gateway, "53"), 300*time.Millisecond)
			return err
		})
		if err == nil {
			var r *dns.Msg
			r, _, err = (&dns.Client{Net: network, Timeout: 300 * time.Millisecond}).ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: c})
			c.Close()
			if err == nil {
				return told(r)
			}
		}
		last = err
		time.Sleep(10 * time.Millisecond)
	}
	return "no answer: " + last.Error()
}

// Instances of two tenants ask the same address for the same name, and each gets its own tenant's.
func TestInstancesAskTheirGateway(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	h, err := netlink.Open()
	must(t, err)
	must(t, h.LoopbackUp())
	h.Close()
	deps := driver.Deps{Node: node, State: t.TempDir(), Run: t.TempDir(), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}
	d, err := overlay.New(deps, overlay.Config{Tunnel: "127.0.0.1"})
	must(t, err)
	if _, err := d.Probe(t.Context()); errs.KindOf(err) == errs.Unsupported {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if d != nil {
			must(t, d.Teardown(context.Background()))
		}
	})
	st := store.NewMem()
	boxes := []*box{newBox(t, "acme", 71001), newBox(t, "other", 71002)}
	var ops []store.Op
	for i, b := range boxes {
		ops = append(ops, store.Set(&api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Tenant: b.tenant, Name: "main"}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/16", CIDR6: "fd00:1::/64"}, Status: api.NetworkStatus{VNI: b.vni}}),
			store.Set(endpoint(b.tenant, "db", node, "main=10.1.0.5,fd00:1::5")), store.Set(endpoint(b.tenant, "only-"+b.tenant, "isle2", "main=10.1.0."+[]string{"7", "8"}[i])))
	}
	_, err = st.Commit(t.Context(), ops...)
	must(t, err)
	run := func() (stop func()) {
		r := New(Deps{Node: node, Store: st, Clock: clock.Real{}, Log: deps.Log, Listen: On(d)})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = r.Run(ctx)
		}()
		return func() { cancel(); <-done }
	}
	check := func(when string) {
		t.Helper()
		for _, b := range boxes {
			for _, network := range []string{"udp", "tcp"} {
				for _, gateway := range []string{"10.1.0.1", "fd00:1::1"} {
					for name, want := range map[string]string{
						"db.main." + b.tenant + ".atoll.internal.": "NOERROR 10.1.0.5",
						"only-acme.main.acme.atoll.internal.":      map[string]string{"acme": "NOERROR 10.1.0.7", "other": "NXDOMAIN"}[b.tenant],
						"only-other.main.other.atoll.internal.":    map[string]string{"other": "NOERROR 10.1.0.8", "acme": "NXDOMAIN"}[b.tenant],
					} {
						if got := b.ask(network, gateway, name); got != want {
							t.Fatalf("%s: %s asks %s over %s for %s: %s, want %s", when, b.tenant, gateway, network, name, got, want)
						}
					}
				}
			}
		}
	}
	stop := run() // before there is any network
	time.Sleep(30 * time.Millisecond)
	for _, b := range boxes {
		b.appear(d)
	}
	check("first")
	// Another life of the daemon.
	stop()
	must(t, d.Close())
	d, err = overlay.New(deps, overlay.Config{Tunnel: "127.0.0.1"})
	must(t, err)
	stop = run()
	for _, b := range boxes {
		b.appear(d)
	}
	check("after a restart")
	// A network leaves the host and comes back sooner than the resolver hears of it: it is another
	// namespace, in which the old sockets would hear nothing.
	old, err := os.Stat(deps.Run + "/net/71001")
	must(t, err)
	must(t, d.Detach(t.Context(), "acme-db"))
	must(t, d.Forget(t.Context(), 71001))
	boxes[0] = newBox(t, "acme", 71001)
	boxes[0].appear(d)
	if now, err := os.Stat(deps.Run + "/net/71001"); err != nil || os.SameFile(old, now) {
		t.Fatalf("it is the same namespace, or none: %v", err)
	}
	check("in a network made anew")
	// It leaves: what is open there is closed by the time the endpoint is heard of.
	_, err = st.Commit(t.Context(), store.Set(endpoint("acme", "db", "isle2", "main=10.1.0.5,fd00:1::5")))
	must(t, err)
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := d.ListenPacket(71001, netip.MustParseAddrPort("10.1.0.1:53"))
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the sockets are open yet: %v", err)
		}
	}
	stop()
	if _, err := d.ListenPacket(71009, netip.MustParseAddrPort("10.1.0.1:53")); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("a network that is not here: %v", err)
	}
}
