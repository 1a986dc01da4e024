package overlay

import (
	"context"
	"io"
	"net"
	"net/netip"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

// Listen opens a TCP socket at an address of a network's gateway.
func (d *Driver) Listen(vni uint32, at netip.AddrPort) (net.Listener, error) {
	return open(d, vni, func(n *network) (net.Listener, error) {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", at.String())
		if err != nil {
			return nil, err
		}
		return &listener{l, n}, nil
	})
}

// ListenPacket opens a UDP socket at an address of a network's gateway.
func (d *Driver) ListenPacket(vni uint32, at netip.AddrPort) (net.PacketConn, error) {
	return open(d, vni, func(n *network) (net.PacketConn, error) {
		c, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", at.String())
		if err != nil {
			return nil, err
		}
		return &packets{c, n}, nil
	})
}

// Questions hears what a network's instances ask to learn who they are, as it comes up from the switch.
func (d *Driver) Questions(vni uint32, six bool) (driver.Questions, error) {
	filter := netlink.Questions4
	if six {
		filter = netlink.Questions6
	}
	return open(d, vni, func(n *network) (*questions, error) {
		f, err := netlink.OpenFrames(n.record.Index, filter)
		if err != nil {
			return nil, err
		}
		return &questions{f, n}, nil
	})
}

// open makes a socket in a network's namespace and notes it there.
func open[T io.Closer](d *Driver, vni uint32, listen func(*network) (T, error)) (s T, err error) {
	n, err := d.network(vni)
	if err != nil {
		return s, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ns == nil || !n.known { // the gateway's addresses may not be there
		return s, errs.New(errs.Unavailable, "network %d is not on this host yet", vni)
	}
	err = n.ns.Do(func() error {
		s, err = listen(n)
		return err
	})
	if err != nil {
		return s, errs.New(errs.Internal, "network %d: %w", vni, err)
	}
	if n.sockets == nil {
		n.sockets = map[io.Closer]bool{}
	}
	n.sockets[s] = true
	return s, nil
}

// hangUp closes what others opened: the namespace lives as long as they do. It is called with mu held.
func (n *network) hangUp() {
	for s := range n.sockets {
		switch s := s.(type) {
		case *listener:
			s.Listener.Close()
		case *packets:
			s.PacketConn.Close()
		case *questions:
			s.Frames.Close()
		}
	}
	n.sockets = nil
}

func (n *network) closed(s io.Closer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sockets, s)
}

type listener struct {
	net.Listener
	n *network
}

// Close closes the socket and forgets it.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.n.closed(l)
	return err
}

type packets struct {
	net.PacketConn
	n *network
}

// Close closes the socket and forgets it.
func (p *packets) Close() error {
	err := p.PacketConn.Close()
	p.n.closed(p)
	return err
}

type questions struct {
	*netlink.Frames
	n *network
}

// MAC is the gateway's.
func (q *questions) MAC() [6]byte { return [6]byte(gatewayMAC) }

// MTU is the network's.
func (q *questions) MTU() int {
	q.n.mu.Lock()
	defer q.n.mu.Unlock()
	return q.n.mtu
}

// Close closes the socket and forgets it.
func (q *questions) Close() error {
	err := q.Frames.Close()
	q.n.closed(q)
	return err
}
