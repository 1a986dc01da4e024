package gobgp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/internal/driver"
	"atoll/internal/sys/systest"
)

func open(t *testing.T, c Config) *Driver {
	t.Helper()
	d, err := New(driver.Deps{}, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func say(peers []driver.Router, routes []driver.Announcement) driver.Announcing {
	return driver.Announcing{ASN: 64512, RouterID: netip.MustParseAddr("10.99.1.1"), Peers: peers, Routes: routes}
}

func announce(t *testing.T, d *Driver, a driver.Announcing) {
	t.Helper()
	if err := d.Announce(t.Context(), a); err != nil {
		t.Fatal(err)
	}
}

func session(t *testing.T, d *Driver, i int) driver.Session {
	t.Helper()
	s, err := d.Sessions(t.Context())
	if err != nil || len(s) <= i {
		t.Fatal(s, err)
	}
	return s[i]
}

func established(t *testing.T, d *Driver, i int) {
	t.Helper()
	wait(t, "session", func() bool { return session(t, d, i).State == "Established" })
}

// Everything a host has to say reaches a router as other speakers understand it.
func TestAnnounce(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	r := newFRR(t, 1, config(1, ""))
	d := open(t, Config{})
	all := routes()
	announce(t, d, say([]driver.Router{peer(1)}, all))
	established(t, d, 0)
	wait(t, "IPv4", func() bool { n, next := r.hears("203.0.113.7/32"); return n == 1 && next == "10.99.1.1" })
	wait(t, "IPv6", func() bool { n, next := r.hears("2001:db8::7/128"); return n == 1 && next == "fd99:1::1" })
	for kind, want := range map[string][]string{
		"2": {"[2]:[0]:[48]:[0a:58:0a:01:00:05]:[32]:[10.1.0.5]", "[2]:[0]:[48]:[0a:58:0a:01:00:05]:[128]:[fd00:1::5]", "Route Distinguisher: 10.99.1.1:4465", "RT:64512:70001 ET:8", "10.99.1.1 "},
		"3": {"[3]:[0]:[32]:[10.99.1.1]", "RT:64512:70001 ET:8"},
		"5": {"[5]:[0]:[16]:[10.1.0.0]", "[5]:[0]:[64]:[fd00:1::]", "RT:64512:70001 ET:8 Rmac:0a:58:00:00:00:01"},
	} {
		out := ""
		wait(t, "EVPN type "+kind, func() bool { out = r.evpn(kind); return strings.Contains(out, "["+kind+"]:") })
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("type %s lacks %q:\n%s", kind, w, out)
			}
		}
		if strings.Contains(out, "MM:") {
			t.Errorf("a first address has moved:\n%s", out)
		}
	}
	if n := strings.Count(r.ask("show bgp l2vpn evpn route detail"), "VNI 70001"); n < 4 {
		t.Errorf("%d routes have the network's number:\n%s", n, r.ask("show bgp l2vpn evpn route detail"))
	}
	if l, err := d.Learned(t.Context()); err != nil || len(l) != 0 {
		t.Errorf("the host learns what it told itself: %v %v", l, err)
	}
	t.Logf("%s", r.ask("show bgp summary"))
	t.Logf("%s", r.ask("show bgp l2vpn evpn"))
	if s := session(t, d, 0); s.Sent != len(all) || s.Received != 0 || s.Since.IsZero() || s.Error != "" {
		t.Errorf("%+v", s)
	}
	// One instance goes, one floating address comes: the difference is told, at once.
	next := slices.Delete(slices.Clone(all), 3, 4)
	next[0].Prefix = netip.MustParsePrefix("203.0.113.8/32")
	began := time.Now()
	announce(t, d, say([]driver.Router{peer(1)}, next))
	wait(t, "withdrawal", func() bool {
		n, _ := r.hears("203.0.113.7/32")
		return n == 0 && !strings.Contains(r.evpn("2"), "10.1.0.5")
	})
	t.Logf("withdrawn after %s", time.Since(began).Round(time.Millisecond))
	if n, _ := r.hears("203.0.113.8/32"); n != 1 || !strings.Contains(r.evpn("2"), "fd00:1::5") {
		t.Error("what stays or comes is not there")
	}
	// No peers: nothing runs, and the router has forgotten all.
	announce(t, d, say(nil, next))
	if d.speaker != nil {
		t.Error("something runs without peers")
	}
	wait(t, "end", func() bool { n, _ := r.hears("203.0.113.8/32"); return n == 0 })
}

