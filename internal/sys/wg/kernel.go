package wg

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"atoll/internal/errs"
)

// kernel is a device of the kernel.
type kernel struct {
	name string
	c    *wgctrl.Client
}

// OpenKernel opens the kernel's device of that name in the caller's namespace.
func OpenKernel(name string) (Device, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, errs.New(errs.Unsupported, "the kernel's WireGuard: %w", err)
	}
	return &kernel{name, c}, nil
}

func (k *kernel) Close() error { return k.c.Close() }

func (k *kernel) State() (State, error) {
	d, err := k.c.Device(k.name)
	if err != nil {
		return State{}, k.failed("read", err)
	}
	s := State{Public: Key(d.PublicKey), Port: uint16(d.ListenPort)} //nolint:gosec // a port
	if d.PrivateKey == (wgtypes.Key{}) {
		s.Public = Key{}
	}
	for _, p := range d.Peers {
		x := Peer{Key: Key(p.PublicKey), Handshake: p.LastHandshakeTime, Rx: p.ReceiveBytes, Tx: p.TransmitBytes}
		if p.Endpoint != nil {
			a := p.Endpoint.AddrPort()
			x.Endpoint = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
		for _, n := range p.AllowedIPs {
			a, _ := netip.AddrFromSlice(n.IP)
			ones, _ := n.Mask.Size()
			x.Allowed = append(x.Allowed, netip.PrefixFrom(a.Unmap(), ones))
		}
		s.Peers = append(s.Peers, x)
	}
	return s, nil
}

func (k *kernel) Apply(c Change) error {
	var cfg wgtypes.Config
	if c.Private != nil {
		p := wgtypes.Key(*c.Private)
		cfg.PrivateKey = &p
	}
	if c.Port != nil {
		p := int(*c.Port)
		cfg.ListenPort = &p
	}
	for _, key := range c.Drop {
		cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
	}
	for _, p := range c.Put {
		x := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.Key), ReplaceAllowedIPs: true}
		if p.Endpoint.IsValid() {
			x.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
		}
		for _, a := range p.Allowed {
			x.AllowedIPs = append(x.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())})
		}
		cfg.Peers = append(cfg.Peers, x)
	}
	if err := k.c.ConfigureDevice(k.name, cfg); err != nil {
		return k.failed("configure", err)
	}
	return nil
}

func (k *kernel) failed(step string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.Unavailable, "%s WireGuard %s: it is gone", step, k.name)
	}
	return errs.New(errs.Unavailable, "%s WireGuard %s: %w", step, k.name, err)
}
