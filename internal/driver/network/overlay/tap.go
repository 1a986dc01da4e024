package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/packet"
)

// Tap copies what passes the host's end of a wire. It ends with the wire: the network's namespace lives on as
// long as the socket.
func (d *Driver) Tap(ctx context.Context, vni uint32, addr netip.Addr, snaplen int, fn func(driver.Frame) error) (uint64, error) {
	n, w, err := d.wireAt(vni, addr)
	if err != nil {
		return 0, err
	}
	ns, err := n.space()
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	return tap(ctx, ns, func() (*packet.Tap, error) { return packet.Open(w.Port) }, snaplen, fn)
}

// space opens the network's namespace once more.
func (n *network) space() (*netlink.Namespace, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ns == nil {
		return nil, errs.New(errs.Unavailable, "network %d is not on this host yet", n.record.Net.VNI)
	}
	return netlink.OpenNamespace(n.ns.Path())
}

// TapInside copies what passes an instance's own first interface.
func (d *Driver) TapInside(ctx context.Context, netns string, snaplen int, fn func(driver.Frame) error) (uint64, error) {
	ns, err := netlink.OpenNamespace(netns)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	return tap(ctx, ns, packet.OpenFirst, snaplen, fn)
}

func tap(ctx context.Context, ns *netlink.Namespace, open func() (*packet.Tap, error), snaplen int, fn func(driver.Frame) error) (uint64, error) {
	var t *packet.Tap
	err := ns.Do(func() (err error) {
		t, err = open()
		return err
	})
	if err != nil {
		return 0, err
	}
	defer t.Close()
	err = t.Each(ctx, snaplen, func(at time.Time, data []byte, size int) error {
		return fn(driver.Frame{At: at, Data: data, Size: size})
	})
	return t.Lost(), err
}

// How a path is tried.
const (
	echoes   = 5
	echoSize = 84 // as ping sends them
	echoWait = 500 * time.Millisecond
	dialWait = 2 * time.Second
	echoID   = 0xa701
)

// Reach tries a path from inside a namespace.
func (d *Driver) Reach(ctx context.Context, netns string, p driver.Probe) (driver.Reached, error) {
	var out driver.Reached
	if !p.To.IsValid() {
		return out, errs.InvalidFields("probe", []errs.Field{{Field: "to", Rule: "must be an address", Example: "10.1.0.5"}})
	}
	ns, err := netlink.OpenNamespace(netns)
	if err != nil {
		return out, err
	}
	defer ns.Close()
	if err := ns.Do(func() (err error) { out.MTU, err = mtuTo(p.To); return err }); err != nil {
		return out, err
	}
	if p.Echo {
		if err := d.echo(ctx, ns, p.To, &out); err != nil {
			return out, fmt.Errorf("echo to %s: %w", p.To, err)
		}
	}
	if p.Port != 0 && ctx.Err() == nil {
		d.connect(ctx, ns, netip.AddrPortFrom(p.To, p.Port), &out)
	}
	return out, ctx.Err()
}

// mtuTo is that of the interface by which an address is reached. Connecting a UDP socket sends nothing.
func mtuTo(to netip.Addr) (int, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return 0, errs.New(errs.Conflict, "the instance has no way to %s: %w", to, err)
	}
	defer c.Close()
	local := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
	list, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			return 0, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == local {
				return min(i.MTU, 65_535), nil
			}
		}
	}
	return 0, errs.New(errs.Conflict, "no interface of the instance has address %s", local)
}

// echo measures the round trip with small packets, then finds the largest that passes.
func (d *Driver) echo(ctx context.Context, ns *netlink.Namespace, to netip.Addr, out *driver.Reached) error {
	var e *packet.Echo
	if err := ns.Do(func() (err error) { e, err = packet.NewEcho(d.clock, to, echoID); return err }); err != nil {
		return err
	}
	defer e.Close()
	var rtts []time.Duration
	for range echoes {
		rtt, ok, err := e.Try(echoSize, echoWait)
		if err != nil || ctx.Err() != nil {
			return err
		}
		if out.Sent++; ok {
			rtts = append(rtts, rtt)
		} else if out.Sent >= 3 && len(rtts) == 0 {
			return nil // nobody is there, or nothing comes through
		}
	}
	if out.Answered = len(rtts); out.Answered == 0 {
		return nil
	}
	slices.Sort(rtts)
	out.RTT, out.Largest = rtts[len(rtts)/2], echoSize
	passes := func(size int) (bool, error) { // once more: one may be lost by itself
		for range 2 {
			if _, ok, err := e.Try(size, echoWait); ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	}
	low, high := echoSize, out.MTU+1 // passes, does not
	for try := out.MTU; low+1 < high && ctx.Err() == nil; try = (low + high) / 2 {
		ok, err := passes(try)
		if err != nil {
			return err
		}
		if ok {
			low = try
		} else {
			high = try
		}
	}
	out.Largest = low
	return nil
}

// connect opens a TCP connection and closes it.
func (d *Driver) connect(ctx context.Context, ns *netlink.Namespace, to netip.AddrPort, out *driver.Reached) {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	begin := d.clock.Now()
	err := ns.Do(func() error { // an address needs no other goroutine than this one
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		return c.Close()
	})
	out.TCPTook = d.clock.Now().Sub(begin)
	switch {
	case err == nil:
		out.TCP = "connected"
	case errors.Is(err, syscall.ECONNREFUSED):
		out.TCP = "refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		out.TCP = "timeout"
	default:
		out.TCP = "unreachable"
	}
}
