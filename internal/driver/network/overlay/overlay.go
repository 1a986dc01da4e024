// Package overlay is the network driver of tenants' networks, which span hosts
// (docs/adr/0016-tenant-networks.md). Each network is a namespace of its own with a switch, a
// tunnel to the other hosts, a wire into every instance, and a cable to the host's own bridge
// for what goes out. Who may reach whom is decided by the wall, eBPF programs on every
// wire (package bpf); where what is, is written into the tables of the kernel.
//
// What is in the kernel works on when the daemon dies. What was made is named by a record
// in the run directory, written before anything is made. The driver starts no goroutines.
// It must never leave a wire on a switch without the wall on it, nor change a link that is not ours.
package overlay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/nft"
)

const (
	switchName = "br"
	tunnelName = "vx"
	uplinkName = "eth0" // as the host's bridge names the inner end of a cable
	firstIndex = 1 << 16
)

// gatewayMAC is that of every network on every host, so that it stays when an instance moves.
var gatewayMAC = net.HardwareAddr(driver.GatewayMAC[:])

// Driver is a driver.Fabric.
type Driver struct {
	plan  plan
	run   string
	clock clock.Clock
	log   *slog.Logger
	under atomic.Pointer[driver.Underlay] // nil: nobody said

	mu     sync.Mutex
	out    driver.Network // the host's own bridge; nil: there is no way out
	wall   *bpf.Wall      // nil: not opened
	host   *netlink.Handle
	next   int // index of the next link
	nets   map[uint32]*network
	ways   map[uint32]netip.Addr // of networks' cables to the host
	arrive map[uint32][]nft.Floating
	doors  map[uint32]nft.Door // networks that go out otherwise
	wrote  bool                // the rules of doors are in the packet filter
}

var (
	_ driver.Fabric   = (*Driver)(nil)
	_ driver.Upstream = (*Driver)(nil)
	_ driver.Listener = (*Driver)(nil)
	_ driver.Asked    = (*Driver)(nil)
	_ driver.Shaper   = (*Driver)(nil)
	_ driver.Carried  = (*Driver)(nil)
	_ driver.Arrivals = (*Driver)(nil)
)

// New checks the config; it does no I/O.
func New(d driver.Deps, c Config) (*Driver, error) {
	p, err := c.plan()
	if err != nil {
		return nil, err
	}
	return &Driver{plan: p, run: d.Run, clock: d.Clock, log: d.Log, next: firstIndex, nets: map[uint32]*network{}, ways: map[uint32]netip.Addr{}, doors: map[uint32]nft.Door{}}, nil
}

// Through says by which network of the host the others reach what is outside.
func (d *Driver) Through(out driver.Network) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out = out
}

// capability is what a host offers where everything works.
func (d *Driver) capability() api.Capability {
	c := api.Capability{Type: "network", Name: api.DriverOverlay, Version: "vxlan, ebpf",
		Features: map[string]string{"tunnel": d.local().String(), "tunnelPort": fmt.Sprint(d.plan.port), "isolation": "tenant"}}
	if d.plan.mtu != 0 {
		c.Features["mtu"] = fmt.Sprint(d.plan.mtu) // for who checks whether it fits the way to the others
	}
	return c
}

// probed is the file, gone at boot, that says by which programs everything worked.
func (d *Driver) probed() string { return filepath.Join(d.run, "probed") }

// Known is what Probe found with the programs of this build since the host was started.
func (d *Driver) Known(context.Context) (api.Capability, bool) {
	b, err := os.ReadFile(d.probed())
	if err != nil || string(b) != bpf.Version() || !d.plan.tunnel.IsValid() {
		return api.Capability{}, false
	}
	return d.capability(), true
}

