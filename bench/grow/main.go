// Command grow makes a pool of one host one of three while it is used: instances run, and clients read and write
// through the list of servers they know at the beginning, which is the first host.
//
//	failed_calls  calls that failed; goal 0
//	restarted     instances whose process is another one, or was started more than once; goal 0
//	seconds       from when the second host begins to join until three hosts keep the state
//	slowest_ms    the call that took longest: calls wait while the one copy of the state becomes one of several
//	p99_ms, before_p99_ms  of all calls meanwhile, and of those before
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"atoll/api"
	"atoll/bench/lib"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/test/lab"
)

func main() {
	rate := flag.Int("rate", 100, "calls a second: three of five read, two write")
	n := flag.Int("instances", 20, "that run meanwhile")
	before := flag.Duration("before", 5*time.Second, "how long calls are made before it begins, and after it")
	flag.Parse()
	lib.WithLab(lab.Options{Hosts: 3}, func(ctx context.Context, l *lab.Lab) error { return measure(ctx, l, *rate, *n, *before) })
}

func measure(ctx context.Context, l *lab.Lab, rate, n int, before time.Duration) error {
	if err := l.Found(ctx); err != nil {
		return err
	}
	c, err := l.Client(l.Hosts[:1])
	if err != nil {
		return err
	}
	defer c.Close()
	pids, err := start(ctx, c, n)
	if err != nil {
		return err
	}
	u := &load{c: c}
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { u.run(lctx, rate) })
	time.Sleep(before)
	u.growing.Store(true)
	began := time.Now()
	took, err := func() (time.Duration, error) {
		for _, h := range l.Hosts[1:] {
			if err := l.Join(ctx, h); err != nil {
				return 0, err
			}
		}
		err := l.WaitMembers(ctx, 3)
		return time.Since(began), err
	}()
	if err == nil {
		time.Sleep(before)
	}
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	restarted, err := compare(ctx, c, pids)
	if err != nil {
		return err
	}
	lib.Table(os.Stdout, "calls", []*lib.Result{&u.before, &u.during})
	for _, e := range u.errors {
		fmt.Println(" ", e)
	}
	fmt.Println()
	lib.JSON(map[string]any{"bench": "grow", "rate": rate, "calls": len(u.before.Times) + len(u.during.Times) + u.failed, "failed_calls": u.failed,
		"restarted": restarted, "seconds": lib.Round(took.Seconds(), 1), "slowest_ms": lib.Round(u.during.Quantile(1), 0),
		"p99_ms": lib.Round(u.during.Quantile(0.99), 1), "before_p99_ms": lib.Round(u.before.Quantile(0.99), 1)})
	return nil
}

// start gives the pids of instances that run.
func start(ctx context.Context, c *remote.Store, n int) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i := range n {
		in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprintf("stay-%d", i), Tenant: "demo"}}}
		in.Spec = api.InstanceSpec{Image: "busybox", Command: []string{"sleep", "100000"}, Networks: []api.Attach{{Name: api.NetworkNone}}}
		if _, err := c.Create(ctx, in, ""); err != nil {
			return nil, err
		}
	}
	pids := map[string]int{}
	return pids, lib.Until(ctx, "the instances run", func() bool {
		list, _, err := store.List[*api.Instance](ctx, c, api.Selector{Kind: api.KindInstance, Tenant: "demo"})
		for _, in := range list {
			if in.Status.State == api.StateRunning {
				pids[in.Name] = in.Status.Pid
			}
		}
		return err == nil && len(pids) == n
	})
}

func compare(ctx context.Context, c *remote.Store, pids map[string]int) (restarted int, err error) {
	list, _, err := store.List[*api.Instance](ctx, c, api.Selector{Kind: api.KindInstance, Tenant: "demo"})
	if err != nil {
		return 0, err
	}
	same := 0
	for _, in := range list {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", in.Status.Pid))
		if pid, ours := pids[in.Name]; ours && err == nil && in.Status.Pid == pid && in.Status.Starts == 1 {
			same++
		}
	}
	return len(pids) - same, nil
}

// load makes calls at a steady rate, however long they take: what waits does not slow down what comes after it.
type load struct {
	c       *remote.Store
	growing atomic.Bool

	mu             sync.Mutex
	before, during lib.Result
	failed         int
	errors         []string // the first ones
}

func (u *load) run(ctx context.Context, rate int) {
	u.before.Name, u.during.Name = "before", "while it grows, and after"
	var wg sync.WaitGroup
	defer wg.Wait()
	t := time.NewTicker(time.Second / time.Duration(rate))
	defer t.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		during := u.growing.Load()
		wg.Go(func() {
			began := time.Now()
			// A call that was begun is made to its end, also when the load ends.
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			err := u.call(cctx, i)
			u.note(i, during, time.Since(began), err)
		})
	}
}

func (u *load) note(i int, during bool, took time.Duration, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := &u.before
	if during {
		r = &u.during
	}
	if err == nil {
		r.Times = append(r.Times, took)
		return
	}
	u.failed++
	r.Fails++
	r.Err = err
	if len(u.errors) < 10 {
		u.errors = append(u.errors, fmt.Sprintf("call %d after %d ms: %v", i, took.Milliseconds(), err))
	}
}

// call is one of five: a read of one object, a list, a read of what was just written, a write, a write and its removal.
func (u *load) call(ctx context.Context, i int) error {
	user := func(name string) *api.User {
		return &api.User{Head: api.Head{K: api.KindUser, Meta: api.Meta{Name: name}}}
	}
	name := fmt.Sprintf("u-%d", i)
	switch i % 5 {
	case 0:
		_, err := u.c.Get(ctx, api.Ref{Kind: api.KindInstance, Tenant: "demo", Name: "stay-0"})
		return err
	case 1:
		_, _, err := u.c.List(ctx, api.Selector{Kind: api.KindInstance, Tenant: "demo"})
		return err
	case 2:
		_, _, err := u.c.List(ctx, api.Selector{Kind: api.KindNode})
		return err
	case 3:
		_, err := u.c.Create(ctx, user(name), name)
		return err
	}
	o, err := u.c.Create(ctx, user(name), name)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if _, err := u.c.Get(ctx, api.RefOf(o)); err != nil {
		return fmt.Errorf("read what was made: %w", err)
	}
	if _, err := u.c.Delete(ctx, api.RefOf(o), 0); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}
