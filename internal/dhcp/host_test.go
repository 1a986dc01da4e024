package dhcp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

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

// guest is an instance of a closed network, on which nobody may talk with anybody.
type guest struct {
	name string
	mac  [6]byte
	four netip.Addr
	six  netip.Addr
	ns   *netlink.Namespace
}

func newGuest(t *testing.T, name string, last byte) *guest {
	t.Helper()
	ns, err := netlink.NewNamespace()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return &guest{name: name, mac: [6]byte{0x0a, 0x58, 10, 1, 0, last}, four: netip.AddrFrom4([4]byte{10, 1, 0, last}), six: netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", last)), ns: ns}
}

func (g *guest) endpoint() *api.Endpoint {
	return &api.Endpoint{Head: api.Head{K: api.KindEndpoint, Meta: api.Meta{Name: g.name, Tenant: "red"}}, Spec: api.EndpointSpec{Node: "isle1", Interfaces: []api.Interface{
		{Network: "main", VNI: 71001, Name: "eth0", MAC: net.HardwareAddr(g.mac[:]).String(), Address: g.four.String() + "/16", Address6: g.six.String() + "/64"}}}}
}

const testVNI = 71001

// appear makes the network on the host, with the guests on it.
func appear(t *testing.T, d *overlay.Driver, guests ...*guest) {
	t.Helper()
	n := driver.Net{VNI: testVNI, Ref: api.Ref{Kind: api.KindNetwork, Tenant: "red", Name: "main"}, Egress: driver.EgressNone, MTU: 1400,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")}}
	next, err := d.NextID(t.Context())
	must(t, err)
	net := segment.Net{Tenant: "red", Name: "main"}
	c := segment.New(segment.NewIDs(next), segment.Network{Net: net, Prefixes: n.Prefixes, Closed: true})
	c.SetIdentity(256, &segment.Identity{Tenant: "red", Network: net})
	var members []driver.Member
	for _, g := range guests {
		for _, a := range []netip.Addr{g.four, g.six} {
			c.SetInstance(a, 256)
			members = append(members, driver.Member{Addr: a, MAC: g.mac, Host: netip.MustParseAddr("127.0.0.1"), Identity: 256})
		}
	}
	must(t, d.Replace(t.Context(), n, members, c.Table()))
	for _, g := range guests {
		must(t, d.Attach(t.Context(), g.ns.Path(), driver.Spec{ID: "red-" + g.name, Instance: &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: g.name, Tenant: "red"}}},
			Network: driver.NetworkSpec{Mode: driver.ModeOverlay, Interfaces: []driver.Interface{{Name: "eth0", VNI: testVNI, MAC: g.mac, Addrs: []netip.Prefix{netip.PrefixFrom(g.four, 16), netip.PrefixFrom(g.six, 64)}}}}}))
	}
}

