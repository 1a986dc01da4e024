package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"atoll/internal/driver/network/overlay/bpf"
)

// TestPeeredNetworks has networks of two tenants on two hosts, that are joined, and routes.
func TestPeeredNetworks(t *testing.T) {
	if err := bpf.Probe(); err != nil {
		t.Skip(err)
	}
	l := labOf(t, 2)
	p := &peers{networks{several: several{l}}}
	inTurn(t, []part{{"Grow", p.grow}, {"BothAgree", p.agree}, {"AGroupLetsIn", p.lets}, {"PartingCuts", p.part}, {"RouteByAnInstance", p.route}, {"NothingIsLeft", p.gone}})
}

type peers struct{ networks }

func (p *peers) grow(t *testing.T) {
	if err := p.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all hosts take part in networks of tenants", func() (bool, string) {
		out, err := p.Do("get", "nodes", "-o", "json")
		return err == nil && strings.Count(out, `"name": "overlay"`) == 2, fmt.Sprint(out, err)
	})
	p.addr = map[string]string{}
	for i, tenant := range []string{"red", "blue"} {
		p.do(t, "tenant", "create", tenant)
		p.apply(t, fmt.Sprintf("kind: Network\nmetadata: {name: main, tenant: %s}\nspec: {cidr: 10.%d.0.0/16, cidr6: \"fd00:%d::/64\"}\n", tenant, i+1, i+1))
	}
	p.serve(t, "red", "web", "isle1")
	p.serve(t, "blue", "db", "isle2")
}

func (p *peers) state(t *testing.T, tenant string) string {
	t.Helper()
	return p.do(t, "get", "peerings", "--tenant", tenant, "-o", "wide")
}

func (p *peers) agree(t *testing.T) {
	p.do(t, "network", "peer", "--tenant", "red", "main", "blue/main")
	eventually(t, "red waits for blue", func() (bool, string) {
		out := p.state(t, "red")
		return strings.Contains(out, "Waiting") && strings.Contains(out, "atoll network peer main red/main --tenant blue"), out
	})
	if out := p.state(t, "blue"); strings.Contains(out, "red") {
		t.Errorf("blue sees what red wants: %s", out)
	}
	p.do(t, "network", "peer", "--tenant", "blue", "main", "red/main")
	for _, tenant := range []string{"red", "blue"} {
		eventually(t, "they are joined", func() (bool, string) { out := p.state(t, tenant); return strings.Contains(out, "Ready"), out })
	}
	// By itself that lets nobody in, and it is said why.
	if out, err := p.Do("net", "why", "red/web", "blue/db:80"); err == nil || !strings.Contains(out, "denied: ") || !strings.Contains(out, "peering red/main - blue/main") {
		t.Errorf("why: %v\n%s", err, out)
	}
	for from, to := range map[string]string{"red/web": "blue/db", "blue/db": "red/web"} {
		tenant, name, _ := strings.Cut(from, "/")
		if got := p.ask(tenant, name, p.addr[to]); got != "" {
			t.Errorf("%s reaches %s: %q", from, to, got)
		}
	}
}

func (p *peers) lets(t *testing.T) {
	p.apply(t, `kind: SecurityGroup
metadata: {name: for-red, tenant: blue}
spec:
  select: {app: db}
  ingress: [{from: [{network: red/main, labels: {app: web}}], ports: [tcp/80, tcp/90]}]
`)
	eventually(t, "red/web reaches blue/db", func() (bool, string) {
		got := p.ask("red", "web", p.addr["blue/db"])
		return got == "I am blue/db", got
	})
	if got := p.ask("blue", "db", p.addr["red/web"]); got != "" {
		t.Errorf("the other way nothing is allowed: %q", got)
	}
	for _, to := range []string{"blue/db:80", p.addr["blue/db"] + ":80"} {
		if out := p.do(t, "net", "why", "red/web", to); !strings.Contains(out, "allowed by SecurityGroup blue/for-red, ingress rule 1") || strings.Contains(out, "judged by what is written") {
			t.Errorf("why %s:\n%s", to, out)
		}
	}
}

func (p *peers) part(t *testing.T) {
	p.do(t, "run", "-d", "--tenant", "blue", "--name", "source", "--network", "main", "--label", "app=db", "--node", "isle2", "busybox", "sh", "-c", "while sleep 0.2; do echo on; done | nc -l -p 90; sleep 100000")
	p.find(t, "blue", "source")
	p.do(t, "run", "-d", "--tenant", "red", "--name", "reader", "--network", "main", "--label", "app=web", "--node", "isle1", "busybox", "sh", "-c", "sleep 1; sleep 100000 | nc "+p.addr["blue/source"]+" 90 >/read")
	read := func() int {
		out, err := p.Do("exec", "--tenant", "red", "reader", "--", "wc", "-c", "/read")
		if err != nil {
			return -1
		}
		n, err := strconv.Atoi(strings.Fields(out + " x")[0])
		if err != nil {
			return -1
		}
		return n
	}
	eventually(t, "something goes on between them", func() (bool, string) { n := read(); return n > 10, fmt.Sprint(n) })
	p.do(t, "network", "unpeer", "--tenant", "blue", "main", "red/main")
	eventually(t, "nothing does any more", func() (bool, string) {
		was := read()
		time.Sleep(1500 * time.Millisecond)
		now := read()
		return was == now && now > 0, fmt.Sprint(was, now)
	})
	if got := p.ask("red", "web", p.addr["blue/db"]); got != "" {
		t.Errorf("after they have parted: %q", got)
	}
	eventually(t, "red waits again", func() (bool, string) { out := p.state(t, "red"); return strings.Contains(out, "Waiting"), out })
	// Only what a host needs is there.
	eventually(t, "each host has its own network alone", func() (bool, string) {
		for _, h := range p.Hosts {
			nets, err := filepath.Glob(filepath.Join(h.Run, "overlay", "net", "*.json"))
			if err != nil || len(nets) != 1 {
				return false, fmt.Sprint(nets, err)
			}
		}
		return true, ""
	})
}

func (p *peers) route(t *testing.T) {
	p.serve(t, "red", "vpn", "isle2")
	p.do(t, "network", "route", "add", "--tenant", "red", "main", "192.168.77.0/24", "--via", "vpn")
	eventually(t, "its kernel forwards", func() (bool, string) {
		out, err := p.Do("exec", "--tenant", "red", "vpn", "--", "cat", "/proc/sys/net/ipv4/ip_forward")
		return err == nil && strings.TrimSpace(out) == "1", fmt.Sprint(out, err)
	})
	out := p.do(t, "network", "route", "list", "--tenant", "red")
	if !strings.Contains(out, "192.168.77.0/24") || !strings.Contains(out, "Ready") {
		t.Errorf("%s", out)
	}
	for _, h := range p.Hosts {
		eventually(t, h.Name+" sends it to the next hop", func() (bool, string) {
			nets, err := filepath.Glob(filepath.Join(h.Run, "overlay", "net", "*.json"))
			if err != nil {
				return false, err.Error()
			}
			all := ""
			for _, n := range nets {
				out, err := h.Exec("nsenter", "--net="+strings.TrimSuffix(n, ".json"), "ip", "route").CombinedOutput()
				all += fmt.Sprint(string(out), err)
			}
			return strings.Contains(all, "192.168.77.0/24 via "+p.addr["red/vpn"]+" dev br"), all
		})
	}
	p.do(t, "network", "route", "delete", "--tenant", "red", "main", "192.168.77.0/24")
}
