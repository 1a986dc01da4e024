package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kill ends a process at once.
const Kill = unix.SIGKILL

// Process is a handle on a process that cannot come to mean another one.
type Process struct {
	Pid int
	fd  int
}

// Open takes a handle; os.ErrProcessDone when there is no such process.
func Open(pid int) (*Process, error) {
	if pid <= 0 {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Process{Pid: pid, fd: fd}, nil
}

// Close gives the handle back.
func (p *Process) Close() {
	if p != nil && p.fd >= 0 {
		_ = unix.Close(p.fd)
		p.fd = -1
	}
}

// Signal sends sig; nil when the process has ended.
func (p *Process) Signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(p.fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// tick bounds how long a wait does not look at its context.
const tick = 100 * time.Millisecond

// Wait returns when the process has ended, or with ctx. It does not reap.
func (p *Process) Wait(ctx context.Context) error {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(tick/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.Pid, err)
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// Alive reports whether a process with that number exists and is not a zombie.
func Alive(pid int) bool {
	p, err := Open(pid)
	if err != nil {
		return false
	}
	defer p.Close()
	return !p.Ended()
}

// Reap collects an ended child; false when it is there still. A process that is not a
// child of ours is nobody's to collect: true.
func Reap(pid int) bool {
	var ws unix.WaitStatus
	n, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil)
	return n == pid || errors.Is(err, unix.ECHILD)
}

// Children lists the direct children of a process.
func Children(pid int) []int {
	var out []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}
