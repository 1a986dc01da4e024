package safety

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/test/lab"
	"atoll/test/rig"
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of calls and faults; 0: one that is fixed, and one that is drawn")
	forFlag  = flag.Duration("for", 20*time.Second, "how long calls and faults go on")
	hostsOf  = flag.Int("hosts", 3, "hosts of the lab")
)

// TestHistories makes random calls to a real pool while its hosts fail, and holds what was
// answered, and what ran, against what may be. Again: -seed N -for D.
func TestHistories(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	if m := rig.Missing(); m != "" {
		t.Skipf("hosts need %s", m)
	}
	bin, err := rig.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seeds := []uint64{1, uint64(time.Now().UnixNano()) % 1_000_000}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("again: go test ./test/safety -run TestHistories -seed %d -for %s -hosts %d", seed, *forFlag, *hostsOf)
			onLab(t, bin, seed)
		})
	}
}

const (
	onceItems = 4      // instances that must not run twice
	fewLimit  = 3      // instances that the tenant few may have
	mark      = "5454" // of what they run, before their number
	settled   = 100 * time.Second
)

// trial is a pool that is being tried.
type trial struct {
	*lab.Lab
	t    *testing.T
	r    *rand.Rand
	done []string // faults

	mu    sync.Mutex
	twice []string
	looks int
}

func onLab(t *testing.T, bin string, seed uint64) {
	l, err := lab.New(t.Context(), bin, lab.Options{Hosts: *hostsOf, Disk: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	x := &trial{Lab: l, t: t, r: rand.New(rand.NewPCG(seed, 77))}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("faults:\n  %s", strings.Join(x.done, "\n  "))
			for _, h := range l.Hosts {
				t.Logf("%s:\n%s", h.Name, h.Tail(5000))
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := l.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.prepare()
	ctx, cancel := context.WithTimeout(t.Context(), *forFlag)
	defer cancel()
	var wg sync.WaitGroup
	watch, unwatch := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { x.watch(watch) })
	wg.Go(func() { x.faults(ctx) })
	wg.Go(func() { x.crowd(ctx, rand.New(rand.NewPCG(seed, 78))) })
	var names []string
	for _, h := range l.Hosts {
		names = append(names, h.Name)
	}
	u := &Users{Seed: seed, Workers: 4, Objects: 5, Servers: names, Pace: 60 * time.Millisecond, Limit: 8 * time.Second,
		Reach: func(name string) (Pool, error) { return l.Host(name).Client() }}
	calls := u.Run(ctx)
	wg.Wait()
	x.mend()
	x.converge()
	unwatch()
	watching.Wait()
	// What the pool has in the end is part of the history.
	last, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	u.Workers, u.Pace = 1, 0
	for i := range u.Objects {
		c := Call{Worker: 9, Server: names[0], Name: prefix + fmt.Sprint(i), Begin: int64(time.Since(u.begin)), Verb: read}
		p, err := u.Reach(names[0])
		if err != nil {
			t.Fatal(err)
		}
		o, err := p.Get(last, ref(c.Name))
		c.End = int64(time.Since(u.begin))
		answer(&c, err)
		if err == nil {
			c.Text = o.Metadata().Annotations["text"]
		}
		calls = append(calls, c)
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("atoll-safety-%d", seed))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Judge(calls, dir, time.Minute); err != nil {
		t.Error(err)
	} else if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
	count := map[string]int{}
	for _, c := range calls {
		count[c.Answer]++
	}
	t.Logf("%d calls: %v; %d looks at what runs; %d faults", len(calls), count, x.looks, len(x.done))
	if len(x.twice) > 0 {
		t.Errorf("ran twice: %v", x.twice)
	}
	if count[fine] < 20 || x.looks < 50 {
		t.Error("too little happened: this tests nothing")
	}
}

// prepare makes what must not run twice, and a tenant that may have few instances.
func (x *trial) prepare() {
	x.t.Helper()
	for i := range onceItems {
		if _, err := x.apply(fmt.Sprintf("kind: Instance\nmetadata: {name: once%d, tenant: demo}\nspec: {image: busybox, command: [sleep, %q], exclusive: true, networks: [{name: none}], stopTimeout: 0s}\n", i, mark+fmt.Sprint(i))); err != nil {
			x.t.Fatal(err)
		}
	}
	if _, err := x.apply(fmt.Sprintf("kind: Tenant\nmetadata: {name: few}\nspec: {limit: {instances: %d}}\n", fewLimit)); err != nil {
		x.t.Fatal(err)
	}
	x.converge()
}

func (x *trial) apply(text string) (string, error) {
	f := filepath.Join(x.t.TempDir(), "it.yaml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		return "", err
	}
	return x.Do("apply", "-f", f)
}

// where lists the hosts on which an instance's process is.
func (x *trial) where(i int) []string {
	var out []string
	for _, h := range x.Hosts {
		ps, err := h.Processes("")
		if err != nil {
			continue
		}
		if slices.ContainsFunc(ps, func(p lab.Process) bool {
			a := p.Args()
			return len(a) == 2 && a[0] == "sleep" && a[1] == mark+fmt.Sprint(i)
		}) {
			out = append(out, h.Name)
		}
	}
	return out
}

// watch looks at what really runs, all the time.
func (x *trial) watch(ctx context.Context) {
	for ctx.Err() == nil {
		for i := range onceItems {
			// A look takes a moment, in which it may go there and come here: only what is still so is.
			if a := x.where(i); len(a) > 1 {
				if b := x.where(i); len(b) > 1 {
					x.mu.Lock()
					x.twice = append(x.twice, fmt.Sprintf("once%d on %v at %s", i, b, time.Now().Format("15:04:05.000")))
					x.mu.Unlock()
				}
			}
		}
		x.mu.Lock()
		x.looks++
		x.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
}

// crowd asks for more than the tenant few may have, through all servers at once.
func (x *trial) crowd(ctx context.Context, r *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		h := x.Hosts[r.IntN(len(x.Hosts))]
		c, err := h.Client()
		if err != nil {
			continue
		}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*time.Second)
		in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprintf("f%d", n), Tenant: "few"}},
			Spec: api.InstanceSpec{Image: "busybox", Command: []string{"sleep", "1"}, Stopped: true}}
		if _, err := c.Create(call, in, ""); errs.KindOf(err) == errs.Quota && r.IntN(3) == 0 {
			list, _, err := store.List[*api.Instance](call, c, api.Selector{Kind: api.KindInstance, Tenant: "few"})
			left := slices.DeleteFunc(list, func(in *api.Instance) bool { return in.DeletedAt != nil })
			if err == nil && len(left) > fewLimit {
				x.t.Errorf("%d instances, the limit is %d", len(left), fewLimit)
			}
			if err == nil && len(left) > 0 {
				_, _ = c.Delete(call, api.RefOf(left[r.IntN(len(left))]), 0) // some are refused, which is all the same here
			}
		}
		cancel()
		time.Sleep(time.Duration(r.IntN(150)) * time.Millisecond)
	}
}

