package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/driver/network/bridge"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is a namespace with a driver, on a wire to the other hosts.
type host struct {
	t    *testing.T
	name string
	addr netip.Addr
	ns   *netlink.Namespace
	deps driver.Deps
	cfg  Config
	d    *Driver
	out  *bridge.Driver
}

// hosts makes some that reach each other, 192.0.2.1 and so on.
func hosts(t *testing.T, n int) []*host {
	t.Helper()
	h, err := netlink.Open()
	must(t, err)
	defer h.Close()
	must(t, h.LoopbackUp())
	up, err := h.EnsureBridge(netlink.Bridge{Name: "lan", ID: "test", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 254}, MTU: 1500, Addr: netip.MustParsePrefix("192.0.2.254/24")})
	must(t, err)
	var out []*host
	for i := range n {
		x := &host{t: t, name: fmt.Sprintf("isle%d", i+1), addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}
		x.ns = namespace(t)
		must(t, h.EnsurePort(x.ns, netlink.Port{Name: "lan" + fmt.Sprint(i), ID: "test" + fmt.Sprint(i), Bridge: up, MTU: 1500, Peer: "wan0", MAC: net.HardwareAddr{2, 9, 9, 9, 9, byte(i)},
			Addr: netip.PrefixFrom(x.addr, 24), GW: netip.MustParseAddr("192.0.2.254")}))
		x.deps = driver.Deps{Node: x.name, State: t.TempDir(), Run: t.TempDir(), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}
		x.cfg = Config{Tunnel: x.addr.String(), Outside: "10.88.240.0/20"}
		err := x.ns.Do(func() error {
			x.reopen()
			_, err := x.d.Probe(t.Context())
			return err
		})
		if errs.KindOf(err) == errs.Unsupported && bpf.Probe() != nil {
			t.Skip(err)
		}
		must(t, err)
		t.Cleanup(func() {
			if t.Failed() {
				x.tell()
			}
			must(t, x.ns.Do(func() error {
				return errors.Join(x.d.Teardown(context.Background()), x.out.Teardown(context.Background()))
			}))
			if es, err := os.ReadDir(x.deps.Run); err != nil || len(es) > 1 { // the bridge's directory
				t.Errorf("left in the run directory: %v %v", es, err)
			}
		})
		out = append(out, x)
	}
	return out
}

// reopen is what a new life of the daemon does. It must be called in the host's namespace.
func (x *host) reopen() {
	x.t.Helper()
	if x.d != nil {
		must(x.t, errors.Join(x.d.Close(), x.out.Close()))
	}
	var err error
	x.d, err = New(x.deps, x.cfg)
	must(x.t, err)
	x.out, err = bridge.New(driver.Deps{Node: x.name, State: x.deps.State, Run: x.deps.Run + "/bridge", Clock: clock.Real{}, Log: x.deps.Log}, bridge.Config{})
	must(x.t, err)
	x.d.Through(x.out)
	x.d.mu.Lock()
	defer x.d.mu.Unlock()
	must(x.t, x.d.open())
}

// tell says what is in the tables of a host on which a test failed.
func (x *host) tell() {
	drops, err := x.d.wall.Drops()
	x.t.Logf("%s: drops %v %v", x.name, drops, err)
	for vni, n := range x.d.nets {
		for _, c := range []string{"ip -br link", "bridge fdb", "ip neigh", "ip -6 neigh", "nft list ruleset"} {
			f := strings.Fields(c)
			out, err := exec.Command("nsenter", append([]string{"--net=" + x.d.nsFile(vni), "--"}, f...)...).CombinedOutput()
			x.t.Logf("network %d %v: %s: %v\n%s", vni, n.record.Wires, c, err, out)
		}
	}
}

// do runs fn on the host: the host's own bridge goes by where it is called.
func (x *host) do(fn func(d *Driver) error) {
	x.t.Helper()
	must(x.t, x.ns.Do(func() error { return fn(x.d) }))
}

func namespace(t *testing.T) *netlink.Namespace {
	t.Helper()
	ns, err := netlink.NewNamespace()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// box is an instance: a namespace on a network of a host.
type box struct {
	t    *testing.T
	id   string
	host *host
	ns   *netlink.Namespace
	four netip.Addr
	six  netip.Addr
	mac  [6]byte
	num  uint16
}

func (x *host) box(id string, n byte, identity uint16) *box {
	return &box{t: x.t, id: id, host: x, ns: namespace(x.t), four: netip.AddrFrom4([4]byte{10, 1, 0, n}), six: netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", n)), mac: [6]byte{0x0a, 0x58, 10, 1, 0, n}, num: identity}
}

// lan is a network of which all hosts know the same.
type lan struct {
	net    driver.Net
	boxes  []*box
	policy map[netip.Addr]driver.Policy
	table  driver.Table
}

func newLAN(vni uint32, tenant string, boxes ...*box) *lan {
	l := &lan{boxes: boxes, policy: map[netip.Addr]driver.Policy{}}
	l.net = driver.Net{VNI: vni, Ref: api.Ref{Kind: api.KindNetwork, Tenant: tenant, Name: "main"}, Egress: driver.EgressNAT,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")}}
	return l
}

func (l *lan) members() []driver.Member {
	var out []driver.Member
	for _, b := range l.boxes {
		for _, a := range []netip.Addr{b.four, b.six} {
			out = append(out, driver.Member{Addr: a, MAC: b.mac, Host: b.host.addr, Identity: uint32(b.num)})
		}
	}
	return out
}

// of is the table of a host.
func (l *lan) of(x *host) driver.Table {
	t := l.table
	t.Ports = map[netip.Addr]driver.Policy{}
	for _, b := range l.boxes {
		if b.host == x {
			t.Ports[b.four], t.Ports[b.six] = l.policy[b.four], l.policy[b.four]
		}
	}
	return t
}

// replace tells all hosts.
func (l *lan) replace(hs ...*host) {
	for _, x := range hs {
		x.do(func(d *Driver) error { return d.Replace(x.t.Context(), l.net, l.members(), l.of(x)) })
	}
}

func (b *box) spec(vni uint32, tenant string, ports ...api.Port) driver.Spec {
	return driver.Spec{ID: b.id, Instance: &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: b.id, Tenant: tenant}}, Spec: api.InstanceSpec{Ports: ports}},
		Network: driver.NetworkSpec{Mode: driver.ModeOverlay, Interfaces: []driver.Interface{{Name: "eth0", VNI: vni, MAC: b.mac, Addrs: []netip.Prefix{netip.PrefixFrom(b.four, 16), netip.PrefixFrom(b.six, 64)}}}}}
}

