package boot

import (
	"time"

	"golang.org/x/sys/unix"
)

// Monotonic is the time since the host was started, without what it slept (CLOCK_MONOTONIC): the clock
// of eBPF programs.
func Monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("no CLOCK_MONOTONIC, which every Linux has: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
