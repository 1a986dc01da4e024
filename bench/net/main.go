// Command net measures what a packet between two instances on a tenant's network costs, beside what it costs
// without Atoll, in turns of one run:
//
//	same_tput  same_rr   two instances of one host, against two namespaces on a bare bridge
//	cross_tput cross_rr  two instances of two hosts, against two namespaces behind a VXLAN made by hand, between hosts like these
//
// Throughput is one TCP connection of iperf3; round trips are requests and answers of one byte over one TCP connection. The
// With --encryption, crypt_tput and crypt_rr are two instances of two hosts with encryption between hosts, against the same without. The
// network is closed: a group lets through what is measured, so that every packet is judged. The numbers are ratios, ours to
// the other; the goals are 0.95 on a host and 0.9 between two.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"atoll/api"
	"atoll/bench/lib"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/sys/netlink"
	"atoll/test/lab"
	"atoll/test/rig"
)

func main() {
	rounds := flag.Int("rounds", 7, "turns of each")
	seconds := flag.Int("seconds", 2, "of each turn")
	crypt := flag.Bool("encryption", false, "measure encryption between hosts against none instead: crypt_tput, crypt_rr")
	flag.Parse()
	if _, err := exec.LookPath("iperf3"); err != nil {
		lib.Fatal(errs.New(errs.Unsupported, "this machine lacks iperf3").WithHint("apt-get install iperf3"))
	}
	lib.WithLab(lab.Options{Hosts: 2}, func(ctx context.Context, l *lab.Lab) error {
		b := &bench{l: l, rounds: *rounds, lasts: time.Duration(*seconds) * time.Second}
		if *crypt {
			_, cross, err := b.ours(ctx)
			if err != nil {
				return err
			}
			m := map[string]any{"bench": "net", "rounds": b.rounds}
			if err := b.crypt(ctx, cross, m); err != nil {
				return err
			}
			fmt.Println()
			lib.JSON(m)
			return nil
		}
		return b.all(ctx)
	})
}

type bench struct {
	l      *lab.Lab
	rounds int
	lasts  time.Duration
}

// pair is two ends that reach each other.
type pair struct {
	name     string
	from, to *netlink.Namespace
	addr     netip.Addr // of to
}

func (b *bench) all(ctx context.Context) error {
	same, cross, err := b.ours(ctx)
	if err != nil {
		return err
	}
	bare, closeBare, err := bareBridge(ctx)
	if err != nil {
		return err
	}
	defer closeBare()
	tunnel, closeTunnel, err := vxlanByHand(ctx)
	if err != nil {
		return err
	}
	defer closeTunnel()
	m := map[string]any{"bench": "net", "rounds": b.rounds}
	fmt.Printf("%-12s %16s %16s %8s\n", "", "Atoll", "bare", "ratio")
	for _, c := range []struct {
		key         string
		ours, other *pair
		goal        float64
	}{{"same", same, bare, 0.95}, {"cross", cross, tunnel, 0.9}} {
		for _, kind := range []struct {
			key, unit string
			run       func(ctx context.Context, p *pair) (float64, error)
		}{{"tput", "Gbit/s", b.throughput}, {"rr", "trips/s", b.trips}} {
			var ours, other []float64
			for i := range b.rounds {
				for j := range 2 { // who is first takes turns, too
					p, list := c.ours, &ours
					if (i+j)%2 == 1 {
						p, list = c.other, &other
					}
					v, err := kind.run(ctx, p)
					if err != nil {
						return fmt.Errorf("%s %s, %s: %w", c.key, kind.key, p.name, err)
					}
					*list = append(*list, v)
				}
			}
			x, y := lib.Middle(ours), lib.Middle(other)
			r := lib.Ratio(x, y)
			m[c.key+"_"+kind.key], m[c.key+"_"+kind.key+"_goal"] = r, c.goal
			missed := ""
			if r < c.goal {
				missed = fmt.Sprintf("   goal %.2f, missed", c.goal)
			}
			fmt.Printf("%-12s %9.1f %-7s %8.1f %-7s %7.3f%s\n", c.key+"_"+kind.key, x, kind.unit, y, kind.unit, r, missed)
		}
	}
	fmt.Println()
	lib.JSON(m)
	return nil
}

