// Package bridge is the network driver of one host: a bridge, a cable from it into
// every instance, addresses translated on the way out, and published ports on the
// way in. What each rule is for stands in the rules themselves (nft list ruleset)
// and in docs/adr/0005-beside-docker.md.
//
// The wall between tenants is on the bridge's ports: an instance can send only from
// its own addresses, and only to instances of its own tenant, to the gateway's ping
// and published ports, and to the outside. It holds without br_netfilter and beside
// any other firewall.
//
// The driver keeps no state of its own: the kernel's links (by their alias) and
// elements (by their comment) say what is there. It starts no goroutines. It must
// never change a link, rule or chain it did not make.
package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/nft"
	"atoll/internal/sys/shape"
)

const (
	portPrefix = "av"     // starts the name of the host's end of every cable
	bridgeID   = "bridge" // in the bridge's alias
	guestName  = "eth0"   // the instance's end
	tcp, udp   = 6, 17
)

var (
	idRE   = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	portRE = regexp.MustCompile(`^a[vs][0-9a-f]{12}$`)
)

// Driver is a driver.Network and driver.Reconciler.
type Driver struct {
	plan  plan
	run   string
	log   *slog.Logger
	table *nft.Table

	mu   sync.Mutex
	host *netlink.Handle // nil: not opened
	base base
	// claims are the floating addresses of the last Float.
	claims []netlink.Claim

	uplink atomic.Int64 // bits per second, as the interface says; 0: it does not

	shaping sync.Mutex
	shaper  *shape.Shaper // nil: not opened
}

var (
	_ driver.Network    = (*Driver)(nil)
	_ driver.Reconciler = (*Driver)(nil)
	_ driver.Shaper     = (*Driver)(nil)
	_ driver.Floater    = (*Driver)(nil)
)

// base is what all instances share; its zero value means not made sure of yet.
type base struct{ index, mtu int }

// New checks the config; it does no I/O.
func New(d driver.Deps, c Config) (*Driver, error) {
	p, err := c.plan()
	if err != nil {
		return nil, err
	}
	return &Driver{plan: p, run: d.Run, log: d.Log, table: nft.New()}, nil
}

// Close releases sockets. What is in the kernel stays and works on.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.host != nil {
		d.host.Close()
		d.host = nil
	}
	d.table.Close()
	d.shaping.Lock()
	defer d.shaping.Unlock()
	if d.shaper != nil {
		d.shaper.Close()
		d.shaper = nil
	}
	return nil
}

func (d *Driver) handle() (*netlink.Handle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.host == nil {
		h, err := netlink.Open()
		if err != nil {
			return nil, err
		}
		d.host = h
	}
	return d.host, nil
}

// Probe builds the whole thing in a namespace that is thrown away: bridge, cable, rules.
func (d *Driver) Probe(context.Context) (api.Capability, error) {
	if err := d.tryOut(); err != nil {
		return api.Capability{}, errs.New(errs.Unsupported, "network driver bridge: %w", err).
			WithHint("it needs root and a kernel with bridge, veth and nftables (inet, bridge, nat, fib); 'atoll doctor' says what is missing")
	}
	shaping := "htb"
	if d.tryShaping() != nil {
		shaping = "none" // an instance that has limits is refused here
	}
	isolation := "none"
	if d.plan.isolate {
		isolation = "tenant"
	}
	return api.Capability{Type: "network", Name: "bridge", Version: "nftables",
		Features: map[string]string{"subnet": d.plan.subnet.String(), "gateway": d.plan.gateway.String(), "isolation": isolation, "publish": "tcp,udp", "shaping": shaping}}, nil
}

func (d *Driver) tryOut() error {
	ns, err := netlink.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	guest, err := netlink.NewNamespace()
	if err != nil {
		return err
	}
	defer guest.Close()
	h, err := netlink.OpenAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	index, err := h.EnsureBridge(d.bridge(1500))
	if err != nil {
		return err
	}
	addr := d.plan.gateway.Next()
	if err := h.EnsurePort(guest, d.port("probe", addr, base{index: index, mtu: 1500})); err != nil {
		return err
	}
	return ns.Do(func() error {
		t := nft.New()
		defer t.Close()
		if err := t.Ensure(d.rules(nil)); err != nil {
			return err
		}
		return t.Set(nft.Port{ID: "probe", Iface: "av0", Addr: addr})
	})
}

func (d *Driver) bridge(mtu int) netlink.Bridge {
	return netlink.Bridge{Name: d.plan.bridge, ID: bridgeID, MAC: netlink.PortMAC(d.plan.gateway), MTU: mtu,
		Addr: netip.PrefixFrom(d.plan.gateway, d.plan.subnet.Bits())}
}

func (d *Driver) port(id string, a netip.Addr, b base) netlink.Port {
	return netlink.Port{Name: portName(id), ID: id, Bridge: b.index, MTU: b.mtu, Peer: guestName, MAC: netlink.PortMAC(a),
		Addr: netip.PrefixFrom(a, d.plan.subnet.Bits()), GW: d.plan.gateway}
}

