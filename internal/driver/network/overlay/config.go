package overlay

import (
	"net/netip"
	"strconv"

	"atoll/internal/errs"
)

// Config is the node's section for this driver.
type Config struct {
	// Tunnel is the address of this host to which the others send what is for its instances;
	// without one the host takes no part in networks of tenants. Default: that by which it reaches the others.
	Tunnel string `json:"tunnel,omitempty"`
	// TunnelPort is the UDP port of tunnels, the same on all hosts; default 4798. It is not VXLAN's
	// usual one, 4789, on which Docker's swarm and others have devices of another kind.
	TunnelPort int `json:"tunnelPort,omitempty"`
	// Outside is the part of the host's own bridge in which networks of tenants have their way
	// out, an address each; /16 to /30. Default: the last sixteenth of the bridge's subnet.
	Outside string `json:"outside,omitempty"`
	// MTU of networks in bytes, 1280 to 65535; default: what the way to the other hosts lets pass, less a tunnel's header.
	MTU int `json:"mtu,omitempty"`
}

// DefaultPort is Config.TunnelPort when it is not given.
const DefaultPort = 4798

// plan is the config with its defaults, parsed.
type plan struct {
	tunnel  netip.Addr // invalid: none
	port    uint16
	outside netip.Prefix // invalid: there is no way out
	mtu     int
}

func (c Config) plan() (plan, error) {
	p := plan{port: DefaultPort, mtu: c.MTU}
	var bad []errs.Field
	var err error
	if c.Tunnel != "" {
		if p.tunnel, err = netip.ParseAddr(c.Tunnel); err != nil || p.tunnel.IsUnspecified() || p.tunnel.IsMulticast() || p.tunnel.Zone() != "" {
			bad = append(bad, errs.Field{Field: "tunnel", Value: c.Tunnel, Rule: "must be an address of this host that the others reach", Example: "192.0.2.7"})
		}
		p.tunnel = p.tunnel.Unmap()
	}
	if c.TunnelPort != 0 {
		if c.TunnelPort < 1 || c.TunnelPort > 65535 {
			bad = append(bad, errs.Field{Field: "tunnelPort", Value: strconv.Itoa(c.TunnelPort), Rule: "must be 1 to 65535", Example: "4798"})
		}
		p.port = uint16(c.TunnelPort) //nolint:gosec // checked above
	}
	if c.Outside != "" {
		if p.outside, err = netip.ParsePrefix(c.Outside); err != nil || !p.outside.Addr().Is4() || p.outside.Bits() < 16 || p.outside.Bits() > 30 || p.outside != p.outside.Masked() {
			bad = append(bad, errs.Field{Field: "outside", Value: c.Outside, Rule: "must be an IPv4 network from /16 to /30 inside that of the host's bridge", Example: "10.88.240.0/20"})
		}
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		bad = append(bad, errs.Field{Field: "mtu", Value: strconv.Itoa(c.MTU), Rule: "must be 1280 to 65535", Example: "1450"})
	}
	return p, errs.InvalidFields("network driver overlay", bad)
}

// header is what a tunnel adds to a packet: Ethernet 14, VXLAN 8, UDP 8, and IP.
func header(local netip.Addr) int {
	if local.Is6() {
		return 70
	}
	return 50
}
