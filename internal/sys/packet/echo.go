package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"atoll/internal/clock"
)

// Echo sends ICMP echo requests that are never fragmented.
type Echo struct {
	f    *os.File
	clk  clock.Clock
	six  bool
	id   uint16
	seq  uint16
	head int // of IP
}

// NewEcho opens a socket to one address. id tells its answers from those of others.
func NewEcho(clk clock.Clock, to netip.Addr, id uint16) (*Echo, error) {
	to = to.Unmap()
	e := &Echo{clk: clk, six: to.Is6(), id: id, head: 20}
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr = &unix.SockaddrInet4{}
	if e.six {
		domain, proto, e.head, sa = unix.AF_INET6, unix.IPPROTO_ICMPV6, 40, &unix.SockaddrInet6{Addr: to.As16()}
	} else {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", kind(err))
	}
	// PROBE: don't fragment, and do not believe what was learned about the path before.
	if e.six {
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}
	if err = errors.Join(err, unix.Connect(fd, sa)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ICMP to %s: %w", to, err)
	}
	e.f = os.NewFile(uintptr(fd), "icmp")
	return e, nil
}

// Least is the size of the smallest packet that can be sent.
func (e *Echo) Least() int { return e.head + 8 }

// Try sends one packet of size bytes, with its IP header, and waits for the answer. ok is false when none
// came in time, or the packet is too large for the interface.
func (e *Echo) Try(size int, wait time.Duration) (rtt time.Duration, ok bool, err error) {
	e.seq++
	b := make([]byte, max(size-e.head, 8))
	b[0] = 8
	if e.six {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], e.seq)
	for i := 8; i < len(b); i++ {
		b[i] = byte(i)
	}
	if !e.six { // the kernel does it for IPv6
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	begin := e.clk.Now()
	if err := e.f.SetReadDeadline(begin.Add(wait)); err != nil {
		return 0, false, err
	}
	if _, err := e.f.Write(b); err != nil {
		if errors.Is(err, unix.EMSGSIZE) {
			return 0, false, nil
		}
		if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
			return 0, false, nil
		}
		return 0, false, fmt.Errorf("send echo: %w", err)
	}
	in := make([]byte, 64<<10)
	for {
		n, err := e.f.Read(in)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, false, nil
		case errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPROTO):
			continue // what a router said; the answer may still come
		case err != nil:
			return 0, false, fmt.Errorf("read echo: %w", err)
		}
		if e.mine(in[:n]) {
			return e.clk.Now().Sub(begin), true, nil
		}
	}
}

// mine reports whether a packet answers the last request. IPv4 comes with its header.
func (e *Echo) mine(b []byte) bool {
	want := byte(129)
	if !e.six {
		if len(b) < 20 || len(b) < int(b[0]&15)*4 {
			return false
		}
		b, want = b[int(b[0]&15)*4:], 0
	}
	return len(b) >= 8 && b[0] == want && binary.BigEndian.Uint16(b[4:]) == e.id && binary.BigEndian.Uint16(b[6:]) == e.seq
}

// Close ends it.
func (e *Echo) Close() error { return e.f.Close() }

func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
