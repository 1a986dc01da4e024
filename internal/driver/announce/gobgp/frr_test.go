package gobgp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/internal/driver"
)

const frrDir = "/usr/lib/frr"

// frr is a router in a network namespace of its own, with a cable to this one.
type frr struct {
	t     *testing.T
	dir   string
	pid   int // of what holds the namespace
	procs []*exec.Cmd
	n     int
}

// newFRR makes the n-th router: this host is 10.99.n.1 and fd99:n::1, the router .2 and ::2.
func newFRR(t *testing.T, n int, config string) *frr {
	t.Helper()
	if _, err := os.Stat(filepath.Join(frrDir, "bgpd")); err != nil {
		t.Skip("no FRR here: deploy/packages.sh --test installs it")
	}
	dir, err := os.MkdirTemp("/tmp", "frr")
	if err != nil {
		t.Fatal(err)
	}
	f := &frr{t: t, dir: dir, n: n}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	run(t, "ip", "link", "set", "lo", "up")
	hold := f.start("unshare", "--net", "sleep", "1000")
	f.pid = hold.Process.Pid
	wait(t, "a namespace", func() bool {
		a, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", f.pid))
		b, err2 := os.Readlink("/proc/thread-self/ns/net")
		return err1 == nil && err2 == nil && a != b
	})
	here, there := fmt.Sprintf("r%d", n), fmt.Sprintf("h%d", n)
	run(t, "ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", fmt.Sprint(f.pid))
	run(t, "ip", "addr", "add", fmt.Sprintf("10.99.%d.1/24", n), "dev", here)
	run(t, "ip", "addr", "add", fmt.Sprintf("fd99:%d::1/64", n), "dev", here, "nodad")
	run(t, "ip", "link", "set", here, "up")
	f.in("ip", "link", "set", "lo", "up")
	f.in("ip", "addr", "add", fmt.Sprintf("10.99.%d.2/24", n), "dev", there)
	f.in("ip", "addr", "add", fmt.Sprintf("fd99:%d::2/64", n), "dev", there, "nodad")
	f.in("ip", "link", "set", there, "up")
	f.boot(config)
	return f
}

// boot starts the router's daemons.
func (f *frr) boot(config string) {
	f.t.Helper()
	conf := filepath.Join(f.dir, "frr.conf")
	if err := os.WriteFile(conf, []byte(config), 0o644); err != nil {
		f.t.Fatal(err)
	}
	run(f.t, "chown", "-R", "frr:frr", f.dir)
	for _, d := range []string{"zebra", "bgpd"} {
		f.start("nsenter", "-t", fmt.Sprint(f.pid), "-n", filepath.Join(frrDir, d), "-f", conf, "-i", filepath.Join(f.dir, d+".pid"),
			"--vty_socket", f.dir, "-z", filepath.Join(f.dir, "zserv.api"), "-A", "127.0.0.1", "-u", "frr", "-g", "frr")
		wait(f.t, d, func() bool {
			_, err := os.Stat(filepath.Join(f.dir, d+".vty"))
			return err == nil
		})
	}
}

