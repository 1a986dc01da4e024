package overlay

import (
	"context"
	"net/netip"
	"slices"

	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/errs"
	"atoll/internal/sys/boot"
)

var (
	_ driver.Inspector = (*Driver)(nil)
	_ driver.Tapper    = (*Driver)(nil)
	_ driver.Prober    = (*Driver)(nil)
)

// opened is the wall; errs.Unavailable while there is no network, for which nothing is opened.
func (d *Driver) opened() (*bpf.Wall, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.idle() {
		return nil, errs.New(errs.Unavailable, "no network of a tenant is on this host")
	}
	if err := d.open(); err != nil {
		return nil, err
	}
	return d.wall, nil
}

// Wires lists those that are attached.
func (d *Driver) Wires() ([]driver.Wire, error) {
	all, err := d.all()
	if err != nil {
		return nil, err
	}
	var out []driver.Wire
	for _, n := range all {
		n.mu.Lock()
		for _, w := range n.record.Wires {
			if w.Up {
				out = append(out, w.shown(n.record.Net.VNI))
			}
		}
		n.mu.Unlock()
	}
	return out, nil
}

func (w *wire) shown(vni uint32) driver.Wire {
	s := driver.Wire{VNI: vni, Port: w.Index, Instance: w.Ref}
	for _, p := range w.Addrs {
		s.Addrs = append(s.Addrs, p.Addr())
	}
	return s
}

// wireAt finds the wire with an address.
func (d *Driver) wireAt(vni uint32, a netip.Addr) (*network, driver.Wire, error) {
	n, err := d.network(vni)
	if err != nil {
		return nil, driver.Wire{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.record.Wires {
		if w.Up && slices.ContainsFunc(w.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return n, w.shown(vni), nil
		}
	}
	return nil, driver.Wire{}, errs.New(errs.NotFound, "no wire of network %d has address %s here", vni, a)
}

// Judge asks the tables in the kernel.
func (d *Driver) Judge(q driver.Question) (driver.Verdict, error) {
	_, w, err := d.wireAt(q.VNI, q.Local)
	if err != nil {
		return driver.Verdict{}, err
	}
	wall, err := d.opened()
	if err != nil {
		return driver.Verdict{}, err
	}
	dir := bpf.Egress
	if q.Ingress {
		dir = bpf.Ingress
	}
	v, err := wall.Judge(bpf.Question{Ifindex: w.Port, Direction: dir, Remote: q.Remote, Unbidden: q.Unbidden, Proto: q.Proto, Port: q.Port})
	if err != nil {
		return driver.Verdict{}, err
	}
	out := verdict(w.Port, v)
	if v.Dry != nil {
		dry := verdict(w.Port, *v.Dry)
		out.Dry = &dry
	}
	return out, nil
}

func verdict(port int, v bpf.Verdict) driver.Verdict {
	return driver.Verdict{Port: port, Allowed: v.Allowed, Set: v.Set, Rule: v.Rule, Peer: v.Peer}
}

// networks says which network a wire is of, by its port.
func (d *Driver) networks() (map[int]uint32, error) {
	ws, err := d.Wires()
	if err != nil {
		return nil, err
	}
	out := map[int]uint32{}
	for _, w := range ws {
		out[w.Port] = w.VNI
	}
	return out, nil
}

// Flows lists what the tables have.
func (d *Driver) Flows(fn func(driver.Flow) bool) error {
	of, err := d.networks()
	if err != nil || len(of) == 0 {
		return err
	}
	wall, err := d.opened()
	if err != nil {
		return err
	}
	return wall.Flows(boot.Monotonic(), func(f bpf.Flow) bool {
		return fn(driver.Flow{VNI: of[f.Ifindex], Port: f.Ifindex, Local: f.Local, Remote: f.Remote, LocalPort: f.LocalPort, RemotePort: f.RemotePort, Proto: f.Proto,
			Ingress: f.Began == bpf.Ingress, Rule: f.Rule, Age: f.Age, Idle: f.Idle, Packets: f.Sent.Packets + f.Received.Packets, Bytes: f.Sent.Bytes + f.Received.Bytes, State: f.State})
	})
}

// Counts reads all counters.
func (d *Driver) Counts() (driver.Counts, error) {
	out := driver.Counts{Dry: map[uint32]driver.DryCount{}, Drops: map[int]map[string]uint64{}}
	wall, err := d.opened()
	if errs.KindOf(err) == errs.Unavailable {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	if out.Rules, err = wall.RuleHits(); err != nil {
		return out, err
	}
	dry, err := wall.DryHits()
	if err != nil {
		return out, err
	}
	for set, n := range dry {
		out.Dry[set] = driver.DryCount{Allowed: n.Allowed, Refused: n.Denied}
	}
	drops, err := wall.Drops()
	if err != nil {
		return out, err
	}
	for port, by := range drops {
		m := map[string]uint64{}
		for r, n := range by {
			m[r.Text()] = n
		}
		out.Drops[port] = m
	}
	out.Lost, err = wall.Lost()
	return out, err
}

// Events tells what the wall tells.
func (d *Driver) Events(ctx context.Context, fn func(driver.FlowEvent)) error {
	wall, err := d.opened()
	if err != nil {
		return err
	}
	return wall.Events(ctx, func(e bpf.Event) {
		x := driver.FlowEvent{VNI: e.VNI, Port: e.Ifindex, Ingress: e.Direction == bpf.Ingress, Dry: e.Dry, Proto: e.Proto, Src: e.Src, Dst: e.Dst, SrcPort: e.SrcPort, DstPort: e.DstPort, Rule: e.Rule, Length: e.Length}
		if e.Reason != bpf.Allowed {
			x.Refused = e.Reason.Text()
			x.Judged = e.Reason == bpf.NoEgress || e.Reason == bpf.NoIngress
		}
		fn(x)
	})
}

// Telling is bounded for each CPU.
const tellRate, tellBurst = 1000, 1000

// Sample has one of so many new flows told.
func (d *Driver) Sample(oneOf uint32) error {
	wall, err := d.opened()
	if err != nil {
		return err
	}
	return wall.SetTelling(bpf.Telling{Sample: oneOf, Rate: tellRate, Burst: tellBurst})
}

// Log has a rule's new flows told.
func (d *Driver) Log(rule uint32, on bool) error {
	wall, err := d.opened()
	if err != nil {
		return err
	}
	return wall.Log(rule, on)
}
