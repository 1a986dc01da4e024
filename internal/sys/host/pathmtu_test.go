package host

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"atoll/internal/errs"
	"atoll/internal/sys/systest"
)

// A way on which a router has a smaller link in the middle.
func TestPathMTU(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip(err)
	}
	script := `set -e
mkdir -p /run/netns; mount -t tmpfs none /run/netns
ip link set lo up
ip netns add mid; ip netns add far
ip link add name va type veth peer name vb netns mid
ip -n mid link add name vc type veth peer name vd netns far
ip addr add 192.0.2.1/24 dev va; ip -6 addr add 2001:db8:1::1/64 dev va nodad; ip link set va up
ip netns exec mid sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
ip -n mid addr add 192.0.2.2/24 dev vb; ip -n mid -6 addr add 2001:db8:1::2/64 dev vb nodad; ip -n mid link set vb up
ip -n mid addr add 198.51.100.2/24 dev vc; ip -n mid -6 addr add 2001:db8:2::2/64 dev vc nodad; ip -n mid link set vc mtu 1437 up
ip -n far addr add 198.51.100.3/24 dev vd; ip -n far -6 addr add 2001:db8:2::3/64 dev vd nodad; ip -n far link set vd mtu 1437 up
ip -n far link set lo up; ip -n far route add default via 198.51.100.2; ip -n far -6 route add default via 2001:db8:2::2
ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8:1::2`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "not supported") || strings.Contains(string(out), "not permitted") {
			t.Skipf("%s", out)
		}
		t.Fatalf("%v: %s", err, out)
	}
	for to, want := range map[string]int{"192.0.2.2": 1500, "198.51.100.3": 1437, "2001:db8:1::2": 1500, "2001:db8:2::3": 1437} {
		if got, err := PathMTU(t.Context(), netip.MustParseAddr(to), 1500); err != nil || got != want {
			t.Errorf("to %s: %d, %v; want %d", to, got, err, want)
		}
	}
	if got, err := PathMTU(t.Context(), netip.MustParseAddr("192.0.2.2"), 9000); err != nil || got != 1500 {
		t.Errorf("more than our own link: %d, %v", got, err)
	}
	if _, err := PathMTU(t.Context(), netip.MustParseAddr("192.0.2.77"), 1500); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("nobody: %v", err)
	}
}
