package main

import (
	"context"
	"time"

	"atoll/internal/lease"
	"atoll/internal/store/replica"
	"atoll/internal/sys/boot"
)

const (
	// firstAnswer is how long a start waits for a server where it can do without one.
	firstAnswer = 5 * time.Second
	keepEvery   = 5 * time.Second
	// longLease is from when on a lease is kept on the disk: a shorter one would be over
	// before a host is up again.
	longLease = time.Minute
)

// first takes the lease. alone: no server answers, and the host goes on by what it knows;
// the lease that it may still have from before is resumed.
func (n *node) first(ctx context.Context) (alone bool, err error) {
	if n.rep == nil || !n.rep.Loaded() {
		return false, n.holder.First(ctx) // without ever having seen the pool there is nothing to do
	}
	n.resume()
	fctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	err = n.holder.First(fctx)
	if err != nil && fctx.Err() != nil && ctx.Err() == nil {
		n.log.Warn("no server answers: this host begins alone", "host", n.c.Node, "lease", n.holder.Held())
		return true, nil
	}
	return false, err
}

// resume goes on with the lease of an earlier process, as far as that is certain.
func (n *node) resume() {
	l := n.rep.Lease()
	id, err := boot.ID()
	if err != nil {
		n.log.Warn("an earlier lease cannot be gone on with", "error", err)
		return
	}
	now := boot.Now()
	left := l.Left(replica.Moment{Boot: id, Since: now, Wall: n.clk.Now(), Hardware: boot.Hardware()})
	if left <= 0 {
		return
	}
	n.holder.Resume(lease.Grant{Epoch: l.Epoch, Rev: l.Rev, Duration: l.Duration}, now+left)
	n.agent.LeaseResumed(l.Rev)
	n.log.Info("goes on with its lease from before", "for", left.Round(time.Second).String())
}

// keepLease keeps how long this host may act alone on the disk, where that is long enough
// to matter after a restart.
func (n *node) keepLease(ctx context.Context) error {
	id, err := boot.ID()
	if err != nil {
		n.log.Warn("the lease is not kept for the time after a restart", "error", err)
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		n.file.Lock()
		if g, until := n.holder.Tenure(); g.Duration >= longLease && n.holder.Held() && n.agent.Seen() == g.Rev {
			now := boot.Now()
			// At is what the clock on the wall shows, without the monotonic part.
			err := n.rep.SaveLease(replica.Lease{Epoch: g.Epoch, Rev: g.Rev, Duration: g.Duration, Boot: id, BootEnd: until, BootAt: now, At: n.clk.Now().Round(0).UTC()})
			if err != nil {
				n.log.Error("the lease is not kept for the time after a restart", "error", err)
			}
			if again, _ := n.holder.Tenure(); again.Epoch != g.Epoch || !n.holder.Held() {
				n.dropLease() // lost meanwhile
			}
		} else if g.Duration < longLease {
			n.dropLease()
		}
		n.file.Unlock()
		if err := n.clk.Sleep(ctx, keepEvery); err != nil {
			return err
		}
	}
}

// dropLease forgets on the disk what is over.
func (n *node) dropLease() {
	if err := n.forgetLease(); err != nil {
		n.log.Error("the lease on the disk is over, and cannot be removed", "error", err)
	}
}

func (n *node) forgetLease() error {
	if n.rep == nil {
		return nil
	}
	return n.rep.SaveLease(replica.Lease{})
}

// shorter returns nil when neither the watchdog nor what is on the disk goes by the longer
// lease that there was: only then may the pool count on the shorter one.
func (n *node) shorter(ctx context.Context, _ time.Duration) error {
	n.file.Lock()
	err := n.forgetLease() // keepLease writes the new one
	n.file.Unlock()
	if err != nil {
		return err
	}
	return n.warden.settle(ctx)
}
