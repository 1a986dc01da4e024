// Command atoll-watchdog stops what must not run twice when this host's lease ends and
// nobody else has: atolld starts it, and it outlives atolld. It is a program of its own
// because it must be small enough to be kept in memory whatever happens; everything it
// does is in internal/fence.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/fence"
)

// version is set by the build.
var version = "dev" //nolint:gochecknoglobals // the linker's way to tell a binary what it is

func main() {
	c := fence.WatchConfig{Log: os.Stderr, Clock: clock.Real{}}
	flag.StringVar(&c.Run, "run", "/run/atoll", "`directory` of its socket, lock and record")
	flag.StringVar(&c.Group, "group", "atoll", "name of Atoll's tree in the host's cgroups: it kills nothing outside of it")
	flag.DurationVar(&c.Idle, "idle", fence.DefaultIdle, "end after so long with nothing to guard")
	show := flag.Bool("version", false, "print the version")
	flag.Parse()
	if *show {
		fmt.Println("atoll-watchdog", version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := fence.Watch(ctx, c)
	stop()
	if errors.Is(err, errs.Conflict) {
		os.Exit(0) // one is there: that is all that was wanted
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(errs.ExitCode(err))
	}
}
