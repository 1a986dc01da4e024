package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/bench/lib"
	"atoll/internal/store"
)

func name(i int) string { return fmt.Sprintf("i%d", i) }

func instance(i int) *api.Instance {
	return &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name(i), Tenant: "acme", Labels: map[string]string{"app": fmt.Sprintf("a%d", i%100)}}},
		Spec: api.InstanceSpec{Image: "scale:1", Command: []string{"sleep", "1000000"}, Requests: api.Resources{api.CPU: 500, api.Memory: 512 << 20}}}
}

// create makes the instances as the tenant's user, and waits until the hosts have
// reported that all of them run.
func (b *bench) create(ctx context.Context) error {
	n := b.o.instances
	if n == 0 {
		return nil
	}
	stop := b.profile("create")
	began, c0 := time.Now(), b.proc.cpu()
	if err := b.each(ctx, n, func(i int) error {
		_, err := b.user.Create(ctx, instance(i), "")
		return err
	}); err != nil {
		return err
	}
	made := time.Since(began)
	b.out["creates_per_s"] = lib.Round(float64(n)/made.Seconds(), 0)
	b.say("%d instances created in %s (%.0f/s), %d run", n, made.Round(10*time.Millisecond), float64(n)/made.Seconds(), b.running.Load())
	if err := b.until(ctx, "instances run", int64(n), b.running.Load); err != nil {
		return err
	}
	took := time.Since(began)
	stop()
	b.out["running_per_s"] = lib.Round(float64(n)/took.Seconds(), 0)
	b.out["cpu_ms_per_instance"] = lib.Round(float64((b.proc.cpu()-c0).Microseconds())/1000/float64(n), 2)
	b.say("all run after %s (%.0f/s)", took.Round(10*time.Millisecond), float64(n)/took.Seconds())
	if err := b.verify(ctx); err != nil {
		return err
	}
	return b.reserve(ctx)
}

// reserve creates instances that are not to run: what the API, quota and the store take
// when the simulated hosts leave them the processors.
func (b *bench) reserve(ctx context.Context) error {
	n, began := min(b.o.instances/4, 5000), time.Now()
	if err := b.each(ctx, n, func(i int) error {
		in := instance(b.o.instances + i)
		in.Spec.Stopped = true
		_, err := b.user.Create(ctx, in, "")
		return err
	}); err != nil {
		return err
	}
	took := time.Since(began)
	b.out["creates_stopped_per_s"] = lib.Round(float64(n)/took.Seconds(), 0)
	b.say("%d more that are not to run created in %s (%.0f/s)", n, took.Round(10*time.Millisecond), float64(n)/took.Seconds())
	return nil
}

// each calls fn for 0 to n, by so many clients at once, until one fails.
func (b *bench) each(ctx context.Context, n int, fn func(i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range b.o.clients {
		g.Go(func() error {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := fn(i); err != nil {
					return fmt.Errorf("create %s: %w", name(i), err)
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// verify asks the pool itself.
func (b *bench) verify(ctx context.Context) error {
	list, _, err := store.List[*api.Instance](ctx, b.admin, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return err
	}
	running := 0
	nodes := map[string]bool{}
	for _, in := range list {
		if in.Status.State == api.StateRunning {
			running++
			nodes[in.Status.Node] = true
		}
	}
	if running != b.o.instances {
		return fmt.Errorf("the pool says that %d of %d instances run", running, b.o.instances)
	}
	b.say("the pool says so, too: on %d hosts", len(nodes))
	return nil
}

// probeEvery is between two changes that are followed: a pool in use, not at its limit.
const probeEvery = 25 * time.Millisecond

// follow changes instances, one after the other, and measures when their hosts saw it.
// The time starts before the change is sent, so that it holds the commit as well.
func (b *bench) follow(ctx context.Context) error {
	if b.o.instances == 0 || b.o.probes == 0 {
		return nil
	}
	sent := make([]int64, b.o.probes+1)
	var answered []time.Duration
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // which instances
	for seq := 1; seq <= b.o.probes; seq++ {
		ref := api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: name(rng.IntN(b.o.instances))}
		t0 := time.Now()
		sent[seq] = t0.UnixNano()
		if _, err := b.user.Patch(ctx, ref, map[string]any{"spec": map[string]any{"env": []api.EnvVar{{Name: probeVar, Value: fmt.Sprint(seq)}}}}, 0); err != nil {
			return fmt.Errorf("change %s: %w", ref, err)
		}
		answered = append(answered, time.Since(t0))
		if err := pause(ctx, probeEvery); err != nil {
			return err
		}
	}
	if err := b.until(ctx, "changes seen", int64(b.o.probes), func() int64 { return int64(b.seen()) }); err != nil {
		return err
	}
	var watch, driver []time.Duration
	b.mu.Lock()
	for seq, s := range b.sightings {
		watch, driver = append(watch, time.Duration(s.watch-sent[seq])), append(driver, time.Duration(s.driver-sent[seq]))
	}
	b.mu.Unlock()
	b.out["watch_p99_ms"], b.out["watch_p50_ms"] = quantile(watch, 0.99), quantile(watch, 0.5)
	b.out["apply_p99_ms"], b.out["commit_p50_ms"] = quantile(driver, 0.99), quantile(answered, 0.5)
	b.say("a change is answered after %.1f ms, seen by its host after %.1f ms (99 %%: %.1f), and done after %.1f ms (99 %%: %.1f)",
		quantile(answered, 0.5), quantile(watch, 0.5), quantile(watch, 0.99), quantile(driver, 0.5), quantile(driver, 0.99))
	return nil
}

// seen counts the changes that have reached their driver.
func (b *bench) seen() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, s := range b.sightings {
		if s.watch != 0 && s.driver != 0 {
			n++
		}
	}
	return n
}

func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return lib.Round(lib.Ms(d[min(int(q*float64(len(d))), len(d)-1)]), 1)
}