// faults lets one happen after the other; what a seed draws does not depend on what comes of it.
func (x *trial) faults(ctx context.Context) {
	for ctx.Err() == nil {
		h, kind := x.Hosts[x.r.IntN(len(x.Hosts))], []string{"cut", "kill", "pause", "power", "disk", "half"}[x.r.IntN(6)]
		other := x.Hosts[x.r.IntN(len(x.Hosts))]
		lasts, rest := time.Duration(1000+x.r.IntN(8000))*time.Millisecond, time.Duration(500+x.r.IntN(3000))*time.Millisecond
		x.done = append(x.done, fmt.Sprintf("%s %s %s (%s) for %s", time.Now().Format("15:04:05.000"), kind, h.Name, other.Name, lasts))
		err := x.strike(ctx, kind, h, other, lasts)
		if err != nil && ctx.Err() == nil {
			x.done = append(x.done, "  "+err.Error())
		}
		wait(ctx, rest)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (x *trial) strike(ctx context.Context, kind string, h, other *lab.Host, lasts time.Duration) error {
	switch kind {
	case "cut":
		err := h.Cut()
		wait(ctx, lasts)
		return errors.Join(err, h.Mend())
	case "half":
		if other == h {
			return nil
		}
		err := h.CutFrom(other, false)
		wait(ctx, lasts)
		return errors.Join(err, h.Mend())
	case "kill":
		err := h.Kill()
		wait(ctx, lasts/2)
		return errors.Join(err, h.Begin())
	case "pause": // the daemon alone: what a whole machine that stands still may do is said in docs/safety.md
		err := h.Pause(false)
		wait(ctx, lasts)
		return errors.Join(err, h.Resume())
	case "power":
		err := h.PowerOff()
		wait(ctx, lasts)
		return errors.Join(err, h.PowerOn(), h.Begin())
	case "disk":
		err := h.FillDisk(0)
		wait(ctx, lasts)
		return errors.Join(err, h.FreeDisk())
	}
	return nil
}

// mend ends all faults.
func (x *trial) mend() {
	for _, h := range x.Hosts {
		_ = h.FreeDisk() // what is as it should be is left so
		_ = h.Resume()
		if err := h.PowerOn(); err != nil && errs.KindOf(err) != errs.Conflict { // it is on
			x.t.Error(err)
		}
		if err := errors.Join(h.Mend(), h.Begin()); err != nil {
			x.t.Error(err)
		}
	}
}

// converge waits until everything runs once, where the pool says.
func (x *trial) converge() {
	x.t.Helper()
	began, why := time.Now(), "nothing was looked at"
	for why != "" {
		if time.Since(began) > settled {
			x.t.Errorf("%s after all was well: %s", settled, why)
			return
		}
		time.Sleep(100 * time.Millisecond)
		for _, h := range x.Hosts { // as a service manager would
			if h.Pid() == 0 {
				_ = h.Begin() // the next look tells
			}
		}
		why = x.wrong()
	}
	x.t.Logf("all as it should be after %s", time.Since(began).Round(100*time.Millisecond))
}

func (x *trial) wrong() string {
	serving := x.Serving()
	if len(serving) == 0 {
		return "no server answers"
	}
	c, err := serving[0].Client()
	if err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(x.t.Context(), 5*time.Second)
	defer cancel()
	for i := range onceItems {
		in, err := store.Get[*api.Instance](ctx, c, api.Ref{Kind: api.KindInstance, Tenant: "demo", Name: fmt.Sprint("once", i)})
		if err != nil {
			return err.Error()
		}
		if on := x.where(i); in.Status.State != api.StateRunning || len(on) != 1 || on[0] != in.Status.Node {
			return fmt.Sprintf("%s is %s on %s (%s), its processes are on %v", in.Name, in.Status.State, in.Status.Node, in.Status.Message, on)
		}
	}
	return ""
}