func (d *Driver) rules(uplinks []string) nft.Config {
	return nft.Config{Bridge: d.plan.bridge, PortPrefix: portPrefix, Subnet: d.plan.subnet, Gateway: d.plan.gateway,
		DNS: d.plan.dns, Isolate: d.plan.isolate, Private: d.plan.private, Uplinks: uplinks, Untracked: d.plan.tunnels}
}

// portName is an instance's cable: hashed, because an interface's name holds 15 bytes.
func portName(id string) string {
	h := sha256.Sum256([]byte(id))
	return portPrefix + hex.EncodeToString(h[:6])
}

// Attach gives the instance its cable, address, routes and published ports.
func (d *Driver) Attach(ctx context.Context, netns string, s driver.Spec) error {
	if !idRE.MatchString(s.ID) {
		return errs.New(errs.Invalid, "instance ID %q must be 1-64 of a-z 0-9 -", s.ID)
	}
	switch s.Network.Mode {
	case "host":
		return d.Detach(ctx, s.ID)
	case "none":
		if err := d.Detach(ctx, s.ID); err != nil {
			return err
		}
		return loopbackUp(netns)
	case "bridge":
	default:
		return errs.New(errs.Invalid, "network mode %q of instance %s must be bridge, none or host", s.Network.Mode, s.ID)
	}
	p, err := d.portOf(s)
	if err != nil {
		return err
	}
	ns, err := netlink.OpenNamespace(netns)
	if err != nil {
		return fmt.Errorf("attach %s: %w", s.ID, err)
	}
	defer ns.Close()
	err = d.attach(ns, p, false)
	if errors.Is(err, errs.NotFound) { // the bridge went away since we made sure of it
		err = d.attach(ns, p, true)
	}
	if err == nil {
		to, from := s.BandsOf()
		err = d.Shape(ctx, driver.Cable{ID: s.ID, Name: guestName}, to, from)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", s.ID, err)
	}
	return nil
}

func (d *Driver) attach(ns *netlink.Namespace, p nft.Port, again bool) error {
	b, err := d.ensureBase(again)
	if err != nil {
		return err
	}
	// Rules first: they name the instance, so that whatever a kill leaves behind is found by Observe.
	if err := d.table.Set(p); err != nil {
		return err
	}
	h, err := d.handle()
	if err != nil {
		return err
	}
	if err := h.EnsurePort(ns, d.port(p.ID, p.Addr, b)); err != nil {
		return err
	}
	return netlink.ForgetUDP(p.Addr, d.table.UDP(p.ID))
}

