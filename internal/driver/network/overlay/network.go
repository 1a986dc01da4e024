package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/nft"
	"atoll/internal/sys/shape"
)

// network is one tenant's network on this host.
type network struct {
	d *Driver

	mu       sync.Mutex
	record   *record
	known    bool // Replace was called in this life
	ns       *netlink.Namespace
	link     *netlink.Handle // in ns
	shaper   *shape.Shaper   // in ns
	tunnel   int
	mtu      int
	members  map[netip.Addr]driver.Member
	policies map[netip.Addr]driver.Policy
	sockets  map[io.Closer]bool // that others opened here
}

func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shut()
}

func (n *network) shut() {
	if n.ns != nil {
		n.shaper.Close()
		n.link.Close()
		n.ns.Close()
		n.ns, n.link, n.shaper = nil, nil, nil
	}
}

// instances are those that have wires.
func (n *network) instances() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, w := range n.record.Wires {
		out = append(out, w.ID)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// replace converges everything but the wires' other ends.
func (n *network) replace(ctx context.Context, net driver.Net, members []driver.Member, t driver.Table) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.record.Net = net
	if f, said := n.d.arriving(net.VNI); said {
		n.record.Floating = f
	}
	if err := n.base(ctx); err != nil {
		return err
	}
	want := map[netip.Addr]driver.Member{}
	for _, m := range members {
		want[m.Addr] = m
	}
	if err := n.forgetPlaces(want); err != nil {
		return err
	}
	have, err := n.d.wall.Members(net.VNI)
	if err != nil {
		return err
	}
	prefixes, err := n.d.wall.Prefixes(net.VNI)
	if err != nil {
		return err
	}
	c := driver.Change{Put: members, Ports: t.Ports, Pairs: t.Pairs, Lists: t.Lists, Prefixes: t.Prefixes}
	for a := range have {
		if _, ok := want[a]; !ok && !slices.Contains(net.Gateways, a) {
			c.Drop = append(c.Drop, a)
		}
	}
	for p := range prefixes {
		if _, ok := t.Prefixes[p]; !ok {
			c.DropPrefixes = append(c.DropPrefixes, p)
		}
	}
	n.policies = map[netip.Addr]driver.Policy{}
	for _, w := range n.record.Wires { // from an earlier life: the wall of this one, with what it knew
		if err := n.fortify(w); err != nil {
			return err
		}
	}
	n.known = true
	if err := n.apply(c); err != nil {
		return err
	}
	return n.rehop()
}

// change applies what is new.
func (n *network) change(ctx context.Context, c driver.Change) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return errs.New(errs.Internal, "it is changed before it was replaced")
	}
	if c.Net != nil {
		n.record.Net = *c.Net
		if err := n.base(ctx); err != nil {
			return err
		}
		if err := n.rehop(); err != nil {
			return err
		}
	}
	return n.apply(c)
}

