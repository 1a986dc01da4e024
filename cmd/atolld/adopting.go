package main

import (
	"context"
	"errors"
	"os"

	"atoll/cmd/atolld/adopt"
	"atoll/cmd/atolld/images"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/image"
	"atoll/internal/store/etcdstore"
)

// adoptHost brings this host into another pool with what it runs.
func adoptHost(ctx context.Context, c config, o joining) error {
	if os.Geteuid() != 0 {
		return errs.New(errs.Denied, "atolld join --adopt needs root: it changes what drivers know of instances").WithHint("sudo atolld join …")
	}
	if c.EtcdEndpoints != "" {
		return errs.New(errs.Unsupported, "the state of this host's pool is in an etcd of its own").WithHint("only a pool whose state is on its host can be brought along")
	}
	unlock, err := prepareDirs(c)
	if err != nil {
		var e *errs.Error
		if errors.As(err, &e) && e.Kind == errs.Conflict {
			return e.WithHint("stop it first: systemctl stop atolld; instances run on")
		}
		return err
	}
	defer unlock()
	log, err := newLogger(c)
	if err != nil {
		return err
	}
	h := adopt.Host{State: c.State, Node: c.Node, Named: c.Node != defaults().Node, Subnet: c.Subnet, Version: version, Deps: joinDeps(),
		Open: func(ctx context.Context, member string) (adopt.Store, error) {
			c.Node = member
			return openStore(ctx, c, etcdstore.Peers{}, clock.Real{}, log)
		},
		Drivers: func() (adopt.Drivers, error) {
			dv, err := driversOf(c, clock.Real{}, log)
			return adopt.Drivers{Runtimes: dv.Runtimes, Network: dv.Network, Storage: dv.Storage}, err
		},
		Images: func(ctx context.Context) (*image.Store, error) {
			i, err := images.Open(ctx, imagesConfig(c), clock.Real{}, log)
			if err != nil {
				return nil, err
			}
			return i.Store(), nil
		}}
	return adopt.Run(ctx, h, adopt.Options{URLs: list(o.urls), Token: o.token, Address: o.address, Into: o.adopt, Output: o.output, DryRun: o.dryRun, Yes: o.yes, Out: os.Stdout})
}
