// Package packet is the door to packets as they are: what passes an interface, and ICMP
// echoes of a size. Sockets belong to the network namespace of the thread that opens
// them. It starts no goroutine, and changes nothing on the host.
package packet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Tap reads what passes one interface.
type Tap struct {
	f    *os.File
	oob  []byte
	lost uint64
}

const tapBuffer = 4 << 20 // of the kernel, for what comes while we write

// Open taps an interface by its index.
func Open(ifindex int) (*Tap, error) {
	// The protocol is given to bind: between socket and bind every interface would be heard.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", kind(err))
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapBuffer),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ALL), Ifindex: ifindex}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tap interface %d: %w", ifindex, kind(err))
	}
	return &Tap{f: os.NewFile(uintptr(fd), "packets"), oob: make([]byte, 128)}, nil
}

// OpenFirst taps the first interface that is up and is not the loopback.
func OpenFirst() (*Tap, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range list {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return Open(i.Index)
		}
	}
	return nil, errs.New(errs.Conflict, "there is no interface but the loopback")
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }

// Read waits for a packet until ctx ends. n bytes of it are in b; size is the whole.
func (t *Tap) Read(b []byte) (n, size int, at time.Time, err error) {
	rc, err := t.f.SyscallConn()
	if err != nil {
		return 0, 0, at, err
	}
	var oobn int
	var rerr error
	err = rc.Read(func(fd uintptr) bool {
		size, oobn, _, _, rerr = unix.Recvmsg(int(fd), b, t.oob, unix.MSG_TRUNC)
		return !errors.Is(rerr, unix.EAGAIN) && !errors.Is(rerr, unix.EINTR)
	})
	if err == nil {
		err = rerr
	}
	if err != nil {
		return 0, 0, at, err
	}
	return min(size, len(b)), size, stamp(t.oob[:oobn]), nil
}

// stamp is when the kernel saw it.
func stamp(oob []byte) time.Time {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}
	}
	for _, m := range ms {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(le(m.Data[:8])), int64(le(m.Data[8:16])))
		}
	}
	return time.Time{}
}

func le(b []byte) (v uint64) {
	for i, x := range b {
		v |= uint64(x) << (8 * i)
	}
	return v
}

// Each calls fn for every packet until ctx ends, which is no error, or fn fails.
func (t *Tap) Each(ctx context.Context, snaplen int, fn func(at time.Time, data []byte, size int) error) error {
	stop := context.AfterFunc(ctx, func() { _ = t.f.SetReadDeadline(time.Unix(1, 0)) }) // wakes the reader
	defer stop()
	b := make([]byte, snaplen)
	for {
		n, size, at, err := t.Read(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read packets: %w", kind(err))
		}
		if err := fn(at, b[:n], size); err != nil {
			return err
		}
	}
}

// Lost is how many packets the kernel had no room for.
func (t *Tap) Lost() uint64 {
	rc, err := t.f.SyscallConn()
	if err != nil {
		return t.lost
	}
	_ = rc.Control(func(fd uintptr) {
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			t.lost += uint64(st.Drops) // reading sets it to zero
		}
	})
	return t.lost
}

// Close ends it.
func (t *Tap) Close() error { return t.f.Close() }

func kind(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return errs.New(errs.Denied, "%w", err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENETDOWN):
		return errs.New(errs.Conflict, "the interface went away, as when its instance ends")
	}
	return err
}
