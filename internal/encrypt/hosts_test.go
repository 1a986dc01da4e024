package encrypt

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/control/host"
	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
	"atoll/internal/sys/wg"
)

// TestMain is also the process that a test's hosts have their devices from.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Verb {
		if err := Main(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, f func() (bool, string)) {
	t.Helper()
	last := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		ok, why := f()
		if ok {
			return
		}
		last = why
	}
	t.Fatalf("not within 20 s: %s: %s", what, last)
}

// inside is a Host in a namespace.
type inside struct {
	*System
	ns *netlink.Namespace
}

func (i inside) Ensure(ctx context.Context, in netip.Prefix, out netip.Addr) (d wg.Device, by string, err error) {
	err = i.ns.Do(func() error { d, by, err = i.System.Ensure(ctx, in, out); return err })
	return d, by, err
}
func (i inside) Shut(p uint16) error { return i.ns.Do(func() error { return i.System.Shut(p) }) }
func (i inside) Unshut() error       { return i.ns.Do(i.System.Unshut) }
func (i inside) Remove(ctx context.Context) error {
	return i.ns.Do(func() error { return i.System.Remove(ctx) })
}

// carried is a network driver in a namespace.
type carried struct {
	*overlay.Driver
	ns *netlink.Namespace
}

func (c carried) Carry(ctx context.Context, u driver.Underlay) error {
	return c.ns.Do(func() error { return c.Driver.Carry(ctx, u) })
}

// isle is a host: a namespace with a driver and an actor, on a cable to the others.
type isle struct {
	t    *testing.T
	w    *world
	name string
	addr netip.Addr
	ns   *netlink.Namespace
	d    carried
	sys  inside
	dir  string
	a    *Actor
	stop func()
	box  *netlink.Namespace
	boxA netip.Addr
	mac  [6]byte
	told chan struct{}
}

type world struct {
	t     *testing.T
	mem   store.Store
	isles []*isle
}

const vni = 70001

// make begins a pool of two hosts with an instance on each.
func begin(t *testing.T) *world {
	t.Helper()
	if err := bpf.Probe(); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	w := &world{t: t, mem: store.NewMem()}
	h, err := netlink.Open()
	must(t, err)
	t.Cleanup(h.Close)
	must(t, h.LoopbackUp())
	up, err := h.EnsureBridge(netlink.Bridge{Name: "lan", ID: "test", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 254}, MTU: 1500, Addr: netip.MustParsePrefix("192.0.2.254/24")})
	must(t, err)
	for i := range 2 {
		x := &isle{t: t, w: w, name: fmt.Sprintf("isle%d", i+1), addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), dir: t.TempDir(), told: make(chan struct{}, 1)}
		x.ns, x.box = namespace(t), namespace(t)
		must(t, h.EnsurePort(x.ns, netlink.Port{Name: "lan" + fmt.Sprint(i), ID: "test" + fmt.Sprint(i), Bridge: up, MTU: 1500, Peer: "wan0", MAC: net.HardwareAddr{2, 9, 9, 9, 9, byte(i)},
			Addr: netip.PrefixFrom(x.addr, 24), GW: netip.MustParseAddr("192.0.2.254")}))
		d, err := overlay.New(driver.Deps{Node: x.name, State: t.TempDir(), Run: t.TempDir(), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}, overlay.Config{Tunnel: x.addr.String()})
		must(t, err)
		x.d = carried{d, x.ns}
		x.sys = inside{&System{Dir: t.TempDir(), Clock: clock.Real{}, NoKernel: true, Spawn: Spawn("")}, x.ns}
		x.boxA, x.mac = netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 2)}), [6]byte{0x0a, 0x58, 10, 1, 0, byte(i + 2)}
		w.isles = append(w.isles, x)
		t.Cleanup(func() {
			if x.stop != nil {
				x.stop()
			}
			if t.Failed() {
				x.tell()
			}
			must(t, x.ns.Do(func() error {
				return errors.Join(x.d.Teardown(context.Background()), Teardown(context.Background(), x.sys.System))
			}))
		})
	}
	for _, x := range w.isles {
		_, err := w.mem.Commit(t.Context(), store.Create(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: x.name}}}),
			store.Create(&api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: x.name}}, Spec: api.NodeIdentitySpec{Role: api.RoleNode}}))
		must(t, err)
		x.begin()
		must(t, x.ns.Do(func() error { return x.d.Replace(t.Context(), w.net(), w.members(), x.table()) }))
		must(t, x.ns.Do(func() error { return x.d.Attach(t.Context(), x.box.Path(), x.spec()) }))
	}
	e := reconcile.New(w.mem, clock.Real{}, slog.New(slog.DiscardHandler), reconcile.Events{})
	e.Add(host.NewEncryption(clock.Real{}), 1)
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { _ = e.Run(ctx) })
	wait.Go(func() { w.follow(ctx) })
	t.Cleanup(func() { cancel(); wait.Wait() })
	return w
}