// Probe tries everything out in namespaces that are thrown away. Loading the programs takes most of a second.
func (d *Driver) Probe(context.Context) (api.Capability, error) {
	if !d.plan.tunnel.IsValid() {
		return api.Capability{}, errs.New(errs.Unsupported, "network driver overlay: this host has no address for tunnels to the others").
			WithHint("give it one: tunnel in the section of driver overlay, or --listen on an address that the other hosts reach")
	}
	if err := bpf.Probe(); err != nil {
		return api.Capability{}, fmt.Errorf("network driver overlay: %w", err)
	}
	if err := d.tryOut(); err != nil {
		return api.Capability{}, errs.New(errs.Unsupported, "network driver overlay: %w", err).
			WithHint("it needs root and a kernel with bridge, veth, vxlan, nftables and eBPF; 'atoll doctor' says what is missing")
	}
	if err := os.WriteFile(d.probed(), []byte(bpf.Version()), 0o600); err != nil {
		return api.Capability{}, errs.New(errs.Unavailable, "network driver overlay: %w", err)
	}
	return d.capability(), nil
}

func (d *Driver) tryOut() error {
	ns, err := netlink.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	far, err := netlink.NewNamespace()
	if err != nil {
		return err
	}
	defer far.Close()
	h, err := netlink.OpenAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.EnsureSwitch(netlink.Switch{Name: switchName, ID: "probe", Index: firstIndex, MAC: gatewayMAC, MTU: 1450, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")}}); err != nil {
		return err
	}
	local := netip.IPv6Loopback()
	if d.plan.tunnel.Is4() {
		local = netip.MustParseAddr("127.0.0.1")
	}
	if _, err := h.EnsureTunnel(ns, firstIndex, netlink.Tunnel{Name: tunnelName, VNI: 1, Local: local, Port: d.plan.port, MTU: 1450}); err != nil {
		return err
	}
	return h.EnsureWire(far, netlink.Wire{Name: "aw0", ID: "probe", Index: firstIndex + 1, Bridge: firstIndex, MTU: 1450, Peer: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9},
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/24"), netip.MustParsePrefix("fd00::9/64")}}, func() error { return nil })
}

// open makes ready, once, what all networks share, and reads what earlier lives left.
func (d *Driver) open() error {
	if d.wall != nil {
		return nil
	}
	if err := os.MkdirAll(d.dir(), 0o700); err != nil {
		return errs.New(errs.Unavailable, "directory of networks: %w", err)
	}
	records, err := d.records()
	if err != nil {
		return err
	}
	host, err := netlink.Open()
	if err != nil {
		return err
	}
	wall, err := bpf.Open(bpf.Config{Dir: d.pins()})
	if err != nil {
		host.Close()
		return err
	}
	d.host, d.wall = host, wall
	for _, r := range records {
		d.nets[r.Net.VNI] = &network{d: d, record: r, members: map[netip.Addr]driver.Member{}}
		d.next = max(d.next, r.Index+1)
		if r.Uplink.IsValid() {
			d.ways[r.Net.VNI] = r.Uplink
		}
		if r.Door != nil {
			d.doors[r.Net.VNI] = *r.Door
		}
		for _, w := range r.Wires {
			d.next = max(d.next, w.Index+1)
		}
	}
	return nil
}

// Close releases sockets and files. What is in the kernel stays and works on.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wall == nil {
		return nil
	}
	for _, n := range d.nets {
		n.close()
	}
	d.host.Close()
	err := d.wall.Close()
	d.wall, d.host, d.nets = nil, nil, map[uint32]*network{}
	return err
}

// index is a number that no link of any network has or had in this life.
func (d *Driver) index() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	return d.next - 1
}

// network finds one that Replace made; errs.Unavailable when it is not here (yet).
func (d *Driver) network(vni uint32) (*network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.idle() {
		if err := d.open(); err != nil {
			return nil, err
		}
	}
	n := d.nets[vni]
	if n == nil {
		return nil, errs.New(errs.Unavailable, "network %d is not on this host yet", vni)
	}
	return n, nil
}

// idle reports whether there is no network, and none was left: then nothing is opened, as most of
// the memory this driver takes is that of its tables.
func (d *Driver) idle() bool {
	if d.wall != nil {
		return false
	}
	files, err := filepath.Glob(filepath.Join(d.dir(), "*.json"))
	return err == nil && len(files) == 0
}

// all lists the networks there are.
func (d *Driver) all() ([]*network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.idle() {
		return nil, nil
	}
	if err := d.open(); err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(d.nets), func(a, b *network) int { return int(a.record.Net.VNI) - int(b.record.Net.VNI) }), nil
}