// Without peers nothing is started; what was started ends.
func TestNothingRunsWithoutPeers(t *testing.T) {
	before := runtime.NumGoroutine()
	d := open(t, Config{})
	announce(t, d, say(nil, routes()))
	if n := runtime.NumGoroutine(); n != before {
		t.Fatalf("%d goroutines, not %d", n, before)
	}
	p := peer(1)
	p.At = netip.MustParseAddrPort("127.0.0.1:1") // nobody is there
	announce(t, d, say([]driver.Router{p}, routes()))
	if s := session(t, d, 0); s.State == "Established" || !strings.Contains(s.Error, "127.0.0.1:1 does not answer") {
		t.Errorf("%+v", s)
	}
	announce(t, d, say(nil, nil))
	wait(t, "end", func() bool { return runtime.NumGoroutine() <= before })
	announce(t, d, say([]driver.Router{p}, routes())) // and anew
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, "end", func() bool { return runtime.NumGoroutine() <= before })
}

// The session itself may be over IPv6.
func TestOverIPv6(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	r := newFRR(t, 1, config(1, ""))
	d := open(t, Config{})
	p := peer(1)
	p.At, p.Families = netip.MustParseAddrPort("[fd99:1::2]:179"), []driver.Family{driver.FamilyIPv6}
	announce(t, d, say([]driver.Router{p}, routes()))
	established(t, d, 0)
	wait(t, "IPv6", func() bool { n, next := r.hears("2001:db8::7/128"); return n == 1 && next == "fd99:1::1" })
	if n, _ := r.hears("203.0.113.7/32"); n != 0 {
		t.Error("a family is told that the peer was not to be told")
	}
	if s := session(t, d, 0); s.Sent != 1 {
		t.Errorf("%+v", s)
	}
}

// A password that is wrong makes no session; it is in no error, and a file that was put right is seen.
func TestPassword(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	r := newFRR(t, 1, config(1, " neighbor 10.99.1.1 password hush-hush\n"))
	dir := t.TempDir()
	write := func(s string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, "fabric")
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(s+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, Config{Passwords: dir})
	p := peer(1)
	p.Secret = "fabric"
	again := func() driver.Session {
		announce(t, d, say([]driver.Router{p}, routes()))
		return session(t, d, 0)
	}
	if s := again(); s.State != "Idle" || !strings.Contains(s.Error, "no such file") {
		t.Errorf("%+v", s)
	}
	write("hush-hush", 0o644)
	if s := again(); !strings.Contains(s.Error, "must be root's alone") || strings.Contains(s.Error, "hush") {
		t.Errorf("%+v", s)
	}
	write("wrong-hush", 0o600)
	for range 50 { // longer than a first connection needs
		if s := again(); s.State == "Established" || !strings.Contains(s.Error, "does not answer, or has another password") || strings.Contains(fmt.Sprintf("%+v %#v %v", s, d.speaker.peers, d.speaker.peers), "hush") {
			t.Fatalf("%+v", s)
		}
		time.Sleep(100 * time.Millisecond)
	}
	write("hush-hush", 0o600)
	again()
	established(t, d, 0)
	wait(t, "IPv4", func() bool { n, _ := r.hears("203.0.113.7/32"); return n == 1 })
}

