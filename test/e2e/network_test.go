package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/store"
)

// TestTenantNetworks has two tenants with the same addresses on three hosts.
func TestTenantNetworks(t *testing.T) {
	if err := bpf.Probe(); err != nil {
		t.Skip(err)
	}
	l := labOf(t, 3)
	n := &networks{several: several{l}}
	inTurn(t, []part{
		{"Grow", n.grow}, {"SpanHosts", n.span}, {"TenantsDoNotMeet", n.apart}, {"NamesAreTheTenants", n.names}, {"GroupsDecide", n.groups}, {"SeveralInterfaces", n.two}, {"InstancesAskWhoTheyAre", n.dhcp}, {"DaemonsAreKilled", n.killed},
		{"AddressMovesWithTheInstance", n.moves}, {"HostIsCutOff", n.cutOff}, {"NothingIsLeft", n.gone},
	})
}

type networks struct {
	several
	addr map[string]string // tenant/instance -> IPv4 address
}

func (n *networks) grow(t *testing.T) {
	if err := n.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all hosts take part in networks of tenants", func() (bool, string) {
		out, err := n.Do("get", "nodes", "-o", "json")
		return err == nil && strings.Count(out, `"name": "overlay"`) == len(n.Hosts), fmt.Sprint(out, err)
	})
	n.addr = map[string]string{}
	for _, tenant := range []string{"red", "blue"} {
		n.do(t, "tenant", "create", tenant)
		n.apply(t, fmt.Sprintf("kind: Network\nmetadata: {name: main, tenant: %s}\nspec: {cidr: 10.1.0.0/16, cidr6: \"fd00:1::/64\"}\n", tenant))
	}
}

func (n *networks) apply(t *testing.T, text string) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "it.yaml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.do(t, "apply", "-f", f)
}

// serve starts an instance that says its name on port 80.
func (n *networks) serve(t *testing.T, tenant, name, node string, more ...string) {
	t.Helper()
	args := append([]string{"run", "-d", "--tenant", tenant, "--name", name, "--network", "main", "--label", "app=" + name}, more...)
	if node != "" {
		args = append(args, "--node", node)
	}
	n.do(t, append(args, "busybox", "sh", "-c", "mkdir /w; echo I am "+tenant+"/"+name+" >/w/index.html; exec httpd -f -p 80 -h /w")...)
	n.find(t, tenant, name)
}

