package bridge

import (
	"net/netip"
	"regexp"

	"atoll/api"
	"atoll/internal/errs"
)

// Config is the node's section for this driver.
type Config struct {
	// Bridge is the name of the bridge; default "atoll0". One that exists and is not
	// ours is refused, never taken over.
	Bridge string `json:"bridge,omitempty"`
	// Subnet is the bridge's IPv4 network, /8 to /30; default "10.88.0.0/16". Its first
	// address is the host's own, the instances' gateway. It must not overlap a network
	// the host talks to.
	Subnet string `json:"subnet,omitempty"`
	// MTU in bytes, 576 to 65535; default that of the host's default route, so that no
	// packet has to be split on its way out, or 1500 where there is no such route.
	MTU int `json:"mtu,omitempty"`
	// IsolateTenants lets instances reach only instances of their own tenant over the
	// bridge; default true. Published ports are reachable either way.
	IsolateTenants *bool `json:"isolateTenants,omitempty"`
	// DNS lets instances ask port 53 of the gateway address; default false, because
	// something must listen there. Nothing else of the host is open to them but ping and
	// published ports.
	DNS bool `json:"dns,omitempty"`
	// PrivateInterfaces are beginnings of names of interfaces that instances are never
	// forwarded to, except for ports published there: other software's networks on the
	// same host. Default: docker, br-, cni, podman, virbr, lxdbr, lxcbr, incusbr. An
	// interface with a default route is always allowed.
	PrivateInterfaces []string `json:"privateInterfaces,omitempty"`
	// Bandwidth is what the host's way to others carries in each direction, in bits per second; at
	// least 1M. Guarantees of the network are kept out of it. Default: what the interface with the default
	// route says of itself; many virtual ones say nothing, and then nothing is known.
	Bandwidth string `json:"bandwidth,omitempty"`
	// Untracked are UDP ports of tunnels between hosts: the host keeps no
	// connections of them.
	Untracked []uint16 `json:"untracked,omitempty"`
}

var ifaceRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}$`)

// plan is the config with its defaults, parsed.
type plan struct {
	bridge  string
	subnet  netip.Prefix
	gateway netip.Addr
	mtu     int // 0: that of the uplink
	isolate bool
	dns     bool
	private []string
	uplink  int64 // bits per second; 0: as the interface says
	tunnels []uint16
}

func (c Config) plan() (plan, error) {
	p := plan{bridge: c.Bridge, mtu: c.MTU, isolate: c.IsolateTenants == nil || *c.IsolateTenants, dns: c.DNS, private: c.PrivateInterfaces, tunnels: c.Untracked}
	var bad []errs.Field
	if p.bridge == "" {
		p.bridge = "atoll0"
	}
	if !ifaceRE.MatchString(p.bridge) {
		bad = append(bad, errs.Field{Field: "bridge", Value: p.bridge, Rule: "must be an interface name of up to 15 letters, digits, . _ -", Example: "atoll0"})
	}
	subnet := c.Subnet
	if subnet == "" {
		subnet = "10.88.0.0/16"
	}
	var err error
	if p.subnet, err = netip.ParsePrefix(subnet); err != nil || !p.subnet.Addr().Is4() || p.subnet.Bits() < 8 || p.subnet.Bits() > 30 || p.subnet.Masked() != p.subnet {
		bad = append(bad, errs.Field{Field: "subnet", Value: subnet, Rule: "must be an IPv4 network from /8 to /30, host bits zero", Example: "10.88.0.0/16"})
	} else {
		p.gateway = p.subnet.Addr().Next()
	}
	if c.Bandwidth != "" {
		if p.uplink, err = api.ParseQuantity(api.NetBandwidth, c.Bandwidth); err != nil || p.uplink < 1e6 {
			bad = append(bad, errs.Field{Field: "bandwidth", Value: c.Bandwidth, Rule: "must be bits per second, at least 1M", Example: "10G"})
		}
	}
	if p.mtu != 0 && (p.mtu < 576 || p.mtu > 65535) {
		bad = append(bad, errs.Field{Field: "mtu", Rule: "must be 576 to 65535", Example: "1500"})
	}
	if p.private == nil {
		p.private = []string{"docker", "br-", "cni", "podman", "virbr", "lxdbr", "lxcbr", "incusbr"}
	}
	for _, n := range p.private {
		if !ifaceRE.MatchString(n) {
			bad = append(bad, errs.Field{Field: "privateInterfaces", Value: n, Rule: "must be the beginning of an interface name", Example: "docker"})
		}
	}
	return p, errs.InvalidFields("network driver bridge", bad)
}

// instance reports whether a may be an instance's address.
func (p plan) instance(a netip.Addr) bool {
	if !a.Is4() || !p.subnet.Contains(a) || a == p.subnet.Addr() || a == p.gateway {
		return false
	}
	last := !p.subnet.Contains(a.Next())
	return !last // the last one is the broadcast address
}