// apply writes a change into the kernel: what is put before what needs it, what is dropped last.
func (n *network) apply(c driver.Change) error {
	again := n.speaksAnew(c)
	for _, m := range c.Put {
		n.members[m.Addr] = m
	}
	for _, a := range c.Drop {
		if _, back := n.lastOf(c.Put, a); !back {
			delete(n.members, a)
		}
	}
	maps.Copy(n.policies, c.Ports)
	for _, a := range c.DropPorts {
		delete(n.policies, a)
	}
	for _, m := range c.Put {
		if err := n.putPlace(m); err != nil {
			return err
		}
	}
	ports := map[netip.Addr]int{}
	for _, w := range n.record.Wires {
		for _, a := range w.Addrs {
			if w.Up {
				ports[a.Addr()] = w.Index
			}
		}
	}
	if err := n.identify(c.Put); err != nil {
		return err
	}
	if err := n.d.wall.Apply(n.record.Net.VNI, c, ports); err != nil {
		return err
	}
	if again {
		for _, w := range n.record.Wires {
			if err := n.d.wall.Again(w.Index); err != nil && errs.KindOf(err) != errs.NotFound {
				return err
			}
		}
	}
	for _, a := range c.Drop {
		if _, back := n.lastOf(c.Put, a); !back {
			if err := n.dropPlace(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *network) lastOf(put []driver.Member, a netip.Addr) (driver.Member, bool) {
	i := slices.IndexFunc(put, func(m driver.Member) bool { return m.Addr == a })
	if i < 0 {
		return driver.Member{}, false
	}
	return put[i], true
}

// speaksAnew reports whether an address is somebody else's now: flows with it were judged for another.
func (n *network) speaksAnew(c driver.Change) bool {
	for _, m := range c.Put {
		if old, ok := n.members[m.Addr]; ok && old.Identity != m.Identity {
			return true
		}
	}
	return len(c.Drop) > 0
}

// identify gives wires the identities that their addresses have now.
func (n *network) identify(put []driver.Member) error {
	for _, m := range put {
		for _, w := range n.record.Wires {
			if w.Up && slices.ContainsFunc(w.Addrs, func(p netip.Prefix) bool { return p.Addr() == m.Addr }) {
				if err := n.setPort(w); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// base makes the namespace and what is in it, without instances.
func (n *network) base(ctx context.Context) error {
	d, r := n.d, n.record
	mtu, err := d.mtu(r.Net)
	if err != nil {
		return err
	}
	if err := d.save(r); err != nil {
		return err
	}
	if n.ns == nil {
		ns, err := netlink.EnsureNamespace(d.nsFile(r.Net.VNI))
		if err != nil {
			return err
		}
		h, err := netlink.OpenAt(ns)
		if err != nil {
			ns.Close()
			return err
		}
		sh, err := shape.Open(ns.FD())
		if err != nil {
			h.Close()
			ns.Close()
			return err
		}
		n.ns, n.link, n.shaper = ns, h, sh
	}
	n.mtu = mtu
	if err := n.settings(); err != nil {
		return err
	}
	s := netlink.Switch{Name: switchName, ID: "network " + fmt.Sprint(r.Net.VNI), Index: r.Index, MAC: gatewayMAC, MTU: mtu}
	for i, g := range r.Net.Gateways {
		s.Addrs = append(s.Addrs, netip.PrefixFrom(g, r.Net.Prefixes[i].Bits()))
	}
	if err := n.link.EnsureSwitch(s); err != nil {
		return err
	}
	if err := d.wall.SetDevice(r.Index, bpf.Device{VNI: r.Net.VNI, Gateways: r.Net.Gateways}); err != nil {
		return err
	}
	if err := d.wall.Attach(n.ns, r.Index, bpf.RoleBridge); err != nil {
		return err
	}
	if err := n.dig(ctx); err != nil {
		return err
	}
	if err := d.wall.Attach(n.ns, n.tunnel, bpf.RoleVXLAN); err != nil {
		return err
	}
	if err := n.refit(); err != nil {
		return err
	}
	if err := n.part(); err != nil {
		return err
	}
	if err := n.wayOut(ctx); err != nil {
		return err
	}
	if err := n.setRoutes(); err != nil {
		return err
	}
	return n.joinPeers()
}

// digTries times 20 ms is for the kernel to take down a tunnel whose namespace is gone.
const digTries = 150

// dig makes the tunnel.
func (n *network) dig(ctx context.Context) (err error) {
	t := netlink.Tunnel{Name: tunnelName, VNI: n.record.Net.VNI, Local: n.d.local(), Port: n.d.plan.port, MTU: n.mtu}
	for try := 0; ; try++ {
		if n.tunnel, err = n.d.host.EnsureTunnel(n.ns, n.record.Index, t); !errors.Is(err, errs.Exists) || try == digTries {
			return err
		}
		if err := n.d.clock.Sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// settings of the namespace: it forwards, and bridged packets pass no packet filter.
func (n *network) settings() error {
	return n.ns.Do(func() error {
		for _, s := range []struct {
			key, value string
			may        bool // it may be missing
		}{{"ipv4/ip_forward", "1", false},
			// What the host sends into the network is believed by its source address: none comes by the wrong way.
			{"ipv4/conf/all/rp_filter", "1", false}, {"ipv4/conf/default/rp_filter", "1", false}, {"ipv4/conf/all/send_redirects", "0", false}, {"ipv4/conf/default/send_redirects", "0", false}, {"ipv6/conf/all/forwarding", "1", true},
			{"ipv6/conf/default/accept_dad", "0", true}, {"bridge/bridge-nf-call-iptables", "0", true}, {"bridge/bridge-nf-call-ip6tables", "0", true}, {"bridge/bridge-nf-call-arptables", "0", true}} {
			if _, err := netlink.SetSysctl(s.key, s.value); err != nil && !(s.may && errors.Is(err, errs.NotFound)) {
				return err
			}
		}
		return nil
	})
}

// wayOut makes the gate, and the cables to the host, as far as the network has any.
func (n *network) wayOut(ctx context.Context) error {
	door, way, err := n.door()
	if err != nil {
		return err
	}
	if err := n.byBridge(ctx, door, way); err != nil {
		return err
	}
	if !way {
		return n.closeWay()
	}
	return n.openWay(door)
}

// byBridge makes the gate, and the cable to the host's own bridge.
func (n *network) byBridge(ctx context.Context, door nft.Door, way bool) error {
	d, r := n.d, n.record
	g := nft.Gate{Switch: switchName, Tunnel: d.plan.port, Prefixes: r.Net.Prefixes}
	for _, p := range r.Net.Peers {
		g.Peers = append(g.Peers, nft.Joined{Cable: cableName(p.VNI), Prefixes: p.Prefixes})
	}
	out := d.upstream()
	if way {
		g.Way, g.Direct, g.Published = wayName, len(door.Direct) > 0, r.entrances()
	}
	if r.Net.Egress != driver.EgressNAT || out == nil || !d.plan.outside.IsValid() {
		if err := nft.SetGate(n.ns.FD(), g); err != nil {
			return err
		}
		if out == nil || !r.Uplink.IsValid() {
			return nil
		}
		if err := out.Detach(ctx, uplinkID(r.Net.VNI)); err != nil {
			return err
		}
		d.dropUplink(r)
		return d.save(r)
	}
	if !r.Uplink.IsValid() {
		a, err := d.freeUplink(r.Net.VNI)
		if err != nil {
			return err
		}
		r.Uplink = a
		if err := d.save(r); err != nil {
			return err
		}
	}
	g.Uplink, g.Published, g.Floating = uplinkName, r.entrances(), r.Floating
	if err := nft.SetGate(n.ns.FD(), g); err != nil {
		return err
	}
	return out.Attach(ctx, n.ns.Path(), driver.Spec{ID: uplinkID(r.Net.VNI), Instance: &api.Instance{
		Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "network-" + fmt.Sprint(r.Net.VNI), Tenant: r.Net.Ref.Tenant}}, Spec: api.InstanceSpec{Ports: r.ways()}},
		Network: driver.NetworkSpec{Mode: "bridge", Address: r.Uplink.String()}})
}

func uplinkID(vni uint32) string { return driver.UplinkPrefix + fmt.Sprint(vni) }

func (d *Driver) upstream() driver.Network {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out
}

// freeUplink finds an address for a cable.
func (d *Driver) freeUplink(vni uint32) (netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := map[netip.Addr]bool{}
	for _, a := range d.ways {
		taken[a] = true
	}
	for a := d.plan.outside.Addr().Next(); d.plan.outside.Contains(a.Next()); a = a.Next() {
		if !taken[a] {
			d.ways[vni] = a
			return a, nil
		}
	}
	return netip.Addr{}, errs.New(errs.Unavailable, "all addresses of %s are in use by networks of this host", d.plan.outside).
		WithHint("networks with egress: none need none; a larger subnet of the host's bridge gives more")
}

func (d *Driver) dropUplink(r *record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.ways, r.Net.VNI)
	r.Uplink = netip.Addr{}
}

// mtu is what fits through the way to the other hosts.
func (d *Driver) mtu(n driver.Net) (int, error) {
	most, local := d.plan.mtu, d.local()
	if most == 0 || local != d.plan.tunnel {
		l, err := d.host.LinkWith(local)
		if err != nil {
			return 0, err
		}
		fits := l.MTU - header(local)
		if local.IsLoopback() { // there are no other hosts, but what is outside
			fits = 1500
		}
		if most == 0 || fits < most {
			most = fits
		}
	}
	if n.MTU != 0 && n.MTU < most {
		return n.MTU, nil
	}
	return most, nil
}

// place is where a member is, as the switch's tables have it; false for one that is behind the gateway.
func (n *network) place(m driver.Member) (netlink.Place, bool) {
	inside := slices.ContainsFunc(n.record.Net.Prefixes, func(p netip.Prefix) bool { return p.Contains(m.Addr) })
	p := netlink.Place{Addr: m.Addr, MAC: net.HardwareAddr(m.MAC[:]), Host: m.Host}
	if n.d.isHere(m.Host) {
		p.Host = netip.Addr{}
	}
	reached := !p.Host.IsValid() || p.Host.Is4() == n.d.local().Is4()
	return p, inside && reached && m.MAC != [6]byte{}
}

func (n *network) putPlace(m driver.Member) error {
	p, ok := n.place(m)
	if !ok {
		return nil
	}
	if !p.Host.IsValid() {
		if err := n.link.ForgetTunnelled(n.tunnel, p.MAC); err != nil {
			return err
		}
	}
	return n.link.PutPlace(n.record.Index, n.tunnel, p)
}

func (n *network) dropPlace(a netip.Addr) error {
	if !slices.ContainsFunc(n.record.Net.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return nil
	}
	have, err := n.link.Places(n.record.Index)
	if err != nil {
		return err
	}
	return n.forgetPlace(have, a)
}

// forgetPlaces takes out of the tables what an earlier life put there and is no more.
func (n *network) forgetPlaces(want map[netip.Addr]driver.Member) error {
	have, err := n.link.Places(n.record.Index)
	if err != nil {
		return err
	}
	for a, mac := range have {
		if m, ok := want[a]; ok && net.HardwareAddr(m.MAC[:]).String() == mac {
			continue
		}
		if err := n.forgetPlace(have, a); err != nil {
			return err
		}
	}
	return nil
}

func (n *network) forgetPlace(have map[netip.Addr]string, a netip.Addr) error {
	mac, err := net.ParseMAC(have[a])
	if err != nil {
		return nil // it is not in the tables
	}
	last := true
	for o, m := range have {
		last = last && (o == a || m != have[a])
	}
	delete(have, a)
	return n.link.DropPlace(n.record.Index, n.tunnel, netlink.Place{Addr: a, MAC: mac}, last)
}

// reconcile converges the shared part, and puts the wall back where somebody took it off.
func (n *network) reconcile(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return nil
	}
	if err := n.base(ctx); err != nil {
		return err
	}
	for _, w := range n.record.Wires {
		if err := n.fortify(w); err != nil {
			return err
		}
	}
	return nil
}

// remove takes the whole network away. Its programs go with its links.
func (n *network) remove(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	d, r := n.d, n.record
	n.hangUp()
	if out := d.upstream(); out != nil {
		if err := out.Detach(ctx, uplinkID(r.Net.VNI)); err != nil {
			return err
		}
	}
	if err := n.closeWay(); err != nil {
		return err
	}
	ns, err := netlink.OpenNamespace(d.nsFile(r.Net.VNI))
	if err == nil {
		err = deleteLinks(ns)
		ns.Close()
	}
	if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) {
		return err
	}
	n.shut()
	if err := n.clearTables(); err != nil {
		return err
	}
	if err := netlink.RemoveNamespace(d.nsFile(r.Net.VNI)); err != nil {
		return err
	}
	return removeFile(d.recordFile(r.Net.VNI)) // last: it names the rest
}

// deleteLinks removes switch, tunnel and cables, so that they are gone although somebody holds the namespace.
func deleteLinks(ns *netlink.Namespace) error {
	h, err := netlink.OpenAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := cutCables(h, nil); err != nil {
		return err
	}
	for _, name := range []string{tunnelName, switchName} {
		l, err := h.Link(name)
		if err == nil {
			err = h.DeleteIndex(l.Index)
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	return nil
}

func (n *network) clearTables() error {
	w, vni := n.d.wall, n.record.Net.VNI
	if err := w.DropDevice(n.record.Index); err != nil {
		return err
	}
	members, err := w.Members(vni)
	if err != nil {
		return err
	}
	prefixes, err := w.Prefixes(vni)
	if err != nil {
		return err
	}
	return errors.Join(w.DropMembers(vni, slices.Collect(maps.Keys(members))), w.DropPrefixes(vni, slices.Collect(maps.Keys(prefixes))))
}