func (l *lan) attach(ports ...api.Port) {
	for _, b := range l.boxes {
		b.host.do(func(d *Driver) error {
			return d.Attach(b.t.Context(), b.ns.Path(), b.spec(l.net.VNI, l.net.Ref.Tenant, ports...))
		})
	}
}

// serve answers with its ID on a TCP port of all addresses, until the test ends.
func (b *box) serve(port int) {
	b.t.Helper()
	must(b.t, b.ns.Do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		b.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", b.id, c.RemoteAddr())
				c.Close()
			}
		}()
		return nil
	}))
}

// ask is what is answered on an address and port; the error when nothing is within a moment. An IPv6 address that
// was just given takes its owner's kernel a moment to know, and TCP asks again after a second.
func ask(ns *netlink.Namespace, addr netip.Addr, port int) (string, error) {
	return askFor(ns, addr, port, 3*time.Second)
}

func askFor(ns *netlink.Namespace, addr netip.Addr, port int, limit time.Duration) (string, error) {
	var answer string
	err := ns.Do(func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(addr, uint16(port)).String(), limit)
		if err != nil {
			return err
		}
		defer c.Close()
		must := c.SetDeadline(time.Now().Add(time.Second))
		b, err := io.ReadAll(c)
		answer = string(b)
		return errors.Join(must, err)
	})
	return answer, err
}

func (b *box) reaches(o *box, port int) {
	b.t.Helper()
	for _, a := range []netip.Addr{o.four, o.six} {
		if got, err := ask(b.ns, a, port); err != nil || !strings.HasPrefix(got, o.id+" ") {
			b.t.Errorf("%s to %s by %s: %q, %v", b.id, o.id, a, got, err)
		}
	}
}

func (b *box) misses(o *box, port int) {
	b.t.Helper()
	for _, a := range []netip.Addr{o.four, o.six} {
		if got, err := askFor(b.ns, a, port, 900*time.Millisecond); err == nil {
			b.t.Errorf("%s to %s by %s: answered %q", b.id, o.id, a, got)
		}
	}
}

func TestOneNetworkOverTwoHosts(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 2)
	a1, a2, b1 := hs[0].box("a1", 2, 256), hs[0].box("a2", 3, 257), hs[1].box("b1", 4, 258)
	l := newLAN(70001, "acme", a1, a2, b1)
	for _, b := range l.boxes {
		err := b.host.ns.Do(func() error { return b.host.d.Attach(t.Context(), b.ns.Path(), b.spec(l.net.VNI, "acme")) })
		if errs.KindOf(err) != errs.Unavailable {
			t.Fatalf("attached to a network that is not here: %v", err)
		}
	}
	l.replace(hs...)
	l.attach()
	for _, b := range l.boxes {
		b.serve(80)
	}
	for _, from := range l.boxes {
		for _, to := range l.boxes {
			if from != to {
				from.reaches(to, 80)
			}
		}
	}
	// Another tenant has the same addresses.
	x1, x2 := hs[0].box("x1", 2, 256), hs[1].box("x2", 9, 257)
	o := newLAN(70002, "other", x1, x2)
	o.replace(hs...)
	o.attach()
	x1.serve(80)
	x2.reaches(x1, 80)
	x2.misses(b1, 80)
	a1.misses(x2, 80)
	// It goes out under the host's address, and nobody's IPv4 leads in.
	if got := outside(t, hs[0], a1); got != hs[0].addr.String() {
		t.Errorf("seen from outside as %q", got)
	}
	for _, id := range []string{"a1", "a2", "x1"} {
		hs[0].do(func(d *Driver) error { return d.Detach(t.Context(), id) })
	}
	hs[0].do(func(d *Driver) error { return d.Forget(t.Context(), 70002) })
	hs[0].do(func(d *Driver) error {
		if vnis, err := d.Nets(t.Context()); err != nil || len(vnis) != 1 {
			t.Errorf("networks %v, %v", vnis, err)
		}
		return nil
	})
}

// outside tells by which address a machine beyond the host sees a box.
func outside(t *testing.T, x *host, b *box) string {
	t.Helper()
	l, err := net.Listen("tcp", "192.0.2.254:81")
	must(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprint(c, h)
			c.Close()
		}
	}()
	got, err := ask(b.ns, netip.MustParseAddr("192.0.2.254"), 81)
	if err != nil {
		t.Errorf("%s of %s does not reach the outside: %v", b.id, x.name, err)
	}
	return got
}
