package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/fence"
	"atoll/internal/sys/boot"
)

// runWatchdog is the watchdog in the daemon's own binary, for hosts where atoll-watchdog is
// not installed; that one does the same with a fifth of the memory.
func runWatchdog(ctx context.Context, args []string) error {
	var status bool
	c, err := load("watchdog", args, func(fs *flag.FlagSet) {
		fs.BoolVar(&status, "status", false, "only say how the watchdog of this host stands")
	})
	if err != nil {
		return err
	}
	if err := asRoot("watchdog"); err != nil {
		return err
	}
	if status {
		return watchdogStatus(ctx, c)
	}
	err = fence.Watch(ctx, fence.WatchConfig{Run: c.Run, Group: c.Group, Log: os.Stderr, Clock: clock.Real{}})
	if errors.Is(err, errs.Conflict) {
		return nil // one is there: that is all that was wanted
	}
	return err
}

func watchdogStatus(ctx context.Context, c config) error {
	st, err := fence.Status(ctx, c.Run, clock.Real{})
	if err != nil {
		return err
	}
	left := "none was told yet"
	if st.Deadline > 0 {
		left = "passed"
		if d := st.Deadline - boot.Now(); d > 0 {
			left = "in " + d.Round(time.Millisecond).String()
		}
	}
	fmt.Printf("watchdog  pid %d, guards %d instances, deadline %s, has stopped %d\n", st.Pid, st.Guarded, left, st.Fenced)
	return nil
}