func namespace(t *testing.T) *netlink.Namespace {
	t.Helper()
	ns, err := netlink.NewNamespace()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// begin is what a new life of a daemon does.
func (x *isle) begin() {
	x.a = New(Deps{Node: x.name, State: x.dir, Store: x.w.mem, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler), Driver: x.d, Host: x.sys, Random: rand.Reader, Publish: func() {
		select {
		case x.told <- struct{}{}:
		default:
		}
	}})
	must(x.t, x.a.Start(x.t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { _ = x.a.Run(ctx) })
	a := x.a
	wait.Go(func() { x.publish(ctx, a) })
	x.stop = func() { cancel(); wait.Wait(); x.stop = nil }
}

// publish is the agent.
func (x *isle) publish(ctx context.Context, a *Actor) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.told:
		case <-time.After(100 * time.Millisecond):
		}
		n, err := store.Get[*api.Node](ctx, x.w.mem, api.Ref{Kind: api.KindNode, Name: x.name})
		if err != nil {
			continue
		}
		n = api.Clone(n)
		was := fmt.Sprintf("%+v %+v", n.Status, n.Status.Encryption)
		n.Status = api.NodeStatus{Drivers: []api.Capability{{Type: "network", Name: api.DriverOverlay, Features: map[string]string{"tunnel": x.addr.String()}}},
			Conditions: []api.Condition{{Type: api.ConditionReady, Status: true}}}
		a.Extend(&n.Status)
		if fmt.Sprintf("%+v %+v", n.Status, n.Status.Encryption) != was {
			_, _ = x.w.mem.Commit(ctx, store.Update(n))
		}
	}
}

// follow is placement and the fabric: where instances are follows what nodes say.
func (w *world) follow(ctx context.Context) {
	last := ""
	for ctx.Err() == nil {
		ms := w.members()
		if now := fmt.Sprint(ms); now != last {
			last = now
			for _, x := range w.isles {
				_ = x.ns.Do(func() error { return x.d.Change(ctx, vni, driver.Change{Put: ms}) })
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (w *world) net() driver.Net {
	return driver.Net{VNI: vni, Ref: api.Ref{Kind: api.KindNetwork, Tenant: "acme", Name: "main"}, Egress: driver.EgressNone,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}
}

func (w *world) members() []driver.Member {
	var out []driver.Member
	for i, x := range w.isles {
		at := x.addr
		if n, err := store.Get[*api.Node](context.Background(), w.mem, api.Ref{Kind: api.KindNode, Name: x.name}); err == nil && n.Tunnel() != "" {
			at = netip.MustParseAddr(n.Tunnel())
		}
		out = append(out, driver.Member{Addr: x.boxA, MAC: x.mac, Host: at, Identity: uint32(256 + i)})
	}
	return out
}

func (x *isle) table() driver.Table {
	return driver.Table{Ports: map[netip.Addr]driver.Policy{x.boxA: {}}}
}

func (x *isle) spec() driver.Spec {
	return driver.Spec{ID: "box-" + x.name, Instance: &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "box", Tenant: "acme"}}},
		Network: driver.NetworkSpec{Mode: driver.ModeOverlay, Interfaces: []driver.Interface{{Name: "eth0", VNI: vni, MAC: x.mac, Addrs: []netip.Prefix{netip.PrefixFrom(x.boxA, 16)}}}}}
}

func (x *isle) tell() {
	t := x.a.told()
	x.t.Logf("%s: %+v %+v", x.name, t, t.status)
	if b, err := os.ReadFile(x.sys.Dir + "/" + DeviceName + ".log"); err == nil {
		x.t.Logf("%s: %s", x.name, b)
	}
	st, err := wg.OpenProcess(x.sys.Dir, DeviceName, clock.Real{}).State()
	x.t.Logf("%s: device %s:%d %v", x.name, st.Public.Text(), st.Port, err)
	for _, p := range st.Peers {
		x.t.Logf("  peer %s at %s, allowed %v, handshake %v, %d in %d out", p.Key.Text(), p.Endpoint, p.Allowed, p.Handshake, p.Rx, p.Tx)
	}
}

// want sets the pool's wish and waits until it is done.
func (w *world) want(mode string, rotate time.Duration) {
	w.t.Helper()
	d := api.Duration(rotate)
	e, err := store.Get[*api.Encryption](w.t.Context(), w.mem, api.EncryptionRef())
	if errors.Is(err, errs.NotFound) {
		_, err = w.mem.Commit(w.t.Context(), store.Create(&api.Encryption{Head: api.Head{K: api.KindEncryption, Meta: api.Meta{Name: api.PoolName}}, Spec: api.EncryptionSpec{Mode: mode, Rotate: &d}}))
		must(w.t, err)
	} else {
		must(w.t, err)
		for {
			e = api.Clone(e)
			e.Spec.Mode, e.Spec.Rotate = mode, &d
			if _, err = w.mem.Commit(w.t.Context(), store.Update(e)); err == nil {
				break
			}
			e, err = store.Get[*api.Encryption](w.t.Context(), w.mem, api.EncryptionRef())
			must(w.t, err)
		}
	}
	eventually(w.t, "encryption is complete", func() (bool, string) {
		e, err := store.Get[*api.Encryption](w.t.Context(), w.mem, api.EncryptionRef())
		if err != nil || len(e.Status.Conditions) == 0 {
			return false, fmt.Sprint(err)
		}
		return e.Status.Conditions[0].Status && e.Status.Mode == mode, fmt.Sprintf("%+v", e.Status)
	})
}

// flow sends datagrams with a marker from one instance to the other and back until it is ended.
type flow struct {
	mu      sync.Mutex
	heard   time.Time
	longest time.Duration
	answers int
}

var marker = []byte("nobody-may-read-this-on-the-cable")

func (w *world) flow() *flow {
	from, to := w.isles[0], w.isles[1]
	f := &flow{heard: time.Now()}
	var there *net.UDPConn
	must(w.t, to.box.Do(func() (err error) {
		there, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 7})
		return err
	}))
	var here net.Conn
	must(w.t, from.box.Do(func() (err error) {
		here, err = net.Dial("udp4", netip.AddrPortFrom(to.boxA, 7).String())
		return err
	}))
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, a, err := there.ReadFromUDP(buf)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				_, _ = there.WriteToUDP(buf[:n], a)
			}
		}
	})
	wait.Go(func() {
		for ctx.Err() == nil {
			_, _ = here.Write(marker)
			time.Sleep(10 * time.Millisecond)
		}
	})
	wait.Go(func() {
		buf := make([]byte, 2048)
		for ctx.Err() == nil {
			if _, err := here.Read(buf); err == nil {
				f.mu.Lock()
				f.longest, f.heard, f.answers = max(f.longest, time.Since(f.heard)), time.Now(), f.answers+1
				f.mu.Unlock()
			}
		}
	})
	w.t.Cleanup(func() { cancel(); here.Close(); there.Close(); wait.Wait() })
	return f
}

