// Command policy measures the wall around instances (docs/adr/0016-tenant-networks.md): a packet of a known
// flow, a flow's first packet with few and many rules, each beside a bare program that does one lookup in a hash
// table of 100,000, all by the kernel's own test runs; then the same rules in nftables, at the same hook with real packets;
// then how fast rules change. Everything happens in namespaces of its own.
//
// A first packet is really one, each time: the programs are loaded with Vary, which gives every run another flow, and the
// tables are emptied between the runs, so lookup that misses, judgement, count and insert are all in the number.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"atoll/bench/lib"
	"atoll/internal/driver/network/overlay/bpf"
)

const inside = "ATOLL_BENCH_POLICY"

// enter starts this process anew in a network and a mount namespace of its own: what it
// mounts, attaches and makes goes with it, also when it is killed.
func enter() {
	if os.Getenv(inside) != "" {
		return
	}
	if os.Geteuid() != 0 {
		lib.Fatal(fmt.Errorf("needs root"))
	}
	self, err := os.Executable()
	if err != nil {
		lib.Fatal(err)
	}
	cmd := exec.Command("unshare", append([]string{"--net", "--mount", "--propagation", "private", self}, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread()
	signal.Ignore(os.Interrupt)
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func main() {
	enter()
	rounds := flag.Int("rounds", 9, "rounds of the test runs")
	updates := flag.Int("updates", 20000, "changes of rules")
	real := flag.Bool("real", true, "also compare with nftables")
	flag.Parse()
	if err := bpf.Probe(); err != nil {
		lib.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "bench-policy-")
	if err != nil {
		lib.Fatal(err)
	}
	b := &bench{dir: dir, out: map[string]any{"bench": "policy"}}
	err = b.all(*rounds, *updates, *real)
	if rerr := os.RemoveAll(dir); err == nil {
		err = rerr
	}
	if err != nil {
		lib.Fatal(err)
	}
	lib.JSON(b.out)
}

type bench struct {
	dir string
	out map[string]any
}

func (b *bench) all(rounds, updates int, real bool) error {
	if err := b.trials(rounds); err != nil {
		return fmt.Errorf("test runs: %w", err)
	}
	if err := b.changes(updates); err != nil {
		return fmt.Errorf("changes: %w", err)
	}
	if !real {
		return nil
	}
	if err := b.nftables(); err != nil {
		return fmt.Errorf("beside nftables: %w", err)
	}
	return nil
}

const (
	entries = 100_000 // of the bare program's table
	fresh   = 50_000  // first packets a run; a source port has 65,536 values
	known   = 1_000_000
)

// way is one thing to time.
type way struct {
	name   string
	times  []float64
	before func() error
	run    func() (bpf.Outcome, error)
}

// trials times every way once a round, in turn, and takes the medians.
func (b *bench) trials(rounds int) error {
	bare, err := bpf.NewBareLookup(entries, false)
	if err != nil {
		return err
	}
	defer bare.Close()
	far, err := bpf.NewBareLookup(131072, true)
	if err != nil {
		return err
	}
	defer far.Close()
	insert, err := bpf.NewBareInsert(131072) // as large as the wall's table of flows
	if err != nil {
		return err
	}
	defer insert.Close()
	packet := udpPacket()
	ways := []*way{{name: "one lookup", run: func() (bpf.Outcome, error) {
		return bare.Try(bpf.Trial{Ifindex: 1, Packet: packet, Repeat: known})
	}}, {name: "one insert of a flow", before: insert.Forget, run: func() (bpf.Outcome, error) {
		return insert.Try(bpf.Trial{Ifindex: 1, Packet: packet, Repeat: fresh})
	}}, {name: "one lookup of another entry each time", run: func() (bpf.Outcome, error) {
		return far.Try(bpf.Trial{Ifindex: 1, Packet: packet, Repeat: known})
	}}}
	for _, c := range []struct {
		name  string
		rules rules
		vary  bpf.Vary
	}{
		{"known flow, 100,000 rules", rules{256, 400}, bpf.Vary{}},
		{"first packet, 10 rules", rules{2, 5}, bpf.Vary{On: true}},
		{"first packet, 10,000 rules", rules{64, 160}, bpf.Vary{On: true}},
		{"first packet, 100,000 rules", rules{256, 400}, bpf.Vary{On: true}},
		{"first packet, 10 rules in turn", rules{2, 5}, bpf.Vary{On: true, Hosts: 1, Ports: 3}},
		{"first packet, 100,000 rules in turn", rules{256, 400}, bpf.Vary{On: true, Hosts: 255, Ports: 255}},
	} {
		w, err := b.wall(c.name, c.rules, c.vary)
		if err != nil {
			return err
		}
		defer w.Remove()
		n := known
		wy := &way{name: c.name}
		if c.vary.On {
			n, wy.before = fresh, w.ForgetFlows
		}
		wy.run = func() (bpf.Outcome, error) {
			return w.TrySend(bpf.Trial{Ifindex: 1, Packet: packet, Repeat: n})
		}
		ways = append(ways, wy)
	}
	for r := -1; r < rounds; r++ { // the first warms up
		for i := range ways {
			w := ways[(i+r+len(ways))%len(ways)]
			if w.before != nil {
				if err := w.before(); err != nil {
					return err
				}
			}
			o, err := w.run()
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			if !o.Passed {
				return fmt.Errorf("%s: the packet was dropped", w.name)
			}
			if r >= 0 {
				w.times = append(w.times, float64(o.Each.Nanoseconds()))
			}
		}
	}
	m := make([]float64, len(ways))
	for i, w := range ways {
		m[i] = lib.Middle(w.times)
		fmt.Fprintf(os.Stderr, "%-38s %5.0f ns  (%.0f to %.0f)  %.2f x one lookup\n", w.name, m[i], slices.Min(w.times), slices.Max(w.times), m[i]/m[0])
	}
	b.out["ns_lookup"], b.out["ns_insert"], b.out["ns_est"], b.out["ns_new"] = m[0], m[1], m[3], m[6]
	// Every first packet is of a flow that the processor has not at hand.
	b.out["ns_lookup_far"], b.out["new_ratio_far"] = m[2], lib.Round(m[6]/m[2], 2)
	b.out["est_ratio"] = lib.Round(m[3]/m[0], 2)
	b.out["new_ratio"] = lib.Round(m[6]/m[0], 2)
	b.out["insert_ratio"] = lib.Round(m[1]/m[0], 2) // of new_ratio, what remembering a flow costs anybody
	b.out["growth"] = lib.Round(max(m[5], m[6])/m[4], 2)
	b.out["growth_in_turn"] = lib.Round(m[8]/m[7], 2) // every packet another rule's: the processor's cache misses are in it
	return nil
}

// changes applies changes of rules through the API, one after the other; then it asks how long each takes to be in force.
func (b *bench) changes(n int) error {
	w, err := b.wall("changes", rules{64, 160}, bpf.Vary{})
	if err != nil {
		return err
	}
	defer w.Remove()
	began := time.Now()
	for i := range n {
		if err := w.Apply(vni, change(uint32(i), 9), ports); err != nil {
			return err
		}
	}
	rate := float64(n) / time.Since(began).Seconds()
	var took []time.Duration
	packet := udpPacket()
	for i := range 1000 {
		// Odd ones do not have the packet's port.
		next := change(uint32(n+i), []uint16{9, 10}[i%2])
		seen := make(chan time.Time, 1)
		ready := make(chan struct{})
		fail := make(chan error, 1)
		go func() {
			for first := true; ; first = false {
				o, err := w.TrySend(bpf.Trial{Ifindex: 1, Packet: packet})
				if err != nil {
					fail <- err
					return
				}
				if first {
					close(ready)
				}
				if o.Passed == (i%2 == 0) && !first {
					seen <- time.Now()
					return
				}
			}
		}()
		select {
		case <-ready:
		case err := <-fail:
			return err
		}
		call := time.Now()
		if err := w.Apply(vni, next, ports); err != nil {
			return err
		}
		select {
		case at := <-seen:
			if i > 0 { // before the first, the verdict was what it is after it
				took = append(took, max(at.Sub(call), 0))
			}
		case err := <-fail:
			return err
		}
	}
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	fmt.Fprintf(os.Stderr, "changes of rules                       %5.0f a second, in force after %v (p99 of %d)\n", rate, p99, len(took))
	b.out["updates_per_s"], b.out["effect_p99_ms"] = lib.Round(rate, 0), lib.Round(float64(p99.Microseconds())/1000, 3)
	return nil
}
