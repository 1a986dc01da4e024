package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/bench/lib"
	"atoll/cmd/atolld/builtin"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/control"
	"atoll/internal/reconcile"
	"atoll/internal/server"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
	"atoll/internal/store/quota"
)

const (
	roadCome    = 10_000
	roadClients = 64
	roadRounds  = 3
	roadWait    = 5 * time.Minute // a road that takes longer is broken
	// nodesPerCommit keeps a commit of nodes below what etcd takes at once.
	nodesPerCommit = 500
)

// trip is what one way down the full road took.
type trip struct {
	name     string
	n        int
	created  time.Duration // until the last create was acknowledged
	assigned time.Duration // until the last durable assignment was seen
	cpu      time.Duration // of the whole process, clients and etcd included
}

func (t trip) perS() float64     { return float64(t.n) / t.assigned.Seconds() }
func (t trip) cpuEach() float64  { return float64(t.cpu.Microseconds()) / float64(t.n) }
func (t trip) createsS() float64 { return float64(t.n) / t.created.Seconds() }

func (t trip) print() {
	fmt.Printf("%-14s %7d instances  %9.0f/s   creates %.0f/s, %.0f us CPU each; by %d clients, on %d cores\n", t.name, t.n, t.perS(), t.createsS(), t.cpuEach(), roadClients, runtime.GOMAXPROCS(0))
}

// road measures from the first POST /v1/instances to the last durable assignment,
// in one process with etcd, on disk, with hosts that only exist as objects: for one
// tenant, and spread over many. The middle one of some rounds counts.
func road(nodes int, out map[string]any) error {
	for _, c := range []struct {
		name    string
		tenants int
		key     string
	}{{"full", 1, "full_"}, {"full, tenants", 100, "full_tenants_"}} {
		var rate, creates, cpu []float64
		for range roadRounds {
			t, err := travel(c.name, nodes, c.tenants)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			t.print()
			rate, creates, cpu = append(rate, t.perS()), append(creates, t.createsS()), append(cpu, t.cpuEach())
		}
		out[c.key+"per_s"] = lib.Round(lib.Middle(rate), 0)
		out[c.key+"create_per_s"] = lib.Round(lib.Middle(creates), 0)
		out[c.key+"cpu_us"] = lib.Round(lib.Middle(cpu), 0)
	}
	return nil
}

// travel builds the pool anew, so that no run finds another's history.
func travel(name string, nodes, tenants int) (t trip, err error) {
	dir, err := os.MkdirTemp("", "atoll-bench-sched-")
	if err != nil {
		return t, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), roadWait)
	defer cancel()
	p, err := newPool(ctx, dir)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.fill(ctx, nodes, tenants); err != nil {
		return t, err
	}
	runtime.GC()
	t = trip{name: name, n: roadCome}
	began, used := time.Now(), cpuTime()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := p.create(gctx, roadCome, tenants)
		t.created = time.Since(began)
		return err
	})
	g.Go(func() error {
		err := p.await(gctx, roadCome)
		t.assigned = time.Since(began)
		return err
	})
	if err := g.Wait(); err != nil {
		return t, err
	}
	t.cpu = cpuTime() - used
	return t, p.check(ctx, roadCome)
}

// cpuTime is what this process has used, which other work on the machine does not change.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// pool is what atolld up runs, without an agent.
type pool struct {
	base   *etcdstore.Store
	store  *quota.Store
	socket string
	start  int64 // revision before the first instance
	stop   context.CancelFunc
	group  *errgroup.Group
}

func newPool(ctx context.Context, dir string) (*pool, error) {
	clk, log := clock.Real{}, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	base, err := etcdstore.Open(ctx, etcdstore.Config{DataDir: filepath.Join(dir, "etcd"), Clock: clk, Log: log})
	if err != nil {
		return nil, err
	}
	p := &pool{base: base}
	run, stop := context.WithCancel(ctx)
	p.stop = stop
	p.group, run = errgroup.WithContext(run)
	cache := store.NewCache(base)
	p.group.Go(func() error { return cache.Run(run) })
	p.store = quota.New(cache)
	engine := reconcile.New(p.store, clk, log, reconcile.Events{})
	cs, err := control.All(control.Deps{Clock: clk, Log: log, Chain: builtin.Policies(), Seed: 1, Subnet: "10.88.0.0/16"})
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	for _, c := range cs {
		engine.Add(c, control.Workers(c))
	}
	socket := filepath.Join(dir, "atoll.sock")
	srv := server.New(server.Deps{Store: p.store, Auth: auth.New(clk, auth.Config{Admins: []uint32{uint32(os.Geteuid())}}), Clock: clk, Rand: rand.Reader, Log: log, Lists: cache, Base: base},
		server.Config{Socket: socket})
	p.group.Go(func() error { return engine.Run(run) })
	p.group.Go(func() error { return srv.Run(run) })
	p.socket = socket
	for !srv.Ready() {
		if err := clk.Sleep(run, time.Millisecond); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	return p, nil
}

func (p *pool) close() error {
	p.stop()
	err := p.group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, p.base.Close())
}