// flows waits until answers come, again.
func (f *flow) flows(t *testing.T, what string) {
	t.Helper()
	f.mu.Lock()
	was := f.answers
	f.mu.Unlock()
	eventually(t, "instances talk "+what, func() (bool, string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.answers >= was+10, fmt.Sprint(f.answers-was, " answers")
	})
}

// gap is the longest silence since it was last asked.
func (f *flow) gap() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := max(f.longest, time.Since(f.heard))
	f.longest, f.heard = 0, time.Now()
	return g
}

// tap reads what is on the cable of the first host.
type tap struct {
	plain, vxlan, all atomic.Int64
}

func (w *world) tap(port uint16) *tap {
	l, err := net.InterfaceByName("lan0")
	must(w.t, err)
	const all = 0x0300 // ETH_P_ALL as it is on the wire
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, all)
	must(w.t, err)
	must(w.t, syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: all, Ifindex: l.Index}))
	must(w.t, syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Usec: 100_000}))
	p := &tap{}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		buf := make([]byte, 1<<16)
		for ctx.Err() == nil {
			n, _, err := syscall.Recvfrom(fd, buf, 0)
			if err != nil {
				continue
			}
			p.all.Add(1)
			if bytes.Contains(buf[:n], marker) {
				p.plain.Add(1)
			}
			if n > 38 && buf[12] == 8 && buf[13] == 0 && buf[23] == 17 && binary.BigEndian.Uint16(buf[36:]) == port {
				p.vxlan.Add(1)
			}
		}
	})
	w.t.Cleanup(func() { cancel(); wait.Wait(); syscall.Close(fd) })
	return p
}

func (p *tap) counts() (plain, vxlan, all int64) { return p.plain.Load(), p.vxlan.Load(), p.all.Load() }

