package netlink

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Namespace is an open network namespace; it exists at least until Close.
type Namespace struct{ f *os.File }

// OpenNamespace opens a namespace by path, such as /proc/812/ns/net. The path must
// name a network namespace and nothing else.
func OpenNamespace(path string) (*Namespace, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, kernelError("open namespace "+path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	// NS_GET_NSTYPE answers only on namespaces: anything else that was put there is refused.
	typ, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || typ != unix.CLONE_NEWNET {
		f.Close()
		return nil, errs.New(errs.Invalid, "%s is not a network namespace", path)
	}
	return &Namespace{f: f}, nil
}

// NewNamespace makes a fresh, empty one, which is gone after Close and the end of all that runs in it.
func NewNamespace() (*Namespace, error) {
	var ns *Namespace
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return kernelError("make network namespace", err)
		}
		var err error
		ns, err = OpenNamespace("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// EnsureNamespace opens the namespace that is kept at path, and makes it if there is none.
// It stays until RemoveNamespace, or the next boot, whoever ends.
func EnsureNamespace(path string) (*Namespace, error) {
	ns, err := OpenNamespace(path)
	if err == nil || !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) {
		return ns, err
	}
	// A file without a namespace is what is left of an attempt that was cut short.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, kernelError("keep a network namespace at "+path, err)
	}
	f.Close()
	if ns, err = NewNamespace(); err != nil {
		return nil, err
	}
	if err := unix.Mount(ns.Path(), path, "", unix.MS_BIND, ""); err != nil {
		ns.Close()
		return nil, kernelError("keep a network namespace at "+path, err)
	}
	return ns, nil
}

// RemoveNamespace lets go of one that is kept. Nil when there is none.
func RemoveNamespace(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing is mounted there (any more)
		}
		if err != nil {
			return kernelError("let go of the network namespace at "+path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return kernelError("let go of the network namespace at "+path, err)
	}
	return nil
}

// FD is the open file.
func (n *Namespace) FD() int { return int(n.f.Fd()) }

// Path names the namespace as long as it is open, also for other processes of the same user.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// Close lets go of it.
func (n *Namespace) Close() error { return n.f.Close() }

// Do runs fn in a thread that is in the namespace: sockets opened there belong to it
// and /proc/sys/net shows it. The thread is never used for anything else.
// fn must not start goroutines that count on the namespace.
func (n *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return kernelError("enter namespace", err)
		}
		return fn()
	})
}

// onThread runs fn on a thread that ends afterwards: a locked goroutine that returns
// without unlocking takes its thread with it, so no other code can ever meet it.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}
