package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
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

func TestElementsFollow(t *testing.T) {
	inNamespace(t)
	tab := open(t, testConfig())
	for n := byte(2); n < 30; n++ {
		if err := tab.Set(testPort(n)); err != nil {
			t.Fatal(err)
		}
	}
	p := testPort(3)
	p.Published = p.Published[:1]
	p.Published[0].Host = 9999
	p.Tenant = "evil"
	if err := tab.Set(p); err != nil {
		t.Fatal(err)
	}
	s := listing(t)
	if !strings.Contains(s, `tcp . 9999 comment "x3"`) || strings.Contains(s, "8003") {
		t.Errorf("the port did not move:\n%s", s)
	}
	for n := byte(2); n < 30; n++ {
		if err := tab.Unset(fmt.Sprintf("x%d", n)); err != nil {
			t.Fatal(err)
		}
	}
	if s := listing(t); strings.Contains(s, "elements") {
		t.Errorf("elements are left:\n%s", s)
	}
	if ids, err := tab.Observe(); err != nil || len(ids) != 0 {
		t.Errorf("observed %v, %v", ids, err)
	}
}

func TestConflicts(t *testing.T) {
	inNamespace(t)
	tab := open(t, testConfig())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(tab.Set(testPort(2)))
	for what, change := range map[string]func(*Port){
		"address":           func(p *Port) { p.Addr = testPort(2).Addr },
		"published":         func(p *Port) { p.Published[0].Host = 8002 },
		"published on one":  func(p *Port) { p.Published[1].Host = 8002 },
		"published, not IP": func(p *Port) { p.Published[0].Host, p.Published[0].HostIP = 8002, netip.IPv4Unspecified() },
	} {
		p := testPort(3)
		change(&p)
		if err := tab.Set(p); !errors.Is(err, errs.Conflict) || errs.HintOf(err) == "" || !strings.Contains(err.Error(), "x2") {
			t.Errorf("%s: %v, want a conflict that names x2", what, err)
		}
	}
	other := testPort(3) // the same port on another address, or by another protocol, is free
	other.Published[0].HostIP, other.Published[0].Host = netip.MustParseAddr("192.0.2.1"), 8002
	other.Published[1].Proto, other.Published[1].Host = 6, 8002
	must(tab.Set(other))
}

// TestNumbersAreUnique: two tenants never share a number, whatever their names hash to.
func TestNumbersAreUnique(t *testing.T) {
	tab := New()
	tab.state = map[slot]entry{}
	seen := map[uint32]string{}
	for i := range 300 {
		tenant := fmt.Sprintf("t%d", i)
		n := tab.number(tenant)
		if i%2 == 1 { // pretend the number is taken by a tenant with another label
			tab.state[slot{setTenant, fmt.Sprint("taken", i)}] = entry{val: string(binary.NativeEndian.AppendUint32(nil, n)), note: "other"}
			if again := tab.number(tenant); again == n {
				t.Fatalf("number %d is given twice", n)
			}
			n = tab.number(tenant)
		}
		if old, taken := seen[n]; taken || n == 0 || n == published {
			t.Fatalf("tenants %s and %s share number %d", old, tenant, n)
		}
		seen[n] = tenant
		tab.state[slot{setTenant, tenant}] = entry{val: string(binary.NativeEndian.AppendUint32(nil, n)), note: label(tenant)}
		if again := tab.number(tenant); again != n {
			t.Fatalf("the number of %s changed from %d to %d", tenant, n, again)
		}
	}
}

func TestRulesAreRepaired(t *testing.T) {
	inNamespace(t)
	tab := open(t, testConfig())
	if err := tab.Set(testPort(2)); err != nil {
		t.Fatal(err)
	}
	want := listing(t)
	for _, harm := range []string{"flush ruleset", "delete table bridge atoll", "flush chain inet atoll early", "delete element bridge atoll members { 0x822b33ad . 10.88.0.2 }",
		"add rule inet atoll host accept", "flush set bridge atoll ports", "add element inet atoll published { tcp . 1 : 10.88.0.2 . 1 }", "insert rule bridge atoll peers accept"} {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(harm + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", harm, err, out)
		}
		if fresh, err := tab.Fresh(); fresh || err != nil {
			t.Errorf("%s: was not noticed: %v", harm, err)
		}
		if err := tab.Ensure(testConfig()); err != nil {
			t.Fatalf("after %s: %v", harm, err)
		}
		if got := listing(t); got != want {
			t.Errorf("after %s:\n%s\nwant:\n%s", harm, got, want)
		}
	}
	c := testConfig()
	c.DNS = false
	if err := tab.Ensure(c); err != nil {
		t.Fatal(err)
	}
	if got := listing(t); strings.Contains(got, "dport 53") || !strings.Contains(got, `"x2"`) {
		t.Errorf("a changed configuration:\n%s", got)
	}
}

func TestDeleteAndLook(t *testing.T) {
	inNamespace(t)
	tab := New()
	defer tab.Close()
	for what, err := range map[string]error{"unset": tab.Unset("x1"), "delete": tab.Delete(), "forget Docker": tab.ForgetBeside(), "beside Docker": tab.AllowBeside("atoll0")} {
		if err != nil {
			t.Errorf("%s of nothing: %v", what, err)
		}
	}
	if s := listing(t); s != "" {
		t.Errorf("looking made something:\n%s", s)
	}
	if err := open(t, testConfig()).Set(testPort(2)); err != nil {
		t.Fatal(err)
	}
	later := New() // a life that never gets a configuration can still clean up
	defer later.Close()
	if a, ok, err := later.Addr("x2"); err != nil || !ok || a != testPort(2).Addr {
		t.Errorf("address of x2: %v %v %v", a, ok, err)
	}
	if got := later.UDP("x2"); fmt.Sprint(got) != "[8002]" {
		t.Errorf("UDP ports of x2: %v", got)
	}
	if err := later.Unset("x2"); err != nil {
		t.Fatal(err)
	}
	if s := listing(t); strings.Contains(s, "elements") {
		t.Errorf("elements are left:\n%s", s)
	}
	if err := later.Delete(); err != nil {
		t.Fatal(err)
	}
	if s := listing(t); s != "" {
		t.Errorf("left:\n%s", s)
	}
}

func FuzzDecodeGeneration(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(make([]byte, 20), 8, 0, 1, 0, 0, 0, 0, 7))
	f.Add(append(make([]byte, 20), 0, 0, 1, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeGeneration(b); err == nil && len(b) < 28 {
			t.Errorf("a generation from %d bytes", len(b))
		}
		parseComment(string(b))
		if s := (slot{mapPubAt, string(b)}); len(b) >= 12 {
			_ = describe(s)
		}
	})
}
