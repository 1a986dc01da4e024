package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/store"
	"atoll/test/lab"
	"atoll/test/rig"
)

// TestHosts takes a pool of several hosts through its life, each part beginning where the
// one before left off: making it costs more than most of them.
func TestHosts(t *testing.T) {
	l := labOf(t, 4)
	p := &several{l}
	inTurn(t, []part{
		{"Grow", p.grow}, {"Spread", p.spread}, {"EveryServerReachesEveryHost", p.reach}, {"DaemonsAreKilled", p.daemons}, {"LeaderIsKilled", p.leader},
		{"ExclusiveRunsOnce", p.exclusive}, {"TimeAloneChanges", p.alone}, {"Maintenance", p.drain}, {"HostIsLost", p.lost}, {"HostLeaves", p.leaves}, {"HostIsTurnedAway", p.revoked},
	})
}

type several struct{ *lab.Lab }

// labTraces lists what must not be there after a lab was taken away.
func labTraces(l *lab.Lab) []string {
	var out []string
	for _, h := range l.Hosts {
		p := &rig.Pool{Dir: l.Dir, Run: h.Run, Group: h.Group + "*"}
		out = append(out, traces(p)...)
	}
	if _, err := os.Stat(l.Dir); err == nil {
		out = append(out, l.Dir)
	}
	return out
}

func (p *several) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.Do(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// instances gives those whose name begins so.
func (p *several) instances(t *testing.T, begin string) []*api.Instance {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		hosts := p.Serving()
		if len(hosts) > 0 {
			c, err := hosts[0].Client()
			if err != nil {
				t.Fatal(err)
			}
			list, _, err := store.List[*api.Instance](t.Context(), c, api.Selector{Kind: api.KindInstance, Tenant: "demo"})
			if err == nil {
				return slices.DeleteFunc(list, func(in *api.Instance) bool { return !strings.HasPrefix(in.Name, begin) })
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("no host answers")
		}
	}
}

// running waits until so many of that name run, on hosts that are all allowed.
func (p *several) running(t *testing.T, begin string, n int, allowed ...string) map[string]int {
	t.Helper()
	var on map[string]int
	eventually(t, fmt.Sprintf("%d of %s run on %v", n, begin, allowed), func() (bool, string) {
		on = map[string]int{}
		sum, said := 0, ""
		for _, in := range p.instances(t, begin) {
			said += fmt.Sprintf("%s %s on %s: %s; ", in.Name, in.Status.State, in.Status.Node, in.Status.Message)
			if in.Status.State == api.StateRunning && (len(allowed) == 0 || slices.Contains(allowed, in.Status.Node)) {
				on[in.Status.Node]++
				sum++
			}
		}
		return sum == n, said
	})
	return on
}

// ready waits until exactly these hosts are ready.
func (p *several) ready(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%v are ready", want), func() (bool, string) {
		out, err := p.Do("get", "nodes", "--no-headers")
		if err != nil {
			return false, err.Error()
		}
		var got []string
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 2 && f[1] == "ready" {
				got = append(got, f[0])
			}
		}
		return slices.Equal(got, want), out
	})
}

func (p *several) grow(t *testing.T) {
	ctx := t.Context()
	if err := p.Found(ctx); err != nil {
		t.Fatal(err)
	}
	p.do(t, "run", "-d", "--name", "first", "--network", "none", "busybox", "sleep", "100000")
	pid := p.instances(t, "first")[0].Status.Pid
	if err := p.Join(ctx, p.Hosts[1]); err != nil {
		t.Fatal(err)
	}
	p.ready(t, "isle1", "isle2")
	if len(p.Serving()) != 1 {
		t.Fatal("two hosts keep the state: if either is lost, nobody can decide anything")
	}
	if err := p.Join(ctx, p.Hosts[2]); err != nil {
		t.Fatal(err)
	}
	if err := p.WaitMembers(ctx, 3); err != nil {
		t.Fatal(err)
	}
	p.ready(t, "isle1", "isle2", "isle3")
	if now := p.instances(t, "first")[0]; now.Status.Pid != pid || now.Status.Starts != 1 {
		t.Fatalf("what ran was started anew: pid %d, before %d, %d starts", now.Status.Pid, pid, now.Status.Starts)
	}
	p.do(t, "delete", "instance/first", "--now")
}

