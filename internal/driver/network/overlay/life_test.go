package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

func TestGroupsOnTheWire(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 2)
	web, db, other := hs[0].box("web", 2, 256), hs[1].box("db", 3, 257), hs[0].box("other", 4, 258)
	l := newLAN(70001, "acme", web, db, other)
	l.replace(hs...)
	l.attach()
	for _, b := range l.boxes {
		b.serve(80)
		b.serve(81)
	}
	other.reaches(db, 80)
	// Only web, and only port 80. What is under way is judged again.
	db.hold(1080)
	c := dial(t, other, db, 1080)
	defer c.Close()
	hs[1].do(func(d *Driver) error {
		return d.Change(t.Context(), 70001, driver.Change{
			Pairs: map[driver.PairKey]driver.Pair{{Set: 9, Peer: 256}: {List: 8, Lens: 1 << 16}},
			Lists: map[driver.ListKey]uint32{{List: 8, Proto: 6, Len: 16, Port: 80}: 7, {List: 8, Proto: 6, Len: 16, Port: 1080}: 7},
			Ports: map[netip.Addr]driver.Policy{db.four: {Ingress: 9}, db.six: {Ingress: 9}},
		})
	})
	web.reaches(db, 80)
	web.misses(db, 81)
	other.misses(db, 80)
	if alive(c) {
		t.Error("a flow outlived its permission")
	}
	// A daemon that starts anew is told the same by other numbers; a flow that is allowed goes on.
	kept := dial(t, web, db, 1080)
	defer kept.Close()
	must(t, hs[1].ns.Do(func() error { hs[1].reopen(); return nil }))
	next := uint32(0)
	hs[1].do(func(d *Driver) (err error) { next, err = d.NextID(t.Context()); return err })
	if next < 10 {
		t.Fatalf("numbers begin anew at %d", next)
	}
	l.policy[db.four] = driver.Policy{Ingress: next}
	l.table = driver.Table{Pairs: map[driver.PairKey]driver.Pair{{Set: next, Peer: 256}: {All: next + 1}}}
	l.replace(hs[1])
	hs[1].do(func(d *Driver) error { return d.Settle(t.Context()) })
	web.reaches(db, 81)
	other.misses(db, 80)
	if !alive(kept) {
		t.Error("a flow that is allowed was ended")
	}
	hs[1].do(func(d *Driver) error {
		pairs, err := d.wall.Pairs()
		if len(pairs) != 1 {
			t.Errorf("pairs %v are left", pairs)
		}
		return err
	})
}

// dial opens a connection that stays.
func dial(t *testing.T, from, to *box, port int) net.Conn {
	t.Helper()
	var c net.Conn
	must(t, from.ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to.four, uint16(port)).String(), time.Second)
		return err
	}))
	return c
}

// hold echoes on a port until the test ends.
func (b *box) hold(port int) {
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
				b.t.Cleanup(func() { c.Close() })
				go func() {
					buf := make([]byte, 64)
					for {
						n, err := c.Read(buf)
						if err != nil {
							return
						}
						if _, err := c.Write(buf[:n]); err != nil {
							return
						}
					}
				}()
			}
		}()
		return nil
	}))
}

// alive reports whether what is sent comes back.
func alive(c net.Conn) bool {
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	b := make([]byte, 1)
	if err := c.SetReadDeadline(time.Now().Add(800 * time.Millisecond)); err != nil {
		return false
	}
	_, err := c.Read(b)
	return err == nil
}

func TestPublishedPorts(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 1)
	web, peer := hs[0].box("web", 2, 256), hs[0].box("peer", 3, 257)
	l := newLAN(70001, "acme", web, peer)
	l.replace(hs...)
	hs[0].do(func(d *Driver) error { return d.Attach(t.Context(), peer.ns.Path(), peer.spec(70001, "acme")) })
	ports := []api.Port{{Port: 80, Publish: 8080}}
	hs[0].do(func(d *Driver) error { return d.Attach(t.Context(), web.ns.Path(), web.spec(70001, "acme", ports...)) })
	web.serve(80)
	// From outside, with the caller's address kept.
	got, err := ask(hostNS(t), hs[0].addr, 8080)
	if err != nil || !strings.HasPrefix(got, "web 192.0.2.254:") {
		t.Errorf("from outside: %q, %v", got, err)
	}
	for who, ns := range map[string]*netlink.Namespace{"the host": hs[0].ns, "a neighbour": peer.ns, "itself": web.ns} {
		if got, err := ask(ns, hs[0].addr, 8080); err != nil || !strings.HasPrefix(got, "web ") {
			t.Errorf("from %s by the host's address: %q, %v", who, got, err)
		}
	}
	err = hs[0].ns.Do(func() error {
		return hs[0].d.Attach(t.Context(), peer.ns.Path(), peer.spec(70001, "acme", api.Port{Port: 81, Publish: 8080}))
	})
	if errs.KindOf(err) != errs.Conflict {
		t.Errorf("a port was published twice: %v", err)
	}
	hs[0].do(func(d *Driver) error { return d.Attach(t.Context(), web.ns.Path(), web.spec(70001, "acme")) })
	if got, err := askFor(hostNS(t), hs[0].addr, 8080, 900*time.Millisecond); err == nil {
		t.Errorf("after it was taken back: %q", got)
	}
	// The host's own services are not for instances, nor is what is behind the cable.
	lis, err := listenIn(hs[0].ns, "192.0.2.1:22")
	must(t, err)
	defer lis.Close()
	if got, err := askFor(peer.ns, hs[0].addr, 22, 900*time.Millisecond); err == nil {
		t.Errorf("a service of the host answered %q", got)
	}
}