// Attach gives the instance its wires, with the wall on them before anything can pass.
func (d *Driver) Attach(ctx context.Context, netns string, s driver.Spec) error {
	if !driver.ValidID(s.ID) {
		return errs.New(errs.Invalid, "instance ID %q must be 1-64 of a-z 0-9 -", s.ID)
	}
	if s.Instance == nil || len(s.Network.Interfaces) == 0 {
		return errs.New(errs.Internal, "spec of %s has no interfaces on networks", s.ID)
	}
	ns, err := netlink.OpenNamespace(netns)
	if err != nil {
		return fmt.Errorf("attach %s: %w", s.ID, err)
	}
	defer ns.Close()
	on := map[uint32]bool{}
	for i, f := range s.Network.Interfaces {
		n, err := d.network(f.VNI)
		if err != nil {
			return fmt.Errorf("attach %s: %w", s.ID, err)
		}
		w := &wire{ID: s.ID, Name: f.Name, Ref: api.RefOf(s.Instance), MAC: f.MAC, Addrs: f.Addrs, NetNS: netns}
		w.To, w.From = s.BandsOf()
		w.Most.Connections, w.Most.Packets = s.Instance.Spec.PerSecond()
		if i == 0 {
			w.Ports = published(s.Instance)
		}
		if err := n.attach(ctx, ns, w, i == 0); err != nil {
			return fmt.Errorf("attach %s to network %s: %w", s.ID, n.record.Net.Ref, err)
		}
		on[f.VNI] = true
	}
	all, err := d.all()
	if err != nil {
		return err
	}
	for _, n := range all {
		if !on[n.record.Net.VNI] {
			if err := n.detach(ctx, s.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

func published(in *api.Instance) []api.Port {
	var out []api.Port
	for _, p := range in.Spec.Ports {
		if p.Publish != 0 {
			out = append(out, p)
		}
	}
	return out
}

// wireName is the name of the switch's end of a wire: hashed, because an interface's name holds 15 bytes.
func wireName(w *wire) string {
	h := sha256.Sum256([]byte(w.key()))
	return "aw" + hex.EncodeToString(h[:6])
}

// Observe lists the instances that have wires here.
func (d *Driver) Observe(context.Context) ([]string, error) {
	all, err := d.all()
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, n := range all {
		for _, id := range n.instances() {
			ids[id] = true
		}
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

// Detach removes all wires of an instance.
func (d *Driver) Detach(ctx context.Context, id string) error {
	all, err := d.all()
	if err != nil {
		return err
	}
	for _, n := range all {
		if err := n.detach(ctx, id); err != nil {
			return fmt.Errorf("detach %s: %w", id, err)
		}
	}
	return nil
}

// Replace makes a network exist as it is said here.
func (d *Driver) Replace(ctx context.Context, net driver.Net, members []driver.Member, t driver.Table) error {
	if net.VNI == 0 || net.VNI > api.LastVNI || len(net.Prefixes) == 0 || len(net.Prefixes) != len(net.Gateways) {
		return errs.New(errs.Invalid, "network %s: it needs a number and prefixes with a gateway each", net.Ref)
	}
	d.mu.Lock()
	if err := d.open(); err != nil {
		d.mu.Unlock()
		return err
	}
	n := d.nets[net.VNI]
	if n == nil {
		n = &network{d: d, record: &record{Net: net, Index: d.next}, members: map[netip.Addr]driver.Member{}}
		d.next++
		d.nets[net.VNI] = n
	}
	d.mu.Unlock()
	if err := n.replace(ctx, net, members, t); err != nil {
		return fmt.Errorf("network %s: %w", net.Ref, err)
	}
	return nil
}

// Change brings a network up to date.
func (d *Driver) Change(ctx context.Context, vni uint32, c driver.Change) error {
	n, err := d.network(vni)
	if err != nil {
		return err
	}
	if err := n.change(ctx, c); err != nil {
		return fmt.Errorf("network %s: %w", n.record.Net.Ref, err)
	}
	return nil
}

// Forget removes a network. errs.Conflict while instances have wires on it.
func (d *Driver) Forget(ctx context.Context, vni uint32) error {
	n, err := d.network(vni)
	if errs.KindOf(err) == errs.Unavailable {
		return nil
	}
	if err != nil {
		return err
	}
	if ids := n.instances(); len(ids) > 0 {
		return errs.New(errs.Conflict, "network %s has instances here: %s", n.record.Net.Ref, ids[0])
	}
	return d.forget(ctx, n)
}

func (d *Driver) forget(ctx context.Context, n *network) error {
	if err := n.remove(ctx); err != nil {
		return fmt.Errorf("remove network %s: %w", n.record.Net.Ref, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.nets, n.record.Net.VNI)
	delete(d.ways, n.record.Net.VNI)
	return nil
}

// Nets lists the networks that are here.
func (d *Driver) Nets(context.Context) ([]uint32, error) {
	all, err := d.all()
	if err != nil {
		return nil, err
	}
	out := make([]uint32, len(all))
	for i, n := range all {
		out[i] = n.record.Net.VNI
	}
	return out, nil
}

// NextID is above all numbers that an earlier life left in the tables.
func (d *Driver) NextID(context.Context) (uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.open(); err != nil {
		return 0, err
	}
	pairs, err := d.wall.Pairs()
	if err != nil {
		return 0, err
	}
	lists, err := d.wall.Lists()
	if err != nil {
		return 0, err
	}
	next := uint32(1)
	for k, p := range pairs {
		next = max(next, k.Set+1, p.All+1, p.List+1)
	}
	for k, rule := range lists {
		next = max(next, k.List+1, rule+1)
	}
	for vni := range d.nets {
		prefixes, err := d.wall.Prefixes(vni)
		if err != nil {
			return 0, err
		}
		for _, n := range prefixes {
			next = max(next, n-driver.FirstPrefix+1)
		}
	}
	return next, nil
}

func (d *Driver) pins() string { return filepath.Join(d.run, "bpf") }

func (d *Driver) closed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wall == nil
}

// Settle removes the sets that no port has, and the lists that no set has.
func (d *Driver) Settle(context.Context) error {
	all, err := d.all()
	if err != nil || len(all) == 0 && d.closed() {
		return err
	}
	sets, lists := map[uint32]bool{}, map[uint32]bool{}
	for _, n := range all {
		n.mu.Lock()
		for _, p := range n.policies {
			for _, set := range []uint32{p.Ingress, p.Egress, p.IngressDry, p.EgressDry} {
				sets[set] = true
			}
		}
		n.mu.Unlock()
	}
	havePairs, err := d.wall.Pairs()
	if err != nil {
		return err
	}
	var pairs []driver.PairKey
	for k, p := range havePairs {
		if lists[p.List] = lists[p.List] || sets[k.Set]; !sets[k.Set] {
			pairs = append(pairs, k)
		}
	}
	haveLists, err := d.wall.Lists()
	if err != nil {
		return err
	}
	var entries []driver.ListKey
	for k := range haveLists {
		if !lists[k.List] {
			entries = append(entries, k)
		}
	}
	return errors.Join(d.wall.DropPairs(pairs), d.wall.DropLists(entries), d.wall.Settle())
}

// Reconcile puts back what others removed.
func (d *Driver) Reconcile(ctx context.Context) error {
	all, err := d.all()
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.wrote = len(d.doors) == 0 // others may have flushed them
	d.mu.Unlock()
	for _, n := range all {
		if err := n.reconcile(ctx); err != nil {
			return fmt.Errorf("network %s: %w", n.record.Net.Ref, err)
		}
	}
	return nil
}

// Teardown removes every trace of the driver from the host.
func (d *Driver) Teardown(ctx context.Context) error {
	all, err := d.all()
	if err != nil {
		return err
	}
	for _, n := range all {
		for _, id := range n.instances() {
			if err := n.detach(ctx, id); err != nil {
				return err
			}
		}
		if err := d.forget(ctx, n); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wall != nil {
		d.host.Close()
		d.wall.Close()
		d.wall, d.host = nil, nil
	}
	return errors.Join(d.forwardBack(), bpf.Remove(d.pins()), os.RemoveAll(d.dir()), removeFile(d.probed()))
}