func (p *several) spread(t *testing.T) {
	p.do(t, "create", "deployment", "web", "--image", "busybox", "--replicas", "6", "--network", "none", "--stop-timeout", "0s", "--", "sh", "-c", "echo here; exec sleep 100000")
	if on := p.running(t, "web-", 6); len(on) != 3 || on["isle1"] != 2 || on["isle2"] != 2 {
		t.Fatalf("spread %v", on)
	}
}

func (p *several) reach(t *testing.T) {
	var wg sync.WaitGroup
	for _, in := range p.instances(t, "web-")[:6] {
		for _, h := range p.Hosts[:3] {
			wg.Go(func() {
				if out, err := h.Do("exec", in.Name, "--", "echo", "from", h.Name); err != nil || out != "from "+h.Name+"\n" {
					t.Errorf("exec in %s on %s by %s: %q %v", in.Name, in.Status.Node, h.Name, out, err)
				}
				if out, err := h.Do("logs", in.Name); err != nil || out != "here\n" {
					t.Errorf("logs of %s on %s by %s: %q %v", in.Name, in.Status.Node, h.Name, out, err)
				}
			})
		}
		wg.Wait() // a few at a time
	}
}

// pids of all instances, by name.
func (p *several) pids(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, in := range p.instances(t, "") {
		out[in.Name] = in.Status.Pid
	}
	return out
}