func listenIn(ns *netlink.Namespace, addr string) (l net.Listener, err error) {
	err = ns.Do(func() error { l, err = net.Listen("tcp", addr); return err })
	return l, err
}

// hostNS is the namespace the hosts' cables end in.
func hostNS(t *testing.T) *netlink.Namespace {
	t.Helper()
	ns, err := netlink.OpenNamespace("/proc/thread-self/ns/net")
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// Whatever a kill leaves half made is found by its record, and converged or removed.
func TestCutShort(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 1)
	x := hs[0]
	for i, cut := range []func(d *Driver){
		func(d *Driver) {},
		func(d *Driver) { must(t, netlink.RemoveNamespace(d.nsFile(70001))) }, // the namespace is gone
		func(d *Driver) { inNet(t, d, "ip link del dev br") },                 // parts of it
		func(d *Driver) { inNet(t, d, "ip link del dev vx") },
		func(d *Driver) { inNet(t, d, "nft flush ruleset") },
		func(d *Driver) { inNet(t, d, "ip -4 neigh flush nud permanent dev br") },
	} {
		a, b := x.box(fmt.Sprint("a", i), 2, 256), x.box(fmt.Sprint("b", i), 3, 257)
		l := newLAN(70001, "acme", a, b)
		l.replace(x)
		l.attach()
		b.serve(80)
		a.reaches(b, 80)
		cut(x.d)
		must(t, x.ns.Do(func() error { x.reopen(); return nil }))
		l.replace(x)
		l.attach()
		x.do(func(d *Driver) error { return d.Settle(t.Context()) })
		a.reaches(b, 80)
		if t.Failed() {
			t.Fatalf("after cut %d", i)
		}
		must(t, x.ns.Do(func() error { x.reopen(); return nil }))
		// Without being told of the network: what is here can be taken away all the same.
		for _, id := range []string{a.id, b.id} {
			x.do(func(d *Driver) error { return d.Detach(t.Context(), id) })
		}
		x.do(func(d *Driver) error { return d.Forget(t.Context(), 70001) })
		x.do(func(d *Driver) error {
			vnis, err := d.Nets(t.Context())
			ids, err2 := x.out.Observe(t.Context())
			if len(vnis) != 0 || len(ids) != 0 {
				t.Errorf("cut %d: left %v %v", i, vnis, ids)
			}
			return errors.Join(err, err2)
		})
	}
}

func inNet(t *testing.T, d *Driver, cmd string) {
	t.Helper()
	listNet(t, d, cmd)
}

func listNet(t *testing.T, d *Driver, cmd string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + d.nsFile(70001), "--"}, strings.Fields(cmd)...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, out)
	}
	return string(out)
}

// What others removed while the daemon runs is put back.
func TestReconcile(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	x := hosts(t, 1)[0]
	a, b := x.box("a", 2, 256), x.box("b", 3, 257)
	l := newLAN(70001, "acme", a, b)
	l.replace(x)
	l.attach()
	b.serve(80)
	for _, cmd := range []string{"nft flush ruleset", "ip addr flush dev br", "ip link set dev br down", "ip link del dev vx"} {
		inNet(t, x.d, cmd)
		x.do(func(d *Driver) error { return d.Reconcile(t.Context()) })
		a.reaches(b, 80)
		if got := outside(t, x, a); got != x.addr.String() {
			t.Errorf("after %q: seen from outside as %q", cmd, got)
		}
	}
}

func TestBadInput(t *testing.T) {
	for field, c := range map[string]Config{
		"tunnel": {Tunnel: "host"}, "tunnelPort": {TunnelPort: 70000}, "outside": {Outside: "10.0.0.1/20"}, "mtu": {MTU: 100},
	} {
		_, err := New(driver.Deps{}, c)
		var e *errs.Error
		if !errors.As(err, &e) || len(e.Fields) != 1 || e.Fields[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}
