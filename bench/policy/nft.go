package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"atoll/bench/lib"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/sys/netlink"
)

// nftables compares at one hook: packets come out of a namespace by a cable, and at its other
// end are judged by nothing, by the wall, or by nftables with the same rules as a set or as a chain, in turn. What one
// packet costs is the time of sending many, less that of sending as many past nothing: the kernel takes a
// packet through both ends of a cable before the call that sends it returns. Of all rounds the fastest counts: what
// is sought is a small difference, and whatever else the machine does only ever adds.
func (b *bench) nftables() error {
	if _, err := exec.LookPath("nft"); err != nil {
		fmt.Fprintln(os.Stderr, "nft is missing: not compared with nftables")
		return nil
	}
	ns, err := netlink.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	index, err := cable(ns)
	if err != nil {
		return err
	}
	here, err := netlink.OpenNamespace("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	all := rules{256, 400}
	if err := load(all); err != nil {
		return err
	}
	w, err := b.wall("cable", all, bpf.Vary{})
	if err != nil {
		return err
	}
	defer w.Remove()
	port := bpf.Port{VNI: vni, MAC: mac, Addrs: []netip.Addr{own}, Identity: identity, Policy: policy}
	if err := w.SetPort(index, port); err != nil {
		return err
	}
	var fd int
	if err := ns.Do(func() (err error) { fd, err = socket(); return err }); err != nil {
		return err
	}
	defer syscall.Close(fd)
	const many, few = 200_000, 1_000
	ways := []*place{
		{name: "nothing", n: many},
		{name: "the wall, known flow", n: many, put: func() error { return w.Attach(here, index, bpf.RoleInstance) },
			take: func() error { return w.Detach(here, index, bpf.RoleInstance) }},
		{name: "nftables, a set", n: many, put: hook("ip daddr . udp dport @s accept"), take: unhook},
		{name: "nftables, a chain", n: few, put: hook("jump big"), take: unhook},
	}
	for r := -1; r < 7; r++ {
		for _, p := range ways {
			d, err := p.round(fd)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if r >= 0 {
				p.times = append(p.times, float64(d.Nanoseconds())/float64(p.n))
			}
		}
	}
	if err := checkWall(w, many); err != nil {
		return err
	}
	m := make([]float64, len(ways))
	for i, p := range ways {
		m[i] = slices.Min(p.times) - slices.Min(ways[0].times)
		fmt.Fprintf(os.Stderr, "real packets, %-24s %9.0f ns each, %.0f more than nothing\n", p.name, slices.Min(p.times), m[i])
	}
	b.out["ns_real_wall"], b.out["ns_real_nft_set"], b.out["ns_real_nft_chain"] = lib.Round(m[1], 0), lib.Round(m[2], 0), lib.Round(m[3], 0)
	b.out["nft_set_ratio"], b.out["nft_chain_ratio"] = lib.Ratio(m[2], m[1]), lib.Ratio(m[3], m[1])
	return nil
}

// place is one judge at the hook.
type place struct {
	name      string
	n         int
	put, take func() error
	times     []float64
}

func (p *place) round(fd int) (time.Duration, error) {
	if p.put != nil {
		if err := p.put(); err != nil {
			return 0, err
		}
	}
	to := &syscall.SockaddrInet4{Port: target, Addr: first.As4()}
	data := make([]byte, 22)
	began := time.Now()
	for range p.n {
		if err := syscall.Sendto(fd, data, 0, to); err != nil {
			return 0, err
		}
	}
	d := time.Since(began)
	if p.take != nil {
		return d, p.take()
	}
	return d, nil
}

func checkWall(w *bpf.Wall, n int) error {
	seen := uint64(0)
	err := w.Flows(0, func(f bpf.Flow) bool { seen += f.Sent.Packets; return true })
	if err == nil && seen < uint64(n) {
		drops, _ := w.Drops() // only to say more
		err = fmt.Errorf("the wall let only %d packets pass, and dropped %v", seen, drops)
	}
	return err
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// cable lays one from the namespace to here, and gives the index of its end here.
func cable(ns *netlink.Namespace) (int, error) {
	for _, c := range []string{
		"link add p0 type veth peer name eth0 address " + net.HardwareAddr(mac[:]).String() + " netns " + ns.Path(),
		"link set p0 up",
	} {
		if err := run("ip", strings.Fields(c)...); err != nil {
			return 0, err
		}
	}
	err := ns.Do(func() error {
		for _, c := range []string{"link set eth0 up", "addr add " + own.String() + "/32 dev eth0", "route add 10.2.0.0/16 dev eth0",
			"neigh add " + first.String() + " lladdr " + net.HardwareAddr(peerM[:]).String() + " dev eth0 nud permanent"} {
			if err := run("ip", strings.Fields(c)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	l, err := net.InterfaceByName("p0")
	if err != nil {
		return 0, err
	}
	return l.Index, nil
}

func socket() (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	return fd, syscall.Bind(fd, &syscall.SockaddrInet4{Port: 1000})
}

// load gives nftables the rules: as the elements of a set, and one by one as a chain, in which the packet's
// stands in the middle.
func load(r rules) error {
	fmt.Fprintf(os.Stderr, "loading %d rules into nftables twice\n", r.peers*r.ports)
	var in bytes.Buffer
	fmt.Fprintln(&in, "table netdev bench {\nset s { type ipv4_addr . inet_service; elements = {")
	each := func(fn func(peer, port int)) {
		for p := range r.peers {
			for k := range r.ports {
				fn((p+r.peers/2)%r.peers, target+k)
			}
		}
	}
	each(func(p, k int) { fmt.Fprintf(&in, "%s . %d,\n", nth(p), k) })
	fmt.Fprintln(&in, "} }\nchain big {")
	each(func(p, k int) { fmt.Fprintf(&in, "ip daddr %s udp dport %d accept\n", nth(p), k) })
	fmt.Fprintln(&in, "}\n}")
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = &in
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load nftables: %w: %.500s", err, out)
	}
	return nil
}

// hook puts a rule where packets come in; what it does not accept is counted.
func hook(rule string) func() error {
	return func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("table netdev bench {\nchain c { type filter hook ingress device p0 priority 0; policy drop;\nip protocol udp jump d; }\nchain d {\n" + rule + "\ncounter drop\n}\n}\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	}
}

// unhook takes it away, and fails if it did not accept what was sent.
func unhook() error {
	out, err := exec.Command("nft", "list", "chain", "netdev", "bench", "d").CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	if !bytes.Contains(out, []byte("counter packets 0 ")) {
		return fmt.Errorf("nftables did not accept what it should: %s", out)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("delete chain netdev bench c\ndelete chain netdev bench d\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}
