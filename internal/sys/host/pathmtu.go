package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// The least that every path lets pass is that of RFC 8200, section 5.
const (
	leastMTU   = 1280
	echoTries  = 2
	echoWait   = 300 * time.Millisecond
	echoHeader = 8
)

// PathMTU finds how large a packet may be on the way to an address, at most size bytes with its header: it sends
// echo requests that no router may cut up, whatever the kernel has learned of the way. errs.Unavailable: nothing answers,
// not even to a small one. It needs root.
func PathMTU(ctx context.Context, to netip.Addr, size int) (int, error) {
	e, err := newEcho(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(e.fd)
	if ok, err := e.passes(ctx, size); ok || err != nil {
		return size, err
	}
	low, high := min(leastMTU, size), size // low passes, high does not
	if ok, err := e.passes(ctx, low); err != nil {
		return 0, err
	} else if !ok {
		return 0, errs.New(errs.Unavailable, "%s answers no echo request", to)
	}
	for high-low > 1 {
		mid := (low + high) / 2
		ok, err := e.passes(ctx, mid)
		switch {
		case err != nil:
			return 0, err
		case ok:
			low = mid
		default:
			high = mid
		}
	}
	return low, nil
}

// echo asks one address.
type echo struct {
	fd   int
	to   netip.Addr
	seq  uint16
	mark [8]byte // by which answers to this socket's questions are known
}

func newEcho(to netip.Addr) (*echo, error) {
	family, proto, level, option := unix.AF_INET, unix.IPPROTO_ICMP, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if to.Is6() {
		family, proto, level, option = unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if errors.Is(err, unix.EPERM) {
		return nil, errs.New(errs.Denied, "socket for echo requests: %w", err).WithHint("run it as root")
	}
	if err != nil {
		return nil, fmt.Errorf("socket for echo requests: %w", err)
	}
	tv := unix.NsecToTimeval(int64(echoWait))
	err = unix.SetsockoptInt(fd, level, option, unix.IP_PMTUDISC_PROBE) // the same number for IPv6
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	}
	e := &echo{fd: fd, to: to}
	if err == nil {
		_, err = unix.Getrandom(e.mark[:], 0)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket for echo requests: %w", err)
	}
	return e, nil
}

func (e *echo) sockaddr() unix.Sockaddr {
	if e.to.Is4() {
		return &unix.SockaddrInet4{Addr: e.to.As4()}
	}
	return &unix.SockaddrInet6{Addr: e.to.As16()}
}

// passes reports whether a packet of a size is answered.
func (e *echo) passes(ctx context.Context, size int) (bool, error) {
	head, ask := 20, byte(8)
	if e.to.Is6() {
		head, ask = 40, 128
	}
	b := make([]byte, max(size-head, echoHeader+len(e.mark)))
	for range echoTries {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		e.seq++
		b[0], b[2], b[3] = ask, 0, 0
		binary.BigEndian.PutUint16(b[6:], e.seq)
		copy(b[echoHeader:], e.mark[:])
		if ask == 8 { // of IPv6 the kernel makes it
			binary.BigEndian.PutUint16(b[2:], checksum(b))
		}
		err := unix.Sendto(e.fd, b, 0, e.sockaddr())
		if errors.Is(err, unix.EMSGSIZE) {
			return false, nil // our own link is smaller
		}
		if err != nil {
			return false, errs.New(errs.Unavailable, "send to %s: %w", e.to, err)
		}
		if e.answered(len(b)) {
			return true, nil
		}
	}
	return false, nil
}

// answered waits for the answer to the last request, whole.
func (e *echo) answered(size int) bool {
	buf := make([]byte, 65536)
	for range 3 * echoTries { // others' answers come here, too, as it is a raw socket
		n, _, err := unix.Recvfrom(e.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return false
		}
		if err != nil {
			continue
		}
		b, want := buf[:n], byte(129)
		if e.to.Is4() {
			want = 0
			if n < 20 {
				continue
			}
			b = b[min(n, int(b[0]&15)*4):]
		}
		if len(b) == size && b[0] == want && binary.BigEndian.Uint16(b[6:]) == e.seq && [8]byte(b[echoHeader:]) == e.mark {
			return true
		}
	}
	return false
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	s := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s) //nolint:gosec // folded
}
