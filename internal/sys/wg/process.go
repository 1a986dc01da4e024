package wg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"atoll/internal/errs"
)

// ServeConfig is how a process of WireGuard lives.
type ServeConfig struct {
	Dir  string    // of socket and lock; only root may reach into it
	Name string    // of the device
	MTU  int       // of the device, at first
	Log  io.Writer // what goes wrong
}

// Serve is WireGuard in this process, until ctx ends. It keeps a lock, so there is one for a name
// (errs.Conflict), and answers at SocketOf(dir, name). The device goes with the process.
func Serve(ctx context.Context, c ServeConfig) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return errs.New(errs.Unavailable, "directory of WireGuard: %w", err)
	}
	lock, err := os.OpenFile(lockOf(c.Dir, c.Name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return errs.New(errs.Unavailable, "lock of WireGuard: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errs.New(errs.Conflict, "another process serves %s", c.Name)
	}
	if err = lock.Truncate(0); err == nil {
		_, err = lock.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return errs.New(errs.Unavailable, "lock of WireGuard: %w", err)
	}
	link, err := tun.CreateTUN(c.Name, c.MTU)
	if err != nil {
		return errs.New(errs.Unsupported, "make the device %s: %w", c.Name, err).WithHint("it needs root and /dev/net/tun (modprobe tun)")
	}
	say := func(f string, a ...any) { fmt.Fprintf(c.Log, "wireguard: "+f+"\n", a...) }
	dev := device.NewDevice(link, conn.NewDefaultBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: say})
	defer dev.Close()
	// The socket comes into being under its own name only when nobody but root can reach it.
	path := SocketOf(c.Dir, c.Name)
	if err := removeSocket(path); err != nil {
		return errs.New(errs.Unavailable, "socket of WireGuard: %w", err)
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return errs.New(errs.Unavailable, "socket of WireGuard: %w", err)
	}
	return serve(ctx, dev, l)
}

// serve answers until ctx ends or the device does.
func serve(ctx context.Context, dev *device.Device, l net.Listener) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = map[net.Conn]bool{}
	)
	failed := make(chan error, 1)
	wg.Go(func() {
		for {
			s, err := l.Accept()
			if err != nil {
				failed <- err
				return
			}
			mu.Lock()
			conns[s] = true
			mu.Unlock()
			wg.Go(func() {
				dev.IpcHandle(s)
				mu.Lock()
				delete(conns, s)
				mu.Unlock()
			})
		}
	})
	var err error
	select {
	case <-ctx.Done():
	case <-dev.Wait():
		err = errs.New(errs.Unavailable, "the device of WireGuard is gone")
	case err = <-failed:
		err = errs.New(errs.Unavailable, "socket of WireGuard: %w", err)
	}
	l.Close()
	mu.Lock()
	for s := range conns {
		s.Close()
	}
	mu.Unlock()
	wg.Wait()
	return err
}

func lockOf(dir, name string) string { return filepath.Join(dir, name+".lock") }

// Process is the number of the process that serves a device; 0 when none does. A lock that
// nobody holds is not believed: its number may be another's by now.
func Process(dir, name string) (int, error) {
	f, err := os.OpenFile(lockOf(dir, name), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, errs.New(errs.Unavailable, "lock of WireGuard: %w", err)
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return 0, nil
	}
	b, err := os.ReadFile(lockOf(dir, name))
	if err != nil {
		return 0, errs.New(errs.Unavailable, "lock of WireGuard: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, nil // it has the lock and has not said yet who it is
	}
	return pid, nil
}

// End ends the process of a device, if there is one, and takes away its files.
func End(dir, name string, wait func(time.Duration) error) error {
	for range 500 {
		pid, err := Process(dir, name)
		if err != nil {
			return err
		}
		if pid == 0 {
			return errors.Join(removeSocket(SocketOf(dir, name)), removeSocket(lockOf(dir, name)))
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return errs.New(errs.Unavailable, "end the process of WireGuard: %w", err)
		}
		if err := wait(10 * time.Millisecond); err != nil {
			return err
		}
	}
	return errs.New(errs.Unavailable, "the process of WireGuard does not end")
}
