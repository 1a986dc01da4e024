// Package boot tells time since the host was started, suspend included (CLOCK_BOOTTIME),
// and wakes up at a moment of that clock. Deadlines that must hold whatever happens to the
// host are kept on it: nobody can set it, and it goes on while the host sleeps. It starts
// no goroutine.
package boot

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the host was started.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("no CLOCK_BOOTTIME, which Linux has since 2.6.39: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// Timer wakes one waiter at a moment of the clock. A moment that passed while the host
// or the process slept wakes at once afterwards.
type Timer struct{ f *os.File }

// NewTimer makes a timer that is not set.
func NewTimer() (*Timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer on the time since boot: %w", err)
	}
	return &Timer{os.NewFile(uintptr(fd), "timer")}, nil
}

// Set says when to wake; it replaces what was set before, also for one who waits already.
// Zero: not at all.
func (t *Timer) Set(at time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(at, 0)))}
	raw, err := t.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("set the timer: %w", err)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil) }); err != nil {
		serr = err
	}
	if serr != nil {
		return fmt.Errorf("set the timer: %w", serr)
	}
	return nil
}

// Wait returns when the moment has come; os.ErrClosed after Close.
func (t *Timer) Wait() error {
	var n [8]byte
	_, err := t.f.Read(n[:])
	if errors.Is(err, unix.ECANCELED) {
		return nil
	}
	return err
}

// Close wakes who waits.
func (t *Timer) Close() error { return t.f.Close() }
