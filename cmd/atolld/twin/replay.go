package twin

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sim"
	"atoll/internal/sim/scenario"
)

// simReplay plays a pool's own state and history again, with what-ifs laid over it.
func simReplay(ctx context.Context, args []string) error {
	f := newSimFlags("replay")
	from := f.String("from", "", "`file` of a backup (atoll backup create); - is standard input")
	since := f.String("since", "24h", "`when` the replay begins: a time, or a duration before the backup")
	more := f.Duration("for", 0, "play so much longer than the backup reaches")
	with := f.String("with", "", "`file` with arrivals, faults, changes and policies to lay over it")
	if _, err := f.parse(args, 0, "--from BACKUP [--since 24h] [--with OVERLAY]"); err != nil {
		return err
	}
	if *from == "" {
		return errs.New(errs.Invalid, "replay: which backup?").WithHint("atoll backup create pool.backup, then: atolld sim replay --from pool.backup; 'atoll sim replay' takes one of the pool itself")
	}
	h, err := readHistory(ctx, *from, *since)
	if err != nil {
		return err
	}
	h.Scenario.Duration += api.Duration(*more)
	if *with != "" {
		b, err := readBounded(*with)
		if err != nil {
			return err
		}
		o, err := scenario.DecodeOverlay(b)
		if err != nil {
			return fmt.Errorf("%s: %w", *with, err)
		}
		h.Overlay(o)
	}
	if err := h.Ready(); err != nil {
		return err
	}
	if !f.quiet {
		fmt.Fprintf(os.Stderr, "the backup reaches to %s; %d objects to begin with, %d instances come again, %d of them known by their events only\n",
			h.Taken.Format(time.RFC3339), len(h.State), len(h.Recorded), h.Assumed)
	}
	rep, err := f.playOne(ctx, h.Scenario, sim.Options{Open: openBeside(*with), State: h.State, Recorded: h.Recorded})
	if err != nil {
		return err
	}
	return f.tell(rep)
}

func readHistory(ctx context.Context, path, since string) (*sim.History, error) {
	open := func() (io.ReadCloser, error) {
		if path == "-" {
			return io.NopCloser(os.Stdin), nil
		}
		in, err := os.Open(path)
		if err != nil {
			return nil, errs.New(errs.NotFound, "%w", err)
		}
		return in, nil
	}
	in, err := open()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if d, err := time.ParseDuration(since); err == nil {
		return sim.ReadHistory(ctx, in, sim.Before(d))
	}
	t, err := whenever(since, "since")
	if err != nil {
		return nil, err
	}
	return sim.ReadHistory(ctx, in, sim.From(t))
}
