// Package control holds the controllers of the pool, one file each (those of whole
// hosts in package host): they watch the store, decide, and commit. They know no etcd,
// no HTTP and no driver; the engine of package reconcile runs them, on one leader, and
// owns their goroutines.
package control

import (
	"context"
	"log/slog"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/control/host"
	"atoll/internal/control/workload"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
)

// Deps is what controllers are built from.
type Deps struct {
	Clock clock.Clock
	Log   *slog.Logger
	Chain policy.Chain
	Seed  uint64
	// Subnet is where addresses on the default network come from.
	Subnet string
	// Keep is what of the pool instances that wait for room must leave; admission keeps the same.
	Keep policy.Keep
	// Rebalance is how the pool is kept in shape; its zero value leaves it as it is.
	Rebalance RebalanceConfig
	// Members is how the hosts are chosen that keep the state; without a Group they are not.
	Members host.MembersDeps
	// Off switches a lost host off for certain; nil: that cannot be done here.
	Off func(ctx context.Context, n *api.Node) error
	// Self is the host this process runs on.
	Self string
	// DrainAtOnce bounds how many instances drains have under way. Default 10.
	DrainAtOnce int
	// Tell is told what happens to instances when their hosts are lost or drained; nil: nobody is.
	Tell host.Teller
}

// All lists the controllers. To add one: write <name>.go and its line.
func All(d Deps) ([]reconcile.Controller, error) {
	p, err := NewPlacement(d)
	if err != nil {
		return nil, err
	}
	all := []reconcile.Controller{p, NewNetworks(d), NewPeerings(d), NewRoutes(d), NewFloats(d), NewGroups(d), NewTidy(d), NewBGPPeers(d), host.NewFailover(host.FailoverDeps{Clock: d.Clock, Log: d.Log, Off: d.Off, Tell: d.Tell}),
		host.NewDrain(host.Deps{Clock: d.Clock, Chain: d.Chain, Keep: d.Keep, Seed: d.Seed, AtOnce: d.DrainAtOnce, Tell: d.Tell}),
		host.NewUpgrade(host.UpgradeDeps{Clock: d.Clock, Log: d.Log, Self: d.Self}), host.NewEncryption(d.Clock)}
	all = append(all, workload.All(d.Clock)...)
	if d.Members.Group != nil || d.Members.External {
		all = append(all, host.NewMembers(d.Members))
	}
	if d.Rebalance.Mode != RebalanceOff {
		all = append(all, NewRebalance(d))
	}
	return all, nil
}

// Workers is how many names a controller may be called for at once.
func Workers(c reconcile.Controller) int {
	if w, ok := c.(interface{ Workers() int }); ok {
		return w.Workers()
	}
	return 1
}