// ours makes instances on a closed network.
func (b *bench) ours(ctx context.Context) (same, cross *pair, err error) {
	if err := b.l.Up(ctx); err != nil {
		return nil, nil, err
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := lib.Until(wait, "networks of tenants", func() bool {
		out, err := b.l.Do("get", "nodes", "-o", "json")
		return err == nil && strings.Count(out, `"name": "overlay"`) == len(b.l.Hosts)
	}); err != nil {
		return nil, nil, err
	}
	file := filepath.Join(b.l.Dir, "net.yaml")
	text := `kind: Network
metadata: {name: main, tenant: demo}
spec: {cidr: 10.1.0.0/16, isolation: closed}
---
kind: SecurityGroup
metadata: {name: measured, tenant: demo}
spec:
  select: {}
  ingress: [{from: [{labels: {app: a}}], ports: [tcp/5201-5300]}]
  egress: [{to: [{labels: {app: b}}], ports: [tcp/5201-5300]}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, nil, err
	}
	if _, err := b.l.Do("apply", "-f", file); err != nil {
		return nil, nil, err
	}
	ns := map[string]*netlink.Namespace{}
	addr := map[string]netip.Addr{}
	for _, i := range []struct{ name, app, node string }{{"a", "a", "isle1"}, {"near", "b", "isle1"}, {"far", "b", "isle2"}} {
		if _, err := b.l.Do("run", "-d", "--name", i.name, "--label", "app="+i.app, "--network", "main", "--node", i.node, "busybox", "sleep", "100000"); err != nil {
			return nil, nil, err
		}
		c, err := b.l.Serving()[0].Client()
		if err != nil {
			return nil, nil, err
		}
		in, err := store.Get[*api.Instance](ctx, c, api.Ref{Kind: api.KindInstance, Tenant: "demo", Name: i.name})
		if err != nil {
			return nil, nil, err
		}
		if addr[i.name], err = netip.ParseAddr(in.Status.Address); err != nil {
			return nil, nil, err
		}
		if ns[i.name], err = netlink.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", in.Status.Pid)); err != nil {
			return nil, nil, err
		}
	}
	return &pair{"instances of a host", ns["a"], ns["near"], addr["near"]}, &pair{"instances of two hosts", ns["a"], ns["far"], addr["far"]}, nil
}

// made is namespaces that go together.
type made []*rig.Space

func (m *made) space(name string) (*rig.Space, error) {
	s, err := rig.NewSpace(name, false)
	if err == nil {
		*m = append(*m, s)
	}
	return s, err
}

func (m *made) close() {
	for _, s := range *m {
		s.Close()
	}
}

func script(s *rig.Space, text string) error {
	if out, err := s.Command("sh", "-ec", text).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// end makes a namespace with a cable to the bridge br of a host.
func (m *made) end(host *rig.Space, name, addr string, mtu int) (*netlink.Namespace, error) {
	s, err := m.space("bench-" + name)
	if err != nil {
		return nil, err
	}
	if err := script(host, fmt.Sprintf(`ip link add %s mtu %d type veth peer name eth0 mtu %d netns %d
ip link set %s master br up`, name, mtu, mtu, s.Pid(), name)); err != nil {
		return nil, err
	}
	if err := script(s, "ip addr add "+addr+"/16 dev eth0; ip link set eth0 up"); err != nil {
		return nil, err
	}
	return netlink.OpenNamespace(s.Path())
}

func bareBridge(context.Context) (*pair, func(), error) {
	m := &made{}
	host, err := m.space("bench-bare")
	if err == nil {
		err = script(host, "ip link add name br type bridge; ip link set dev br up")
	}
	if err != nil {
		m.close()
		return nil, nil, err
	}
	p := &pair{name: "a bare bridge", addr: netip.MustParseAddr("10.1.0.3")}
	if p.from, err = m.end(host, "one", "10.1.0.2", 1450); err == nil {
		p.to, err = m.end(host, "two", "10.1.0.3", 1450)
	}
	if err != nil {
		m.close()
		return nil, nil, err
	}
	return p, m.close, nil
}

// vxlanByHand is two hosts on a switch as a lab's are, each with a bridge and a VXLAN device that knows the other.
func vxlanByHand(context.Context) (*pair, func(), error) {
	m := &made{}
	p := &pair{name: "a VXLAN made by hand", addr: netip.MustParseAddr("10.1.0.3")}
	err := func() error {
		lan, err := m.space("bench-lan")
		if err != nil {
			return err
		}
		if err := script(lan, "ip link add name lan type bridge; ip link set lan up"); err != nil {
			return err
		}
		var ends []*netlink.Namespace
		for i := range 2 {
			host, err := m.space(fmt.Sprintf("bench-host%d", i))
			if err != nil {
				return err
			}
			if err := script(lan, fmt.Sprintf("ip link add h%d type veth peer name eth0 netns %d; ip link set h%d master lan up", i, host.Pid(), i)); err != nil {
				return err
			}
			if err := script(host, fmt.Sprintf(`ip addr add 10.99.1.%d/24 dev eth0; ip link set eth0 up
ip link add vx type vxlan id 7 dstport 4799 local 10.99.1.%d remote 10.99.1.%d
ip link add name br type bridge; ip link set dev br up; ip link set vx mtu 1450 master br up`, i+1, i+1, 2-i)); err != nil {
				return err
			}
			e, err := m.end(host, fmt.Sprintf("end%d", i), fmt.Sprintf("10.1.0.%d", i+2), 1450)
			if err != nil {
				return err
			}
			ends = append(ends, e)
		}
		p.from, p.to = ends[0], ends[1]
		return nil
	}()
	if err != nil {
		m.close()
		return nil, nil, err
	}
	return p, m.close, nil
}

// throughput is that of one connection, in Gbit/s.
func (b *bench) throughput(ctx context.Context, p *pair) (float64, error) {
	server := exec.CommandContext(ctx, "nsenter", "--net="+p.to.Path(), "--", "iperf3", "-s", "-1", "-p", "5201")
	if err := rig.StartTied(server); err != nil {
		return 0, err
	}
	defer func() {
		_ = server.Process.Kill() // it ends after one test
		_ = server.Wait()
	}()
	var res struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	for range 50 { // until it listens
		out, err := exec.CommandContext(ctx, "nsenter", "--net="+p.from.Path(), "--", "iperf3", "-J", "-c", p.addr.String(), "-p", "5201", "-t", fmt.Sprint(int(b.lasts.Seconds()))).Output()
		if jerr := json.Unmarshal(out, &res); jerr != nil {
			return 0, fmt.Errorf("iperf3: %w: %s", errors.Join(err, jerr), out)
		}
		if res.End.Received.Bits > 0 {
			return res.End.Received.Bits / 1e9, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0, fmt.Errorf("iperf3: %s", res.Error)
}

// trips are requests and answers a second.
func (b *bench) trips(_ context.Context, p *pair) (float64, error) {
	var l net.Listener
	if err := p.to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(p.addr, 5210).String())
		return err
	}); err != nil {
		return 0, err
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() { ended <- echo(l) }()
	var c net.Conn
	if err := p.from.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", l.Addr().String(), 3*time.Second)
		return err
	}); err != nil {
		return 0, err
	}
	buf := []byte{1}
	n, began := 0, time.Now()
	for time.Since(began) < b.lasts {
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
		if _, err := c.Read(buf); err != nil {
			return 0, err
		}
		n++
	}
	took := time.Since(began)
	c.Close()
	return float64(n) / took.Seconds(), <-ended
}

// echo serves one connection.
func echo(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 16)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil // the other side is done
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return err
		}
	}
}