// fill makes the hosts and the tenants, and waits until every part has seen them.
func (p *pool) fill(ctx context.Context, nodes, tenants int) error {
	for from := 0; from < nodes; from += nodesPerCommit {
		var ops []store.Op
		for i := from; i < min(from+nodesPerCommit, nodes); i++ {
			ops = append(ops, store.Create(node(i)))
		}
		if _, err := p.base.Commit(ctx, ops...); err != nil {
			return err
		}
	}
	c, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range tenants {
		if err := c.post("/v1/tenants", fmt.Appendf(nil, `{"metadata":{"name":%q}}`, tenantName(i))); err != nil {
			return err
		}
	}
	// One more instance shows that the controller knows the nodes: it sees them first.
	if err := p.mark(ctx); err != nil {
		return err
	}
	if err := c.post("/v1/instances", body("warm", tenantName(0))); err != nil {
		return err
	}
	if err := p.await(ctx, 1); err != nil {
		return err
	}
	return p.mark(ctx)
}

// mark notes where await starts.
func (p *pool) mark(ctx context.Context) error {
	_, rev, err := p.store.List(ctx, api.Selector{Kind: api.KindAssignment})
	p.start = rev
	return err
}

func tenantName(i int) string { return fmt.Sprintf("team-%d", i) }

// body is scheduler_perf's: 0.1 CPU and 500 MiB.
func body(name, tenant string) []byte {
	return fmt.Appendf(nil, `{"metadata":{"name":%q,"tenant":%q,"labels":{"app":"b"}},"spec":{"image":"busybox","requests":{"cpu":"100m","memory":"500Mi"},"networks":[{"name":"none"}]}}`, name, tenant)
}

// create makes n instances by as many clients as scheduler_perf's creator has requests open.
func (p *pool) create(ctx context.Context, n, tenants int) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range roadClients {
		g.Go(func() error {
			c, err := p.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := c.post("/v1/instances", body(fmt.Sprintf("b-%d", i), tenantName(i%tenants))); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// client is one connection of HTTP/1.1 with one request at a time. It is as little as a
// client can be, as it runs on the cores that are measured.
type client struct {
	net.Conn
	in  *bufio.Reader
	out []byte
}

func (p *pool) dial(ctx context.Context) (*client, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", p.socket)
	if err != nil {
		return nil, err
	}
	if at, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(at); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return &client{Conn: c, in: bufio.NewReader(c)}, nil
}

func (c *client) post(path string, b []byte) error {
	c.out = fmt.Appendf(c.out[:0], "POST %s HTTP/1.1\r\nHost: atoll\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(b), b)
	if _, err := c.Write(c.out); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("POST %s: %s %s", path, resp.Status, answer)
	}
	return err
}

var errAll = errors.New("all are assigned")

// await watches, as an agent would, until n instances have a node.
func (p *pool) await(ctx context.Context, n int) error {
	seen := map[string]bool{}
	err := p.store.Watch(ctx, api.Selector{Kind: api.KindAssignment}, p.start, func(ev store.Event) error {
		a, ok := ev.Object.(*api.Assignment)
		if !ok || ev.Deleted || a.Spec.Node == "" {
			return nil
		}
		if seen[a.Spec.InstanceUID] = true; len(seen) == n {
			return errAll
		}
		return nil
	})
	if errors.Is(err, errAll) {
		return nil
	}
	return err
}

// check reads etcd itself: every instance is there, and each has one assignment to a node.
func (p *pool) check(ctx context.Context, n int) error {
	ins, _, err := store.List[*api.Instance](ctx, p.base, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return err
	}
	as, _, err := store.List[*api.Assignment](ctx, p.base, api.Selector{Kind: api.KindAssignment})
	if err != nil {
		return err
	}
	placed := map[string]bool{}
	for _, a := range as {
		placed[a.Spec.InstanceUID] = a.Spec.Node != ""
	}
	for _, in := range ins {
		if !placed[in.UID] {
			return fmt.Errorf("instance %s/%s has no durable assignment", in.Tenant, in.Name)
		}
	}
	if len(ins) != n+1 || len(as) != n+1 { // and the first one, see fill
		return fmt.Errorf("etcd has %d instances and %d assignments, not %d", len(ins), len(as), n+1)
	}
	wrong, err := p.store.Recount(ctx)
	if err == nil && wrong != 0 {
		err = fmt.Errorf("%d ledgers were wrong", wrong)
	}
	return err
}
