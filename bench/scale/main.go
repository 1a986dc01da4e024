// Command scale runs a thousand simulated hosts and twenty thousand instances against
// one real server: its API over TLS, its etcd on the disk, its controllers. The hosts
// are the real protocol (join by token, node certificates, tunnel, leases, the real
// agent over the remote store) on pretended drivers, in one process of their own, so
// that what /proc tells of the server is the server's alone.
//
// It prints what the server costs when nothing happens, how fast instances are made
// and run, and how long a change takes to its host. With -tunnels it opens connections
// with heartbeats only, to see how many a machine takes.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"atoll/api"
	"atoll/bench/lib"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/sys/cgroup"
	"atoll/test/rig"
)

// options are what is measured.
type options struct {
	agents, tunnels, instances int
	clients                    int           // that create at once
	steady                     time.Duration // measured while nothing happens
	probes                     int           // changes that are followed to their host
	bin                        string        // directory of the programs; "": built
	prof                       string        // directory for profiles; "": none
	quick                      bool
	start                      time.Duration // between a host's beginning and the next one's
}

const fleetWord = "fleet" // the child's only argument

func main() {
	if len(os.Args) > 1 && os.Args[1] == fleetWord {
		if err := fleet(); err != nil {
			lib.Fatal(err)
		}
		return
	}
	var o options
	flag.IntVar(&o.agents, "agents", 1000, "simulated hosts")
	flag.IntVar(&o.tunnels, "tunnels", 0, "beside them, hosts that only keep their connection and their lease")
	flag.IntVar(&o.instances, "instances", 20_000, "instances")
	flag.IntVar(&o.clients, "clients", 64, "clients that create at once")
	flag.DurationVar(&o.steady, "steady", 40*time.Second, "how long nothing happens but heartbeats")
	flag.IntVar(&o.probes, "probes", 400, "changes that are followed to their host")
	flag.DurationVar(&o.start, "start", 3*time.Millisecond, "pause between the starts of two hosts")
	flag.StringVar(&o.bin, "bin", "", "`directory` with atoll and atolld; default: they are built")
	flag.StringVar(&o.prof, "profile", "", "`directory` for profiles of the server, of each phase; needs -bin of programs built with -tags profile")
	flag.BoolVar(&o.quick, "quick", false, "100 hosts, 1000 instances, under a minute")
	flag.Parse()
	if o.quick {
		o.agents, o.instances, o.steady, o.probes = 100, 1000, 10*time.Second, 100
	}
	if err := run(o); err != nil {
		lib.Fatal(err)
	}
}

// port is where the server listens in its own network namespace.
const port = "7443"

// perAddress is how many hosts call from one address: the server bounds the
// connections of each (server.Config.MaxConns, 512), and a host has two.
const perAddress = 200

// addresses are the host's own in its namespace: who calls one, calls from it.
func addresses(hosts int) []string {
	var out []string
	for i := range (hosts + perAddress - 1) / perAddress {
		out = append(out, fmt.Sprintf("10.77.%d.%d", i/250, i%250+1))
	}
	return out
}

func run(o options) error {
	debug.SetGCPercent(400) // what measures must not take the processor from what is measured
	if m := rig.Missing(); m != "" {
		return fmt.Errorf("this machine lacks %s", m)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if o.bin == "" {
		if o.bin, err = rig.Build(ctx); err != nil {
			return err
		}
	}
	addrs := addresses(o.agents + o.tunnels)
	var ends []string
	for _, a := range addrs {
		ends = append(ends, a+":"+port)
	}
	// One server keeps the state: the hosts here could not take part.
	p, err := rig.New(o.bin, "--listen", "0.0.0.0:"+port, "--advertise", strings.Join(ends, ","), "--members", "1", "--busybox", "")
	if err != nil {
		return err
	}
	defer func() {
		if err := p.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: clean up:", err)
		}
	}()
	for _, a := range addrs {
		if out, err := p.Host("ip", "addr", "add", a+"/32", "dev", "lo").CombinedOutput(); err != nil {
			return fmt.Errorf("address %s: %w: %s", a, err, out)
		}
	}
	b := &bench{o: o, p: p, out: map[string]any{"bench": "scale", "agents": o.agents, "instances": o.instances}, sightings: map[int]sighting{}}
	if o.prof != "" {
		if err := os.Setenv("ATOLLD_PROFILE", b.profileSocket()); err != nil { // the server inherits it
			return err
		}
	}
	sctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if _, err := p.Start(sctx); err != nil {
		return err
	}
	b.proc = process{p.Pid()}
	return b.measure(ctx, addrs)
}

// bench is one run.
type bench struct {
	o     options
	p     *rig.Pool
	proc  process
	admin *remote.Store
	user  *remote.Store // of a tenant, by a token
	out   map[string]any
	began time.Time

	up, running atomic.Int64

	mu        sync.Mutex
	sightings map[int]sighting
	failed    error
}

// sighting is when a host saw a change: in its watch, and in its driver.
type sighting struct{ watch, driver int64 }

