// Command upgrade measures what an upgrade costs those who use the pool: three hosts, each
// of which keeps the state and runs instances, go to another version and back, one host
// after the other, while a client that knows all of them makes so many calls a second.
//
//	failed_calls   calls that were answered by an error, or not at all
//	restarted      instances whose first process is not the one it was
//	seconds        from one version to the other
//	gap_ms         the longest time in which one host sent no heartbeat; its lease lasts 5 s
//
// The goals: failed_calls 0, restarted 0.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"atoll/api"
	"atoll/bench/lib"
	"atoll/internal/release"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/test/lab"
	"atoll/test/rig"
)

func main() {
	rate := flag.Int("rate", 200, "calls a second")
	instances := flag.Int("instances", 12, "that run meanwhile")
	next := flag.String("next", "", "`directory` of the programs to go to; empty: they are built from this tree, a release later")
	flag.Parse()
	lib.WithLab(lab.Options{Hosts: 3}, func(ctx context.Context, l *lab.Lab) error {
		dir := *next
		if dir == "" {
			var err error
			if dir, err = os.MkdirTemp("", "atoll-upgrade-"); err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			if err := build(ctx, dir, "next", strconv.Itoa(release.Number()+1)); err != nil {
				return err
			}
		}
		if err := l.Up(ctx); err != nil {
			return err
		}
		b := &bench{l: l, rate: *rate, instances: *instances}
		return b.run(ctx, dir)
	})
}

func build(ctx context.Context, dir, version, number string) error {
	for _, p := range []string{"atoll", "atolld", "atoll-watchdog"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version+" -X atoll/internal/release.number="+number, "-o", filepath.Join(dir, p), "./cmd/"+p)
		cmd.Dir, cmd.Env = rig.Root(), append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", p, err, out)
		}
	}
	return nil
}

type bench struct {
	l         *lab.Lab
	rate      int
	instances int

	calls, failed atomic.Int64
	mu            sync.Mutex
	why           map[string]int
}

func (b *bench) run(ctx context.Context, next string) error {
	for i := range b.instances {
		if _, err := b.l.Do("run", "-d", "--name", fmt.Sprint("w", i), "busybox", "sleep", "100000"); err != nil {
			return err
		}
	}
	before, err := b.pids(ctx)
	if err != nil {
		return err
	}
	cl, err := b.l.Client(b.l.Hosts)
	if err != nil {
		return err
	}
	defer cl.Close()
	stop := b.load(ctx, cl)
	took, err := b.walk(next)
	stop()
	if err != nil {
		return err
	}
	after, err := b.pids(ctx)
	if err != nil {
		return err
	}
	restarted := 0
	for name, pid := range before {
		if after[name] != pid {
			restarted++
		}
	}
	gap := b.gap()
	for why, n := range b.why {
		fmt.Printf("%5d calls failed: %s\n", n, why)
	}
	fmt.Printf("%d hosts there and back under %d calls/s: %d calls, %d failed, %d of %d instances restarted; there in %.1f s; longest without a heartbeat %d ms\n",
		len(b.l.Hosts), b.rate, b.calls.Load(), b.failed.Load(), restarted, b.instances, took.Seconds(), gap.Milliseconds())
	lib.JSON(map[string]any{"bench": "upgrade", "calls": b.calls.Load(), "failed_calls": b.failed.Load(), "restarted": restarted, "seconds": lib.Round(took.Seconds(), 1), "gap_ms": gap.Milliseconds()})
	return nil
}

// walk goes to the other version and back.
func (b *bench) walk(next string) (time.Duration, error) {
	if _, err := b.l.Do("upgrade", "prepare", "--dir", next); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := b.l.Do("upgrade", "activate"); err != nil {
		return 0, err
	}
	took := time.Since(began)
	_, err := b.l.Do("upgrade", "abort")
	return took, err
}

func (b *bench) pids(ctx context.Context) (map[string]int, error) {
	cl, err := b.l.Hosts[0].Client()
	if err != nil {
		return nil, err
	}
	list, _, err := store.List[*api.Instance](ctx, cl, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, i := range list {
		if i.Status.State != api.StateRunning {
			return nil, fmt.Errorf("%s is %s", i.Name, i.Status.State)
		}
		out[i.Name] = i.Status.Pid
	}
	return out, nil
}

// load makes calls at a steady rate, whatever becomes of the ones before.
func (b *bench) load(ctx context.Context, cl *remote.Store) (stop func()) {
	b.why = map[string]int{}
	ctx, cancel := context.WithCancel(ctx)
	var wg, calls sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(time.Second / time.Duration(b.rate))
		defer t.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			calls.Go(func() { b.call(context.WithoutCancel(ctx), cl, n) })
		}
	})
	return func() { cancel(); wg.Wait(); calls.Wait() }
}

// call is one of what users do: mostly reads, some writes.
func (b *bench) call(ctx context.Context, cl *remote.Store, n int) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var err error
	class := &api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: "c" + strconv.Itoa(n/10)}}, Spec: api.PriorityClassSpec{Value: int64(n % 1000)}}
	switch n % 10 {
	case 0:
		_, err = cl.Create(ctx, class, "bench-"+class.Name)
	case 9: // what call 0 made some time ago
		if n > 2000 {
			_, err = cl.Delete(ctx, api.Ref{Kind: api.KindPriorityClass, Name: "c" + strconv.Itoa((n-2000)/10)}, store.Any)
		}
	case 1, 2, 3:
		_, _, err = cl.List(ctx, api.Selector{Kind: api.KindInstance, Tenant: "demo"})
	default:
		_, err = cl.Get(ctx, api.Ref{Kind: api.KindInstance, Tenant: "demo", Name: "w" + strconv.Itoa(n%b.instances)})
	}
	b.calls.Add(1)
	if err != nil {
		b.failed.Add(1)
		b.mu.Lock()
		b.why[fmt.Sprint("call ", n%10, ": ", err)]++
		b.mu.Unlock()
	}
}

var logTime = regexp.MustCompile(`time=(\S+) .*msg="?(changes the version|up) `)

// gap is the longest time between a daemon's last act and the next one's first: from its
// log, in which it says that it changes and that it is up, with its lease, again.
func (b *bench) gap() time.Duration {
	var all []time.Duration
	for _, h := range b.l.Hosts {
		log, err := os.ReadFile(h.Log)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var left time.Time
		for _, m := range logTime.FindAllSubmatch(regexp.MustCompile(`msg="changes the version; [^"]*"`).ReplaceAll(log, []byte(`msg="changes the version `)), -1) {
			at, err := time.Parse(time.RFC3339Nano, string(m[1]))
			if err != nil {
				continue
			}
			if string(m[2]) == "changes the version" {
				left = at
			} else if !left.IsZero() {
				all, left = append(all, at.Sub(left)), time.Time{}
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	return slices.Max(all)
}
