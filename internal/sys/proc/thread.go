// Package proc starts and watches processes: on throwaway threads in other
// namespaces, by pidfd, with inotify, FIFOs and passed file descriptors. It starts
// goroutines only to hold such threads and waits for them before it returns. It
// never signals a process by a number that may have been given to another one.
package proc

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread runs fn on a fresh OS thread that ends afterwards, so that fn may
// change the thread's namespaces and working directory at will. It is never the
// process's first thread, whose namespaces /proc/self shows. Processes that fn
// starts inherit what it changed.
func OnThread(fn func() error) error {
	done := make(chan error, 1)
	go onThread(fn, done)
	return <-done
}

func onThread(fn func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Keep the first thread busy so that the next goroutine gets another one.
		inner := make(chan error, 1)
		go onThread(fn, inner)
		err := <-inner
		runtime.UnlockOSThread()
		done <- err
		return
	}
	// No unlock: the thread ends with the goroutine.
	err := errors.New("a function on a namespace thread did not return")
	defer func() { done <- err }() // also when fn panics or ends the goroutine
	err = fn()
}

// Base is a mount namespace that new ones are copied from.
type Base struct{ ns *os.File }

// NewBase copies the caller's mount namespace: what is mounted in it later does not
// reach the host, what the host unmounts vanishes from it too. prepare runs inside.
func NewBase(prepare func() error) (*Base, error) {
	b := &Base{}
	err := OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("make mounts follow the host's: %w", err)
		}
		if err := prepare(); err != nil {
			return err
		}
		f, err := os.Open("/proc/thread-self/ns/mnt")
		b.ns = f
		return err
	})
	return b, err
}

// Close lets the namespace go when nothing else uses it.
func (b *Base) Close() error { return b.ns.Close() }

// InCopy runs fn on a throwaway thread in a new copy of the base. The copy and all
// its mounts live as long as a process that fn starts.
func (b *Base) InCopy(fn func() error) error {
	return OnThread(func() error {
		if err := enter(int(b.ns.Fd())); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare mount namespace: %w", err)
		}
		return fn()
	})
}

// InBase runs fn on a throwaway thread in the base itself.
func (b *Base) InBase(fn func() error) error {
	return OnThread(func() error {
		if err := enter(int(b.ns.Fd())); err != nil {
			return err
		}
		return fn()
	})
}

func enter(nsFD int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	if err := unix.Setns(nsFD, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	return nil
}

// InMountNS runs fn on a throwaway thread in the mount namespace of the process.
func InMountNS(pid int, fn func() error) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer f.Close()
	return OnThread(func() error {
		if err := enter(int(f.Fd())); err != nil {
			return err
		}
		return fn()
	})
}

// InNetNS runs fn on a throwaway thread in the network namespace of that path.
// Sockets that fn makes stay in it.
func InNetNS(path string, fn func() error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return OnThread(func() error {
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return fn()
	})
}
