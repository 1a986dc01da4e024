package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/driver/network/bridge"
	"atoll/internal/driver/network/overlay"
	"atoll/internal/shaping"
	"atoll/internal/store"
	"atoll/internal/sys/netlink"
)

const (
	vni    = 70001
	uplink = 500e6
	tenant = "acme"
)

// host is one with its drivers, three instances on a tenant's network, and a machine outside of it.
type host struct {
	link    *netlink.Handle
	network driver.Network
	fabric  driver.Fabric
	a, b, c *box
	out     *box
}

// box is a namespace with an address.
type box struct {
	id   string
	ns   *netlink.Namespace
	addr netip.Addr
	mac  [6]byte
}

func newHost(ctx context.Context, dir string) (*host, error) {
	h := &host{}
	var err error
	if h.link, err = netlink.Open(); err != nil {
		return nil, err
	}
	if err := h.link.LoopbackUp(); err != nil {
		return nil, err
	}
	if err := h.outside(); err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	br, err := bridge.New(driver.Deps{Node: "isle1", Run: filepath.Join(dir, "bridge"), Clock: clock.Real{}, Log: log}, bridge.Config{Bandwidth: fmt.Sprint(int64(uplink))})
	if err != nil {
		return nil, err
	}
	ov, err := overlay.New(driver.Deps{Node: "isle1", Run: dir, Clock: clock.Real{}, Log: log}, overlay.Config{Tunnel: "192.0.2.1", Outside: "10.88.240.0/20", MTU: 1500})
	if err != nil {
		return nil, err
	}
	h.fabric, h.network = ov, driver.Beside(br, ov)
	n := driver.Net{VNI: vni, Ref: api.Ref{Kind: api.KindNetwork, Tenant: tenant, Name: "main"}, Egress: driver.EgressNAT,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}
	table, members := driver.Table{Ports: map[netip.Addr]driver.Policy{}}, []driver.Member(nil)
	for i, b := range []**box{&h.a, &h.b, &h.c} {
		ns, err := netlink.NewNamespace()
		if err != nil {
			return nil, err
		}
		*b = &box{id: "x" + string(rune('a'+i)), ns: ns, addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 2)}), mac: [6]byte{0x0a, 0x58, 10, 1, 0, byte(i + 2)}}
		table.Ports[(*b).addr] = driver.Policy{}
		members = append(members, driver.Member{Addr: (*b).addr, MAC: (*b).mac, Host: netip.MustParseAddr("192.0.2.1"), Identity: uint32(256 + i)})
	}
	if err := h.fabric.Replace(ctx, n, members, table); err != nil {
		return nil, err
	}
	return h, h.limit(ctx, 0)
}

// outside makes the uplink and a machine behind it.
func (h *host) outside() error {
	ns, err := netlink.NewNamespace()
	if err != nil {
		return err
	}
	h.out = &box{ns: ns, addr: netip.MustParseAddr("192.0.2.9")}
	up, err := h.link.EnsureBridge(netlink.Bridge{Name: "up0", ID: "bench", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 1}, MTU: 1500, Addr: netip.MustParsePrefix("192.0.2.1/24")})
	if err != nil {
		return err
	}
	if err := h.link.EnsurePort(ns, netlink.Port{Name: "upv0", ID: "bench", Bridge: up, MTU: 1500, Peer: "eth0", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 9},
		Addr: netip.MustParsePrefix("192.0.2.9/24"), GW: netip.MustParseAddr("192.0.2.1")}); err != nil {
		return err
	}
	return h.link.AddDefaultRoute(up, netip.MustParseAddr("192.0.2.9"))
}

func (b *box) instance(guarantee, limit int64) *api.Instance {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: b.id, Tenant: tenant}}}
	in.Spec.Networks = []api.Attach{{Name: "main"}}
	if guarantee != 0 {
		in.Spec.Requests = api.Resources{api.NetBandwidth: guarantee}
	}
	if limit != 0 {
		in.Spec.Limits = api.Resources{api.NetBandwidth: limit}
	}
	in.Status = api.InstanceStatus{Node: "isle1", State: api.StateRunning, RuntimeID: b.id}
	return in
}

func (h *host) boxes() []*box { return []*box{h.a, h.b, h.c} }

// limit attaches all, the first one with a limit in both directions; 0: none.
func (h *host) limit(ctx context.Context, bits int64) error {
	for _, b := range h.boxes() {
		l := int64(0)
		if b == h.a {
			l = bits
		}
		if err := h.network.Attach(ctx, b.ns.Path(), driver.Spec{ID: b.id, Instance: b.instance(0, l), Network: driver.NetworkSpec{Mode: driver.ModeOverlay,
			Interfaces: []driver.Interface{{Name: "eth0", VNI: vni, MAC: b.mac, Addrs: []netip.Prefix{netip.PrefixFrom(b.addr, 16)}}}}}); err != nil {
			return err
		}
	}
	return nil
}

// divide has the network divided as the host's daemon does it, until the returned function is called.
func (h *host) divide(ctx context.Context, limit, guarantee int64) (func(), error) {
	st := store.NewMem()
	t := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: tenant}}}
	if limit != 0 {
		t.Spec.Limit = api.Resources{api.NetBandwidth: limit}
	}
	ops := []store.Op{store.Create(t)}
	for _, b := range h.boxes() {
		g := int64(0)
		if b == h.a {
			g = guarantee
		}
		ops = append(ops, store.Create(b.instance(g, 0)))
	}
	if _, err := st.Commit(ctx, ops...); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := shaping.New(shaping.Deps{Node: "isle1", Store: st, Clock: clock.Real{}, Log: slog.Default(), Network: h.network})
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() { cancel(); <-done }, nil
}

func (h *host) close() error {
	err := h.network.Teardown(context.Background())
	for _, b := range append(h.boxes(), h.out) {
		err = errors.Join(err, b.ns.Close())
	}
	h.link.Close()
	return err
}