func (p *several) daemons(t *testing.T) {
	before := p.pids(t)
	for i, h := range p.Hosts[:3] {
		end := h.Kill
		if i == 1 {
			end = h.Stop
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := h.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.Serving(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p.ready(t, "isle1", "isle2", "isle3")
	if err := p.WaitMembers(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	after := p.pids(t)
	for name, pid := range before {
		if after[name] != pid || !alive(pid) {
			t.Errorf("%s ran as %d and is %d", name, pid, after[name])
		}
	}
}

func alive(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}

func (p *several) leader(t *testing.T) {
	old, err := p.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	others := slices.DeleteFunc(slices.Clone(p.Hosts[:3]), func(h *lab.Host) bool { return h == old })
	c, err := others[0].Client()
	if err != nil {
		t.Fatal(err)
	}
	before := p.pids(t)
	began := time.Now()
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		le, err := store.Get[*api.Lease](ctx, c, api.LeaderLease())
		cancel()
		if err == nil && le.Spec.Holder != old.Name {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("nobody leads: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(began)
	t.Logf("another leads after %d ms", took.Milliseconds())
	if took > 2*time.Second {
		t.Errorf("nobody led for %s", took)
	}
	for i, h := range others {
		if _, err := h.Do("user", "create", fmt.Sprint("led", i)); err != nil {
			t.Error(err)
		}
	}
	if err := old.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := old.Serving(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, h := range p.Hosts[:3] {
		if out, err := h.Do("get", "users", "-o", "name"); err != nil || !strings.Contains(out, "/led0") || !strings.Contains(out, "/led1") {
			t.Errorf("by %s: %s %v", h.Name, out, err)
		}
	}
	if err := p.WaitMembers(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	after := p.pids(t)
	for name, pid := range before {
		if after[name] != pid {
			t.Errorf("%s was started anew", name)
		}
	}
}

// The host of an exclusive instance is cut off: real processes are looked
// at all the time, and there are never any on two hosts.
func (p *several) exclusive(t *testing.T) {
	p.do(t, "apply", "-f", write(t, `kind: Instance
metadata: {name: once, tenant: demo}
spec: {image: busybox, command: [sleep, "424242"], exclusive: true, networks: [{name: none}], stopTimeout: 0s}
`))
	on := p.running(t, "once", 1)
	p.cutOff(t, on)
	p.do(t, "delete", "instance/once", "--now")
}

// alone changes how long a host may be out of reach while it runs something that must not
// run twice: its lease follows, and what runs does not notice, nor when its daemon is killed.
func (p *several) alone(t *testing.T) {
	p.do(t, "apply", "-f", write(t, `kind: Instance
metadata: {name: once, tenant: demo}
spec: {image: busybox, command: [sleep, "434343"], exclusive: true, networks: [{name: none}], stopTimeout: 0s}
`))
	var host *lab.Host
	for name := range p.running(t, "once", 1) {
		host = p.Host(name)
	}
	began := p.instances(t, "once")[0].Status
	lasts := func(want time.Duration, spec any) {
		t.Helper()
		hosts := p.Serving()
		if len(hosts) == 0 {
			t.Fatal("nobody serves")
		}
		c, err := hosts[0].Client()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Patch(t.Context(), api.Ref{Kind: api.KindNode, Name: host.Name}, map[string]any{"spec": map[string]any{"disconnectAllowed": spec}}, 0); err != nil {
			t.Fatal(err)
		}
		asked := time.Now()
		eventually(t, host.Name+" has a lease of "+want.String(), func() (bool, string) {
			l, err := store.Get[*api.Lease](t.Context(), c, api.NodeLease(host.Name))
			if err != nil {
				return false, err.Error()
			}
			return l.Spec.Duration.D() == want, l.Spec.Duration.D().String()
		})
		t.Logf("a lease of %s after %.2f s", want, time.Since(asked).Seconds())
	}
	lasts(time.Hour, "1h")
	if out := p.do(t, "describe", "node", host.Name); !strings.Contains(out, "may run on alone for 1h0m0s\n") {
		t.Error(out)
	}
	if err := host.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(6 * time.Second) // longer than the lease was
	if err := host.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := host.Serving(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.ready(t, "isle1", "isle2", "isle3")
	lasts(5*time.Second, nil)
	time.Sleep(6 * time.Second)
	if in := p.instances(t, "once")[0].Status; in.Starts != began.Starts || in.Pid != began.Pid || in.State != api.StateRunning {
		t.Errorf("it did not run on: %+v, before %+v", in, began)
	}
	if err := p.WaitMembers(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	p.do(t, "delete", "instance/once", "--now")
}

func (p *several) cutOff(t *testing.T, on map[string]int) {
	t.Helper()
	var from *lab.Host
	for name := range on {
		from = p.Host(name)
	}
	stop := make(chan struct{})
	var looks, both int
	var gone, came time.Time
	var wg sync.WaitGroup
	began := time.Now()
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			where := p.where("424242")
			looks++
			if len(where) > 1 {
				both++
			}
			if gone.IsZero() && !slices.Contains(where, from.Name) {
				gone = time.Now()
			}
			if came.IsZero() && len(where) > 0 && !slices.Contains(where, from.Name) {
				came = time.Now()
			}
		}
	})
	if err := from.Cut(); err != nil {
		t.Fatal(err)
	}
	var elsewhere []string
	for _, h := range p.Hosts[:3] {
		if h != from {
			elsewhere = append(elsewhere, h.Name)
		}
	}
	p.running(t, "once", 1, elsewhere...)
	if err := from.Mend(); err != nil {
		t.Fatal(err)
	}
	p.ready(t, "isle1", "isle2", "isle3")
	p.clean(t, from)
	close(stop)
	wg.Wait()
	t.Logf("%s was cut off: gone there after %.2f s, elsewhere after %.2f s; %d looks", from.Name, gone.Sub(began).Seconds(), came.Sub(began).Seconds(), looks)
	if both > 0 || looks < 20 {
		t.Errorf("of %d looks, %d saw it on two hosts", looks, both)
	}
	if gone.IsZero() || came.IsZero() || !gone.Before(came) && !gone.Equal(came) {
		t.Errorf("it was gone at %s and elsewhere at %s", gone, came)
	}
	p.running(t, "web-", 6)
	if err := p.WaitMembers(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
}

// where lists the hosts that have a process with such an argument in an instance's group.
func (p *several) where(arg string) []string {
	var out []string
	for _, h := range p.Hosts {
		ps, err := h.Processes(".t/")
		if err != nil {
			continue
		}
		for _, x := range ps {
			argv := x.Args()
			if len(argv) > 1 && filepath.Base(argv[0]) == "sleep" && argv[1] == arg {
				out = append(out, h.Name)
				break
			}
		}
	}
	return out
}

// clean waits until a host has nothing of instances that are not its own.
func (p *several) clean(t *testing.T, h *lab.Host) {
	t.Helper()
	eventually(t, "leftovers on "+h.Name, func() (bool, string) {
		mine := 0
		for _, in := range p.instances(t, "") {
			if in.Status.Node == h.Name {
				mine++
			}
		}
		left := append(ids(filepath.Join(h.Run, "container", "i")), ids(filepath.Join(h.State, "container", "i"))...)
		slices.Sort(left)
		left = slices.Compact(left)
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + h.Group + "/*.t/x*") // the pattern is well-formed
		seen := map[string]bool{}
		for _, g := range groups {
			seen[filepath.Base(g)] = true
		}
		return len(left) == mine && len(seen) == mine, fmt.Sprintf("%d instances are its own; directories %v, groups %v", mine, left, seen)
	})
}

func ids(dir string) []string {
	list, _ := os.ReadDir(dir) // none are none
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func (p *several) drain(t *testing.T) {
	h := p.busiest(t)
	var rest []string
	for _, o := range p.Hosts[:3] {
		if o != h {
			rest = append(rest, o.Name)
		}
	}
	had := p.running(t, "web-", 6)[h.Name]
	out := p.do(t, "drain", h.Name, "--yes", "--timeout", "1m")
	p.running(t, "web-", 6, rest...)
	p.clean(t, h)
	if back := p.do(t, "restore", h.Name, "--timeout", "1m"); !strings.Contains(back, h.Name+" is restored") {
		t.Fatalf("%s\n%s", out, back)
	}
	if on := p.running(t, "web-", 6); on[h.Name] != had {
		t.Fatalf("%d left %s; after the way back: %v", had, h.Name, on)
	}
}

// busiest is the host with the most instances of the deployment.
func (p *several) busiest(t *testing.T) *lab.Host {
	t.Helper()
	most, on := p.Hosts[0], p.running(t, "web-", 6)
	for _, h := range p.Hosts[:3] {
		if on[h.Name] > on[most.Name] {
			most = h
		}
	}
	return most
}

func (p *several) lost(t *testing.T) {
	h := p.busiest(t)
	var rest []string
	for _, o := range p.Hosts[:3] {
		if o != h {
			rest = append(rest, o.Name)
		}
	}
	before, others := p.pids(t), 6-p.running(t, "web-", 6)[h.Name]
	began := time.Now()
	if err := h.PowerOff(); err != nil {
		t.Fatal(err)
	}
	p.running(t, "web-", 6, rest...)
	t.Logf("the %d of %s run elsewhere %.1f s after it was lost", 6-others, h.Name, time.Since(began).Seconds())
	p.ready(t, rest...)
	same := 0
	for name, pid := range p.pids(t) {
		if before[name] == pid {
			same++
		}
	}
	if same != others {
		t.Errorf("%d instances went on, not the %d of the other hosts", same, others)
	}
	if err := h.PowerOn(); err != nil {
		t.Fatal(err)
	}
	if err := h.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.ready(t, "isle1", "isle2", "isle3")
	p.clean(t, h)
	if err := p.WaitMembers(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
}

// A fourth host joins, is emptied, leaves, and cannot come back with what it knows.
func (p *several) leaves(t *testing.T) {
	h := p.Hosts[3]
	if err := p.Join(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	p.ready(t, "isle1", "isle2", "isle3", "isle4")
	busy := p.instances(t, "")[0].Status.Node
	if _, err := p.Do("node", "remove", busy); err == nil {
		t.Fatalf("%s, a host with instances, was removed", busy)
	}
	p.do(t, "drain", "isle4", "--yes", "--timeout", "1m")
	p.do(t, "node", "remove", "isle4")
	p.ready(t, "isle1", "isle2", "isle3")
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	p.turnedAway(t, h)
	if _, err := p.Do("get", "node/isle4"); err == nil {
		t.Fatal("a host that was removed made itself known again")
	}
	if err := h.Wipe(); err != nil {
		t.Fatal(err)
	}
}

// turnedAway starts a daemon that the pool does not know any more.
func (p *several) turnedAway(t *testing.T, h *lab.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := h.Start(ctx); err == nil {
		t.Fatalf("%s is in the pool again", h.Name)
	} else if !strings.Contains(err.Error(), "isle4") {
		t.Fatalf("nothing says why: %v", err)
	}
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
}

func (p *several) revoked(t *testing.T) {
	h := p.Hosts[3]
	if err := p.Join(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	p.ready(t, "isle1", "isle2", "isle3", "isle4")
	p.do(t, "node", "revoke", "isle4", "--why", "stolen")
	p.ready(t, "isle1", "isle2", "isle3")
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	p.turnedAway(t, h)
	p.do(t, "node", "remove", "isle4", "--force")
	p.do(t, "delete", "deployment/web")
	for _, h := range p.Hosts[:3] {
		p.clean(t, h)
	}
}