func loopbackUp(netns string) error {
	ns, err := netlink.OpenNamespace(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.OpenAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.LoopbackUp()
}

// portOf reads and checks what the spec asks for.
func (d *Driver) portOf(s driver.Spec) (nft.Port, error) {
	addr, err := netip.ParseAddr(s.Network.Address)
	if err != nil || !d.plan.instance(addr) {
		return nft.Port{}, errs.New(errs.Invalid, "address %q of instance %s is not one for instances in %s", s.Network.Address, s.ID, d.plan.subnet)
	}
	if s.Instance == nil {
		return nft.Port{}, errs.New(errs.Internal, "spec of %s has no instance", s.ID)
	}
	p := nft.Port{ID: s.ID, Iface: portName(s.ID), Addr: addr, Tenant: s.Instance.Tenant, MAC: [6]byte(netlink.PortMAC(addr))}
	for _, port := range s.Instance.Spec.Ports {
		if port.Publish == 0 {
			continue
		}
		pub := nft.Published{Proto: tcp, Host: port.Publish, Port: port.Port}
		switch port.EffectiveProtocol() {
		case "tcp":
		case "udp":
			pub.Proto = udp
		default:
			return nft.Port{}, errs.New(errs.Invalid, "protocol %q of a port of instance %s must be tcp or udp", port.Protocol, s.ID)
		}
		if port.HostIP != "" {
			if pub.HostIP, err = netip.ParseAddr(port.HostIP); err != nil || !pub.HostIP.Unmap().Is4() {
				return nft.Port{}, errs.New(errs.Unsupported, "published address %q of instance %s must be IPv4: the bridge speaks nothing else", port.HostIP, s.ID).
					WithHint("publish on an IPv4 address of the host, or leave hostIP out")
			}
			pub.HostIP = pub.HostIP.Unmap()
		}
		p.Published = append(p.Published, pub)
	}
	return p, nil
}

// ensureBase makes what all instances share, when it was not made sure of yet, when
// somebody changed the packet filter since, or when again says so.
func (d *Driver) ensureBase(again bool) (base, error) {
	h, err := d.handle()
	if err != nil {
		return base{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fresh, err := d.table.Fresh()
	if err != nil {
		return base{}, err
	}
	if fresh && !again && d.base.index != 0 {
		return d.base, nil
	}
	d.base = base{}
	uplinks, err := h.Uplinks()
	if err != nil {
		return base{}, err
	}
	mtu, names := d.plan.mtu, []string(nil)
	for _, u := range uplinks {
		if mtu == 0 {
			mtu = u.MTU
		}
		if u.Name != d.plan.bridge {
			names = append(names, u.Name)
		}
	}
	if mtu == 0 {
		mtu = 1500
	}
	slices.Sort(names)
	if len(uplinks) > 0 {
		d.uplink.Store(speed(uplinks[0].Name))
	}
	// The rules stand before the bridge can carry anything and before loopback is routed to it.
	if err := d.table.Ensure(d.rules(names)); err != nil {
		return base{}, err
	}
	if err := d.table.AllowBeside(d.plan.bridge, driver.WayPrefix+"+"); err != nil {
		return base{}, err
	}
	index, err := h.EnsureBridge(d.bridge(mtu))
	if err != nil {
		return base{}, err
	}
	if _, err := netlink.SetSysctl("ipv4/conf/"+d.plan.bridge+"/route_localnet", "1"); err != nil {
		return base{}, err
	}
	if err := d.forwardOn(); err != nil {
		return base{}, err
	}
	d.base = base{index: index, mtu: mtu}
	return d.base, nil
}

// Reconcile puts back whatever of the shared part others removed: the bridge, our
// tables with the elements of all instances, our rules in Docker's chain.
func (d *Driver) Reconcile(context.Context) error {
	if _, err := d.ensureBase(true); err != nil {
		return err
	}
	d.mu.Lock()
	claims := d.claims
	d.mu.Unlock()
	if len(claims) == 0 {
		return nil
	}
	return netlink.SetClaims(claims)
}

const forwardKey = "ipv4/ip_forward"

func (d *Driver) forwardFile() string { return filepath.Join(d.run, "ip_forward") }

// forwardOn lets the host forward. That it was off before is written down first, in
// the directory that is gone at boot, as the setting itself is.
func (d *Driver) forwardOn() error {
	have, err := netlink.Sysctl(forwardKey)
	if err != nil || have == "1" {
		return err
	}
	if err := os.MkdirAll(d.run, 0o700); err != nil {
		return fmt.Errorf("write down ip_forward: %w", err)
	}
	if err := os.WriteFile(d.forwardFile(), []byte(have+"\n"), 0o600); err != nil {
		return fmt.Errorf("write down ip_forward: %w", err)
	}
	_, err = netlink.SetSysctl(forwardKey, "1")
	return err
}

// forwardBack undoes forwardOn, unless Docker, which needs forwarding too and found it
// on, has come meanwhile.
func (d *Driver) forwardBack() error {
	was, err := os.ReadFile(d.forwardFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what ip_forward was: %w", err)
	}
	docker, err := d.table.Docker()
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(was)) == "0" && !docker {
		if _, err := netlink.SetSysctl(forwardKey, "0"); err != nil {
			return err
		}
	}
	return os.Remove(d.forwardFile())
}

// Observe lists the instances that have a cable or elements here.
func (d *Driver) Observe(context.Context) ([]string, error) {
	h, err := d.handle()
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if id := l.ID(); id != "" && (l.Name == portName(id) || l.Name == turnName(id)) {
			ids[id] = true
		}
	}
	elements, err := d.table.Observe()
	if err != nil {
		return nil, err
	}
	for _, id := range elements {
		ids[id] = true
	}
	delete(ids, nft.FloatingID) // no instance
	return slices.Sorted(maps.Keys(ids)), nil
}

// Detach removes all of an instance: cable, neighbour, elements, flows.
func (d *Driver) Detach(_ context.Context, id string) error {
	// A socket of its own: the kernel answers a deletion only after every CPU has let go
	// of the link (10-30 ms), and nobody else should wait for that.
	h, err := netlink.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Delete(portName(id), id); err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	if err := h.Delete(turnName(id), id); err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	addr, ok, err := d.table.Addr(id)
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	ports := d.table.UDP(id)
	if b, err := h.Link(d.plan.bridge); err == nil && ok {
		if err := h.ForgetNeigh(b.Index, addr); err != nil {
			return fmt.Errorf("detach %s: %w", id, err)
		}
	}
	// Last, because they are what a later Observe would find.
	if err := d.table.Unset(id); err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	return netlink.ForgetUDP(netip.Addr{}, ports)
}

// Teardown removes every trace of the driver from the host.
func (d *Driver) Teardown(context.Context) error {
	h, err := d.handle()
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base = base{}
	d.claims = nil
	if err := netlink.SetClaims(nil); err != nil {
		return err
	}
	links, err := h.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if portRE.MatchString(l.Name) && (l.ID() != "" || l.Nameless()) {
			if err := h.DeleteIndex(l.Index); err != nil {
				return err
			}
		}
	}
	if err := h.DeleteBridge(d.bridge(0)); err != nil && !errors.Is(err, errs.Conflict) {
		return err // a bridge that is not ours stays, and is no reason to keep the rest
	}
	if err := d.forwardBack(); err != nil {
		return err
	}
	if err := d.table.ForgetBeside(); err != nil {
		return err
	}
	return d.table.Delete()
}
