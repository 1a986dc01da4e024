package fence

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

// Past the deadline the host answers for no guarded address, though its daemon is dead.
func TestAnAddressIsLetGo(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	h := newHost(t)
	n, err := netlink.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var links []int
	for i, name := range []string{"up0", "br0"} {
		l, err := n.EnsureBridge(netlink.Bridge{Name: name, ID: "test", MAC: net.HardwareAddr{2, 9, 9, 9, 9, byte(i)}, MTU: 1500, Addr: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(2 + i), 1}), 24)})
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, l)
	}
	mine, other := netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("192.0.2.51")
	var claims []netlink.Claim
	for _, a := range []netip.Addr{mine, other} {
		claims = append(claims, netlink.Claim{Addr: a, Via: netip.MustParseAddr("192.0.3.9"), Link: links[1], Links: links[:1]})
	}
	if err := netlink.SetClaims(claims); err != nil {
		t.Fatal(err)
	}
	shown := func() string {
		out, err := exec.Command("sh", "-c", "ip neigh show proxy; ip route show proto 97").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if s := shown(); strings.Count(s, mine.String()) != 2 || strings.Count(s, other.String()) != 2 {
		t.Fatal(s)
	}
	d := h.daemon(time.Second, "address-"+mine.String()+"="+AddressGroup(h.group, mine))
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(5 * time.Second)
	for strings.Contains(shown(), mine.String()) {
		if time.Now().After(until) {
			t.Fatalf("still answered for:\n%s", shown())
		}
		time.Sleep(20 * time.Millisecond)
	}
	if s := shown(); strings.Count(s, other.String()) != 2 {
		t.Errorf("the address of somebody else is gone, too:\n%s", s)
	}
}
