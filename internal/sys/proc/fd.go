package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// WriteFIFO writes b to a FIFO that somebody reads; os.ErrNotExist when there is none, or
// nobody reads it.
func WriteFIFO(path string, b []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return os.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if n, err := unix.Write(fd, b); err != nil || n != len(b) {
		return fmt.Errorf("write to %s: %w", path, err)
	}
	return nil
}

// DialPacket connects to a SOCK_SEQPACKET socket, however long its path is.
func DialPacket(path string) (*os.File, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	addr := &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(path)}
	if err := unix.Connect(fd, addr); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), path), nil
}

// ShutdownRead tells the peer that nothing is read from it.
func ShutdownRead(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.Shutdown(int(fd), unix.SHUT_RD) }); err != nil {
		return err
	}
	return serr
}

// FDSocket is a listening unix socket that receives one file descriptor, as an OCI
// runtime's --console-socket.
type FDSocket struct {
	Path string
	fd   int
	conn int // who connected, but has not sent yet; -1: nobody
	dir  string
}

// ListenFD makes the socket under dir. Its path may be longer than an address
// allows; PathFor is what a process in the same directory tree uses.
func ListenFD(dir, name string) (*FDSocket, error) {
	path := filepath.Join(dir, name)
	if len(path) > 100 {
		return nil, fmt.Errorf("socket path %s is longer than 100 bytes: choose a shorter run directory", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	_ = os.Remove(path)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &FDSocket{Path: path, fd: fd, conn: -1, dir: dir}, nil
}

// Receive waits up to d for the descriptor. After os.ErrDeadlineExceeded it may be called again:
// who has connected in the meantime may still send.
func (s *FDSocket) Receive(d time.Duration) (*os.File, error) {
	if s.conn < 0 {
		if err := pollIn(s.fd, d); err != nil {
			return nil, fmt.Errorf("wait for a connection: %w", err)
		}
		conn, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		s.conn = conn
	}
	if err := pollIn(s.conn, d); err != nil {
		return nil, fmt.Errorf("wait for a descriptor: %w", err)
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(s.conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive a descriptor: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("no descriptor was sent (%w)", errors.Join(err, unix.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("no descriptor was sent (%w)", errors.Join(err, unix.EBADMSG))
	}
	_ = unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "console"), nil
}

func pollIn(fd int, d time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(d/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return os.ErrDeadlineExceeded
		}
		return nil
	}
}

// Close removes the socket.
func (s *FDSocket) Close() {
	_ = unix.Close(s.fd)
	if s.conn >= 0 {
		_ = unix.Close(s.conn)
		s.conn = -1
	}
	_ = os.Remove(s.Path)
}

// SetWinsize gives a terminal its size.
func SetWinsize(f *os.File, cols, rows uint16) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}); err != nil {
		return err
	}
	return serr
}

// OpenTerminal makes a terminal in raw mode: ours is read and written by us, theirs is what a
// program gets. What ours is given is not shown again.
func OpenTerminal() (ours, theirs *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	ours = os.NewFile(uintptr(fd), "terminal")
	peer, err := openPeer(fd)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make a terminal: %w", err), ours.Close())
	}
	return ours, os.NewFile(uintptr(peer), "terminal"), nil
}

// openPeer opens the other side of a terminal, wherever /dev/pts is mounted.
func openPeer(fd int) (int, error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return -1, err
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	t, err := unix.IoctlGetTermios(int(peer), unix.TCGETS)
	if err == nil {
		t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		err = unix.IoctlSetTermios(int(peer), unix.TCSETS, t)
	}
	if err != nil {
		_ = unix.Close(int(peer))
		return -1, err
	}
	return int(peer), nil
}
