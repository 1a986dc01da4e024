package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/encrypt"
	"atoll/internal/errs"
	"atoll/internal/fence"
	"atoll/internal/sys/cgroup"
	"atoll/internal/sys/mount"
)

// asRoot refuses everybody else what a verb does.
func asRoot(verb string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return errs.New(errs.Denied, "atolld %s needs root", verb).WithHint("sudo atolld %s", verb)
}

// runDown removes what Atoll put on the host. It needs no store: drivers find what
// is theirs. It runs after the daemon has ended.
func runDown(ctx context.Context, args []string) error {
	var data bool
	c, err := load("down", args, func(fs *flag.FlagSet) {
		fs.BoolVar(&data, "data", false, "also remove the data: images, volumes, logs and the pool's state")
	})
	if err != nil {
		return err
	}
	if err := asRoot("down"); err != nil {
		return err
	}
	unlock, err := prepareDirs(c)
	if err != nil {
		return err
	}
	defer unlock()
	log, err := newLogger(c)
	if err != nil {
		return err
	}
	dv, err := driversOf(c, clock.Real{}, log)
	if err != nil {
		return err
	}
	removed := 0
	for name, rt := range dv.Runtimes {
		n, err := removeAll(ctx, rt)
		removed += n
		if err != nil {
			return fmt.Errorf("remove instances of %s: %w", name, err)
		}
	}
	if err := dv.Network.Teardown(ctx); err != nil {
		return fmt.Errorf("remove the network: %w", err)
	}
	if err := dv.Barrier.Drop(ctx, nil); err != nil && !errors.Is(err, errs.Unsupported) && !errors.Is(err, errs.Conflict) {
		return fmt.Errorf("remove the drop list: %w", err)
	}
	if err := encrypt.Teardown(ctx, wireguardOf(c, clock.Real{})); err != nil {
		return fmt.Errorf("remove encryption between hosts: %w", err)
	}
	cg, err := cgroup.Detect()
	if err != nil {
		return err
	}
	gctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, g := range []string{c.Group, daemonGroup(c), fence.OwnGroup(c.Group), encrypt.OwnGroup(c.Group)} {
		if err := cg.Remove(gctx, g); err != nil {
			return fmt.Errorf("remove the resource groups: %w", err)
		}
	}
	if err := mount.Detach(c.Run); err != nil {
		return err
	}
	if err := os.RemoveAll(c.Run); err != nil {
		return err
	}
	what := "data kept in " + c.State
	if data {
		if err := os.RemoveAll(c.State); err != nil {
			return err
		}
		what = "data removed"
	}
	fmt.Printf("Atoll is down: %d instances removed from this host, %s.\n", removed, what)
	return nil
}

func removeAll(ctx context.Context, rt driver.Runtime) (int, error) {
	seen, err := rt.Observe(ctx)
	if err != nil {
		return 0, err
	}
	var all error
	for _, o := range seen {
		all = errors.Join(all, rt.Remove(ctx, o.ID))
	}
	return len(seen), all
}
