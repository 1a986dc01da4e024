package netlink

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Frames are Ethernet frames as they come up from a link, and a way to send some by it. Closing it ends a Read.
type Frames struct{ f *os.File }

// FrameFilter says which frames are read.
type FrameFilter struct {
	etherType uint16
	program   []unix.SockFilter // sees frames from their first byte on
}

// What instances ask to learn who they are. Later fragments are no questions, and options of IPv4 are stepped over.
var (
	// Questions4 are those of DHCP: UDP to port 67.
	Questions4 = FrameFilter{unix.ETH_P_IP, []unix.SockFilter{
		load(unix.BPF_B, 14+9), unless(unix.IPPROTO_UDP, 6),
		load(unix.BPF_H, 14+6), {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x1fff, Jt: 4},
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 14}, {Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 14 + 2},
		unless(67, 1), pass(1 << 16), pass(0)}}
	// Questions6 are those of DHCPv6, UDP to port 547, and for routers.
	Questions6 = FrameFilter{unix.ETH_P_IPV6, []unix.SockFilter{
		load(unix.BPF_B, 14+6), unless(unix.IPPROTO_UDP, 3),
		load(unix.BPF_H, 14+40+2), unless(547, 5), pass(1 << 16),
		unless(unix.IPPROTO_ICMPV6, 3), load(unix.BPF_B, 14+40), unless(133, 1), pass(1 << 16), pass(0)}}
)

func load(size uint16, at uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | size | unix.BPF_ABS, K: at}
}

// unless skips some instructions where what was loaded is something else.
func unless(k uint32, skip uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: skip}
}

func pass(bytes uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: bytes}
}

// OpenFrames opens a socket of frames on a link of the namespace of the thread that calls it (Namespace.Do).
func OpenFrames(index int, filter FrameFilter) (*Frames, error) {
	const step = "open a socket of frames"
	// Of no protocol at first: it hears nothing before its filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, kernelError(step, err)
	}
	f := os.NewFile(uintptr(fd), "frames")
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter.program)), Filter: &filter.program[0]}) //nolint:gosec // a handful
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: filter.etherType<<8 | filter.etherType>>8, Ifindex: index})
	}
	if err != nil {
		f.Close()
		return nil, kernelError(step, err)
	}
	return &Frames{f}, nil
}

// Read gives one frame; what does not fit into b is cut off.
func (f *Frames) Read(b []byte) (int, error) { return f.f.Read(b) }

// Write sends one frame. errs.Unavailable: the link is down or has no room.
func (f *Frames) Write(b []byte) (int, error) {
	n, err := f.f.Write(b)
	if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) {
		return n, errs.New(errs.Unavailable, "send a frame: %w", err)
	}
	return n, err
}

// Close lets go of the socket.
func (f *Frames) Close() error { return f.f.Close() }