func (b *bench) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

func (b *bench) measure(ctx context.Context, addrs []string) error {
	b.began = time.Now()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer b.admin.Close()
	b.out["rss_empty_mb"] = lib.Round(b.proc.rss(), 0)
	stop, err := b.launch(ctx, addrs)
	if err != nil {
		return err
	}
	defer stop()
	if err := b.arrive(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{b.idle, b.create, b.steady, b.follow} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	b.out["load"] = load()
	lib.JSON(b.out)
	return nil
}

// prepare makes the tenant, its user and the user's token, and keeps this machine
// itself from being a host that instances are placed on.
func (b *bench) prepare(ctx context.Context) error {
	var err error
	if b.admin, err = remote.New(remote.Config{Socket: b.p.Socket, Agent: "bench"}); err != nil {
		return err
	}
	if _, err := b.p.Do("node", "cordon", "isle1"); err != nil {
		return err
	}
	head := func(k api.Kind, name string) api.Head { return api.Head{K: k, Meta: api.Meta{Name: name}} }
	var token string
	for _, o := range []api.Object{
		&api.Tenant{Head: head(api.KindTenant, "acme"), Spec: api.TenantSpec{Limit: api.Resources{api.CPU: 1 << 40, api.Memory: 1 << 60, api.Instances: 1_000_000}}},
		&api.User{Head: head(api.KindUser, "dana")},
		&api.RoleBinding{Head: head(api.KindRoleBinding, "dana"), Spec: api.RoleBindingSpec{Role: "developer", Users: []string{"dana"}, Tenant: "acme"}},
		&api.Token{Head: head(api.KindToken, "dana"), Spec: api.TokenSpec{User: "dana"}},
	} {
		made, err := b.admin.Create(ctx, o, "")
		if err != nil {
			return fmt.Errorf("make %s: %w", api.RefOf(o), err)
		}
		if t, ok := made.(*api.Token); ok {
			token = t.Status.Secret
		}
	}
	b.user, err = remote.New(remote.Config{Socket: b.p.Socket, Token: token, Agent: "bench"})
	return err
}

// launch starts the hosts in their own process.
func (b *bench) launch(ctx context.Context, addrs []string) (stop func(), err error) {
	made, err := b.admin.Create(ctx, &api.JoinToken{Head: api.Head{K: api.KindJoinToken, Meta: api.Meta{Name: "fleet"}}}, "")
	if err != nil {
		return nil, fmt.Errorf("join token: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := b.p.Host(self, fleetWord)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	// A thousand hosts have processors of their own. Here they share two with the server,
	// whose group goes before everything else on the machine: without a part in it they
	// would stand still whenever the server is busy, and lose their leases.
	cg, err := cgroup.Detect()
	if err == nil {
		err = cg.Join(b.p.Group+"-daemon", cmd.Process.Pid)
	}
	if err != nil {
		b.say("the hosts run beside the server's group: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { b.listen(bufio.NewScanner(out)) })
	c := fleetConfig{Token: made.(*api.JoinToken).Status.Secret, Agents: b.o.agents, Tunnels: b.o.tunnels, Pause: b.o.start, Dir: filepath.Join(b.p.Run, "fleet")}
	for _, a := range addrs {
		c.Servers = append(c.Servers, "https://"+a+":"+port)
	}
	err = json.NewEncoder(in).Encode(c) // the token must not be seen in argv
	return func() {
		in.Close() // its end is the fleet's
		wg.Wait()
		_ = cmd.Wait() // it was told to end
	}, err
}

// listen takes what the fleet tells.
func (b *bench) listen(sc *bufio.Scanner) {
	for sc.Scan() {
		var r report
		if json.Unmarshal(sc.Bytes(), &r) != nil {
			continue
		}
		switch {
		case r.Error != "":
			b.mu.Lock()
			b.failed = errors.Join(b.failed, errors.New(r.Error))
			b.mu.Unlock()
		case r.Probe > 0:
			b.mu.Lock()
			s := b.sightings[r.Probe]
			if r.Driver {
				s.driver = r.At
			} else {
				s.watch = r.At
			}
			b.sightings[r.Probe] = s
			b.mu.Unlock()
		default:
			b.up.Store(int64(r.Up))
			b.running.Store(int64(r.Running))
		}
	}
}

func (b *bench) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// stuck is how long nothing comes before a bench gives up.
const stuck = 30 * time.Second

// census says how the instances are, for errors.
func (b *bench) census(ctx context.Context) string {
	list, _, err := store.List[*api.Instance](ctx, b.admin, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return err.Error()
	}
	states, sample := map[string]int{}, ""
	for _, in := range list {
		k := fmt.Sprintf("%s %s starts=%d", in.Status.State, in.Status.Reason, in.Status.Starts)
		if states[k]++; states[k] == 1 {
			sample += fmt.Sprintf("; %s on %q is %s: %s", in.Name, in.Status.Node, k, in.Status.Message)
		}
	}
	lost, _ := b.lost(ctx) // told if it can be
	return fmt.Sprintf("%v, %d leases lost%s", states, lost, sample)
}

// until waits for a number to come, as long as it grows.
func (b *bench) until(ctx context.Context, what string, want int64, have func() int64) error {
	last, moved, said := int64(-1), time.Now(), time.Now()
	for have() < want {
		if err := b.failure(); err != nil {
			return err
		}
		n := have()
		if n != last {
			last, moved = n, time.Now()
		}
		if time.Since(moved) > stuck {
			return fmt.Errorf("%d of %d %s, and no more come: %s", n, want, what, b.census(ctx))
		}
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			b.say("%d of %d %s, server %.0f MB", n, want, what, b.proc.rss())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// arrive waits until all hosts are there and ready.
func (b *bench) arrive(ctx context.Context) error {
	all := int64(b.o.agents + b.o.tunnels)
	t0, stop := time.Now(), b.profile("join")
	if err := b.until(ctx, "hosts", all, b.up.Load); err != nil {
		return err
	}
	stop()
	took := time.Since(t0)
	b.out["joins_per_s"] = lib.Round(float64(all)/took.Seconds(), 0)
	b.say("%d hosts are there after %s, server %.0f MB", all, took.Round(time.Second), b.proc.rss())
	if b.o.agents == 0 {
		return nil
	}
	nodes, _, err := store.List[*api.Node](ctx, b.admin, api.Selector{Kind: api.KindNode})
	if err != nil {
		return err
	}
	ready := 0
	for _, n := range nodes {
		if c := n.Condition(api.ConditionReady); c != nil && c.Status {
			ready++
		}
	}
	if ready < b.o.agents {
		return fmt.Errorf("only %d of %d hosts are ready", ready, b.o.agents)
	}
	return nil
}

// idle measures the hosts alone.
func (b *bench) idle(ctx context.Context) error {
	cpu, err := b.quiet(ctx, "idle")
	b.out["cpu_pct_hosts"], b.out["rss_hosts_mb"] = lib.Round(cpu, 1), lib.Round(b.proc.rss(), 0)
	b.say("hosts alone: %.1f %% of a core, %.0f MB", cpu, b.proc.rss())
	return err
}

// steady measures hosts and instances when nothing happens.
func (b *bench) steady(ctx context.Context) error {
	cpu, err := b.quiet(ctx, "steady")
	b.out["cpu_pct"], b.out["rss_mb"] = lib.Round(cpu, 1), lib.Round(b.proc.rss(), 0)
	b.out["rss_peak_mb"] = lib.Round(b.proc.peak(), 0)
	b.say("nothing happens: %.1f %% of a core, %.0f MB (most: %.0f)", cpu, b.proc.rss(), b.proc.peak())
	lost, lerr := b.lost(ctx)
	b.out["leases_lost"] = lost
	return errors.Join(err, lerr)
}

// lost counts the leases that ended: none should.
func (b *bench) lost(ctx context.Context) (int, error) {
	leases, _, err := store.List[*api.Lease](ctx, b.admin, api.Selector{Kind: api.KindLease})
	n := 0
	for _, l := range leases {
		n += len(l.Spec.Losses)
	}
	return n, err
}

// quiet waits for what is still under way, then measures the server's processor time.
func (b *bench) quiet(ctx context.Context, phase string) (float64, error) {
	if b.o.steady == 0 {
		return 0, nil
	}
	if err := pause(ctx, min(10*time.Second, b.o.steady/4)); err != nil {
		return 0, err
	}
	defer b.profile(phase)()
	c0, t0 := b.proc.cpu(), time.Now()
	if err := pause(ctx, b.o.steady); err != nil {
		return 0, err
	}
	return float64(b.proc.cpu()-c0) / float64(time.Since(t0)) * 100, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// profile keeps what a build with the tag profile tells of its processor and memory
// until the returned func is called.
func (b *bench) profile(phase string) func() {
	if b.o.prof == "" {
		return func() {}
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { b.fetch(ctx, phase+".cpu", "/debug/pprof/profile?seconds=20") })
	return func() {
		wg.Wait()
		cancel()
		b.fetch(context.Background(), phase+".heap", "/debug/pprof/heap?gc=1")
		b.fetch(context.Background(), phase+".goroutines", "/debug/pprof/goroutine")
	}
}

// fetch keeps one profile. What fails is told and no reason to end.
func (b *bench) fetch(ctx context.Context, name, path string) {
	err := func() error {
		cl := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", b.profileSocket())
		}}}
		defer cl.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://atolld"+path, nil)
		if err != nil {
			return err
		}
		resp, err := cl.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		f, err := os.Create(filepath.Join(b.o.prof, name))
		if err != nil {
			return err
		}
		_, err = io.Copy(f, resp.Body)
		return errors.Join(err, f.Close())
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: profile:", err)
	}
}

func (b *bench) profileSocket() string { return filepath.Join(b.p.Dir, "profile.sock") }
