package encrypt

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/nft"
	"atoll/internal/sys/wg"
)

// DeviceName is the link of WireGuard on every host.
const DeviceName = "atoll-wg"

// How the device comes to be.
const (
	ByKernel  = "kernel"
	ByProcess = "process"
)

// Host is the machine as this package needs it.
type Host interface {
	// Ensure makes the device exist, addressed and up. errs.Unsupported: this host cannot.
	Ensure(ctx context.Context, inner netip.Prefix, outer netip.Addr) (d wg.Device, by string, err error)
	// Lives waits until the process that is the device ends, or stop is closed; at once where there is none.
	Lives(stop <-chan struct{})
	// Shut refuses tunnels in the clear, Unshut takes that back, Remove takes the device away.
	Shut(port uint16) error
	Unshut() error
	Remove(ctx context.Context) error
}

// System is the Host that this process runs on.
type System struct {
	Dir   string // of the process's socket and lock; gone at boot
	Name  string // of the device; default DeviceName
	Clock clock.Clock
	// Spawn starts the process that serves the device in Dir; it outlives this one.
	Spawn func(dir, name string, mtu int) error
	// NoKernel has the process used also where the kernel has WireGuard.
	NoKernel bool

	shut uint16 // the port that Shut wrote rules for
}

func (s *System) name() string {
	if s.Name == "" {
		return DeviceName
	}
	return s.Name
}

// What WireGuard adds to a packet: IP, UDP 8, and 32 of its own.
const (
	over4 = 20 + 8 + 32
	over6 = 40 + 8 + 32
)

// mtuOf is what fits through WireGuard.
func mtuOf(h *netlink.Handle, outer netip.Addr) (int, error) {
	if outer.IsLoopback() { // there are no other hosts
		return 1500 - over6, nil
	}
	l, err := h.LinkWith(outer)
	if err != nil {
		return 0, err
	}
	if outer.Is4() {
		return l.MTU - over4, nil
	}
	return l.MTU - over6, nil
}

// Ensure takes the kernel's WireGuard where there is one.
func (s *System) Ensure(ctx context.Context, inner netip.Prefix, outer netip.Addr) (wg.Device, string, error) {
	h, err := netlink.Open()
	if err != nil {
		return nil, "", err
	}
	defer h.Close()
	mtu, err := mtuOf(h, outer)
	if err != nil {
		return nil, "", err
	}
	l, by, err := s.link(ctx, h, mtu)
	if err != nil {
		return nil, "", err
	}
	if _, err := netlink.SetSysctl("ipv6/conf/"+s.name()+"/disable_ipv6", "0"); err != nil {
		return nil, "", errs.New(errs.Unsupported, "this host has no IPv6, which hosts speak inside of WireGuard: %w", err).
			WithHint("boot it without ipv6.disable=1; what goes through the cables may stay IPv4")
	}
	if err := h.Dress(l, "encryption", mtu, inner); err != nil {
		return nil, "", err
	}
	if by == ByProcess {
		return wg.OpenProcess(s.Dir, s.name(), s.Clock), by, nil
	}
	d, err := wg.OpenKernel(s.name())
	return d, by, err
}

// link finds the device or makes it.
func (s *System) link(ctx context.Context, h *netlink.Handle, mtu int) (netlink.Link, string, error) {
	pid, err := wg.Process(s.Dir, s.name())
	if err != nil {
		return netlink.Link{}, "", err
	}
	l, err := h.Link(s.name())
	switch {
	case err == nil && pid != 0 && l.Kind == netlink.KindTun:
		return l, ByProcess, nil
	case err == nil && l.Kind == netlink.KindWireguard && ours(l):
		return l, ByKernel, nil
	case err == nil:
		return l, "", errs.New(errs.Conflict, "interface %s exists and is not ours", s.name()).WithHint("remove it: ip link del %s", s.name())
	case !errors.Is(err, errs.NotFound):
		return l, "", err
	}
	if !s.NoKernel && pid == 0 {
		err := h.CreateWireguard(s.name())
		if err == nil {
			l, err = h.Link(s.name())
			return l, ByKernel, err
		}
		if !errors.Is(err, errs.Unsupported) {
			return l, "", err
		}
	}
	l, err = s.process(ctx, h, mtu)
	return l, ByProcess, err
}

// ours is also what was made and not named before a kill.
func ours(l netlink.Link) bool { return l.ID() != "" || l.Alias == "" && !l.Up }

// comes is how long a process may take to make its device, in steps of stepWait.
const (
	stepWait = 10 * time.Millisecond
	comes    = 500
)

func (s *System) process(ctx context.Context, h *netlink.Handle, mtu int) (netlink.Link, error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return netlink.Link{}, errs.New(errs.Unavailable, "directory of WireGuard: %w", err)
	}
	if err := s.Spawn(s.Dir, s.name(), mtu); err != nil {
		return netlink.Link{}, errs.New(errs.Unavailable, "start the process of WireGuard: %w", err)
	}
	for range comes {
		pid, err := wg.Process(s.Dir, s.name())
		if err != nil {
			return netlink.Link{}, err
		}
		l, err := h.Link(s.name())
		if err == nil && pid != 0 {
			if _, err = wg.OpenProcess(s.Dir, s.name(), s.Clock).State(); err == nil {
				return l, nil
			}
		}
		if err := s.Clock.Sleep(ctx, stepWait); err != nil {
			return netlink.Link{}, err
		}
	}
	return netlink.Link{}, errs.New(errs.Unsupported, "neither the kernel nor a process gives this host WireGuard").
		WithHint("load the module wireguard, or tun for the process; %s says why it ended", filepath.Join(s.Dir, s.name()+".log"))
}

// Lives waits for the end of the process.
func (s *System) Lives(stop <-chan struct{}) { wg.Lives(s.Dir, s.name(), stop) }

// Shut is the host's packet filter's.
func (s *System) Shut(port uint16) error {
	if s.shut == port {
		if is, err := nft.IsShut(); err == nil && is {
			return nil
		}
	}
	if err := nft.Shut(s.name(), port); err != nil {
		return err
	}
	s.shut = port
	return nil
}

// Unshut opens the host again.
func (s *System) Unshut() error {
	s.shut = 0
	is, err := nft.IsShut()
	if err != nil || !is {
		return err
	}
	return nft.Unshut()
}

// Remove ends the process, or deletes the kernel's device. What is not ours stays.
func (s *System) Remove(ctx context.Context) error {
	if err := wg.End(s.Dir, s.name(), func(d time.Duration) error { return s.Clock.Sleep(ctx, d) }); err != nil {
		return err
	}
	h, err := netlink.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.Link(s.name())
	if errors.Is(err, errs.NotFound) || err == nil && (l.Kind != netlink.KindWireguard || !ours(l)) {
		return nil
	}
	if err != nil {
		return err
	}
	return h.DeleteIndex(l.Index)
}

// Teardown takes every trace of encryption off a host, but for its keys.
func Teardown(ctx context.Context, h Host) error {
	return errors.Join(h.Remove(ctx), h.Unshut())
}