func (n *networks) find(t *testing.T, tenant, name string) *api.Endpoint {
	t.Helper()
	c, err := n.Serving()[0].Client()
	if err != nil {
		t.Fatal(err)
	}
	e, err := store.Get[*api.Endpoint](t.Context(), c, api.Ref{Kind: api.KindEndpoint, Tenant: tenant, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	n.addr[tenant+"/"+name] = e.Spec.Interfaces[0].Addresses()[0]
	return e
}

// ask is what an instance gets from an address; "" when nothing answers.
func (n *networks) ask(tenant, from, addr string) string {
	out, err := n.Do("exec", "--tenant", tenant, from, "--", "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 `+addr+" 80 | tail -n 1")
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.TrimSpace(out)
}

// floating is an address of the hosts' network that is no host's.
const floating = "10.99.0.200"

// outside is what a machine beside the hosts gets from an address; "" when nothing answers.
func (n *networks) outside(addr string) string {
	out, err := n.Command("busybox", "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 2 `+addr+" 80 | tail -n 1").Output()
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.TrimSpace(string(out))
}

func (n *networks) reaches(t *testing.T, tenant, from, to string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s/%s reaches %s", tenant, from, to), func() (bool, string) {
		got := n.ask(tenant, from, n.addr[tenant+"/"+to])
		return got == "I am "+tenant+"/"+to, got
	})
}

func (n *networks) span(t *testing.T) {
	n.serve(t, "red", "web", "isle1")
	n.serve(t, "red", "db", "isle2")
	n.serve(t, "red", "near", "isle1")
	n.serve(t, "blue", "web", "isle1")
	n.serve(t, "blue", "db", "isle3")
	for _, to := range []string{"db", "near"} {
		n.reaches(t, "red", "web", to)
	}
	n.reaches(t, "red", "db", "web")
	n.reaches(t, "blue", "web", "db")
	six := n.find(t, "red", "db").Spec.Interfaces[0].Addresses()[1]
	if got := n.ask("red", "web", six); got != "I am red/db" {
		t.Errorf("by IPv6: %q", got)
	}
}

func (n *networks) apart(t *testing.T) {
	if n.addr["red/web"] != n.addr["blue/web"] {
		t.Fatalf("the test is about equal addresses: %v", n.addr)
	}
	// The third address is an instance of red's only.
	if got := n.ask("blue", "web", n.addr["red/near"]); got != "" {
		t.Errorf("blue reaches red's instance: %q", got)
	}
}

// The same name is another instance to each tenant, and a bare name is one on the instance's own network.
func (n *networks) names(t *testing.T) {
	for _, tenant := range []string{"red", "blue"} {
		out, err := n.Do("exec", "--tenant", tenant, "web", "--", "nslookup", "near.main.red.atoll.internal")
		if found := strings.Contains(out, n.addr["red/near"]+"\n"); found != (tenant == "red") {
			t.Errorf("%s asks for red's near: %v\n%s", tenant, err, out)
		}
	}
	for _, tenant := range []string{"red", "blue"} {
		if got := n.ask(tenant, "web", "db"); got != "I am "+tenant+"/db" {
			t.Errorf("%s/web asks db: %q", tenant, got)
		}
	}
}

func (n *networks) groups(t *testing.T) {
	n.apply(t, `kind: SecurityGroup
metadata: {name: db-clients, tenant: red}
spec:
  select: {app: db}
  ingress: [{from: [{labels: {app: web}}], ports: [tcp/80]}]
`)
	eventually(t, "near is kept off", func() (bool, string) { got := n.ask("red", "near", n.addr["red/db"]); return got == "", got })
	n.reaches(t, "red", "web", "db")
	n.reaches(t, "blue", "web", "db") // another tenant's instances of the same labels are not meant
	n.do(t, "delete", "--tenant", "red", "securitygroup", "db-clients")
	n.reaches(t, "red", "near", "db")
}

// An instance on two networks is reached by either, and joins neither to the other.
func (n *networks) two(t *testing.T) {
	n.apply(t, "kind: Network\nmetadata: {name: back, tenant: red}\nspec: {cidr: 10.2.0.0/16, egress: none}\n")
	n.serve(t, "red", "both", "isle2", "--network", "back")
	n.do(t, "run", "-d", "--tenant", "red", "--name", "behind", "--network", "back", "--node", "isle3", "busybox", "sh", "-c", "mkdir /w; echo I am red/behind >/w/index.html; exec httpd -f -p 80 -h /w")
	n.find(t, "red", "behind")
	on := n.find(t, "red", "both").Spec.Interfaces
	if len(on) != 2 || on[0].Network != "main" || on[0].Name != "eth0" || on[1].Network != "back" || on[1].Name != "eth1" {
		t.Fatalf("%+v", on)
	}
	n.reaches(t, "red", "both", "behind")
	n.reaches(t, "red", "both", "web")
	n.reaches(t, "red", "web", "both")
	eventually(t, "it is reached by its second address", func() (bool, string) {
		got := n.ask("red", "behind", on[1].Addresses()[0])
		return got == "I am red/both", got
	})
	if got := n.ask("red", "web", n.addr["red/behind"]); got != "" {
		t.Errorf("from one network to the other: %q", got)
	}
	if got := n.ask("red", "behind", n.addr["red/web"]); got != "" {
		t.Errorf("from the other network to the one: %q", got)
	}
	n.do(t, "restart", "--tenant", "red", "both")
	n.reaches(t, "red", "both", "behind")
	n.do(t, "delete", "--tenant", "red", "instance/both", "instance/behind")
	n.do(t, "network", "delete", "--tenant", "red", "back")
}

func (n *networks) killed(t *testing.T) {
	for _, h := range n.Hosts {
		if err := h.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	// Whoever is there already goes on without any daemon: asked inside, as no API answers.
	inside := func(host int, addr string) string {
		ps, err := n.Hosts[host].Processes("")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			if a := p.Args(); len(a) > 0 && a[0] == "httpd" {
				out, err := n.Hosts[host].Exec("nsenter", "--net=/proc/"+fmt.Sprint(p.Pid)+"/ns/net", "--", "busybox", "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 2 `+addr+" 80 | tail -n 1").CombinedOutput()
				if s := strings.TrimSpace(string(out)); err == nil && s != "" {
					return s
				}
			}
		}
		return ""
	}
	if got := inside(1, n.addr["red/near"]); got != "I am red/near" {
		t.Errorf("without daemons: %q", got)
	}
	for _, h := range n.Hosts {
		if err := h.Begin(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range n.Hosts {
		if err := h.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	n.reaches(t, "red", "web", "db")
	n.serve(t, "red", "late", "isle3") // a host that had nothing of red's network
	n.reaches(t, "red", "web", "late")
	n.reaches(t, "red", "late", "db")
	for _, from := range []string{"web", "late"} {
		eventually(t, "names are answered again", func() (bool, string) { got := n.ask("red", from, "db"); return got == "I am red/db", got })
	}
}

func (n *networks) moves(t *testing.T) {
	n.serve(t, "red", "mover", "")
	e := n.find(t, "red", "mover")
	was := n.addr["red/mover"]
	n.do(t, "address", "pool", "create", "dmz", floating+"/32")
	out := n.do(t, "address", "create", "public", "--tenant", "red", "--instance", "mover")
	if !strings.Contains(out, floating+" leads to mover on "+e.Spec.Node) {
		t.Errorf("told: %s", out)
	}
	floats := func(when string) {
		t.Helper()
		eventually(t, "its floating address answers "+when, func() (bool, string) { got := n.outside(floating); return got == "I am red/mover", got })
	}
	floats("where it is")
	lost := n.Host(e.Spec.Node)
	if err := lost.PowerOff(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is on another host", func() (bool, string) {
		hosts := n.Serving()
		if len(hosts) == 0 {
			return false, "no host answers"
		}
		e = n.find(t, "red", "mover")
		return e.Spec.Node != "" && e.Spec.Node != lost.Name, e.Spec.Node
	})
	if n.addr["red/mover"] != was {
		t.Errorf("its address was %s and is %s", was, n.addr["red/mover"])
	}
	from := "web"
	if lost.Name == "isle1" {
		from = "db"
	}
	eventually(t, "it answers there", func() (bool, string) { got := n.ask("red", from, was); return got == "I am red/mover", got })
	floats("on the other host")
	if err := lost.PowerOn(); err != nil {
		t.Fatal(err)
	}
	if err := lost.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	floats("after the lost host is back")
}

// A host that is cut off, and whose daemon is dead besides, lets go of the address before another has it.
func (n *networks) cutOff(t *testing.T) {
	e := n.find(t, "red", "mover")
	cut := n.Host(e.Spec.Node)
	claims := func() string {
		out, err := cut.Exec("ip", "neigh", "show", "proxy").CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if !strings.Contains(claims(), floating) {
		t.Fatalf("it is not %s that answers: %s", cut.Name, claims())
	}
	if err := cut.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another host answers for it", func() (bool, string) {
		for _, h := range n.Hosts {
			out, err := h.Exec("ip", "neigh", "show", "proxy").CombinedOutput()
			if err != nil {
				t.Fatal(err)
			}
			if h != cut && strings.Contains(string(out), floating) {
				if strings.Contains(claims(), floating) {
					t.Error("two hosts answer for it")
				}
				return true, ""
			}
		}
		return false, "nobody else"
	})
	eventually(t, "its floating address answers", func() (bool, string) { got := n.outside(floating); return got == "I am red/mover", got })
	if err := cut.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := cut.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.do(t, "address", "detach", "public", "--tenant", "red")
	eventually(t, "it leads nowhere", func() (bool, string) { got := n.outside(floating); return got == "", got })
	n.do(t, "address", "attach", "public", "web", "--tenant", "red")
	eventually(t, "it leads to web", func() (bool, string) { got := n.outside(floating); return got == "I am red/web", got })
	n.do(t, "address", "delete", "public", "--tenant", "red")
	eventually(t, "it is nobody's", func() (bool, string) { got := n.outside(floating); return got == "", got })
}

func (n *networks) gone(t *testing.T) {
	for _, tenant := range []string{"red", "blue"} {
		out := n.do(t, "get", "instances", "--tenant", tenant, "-o", "name")
		n.do(t, append([]string{"delete", "--tenant", tenant}, strings.Fields(out)...)...)
	}
	eventually(t, "no host has a network", func() (bool, string) {
		for _, h := range n.Hosts {
			left, err := filepath.Glob(filepath.Join(h.Run, "overlay", "net", "*"))
			if err != nil || len(left) > 0 {
				return false, fmt.Sprint(left, err)
			}
			out, err := h.Exec("ip", "-br", "link").CombinedOutput()
			if err != nil || strings.Count(string(out), "\n") > 3 { // lo, eth0, the host's own bridge
				return false, string(out)
			}
		}
		return true, ""
	})
	for _, tenant := range []string{"red", "blue"} {
		n.do(t, "delete", "--tenant", tenant, "network", "main")
		eventually(t, "the network is gone", func() (bool, string) {
			out, err := n.Do("get", "networks", "--tenant", tenant, "-o", "name")
			return err == nil && strings.TrimSpace(out) == "", out
		})
	}
}