// in runs a program inside.
func (g *guest) in(t *testing.T, argv ...string) string {
	t.Helper()
	var out []byte
	err := g.ns.Do(func() error {
		var err error
		out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Sprintf("%s: %v: %s", argv, err, out)
	}
	return string(out)
}

// lease runs a client inside, which has no address, and tells what it was given.
func (g *guest) lease(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n[ $1 = bound ] && echo given $ip/$mask by $serverid router $router dns $dns mtu $mtu for $lease name $hostname in $search\nexit 0\n"), 0o700))
	g.in(t, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
	out := g.in(t, "busybox", "udhcpc", "-f", "-n", "-q", "-t", "4", "-T", "1", "-i", "eth0", "-s", script, "-O", "mtu", "-O", "search")
	for l := range strings.Lines(out) {
		if strings.HasPrefix(l, "given") {
			return strings.TrimSpace(l)
		}
	}
	return out
}

// lease6 asks by DHCPv6 from inside.
func (g *guest) lease6(t *testing.T) string {
	t.Helper()
	var c net.PacketConn
	listen := func() (err error) {
		c, err = net.ListenPacket("udp6", "["+linkLocal(g.mac).String()+"%eth0]:546")
		return err
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) { // until nobody else is found to have the address
		err := g.ns.Do(listen)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	defer c.Close()
	q, err := dhcpv6.NewSolicit(g.mac[:], dhcpv6.WithRapidCommit)
	must(t, err)
	buf := make([]byte, 2000)
	for range 10 {
		if _, err := c.WriteTo(q.ToBytes(), &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547, Zone: "eth0"}); err != nil {
			return err.Error()
		}
		must(t, c.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			continue
		}
		m, err := dhcpv6.MessageFromBytes(buf[:n])
		must(t, err)
		return m.Options.OneIANA().Options.OneAddress().IPv6Addr.String()
	}
	return "no answer"
}

// Guests that have forgotten their addresses get them again, each its own, also on a closed network, beside a
// neighbour that would give them others, and after another life of the daemon.
func TestGuestsAskTheirGateway(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	for _, tool := range []string{"busybox", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	h, err := netlink.Open()
	must(t, err)
	must(t, h.LoopbackUp())
	h.Close()
	deps := driver.Deps{Node: "isle1", State: t.TempDir(), Run: t.TempDir(), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}
	d, err := overlay.New(deps, overlay.Config{Tunnel: "127.0.0.1"})
	must(t, err)
	if _, err := d.Probe(t.Context()); errs.KindOf(err) == errs.Unsupported {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := d.Teardown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	web, db := newGuest(t, "web", 5), newGuest(t, "db", 6)
	st := store.NewMem()
	n := &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: "main", Tenant: "red"}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/16", CIDR6: "fd00:1::/64"}, Status: api.NetworkStatus{VNI: testVNI}}
	_, err = st.Commit(t.Context(), store.Set(n), store.Set(web.endpoint()), store.Set(db.endpoint()))
	must(t, err)
	run := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		s := New(Deps{Node: "isle1", Store: st, Clock: clock.Real{}, Log: deps.Log, Questions: On(d), Advertise: 200 * time.Millisecond})
		go func() {
			defer close(done)
			_ = s.Run(ctx)
		}()
		return func() {
			cancel()
			<-done
		}
	}
	stop := run() // before the network is there
	appear(t, d, web, db)
	rogue(t, db)
	check := func(when string) {
		t.Helper()
		for _, g := range []*guest{web, db} {
			want := fmt.Sprintf("given %s/16 by 10.1.0.1 router 10.1.0.1 dns 10.1.0.1 mtu 1400 for 86400 name %s in main.red.atoll.internal", g.four, g.name)
			if got := g.lease(t); got != want {
				t.Errorf("%s: %s: %s, want %s", when, g.name, got, want)
			}
			if got := g.lease6(t); got != g.six.String() {
				t.Errorf("%s: %s has %s by DHCPv6, want %s", when, g.name, got, g.six)
			}
		}
	}
	check("first")
	if got := db.in(t, "busybox", "udhcpc", "-f", "-n", "-q", "-t", "2", "-T", "1", "-i", "eth0", "-s", "/bin/true", "-r", "10.1.0.5"); !strings.Contains(got, "lease of 10.1.0.6 obtained") {
		t.Errorf("who wants another's address: %s", got)
	}
	routes := ""
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && !strings.Contains(routes, "proto ra"); time.Sleep(20 * time.Millisecond) {
		routes = web.in(t, "ip", "-6", "route", "show", "default")
	}
	if !strings.Contains(routes, "via fe80::858:ff:fe00:1 dev eth0 proto ra") {
		t.Errorf("the gateway was not advertised: %s", routes)
	}
	if got := web.in(t, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "global"); strings.Contains(got, "fd00:1::858") {
		t.Errorf("the guest made an address of its own: %s", got)
	}
	stop()
	must(t, d.Close())
	if got := web.lease(t); !strings.Contains(got, "no lease") {
		t.Errorf("while nobody is there: %s", got)
	}
	d, err = overlay.New(deps, overlay.Config{Tunnel: "127.0.0.1"})
	must(t, err)
	stop = run()
	appear(t, d, web, db)
	check("after a restart")
	stop()
}

// rogue has a guest serve addresses that are nobody's, to whoever it hears.
func rogue(t *testing.T, g *guest) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "udhcpd.conf")
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "start 10.1.0.66\nend 10.1.0.99\ninterface eth0\nlease_file %s/leases\npidfile %s/pid\noption router %s\noption subnet 255.255.0.0\n", dir, dir, g.four), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "leases"), nil, 0o600))
	c := exec.Command("busybox", "udhcpd", "-f", conf)
	must(t, g.ns.Do(c.Start))
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() {
		select {
		case err := <-ended:
			t.Errorf("the rogue server ended: %v", err)
		default:
			_ = c.Process.Kill()
			<-ended
		}
	})
}