// What one router tells is not told to another.
func TestNoTransit(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	one := newFRR(t, 1, strings.Replace(config(1, ""), " address-family ipv4 unicast\n", " address-family ipv4 unicast\n  network 198.51.100.0/24\n", 1))
	two := newFRR(t, 2, config(2, ""))
	d := open(t, Config{})
	announce(t, d, say([]driver.Router{peer(1), peer(2)}, routes()))
	established(t, d, 0)
	established(t, d, 1)
	wait(t, "what the first tells", func() bool { return session(t, d, 0).Received > 0 })
	wait(t, "IPv4", func() bool {
		a, _ := one.hears("203.0.113.7/32")
		b, _ := two.hears("203.0.113.7/32")
		return a == 1 && b == 1
	})
	if n, _ := two.hears("198.51.100.0/24"); n != 0 {
		t.Error("the host passes routes on from one router to another")
	}
	if s := session(t, d, 1); s.Sent != len(routes()) {
		t.Errorf("%+v", s)
	}
}

// A daemon that is killed and starts anew does not interrupt what it told.
func TestKilled(t *testing.T) {
	if os.Getenv("ATOLL_TEST_SPEAKER") != "" {
		speak(t)
	}
	if !systest.Apart(t) {
		return
	}
	r := newFRR(t, 1, config(1, ""))
	start := func() *exec.Cmd {
		t.Helper()
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "ATOLL_TEST_SPEAKER=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	here := func() bool { n, _ := r.hears("203.0.113.7/32"); return n == 1 }
	up := func() bool { return strings.Contains(r.ask("show bgp neighbors 10.99.1.1"), "BGP state = Established") }
	first := start()
	wait(t, "IPv4", here)
	_ = first.Process.Kill()
	_ = first.Wait()
	wait(t, "end of the session", func() bool { return !up() })
	second := start()
	wait(t, "session", func() bool {
		if !here() {
			t.Fatal("the router has forgotten what the daemon told before it was killed")
		}
		return up()
	})
	for range 30 {
		if !here() {
			t.Fatal("the router has forgotten what the daemon told before it was killed")
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !strings.Contains(r.evpn("2"), "10.1.0.5") {
		t.Error("a member is missing")
	}
	_ = second.Process.Kill()
	_ = second.Wait()
}

// speak is a daemon's part.
func speak(t *testing.T) {
	d, err := New(driver.Deps{}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	announce(t, d, say([]driver.Router{peer(1)}, routes()))
	select {}
}

// What a router tells of members of networks is heard, and heard to be gone.
func TestLearned(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	r := newFRR(t, 1, config(1, ""))
	for _, c := range []string{
		"link add br0 type bridge", "link set br0 addrgenmode none up", "addr add 10.1.200.1/16 dev br0",
		"link add vx type vxlan id 70001 local 10.99.1.2 dstport 4798 nolearning", "link set vx master br0 up",
		"link add d0 type veth peer name d1", "link set d0 master br0 up", "link set d1 up",
	} {
		r.in(strings.Fields("ip " + c)...)
	}
	d := open(t, Config{})
	calls := make(chan struct{}, 1)
	d.Changed(func() {
		select {
		case calls <- struct{}{}:
		default:
		}
	})
	announce(t, d, say([]driver.Router{peer(1)}, routes()))
	established(t, d, 0)
	wait(t, "network of the router", func() bool { return strings.Contains(r.ask("show evpn vni"), "70001") })
	r.in("bridge", "fdb", "add", "02:00:00:00:00:77", "dev", "d0", "master", "dynamic")
	r.in("ip", "neigh", "replace", "10.1.200.77", "lladdr", "02:00:00:00:00:77", "dev", "br0", "nud", "reachable")
	want := driver.Learned{Peer: "tor1", VNI: 70001, Addr: netip.MustParseAddr("10.1.200.77"), MAC: [6]byte{2, 0, 0, 0, 0, 0x77}, Host: netip.MustParseAddr("10.99.1.2")}
	wait(t, "member", func() bool {
		l, err := d.Learned(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(l, want)
	})
	select {
	case <-calls:
	default:
		t.Error("nobody was told that something changed")
	}
	r.in("ip", "neigh", "del", "10.1.200.77", "dev", "br0")
	wait(t, "withdrawal", func() bool { l, _ := d.Learned(t.Context()); return !slices.Contains(l, want) })
}

func TestConfig(t *testing.T) {
	if _, err := New(driver.Deps{}, Config{Port: 70000}); err == nil || !strings.Contains(err.Error(), "70000") {
		t.Error(err)
	}
}
