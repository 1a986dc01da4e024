package nft

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace moves the test's thread into a network namespace of its own; the thread,
// and with it the namespace, ends with the test.
func inNamespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespaces: %v", err)
	}
	if exec.Command("nft", "add", "table", "bridge", "t").Run() != nil || exec.Command("nft", "delete", "table", "bridge", "t").Run() != nil {
		t.Skip("no nftables")
	}
}

func testConfig() Config {
	return Config{Bridge: "atoll0", PortPrefix: "av", Subnet: netip.MustParsePrefix("10.88.0.0/16"), Gateway: netip.MustParseAddr("10.88.0.1"),
		DNS: true, Isolate: true, Private: []string{"docker", "br-"}, Uplinks: []string{"eth0"}}
}

func testPort(n byte) Port {
	return Port{ID: fmt.Sprintf("x%d", n), Iface: fmt.Sprintf("av%d", n), MAC: [6]byte{2, 0, 0, 0, 0, n}, Addr: netip.AddrFrom4([4]byte{10, 88, 0, n}), Tenant: "acme",
		Published: []Published{{Proto: 6, Host: 8000 + uint16(n), Port: 80}, {Proto: 17, HostIP: netip.MustParseAddr("127.0.0.1"), Host: 8000 + uint16(n), Port: 53}}}
}

func open(t testing.TB, c Config) *Table {
	t.Helper()
	tab := New()
	t.Cleanup(tab.Close)
	if err := tab.Ensure(c); err != nil {
		t.Fatal(err)
	}
	return tab
}

func listing(t testing.TB) string {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("no nft command to look with")
	}
	out, err := exec.Command(nft, "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	return string(out)
}

func TestEnsureIsIdempotentAndReadable(t *testing.T) {
	inNamespace(t)
	tab := open(t, testConfig())
	if err := tab.Set(testPort(2)); err != nil {
		t.Fatal(err)
	}
	first := listing(t)
	t.Log(first)
	for _, want := range []string{"table inet atoll", "table bridge atoll", `"av2" . 02:00:00:00:00:02 . 10.88.0.2 comment "x2"`,
		`tcp . 8002 comment "x2" : 10.88.0.2 . 80`, `127.0.0.1 . udp . 8002 comment "x2" : 10.88.0.2 . 53`, "masquerade"} {
		if !strings.Contains(first, want) {
			t.Errorf("ruleset lacks %q", want)
		}
	}
	gen, _ := tab.ask.generation()
	if err := tab.Ensure(testConfig()); err != nil {
		t.Fatal(err)
	}
	if err := tab.Set(testPort(2)); err != nil {
		t.Fatal(err)
	}
	if again, _ := tab.ask.generation(); again != gen {
		t.Errorf("nothing to do, but the kernel's ruleset went from generation %d to %d", gen, again)
	}
	// A new life with the same configuration changes nothing either.
	open(t, testConfig())
	if again, _ := tab.ask.generation(); again != gen {
		t.Errorf("a second life rewrote the rules")
	}
}