func TestTwoHosts(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := begin(t)
	cable, f := w.tap(4798), w.flow()
	f.flows(t, "in the clear")
	if plain, vxlan, _ := cable.counts(); plain == 0 || vxlan == 0 {
		t.Fatalf("the tap sees nothing: %d markers, %d tunnel packets", plain, vxlan)
	}
	f.gap()
	w.want(api.EncryptionWireguard, 0)
	plain, vxlan, all := cable.counts()
	f.flows(t, "encrypted")
	t.Logf("gap when it is turned on: %v", f.gap())
	if m := mtuOfBox(t, w.isles[0]); m != 1500-over4-70 {
		t.Errorf("MTU of an instance is %d", m)
	}
	x := w.isles[0]
	pid, err := wg.Process(x.sys.Dir, DeviceName)
	must(t, err)
	// The daemon dies: nothing changes. A new one finds the process.
	x.stop()
	f.flows(t, "without a daemon")
	x.begin()
	f.flows(t, "with a new daemon")
	t.Logf("gap over a new daemon: %v", f.gap())
	if again, err := wg.Process(x.sys.Dir, DeviceName); err != nil || again != pid {
		t.Errorf("process %d is another now: %d, %v", pid, again, err)
	}
	// The process dies: there is another.
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	f.flows(t, "through a new process")
	t.Logf("gap over a new process: %v", f.gap())
	// Both die, and the new daemon makes a process.
	x.stop()
	pid, err = wg.Process(x.sys.Dir, DeviceName)
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	time.Sleep(300 * time.Millisecond)
	x.begin()
	f.flows(t, "after both were killed")
	if p, v, now := cable.counts(); p != plain || v != vxlan || now < all+100 {
		t.Errorf("on the cable since it was complete: %d markers and %d tunnel packets in the clear, of %d", p-plain, v-vxlan, now-all)
	}
	w.want(api.EncryptionNone, 0)
	f.flows(t, "in the clear again")
	t.Logf("gap when it is turned off: %v", f.gap())
	if m := mtuOfBox(t, x); m != 1450 {
		t.Errorf("MTU of an instance is %d afterwards", m)
	}
	if pid, err := wg.Process(x.sys.Dir, DeviceName); pid != 0 || err != nil {
		t.Errorf("a process is left: %d, %v", pid, err)
	}
	if es, _ := os.ReadDir(x.dir); len(es) > 0 {
		t.Errorf("keys are left: %v", es)
	}
}

func mtuOfBox(t *testing.T, x *isle) (mtu int) {
	t.Helper()
	h, err := netlink.OpenAt(x.box)
	must(t, err)
	defer h.Close()
	l, err := h.Link("eth0")
	must(t, err)
	return l.MTU
}

func TestKeysRotate(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := begin(t)
	cable, f := w.tap(4798), w.flow()
	w.want(api.EncryptionWireguard, 8*time.Second)
	f.flows(t, "encrypted")
	f.gap()
	plain, _, _ := cable.counts()
	first := map[string]bool{}
	seen := func() (keys []string) {
		ks, err := store.All[*api.HostKey](t.Context(), w.mem, api.KindHostKey, nil)
		must(t, err)
		for _, k := range ks {
			keys = append(keys, k.Spec.Key)
		}
		return keys
	}
	for _, k := range seen() {
		first[k] = true
	}
	eventually(t, "both hosts have other keys", func() (bool, string) {
		ks := seen()
		return len(ks) == 2 && !slices.ContainsFunc(ks, func(k string) bool { return first[k] }), strings.Join(ks, " ")
	})
	f.flows(t, "with new keys")
	gap := f.gap()
	t.Logf("longest silence over the rotation of both keys: %v", gap)
	if gap > 2*time.Second {
		t.Errorf("silence of %v", gap)
	}
	if p, _, _ := cable.counts(); p != plain {
		t.Errorf("%d markers in the clear", p-plain)
	}
	// Of old keys nothing is left, on any host.
	now := seen()
	for _, x := range w.isles {
		eventually(t, "old keys are gone from "+x.name, func() (bool, string) {
			st, err := wg.OpenProcess(x.sys.Dir, DeviceName, clock.Real{}).State()
			if err != nil {
				return false, err.Error()
			}
			for _, p := range st.Peers {
				if first[p.Key.Text()] {
					return false, "it has a peer of an old key"
				}
			}
			return len(st.Peers) >= 1, fmt.Sprint(len(now))
		})
	}
	// A host that is revoked is nobody's peer any more.
	id, err := store.Get[*api.NodeIdentity](t.Context(), w.mem, api.Ref{Kind: api.KindNodeIdentity, Name: "isle2"})
	must(t, err)
	id = api.Clone(id)
	id.Spec.Revoked = "stolen"
	_, err = w.mem.Commit(t.Context(), store.Update(id))
	must(t, err)
	eventually(t, "a revoked host is no peer", func() (bool, string) {
		st, err := wg.OpenProcess(w.isles[0].sys.Dir, DeviceName, clock.Real{}).State()
		return err == nil && len(st.Peers) == 0, fmt.Sprint(len(st.Peers), err)
	})
}