func (f *frr) start(argv ...string) *exec.Cmd {
	f.t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := os.OpenFile(filepath.Join(f.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		f.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.procs = append(f.procs, cmd)
	f.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// in runs a command in the router's namespace.
func (f *frr) in(argv ...string) string {
	f.t.Helper()
	return run(f.t, "nsenter", append([]string{"-t", fmt.Sprint(f.pid), "-n"}, argv...)...)
}

// show asks the router; v gets its JSON.
func (f *frr) show(v any, command string) {
	f.t.Helper()
	out := run(f.t, "vtysh", "--vty_socket", f.dir, "-c", "show "+command+" json")
	if err := json.Unmarshal([]byte(out), v); err != nil {
		f.t.Fatalf("show %s: %v: %s", command, err, out)
	}
}

// ask is show for people.
func (f *frr) ask(command string) string {
	f.t.Helper()
	return run(f.t, "vtysh", "--vty_socket", f.dir, "-c", command)
}

// hears is how many paths the router has for a prefix, and the next hop of the first.
func (f *frr) hears(prefix string) (paths int, next string) {
	f.t.Helper()
	family := "ipv4"
	if strings.Contains(prefix, ":") {
		family = "ipv6"
	}
	var v struct {
		Paths []struct {
			Stale    bool
			Nexthops []struct{ IP string }
		}
	}
	f.show(&v, "bgp "+family+" unicast "+prefix)
	for _, p := range v.Paths {
		if len(p.Nexthops) > 0 {
			next = p.Nexthops[0].IP
		}
	}
	return len(v.Paths), next
}

// evpn is what the router shows of EVPN routes, as it shows it to people.
func (f *frr) evpn(kind string) string {
	f.t.Helper()
	return f.ask("show bgp l2vpn evpn route type " + kind)
}

func run(t *testing.T, name string, arg ...string) string {
	t.Helper()
	out, err := exec.Command(name, arg...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(arg, " "), err, out)
	}
	return string(out)
}

// wait fails the test when something does not come about.
func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s after 30 s", what)
		}
	}
}

// config is a router's, as docs/bgp.md has it.
func config(n int, more string) string {
	return fmt.Sprintf(`
router bgp 65001
 bgp router-id 10.99.%[1]d.2
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 bgp graceful-restart restart-time 60
 neighbor 10.99.%[1]d.1 remote-as 64512
 neighbor fd99:%[1]d::1 remote-as 64512
%[2]s address-family ipv4 unicast
  neighbor 10.99.%[1]d.1 activate
 exit-address-family
 address-family ipv6 unicast
  neighbor 10.99.%[1]d.1 activate
  neighbor fd99:%[1]d::1 activate
 exit-address-family
 address-family l2vpn evpn
  neighbor 10.99.%[1]d.1 activate
  advertise-all-vni
 exit-address-family
`, n, more)
}

func peer(n int) driver.Router {
	return driver.Router{Name: fmt.Sprintf("tor%d", n), At: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, byte(n), 2}), 179), ASN: 65001,
		Families: []driver.Family{driver.FamilyIPv4, driver.FamilyIPv6, driver.FamilyEVPN}, Hold: 9 * time.Second, Restart: time.Minute}
}

// routes are one of each kind.
func routes() []driver.Announcement {
	host := netip.MustParseAddr("10.99.1.1")
	target := driver.RouteTarget{ASN: 64512, Number: 70001}
	return []driver.Announcement{
		{Kind: driver.RouteUnicast, Prefix: netip.MustParsePrefix("203.0.113.7/32"), NextHop: host},
		{Kind: driver.RouteUnicast, Prefix: netip.MustParsePrefix("2001:db8::7/128"), NextHop: netip.MustParseAddr("fd99:1::1")},
		{Kind: driver.RouteMulticast, NextHop: host, VNI: 70001, Number: 4465, Target: target},
		{Kind: driver.RouteMember, NextHop: host, VNI: 70001, Number: 4465, Target: target, Addr: netip.MustParseAddr("10.1.0.5"), MAC: [6]byte{10, 0x58, 10, 1, 0, 5}},
		{Kind: driver.RouteMember, NextHop: host, VNI: 70001, Number: 4465, Target: target, Addr: netip.MustParseAddr("fd00:1::5"), MAC: [6]byte{10, 0x58, 10, 1, 0, 5}},
		{Kind: driver.RoutePrefix, NextHop: host, VNI: 70001, Number: 4465, Target: target, Prefix: netip.MustParsePrefix("10.1.0.0/16"), MAC: [6]byte{10, 0x58, 0, 0, 0, 1}},
		{Kind: driver.RoutePrefix, NextHop: host, VNI: 70001, Number: 4465, Target: target, Prefix: netip.MustParsePrefix("fd00:1::/64"), MAC: [6]byte{10, 0x58, 0, 0, 0, 1}},
	}
}
