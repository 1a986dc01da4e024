package lib

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"atoll/test/lab"
	"atoll/test/rig"
)

// WithLab runs fn with hosts that run nothing yet and takes them away afterwards, also on Ctrl-C. This process
// is in a network with them. Call it from main, after the flags are parsed.
func WithLab(o lab.Options, fn func(ctx context.Context, l *lab.Lab) error) {
	if m := rig.Missing(); m != "" {
		Fatal(fmt.Errorf("this machine lacks %s", m))
	}
	if err := rig.Alone(); err != nil {
		Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := func() error {
		bin, err := rig.Build(ctx)
		if err != nil {
			return err
		}
		o.Here = true
		l, err := lab.New(ctx, bin, o)
		if err != nil {
			return err
		}
		defer func() {
			if err := l.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "bench: clean up:", err)
			}
		}()
		return fn(ctx, l)
	}()
	stop()
	if err != nil {
		Fatal(err)
	}
}

// Until asks again until it is so, or ctx ends.
func Until(ctx context.Context, what string, fn func() bool) error {
	for !fn() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}
