package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/store"
	"atoll/test/lab"
	"atoll/test/rig"
)

// TestAdopt brings a host that runs a pool of its own into another one: what it runs goes
// on with the same processes, under other names, and is the pool's from then on.
func TestAdopt(t *testing.T) {
	l := labOf(t, 2)
	p := &adopting{several: several{l}, first: l.Hosts[0], second: l.Hosts[1]}
	inTurn(t, []part{
		{"TwoPools", p.pools}, {"ClashChangesNothing", p.clash}, {"DryRun", p.dryRun}, {"KilledAndRepeated", p.join}, {"RunsOn", p.runsOn}, {"NamesakeIsApart", p.apart}, {"IsThePools", p.belongs}, {"Leaves", p.leave},
	})
}

type adopting struct {
	several
	first, second *lab.Host
	token         string
	pids          map[string]int // by name in the old pool
}

func (p *adopting) on(t *testing.T, h *lab.Host, args ...string) string {
	t.Helper()
	out, err := h.Do(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// pidsOn gives the processes of what runs, by tenant/name.
func (p *adopting) pidsOn(t *testing.T, h *lab.Host) map[string]int {
	t.Helper()
	c, err := h.Client()
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := store.List[*api.Instance](t.Context(), c, api.Selector{Kind: api.KindInstance})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, in := range list {
		if in.Status.State == api.StateRunning {
			out[in.Tenant+"/"+in.Name] = in.Status.Pid
		}
	}
	return out
}

func (p *adopting) pools(t *testing.T) {
	if err := p.Found(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.on(t, p.first, "tenant", "create", "east", "--limit", "instances=10", "--guarantee", "memory=64Mi")
	p.on(t, p.first, "run", "-d", "--name", "there", "busybox", "sleep", "100000")
	if err := p.second.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.second.Serving(t.Context()); err != nil {
		t.Fatal(err)
	}
	// demo is what a tenant of the first pool is called, too.
	for _, args := range [][]string{
		{"tenant", "create", "demo"}, {"tenant", "create", "acme", "--guarantee", "memory=32Mi"}, {"tenant", "create", "acme/lab"},
		{"run", "-d", "--tenant", "acme", "--name", "web", "-p", "18080:80", "-v", "data:/data", "--memory", "64Mi", "busybox", "sh", "-c", "echo began $$; echo kept >/data/file; httpd -f -p 80 -h /data"},
		{"run", "-d", "--tenant", "acme/lab", "--name", "inner", "busybox", "sleep", "100000"},
		{"create", "deployment", "api", "--tenant", "acme/lab", "--image", "busybox", "--replicas", "2", "--", "sleep", "100000"},
		{"run", "-d", "--name", "worker", "--network", "none", "busybox", "sh", "-c", "echo hello from before; exec sleep 100000"},
	} {
		p.on(t, p.second, args...)
	}
	eventually(t, "five run", func() (bool, string) {
		p.pids = p.pidsOn(t, p.second)
		return len(p.pids) == 5, fmt.Sprint(p.pids)
	})
	p.served(t)
}

// served: the published port answers with what is in the volume.
func (p *adopting) served(t *testing.T) {
	t.Helper()
	eventually(t, "the published port answers", func() (bool, string) {
		out, err := p.first.Exec("sh", "-c", fetchLine(p.second.Address, 18080)).CombinedOutput()
		return err == nil && strings.HasSuffix(string(out), "\nkept\n"), fmt.Sprint(string(out), err)
	})
}

// fetchLine is a shell line that reads the file in the volume; busybox' wget wants a resolver.
func fetchLine(host string, port int) string {
	return fmt.Sprintf(`printf 'GET /file HTTP/1.0\r\n\r\n' | busybox timeout 3 busybox nc %s %d`, host, port)
}

// command is atolld join --adopt on the second host.
func (p *adopting) command(t *testing.T, into string, more ...string) *exec.Cmd {
	t.Helper()
	var tok struct{ Token string }
	if p.token == "" {
		if err := json.Unmarshal([]byte(p.on(t, p.first, "node", "token", "--adopt", into, "-o", "json")), &tok); err != nil {
			t.Fatal(err)
		}
		p.token = tok.Token
	}
	args := append([]string{"join", p.first.URL(), "--adopt", into, "--config", "/dev/null", "--node", p.second.Name, "--state", p.second.State, "--run", p.second.Run, "--group", p.second.Group}, more...)
	cmd := p.second.Exec(filepath.Join(p.Bin, "atolld"), args...)
	cmd.Env = append(os.Environ(), "ATOLLD_TOKEN="+p.token)
	return cmd
}

// state is all of the first pool but what changes by itself.
func (p *adopting) state(t *testing.T) string {
	t.Helper()
	out := ""
	for _, k := range []string{"tenants", "nodes", "nodeidentities", "instances", "ledgers"} {
		out += p.on(t, p.first, "get", k, "-A", "-o", "name")
	}
	return out
}

func (p *adopting) clash(t *testing.T) {
	cmd := p.command(t, "east")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "systemctl stop atolld") {
		t.Fatalf("while its daemon runs: %v\n%s", err, out)
	}
	for _, n := range []string{"east/acme", "east/demo"} {
		p.on(t, p.first, "tenant", "create", n)
	}
	before := p.state(t)
	if err := p.second.Stop(); err != nil {
		t.Fatal(err)
	}
	out, err := p.command(t, "east").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "nothing was changed") || !strings.Contains(string(out), "east/acme") || !strings.Contains(string(out), "east/demo") {
		t.Fatalf("two names are taken: %v\n%s", err, out)
	}
	if after := p.state(t); after != before {
		t.Fatalf("the pool changed from\n%s\nto\n%s", before, after)
	}
	// The old pool goes on as if nothing had been.
	if err := p.second.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := p.pidsOn(t, p.second); fmt.Sprint(now) != fmt.Sprint(p.pids) {
		t.Fatalf("%v ran, and now %v", p.pids, now)
	}
	for _, n := range []string{"east/acme", "east/demo"} {
		p.on(t, p.first, "tenant", "delete", n)
	}
	if err := p.second.Stop(); err != nil {
		t.Fatal(err)
	}
}

func (p *adopting) dryRun(t *testing.T) {
	before := p.state(t)
	out, err := p.command(t, "east", "--dry-run").CombinedOutput()
	for _, want := range []string{"acme/web", "east/acme/web", "east/acme/lab", "STAYS BEHIND"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("%s is missing: %v\n%s", want, err, out)
		}
	}
	t.Logf("%s", out)
	raw, _, err := rig.Output(p.command(t, "east", "--dry-run", "-o", "json"))
	var plan api.AdoptPlan
	if err != nil || json.Unmarshal([]byte(raw), &plan) != nil || plan.Tenants["acme/lab"] != "east/acme/lab" {
		t.Fatalf("%v\n%s", err, raw)
	}
	if after := p.state(t); after != before {
		t.Fatalf("a dry run changed\n%s\nto\n%s", before, after)
	}
}

// join kills the command as soon as each of its steps shows, and repeats it until it has
// come to its end.
func (p *adopting) join(t *testing.T) {
	state := func(parts ...string) string { return filepath.Join(append([]string{p.second.State}, parts...)...) }
	noted := func(what string) func() bool {
		return func() bool {
			b, err := os.ReadFile(state("adopt.json"))
			return err == nil && strings.Contains(string(b), what)
		}
	}
	holds := func(pattern, what string) func() bool {
		return func() bool {
			files, _ := filepath.Glob(pattern)
			for _, f := range files {
				if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), what) {
					return true
				}
			}
			return false
		}
	}
	there := func(path string) func() bool { return func() bool { _, err := os.Lstat(path); return err == nil } }
	caught := []string{}
	for _, step := range []struct {
		name string
		seen func() bool
	}{
		{"backup", there(state("before-join.atoll"))}, {"asked", noted(`"aside"`)}, {"answered", noted(`"answer"`)},
		{"first record", holds(state("container", "i", "*", "record.json"), `"east/`)}, {"aside", there(state("before-join", "pki"))},
		{"authority aside", there(state("before-join", "pki", "ca.key"))}, {"state aside", there(state("before-join", "etcd"))}, {"identity", holds(state("join.json"), `"isle2"`)},
	} {
		if step.seen() {
			continue // an earlier kill was late
		}
		cmd := p.command(t, "east")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
	watch:
		for {
			select {
			case <-ended:
				break watch
			default:
				if step.seen() {
					_ = cmd.Process.Kill()
					caught = append(caught, step.name)
					<-ended
					break watch
				}
			}
		}
		if _, err := os.Stat(state("adopt.json")); err == nil {
			up := p.second.Exec(filepath.Join(p.Bin, "atolld"), "up", "--config", "/dev/null", "--node", p.second.Name, "--state", p.second.State, "--run", p.second.Run, "--group", p.second.Group)
			if out, err := up.CombinedOutput(); err == nil || !strings.Contains(string(out), "on its way") {
				t.Fatalf("its old pool goes on: %v\n%s", err, out)
			}
		}
	}
	t.Logf("killed at: %s", strings.Join(caught, ", "))
	if len(caught) < 3 {
		t.Errorf("it was killed at %v only", caught)
	}
	if _, err := os.Stat(state("before-join", "etcd")); err != nil {
		if out, err := p.command(t, "east").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	} else if _, err := os.Stat(state("adopt.json")); err == nil {
		if out, err := p.command(t, "east").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	out, err := p.command(t, "east").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "in the pool already") {
		t.Fatalf("again: %v\n%s", err, out)
	}
	for _, f := range []string{"before-join.atoll", "before-join/etcd", "before-join/pki/ca.key"} {
		if _, err := os.Stat(filepath.Join(p.second.State, f)); err != nil {
			t.Error(err)
		}
	}
	for _, f := range []string{"etcd", "pki/ca.key", "adopt.json"} {
		if _, err := os.Lstat(filepath.Join(p.second.State, f)); err == nil {
			t.Errorf("%s is still there", f)
		}
	}
}

func (p *adopting) runsOn(t *testing.T) {
	for name, pid := range p.pids {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Fatalf("%s, process %d: %v", name, pid, err)
		}
	}
	if err := p.second.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.ready(t, "isle1", "isle2")
	want := map[string]int{}
	for name, pid := range p.pids {
		want["east/"+name] = pid
	}
	eventually(t, "the same processes run under their new names", func() (bool, string) {
		now := p.pidsOn(t, p.first)
		delete(now, "demo/there")
		return fmt.Sprint(now) == fmt.Sprint(want), fmt.Sprintf("%v, not %v", now, want)
	})
	time.Sleep(3 * time.Second) // nothing is started anew later either
	now := p.pidsOn(t, p.first)
	if delete(now, "demo/there"); fmt.Sprint(now) != fmt.Sprint(want) {
		t.Fatalf("%v, not %v", now, want)
	}
	p.served(t)
}

// apart: a tenant of the pool that is called as an adopted one was is another tenant.
func (p *adopting) apart(t *testing.T) {
	p.on(t, p.first, "tenant", "create", "acme")
	p.on(t, p.first, "run", "-d", "--tenant", "acme", "--name", "other", "--node", "isle2", "busybox", "sleep", "100000")
	addr := p.address(t, "web")
	if out, err := p.first.Do("exec", "--tenant", "acme", "other", "sh", "-c", fetchLine(addr, 80)+"; echo tried"); err != nil || !strings.Contains(out, "tried") || strings.Contains(out, "kept") {
		t.Fatalf("it reaches what is not its own: %s %v", out, err)
	}
	out := p.on(t, p.first, "exec", "--tenant", "east/acme", "web", "sh", "-c", fetchLine(addr, 80))
	if !strings.HasSuffix(out, "\nkept\n") {
		t.Fatalf("the address is wrong: %s", out)
	}
	p.on(t, p.first, "delete", "instance/other", "--tenant", "acme")
	eventually(t, "acme goes", func() (bool, string) {
		_, err := p.first.Do("tenant", "delete", "acme")
		return err == nil, fmt.Sprint(err)
	})
	pid := p.pidsOn(t, p.first)["east/acme/web"]
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || pid != p.pids["acme/web"] || !strings.Contains(string(b), p.second.Group+"/acme.t/") {
		t.Fatalf("web was moved: %d %s %v", pid, b, err)
	}
}

func (p *adopting) belongs(t *testing.T) {
	eventually(t, "exec reaches it through the first host", func() (bool, string) {
		out, err := p.first.Do("exec", "--tenant", "east/acme", "web", "cat", "/data/file")
		return err == nil && strings.Contains(out, "kept"), fmt.Sprint(out, err)
	})
	if out := p.on(t, p.first, "logs", "--tenant", "east/demo", "worker"); !strings.Contains(out, "hello from before") {
		t.Fatalf("its log: %s", out)
	}
	c, err := p.first.Client()
	if err != nil {
		t.Fatal(err)
	}
	led, err := store.Get[*api.Ledger](t.Context(), c, api.Ref{Kind: api.KindLedger, Tenant: "east", Name: api.LedgerName})
	if err != nil || led.Spec.Requested[api.Instances] != 5 || led.Spec.Promised[api.Memory] != 32<<20 {
		t.Fatalf("%+v %v", led, err)
	}
	eventually(t, "usage of what came counts", func() (bool, string) {
		out, err := p.first.Do("top", "tenants", "-o", "json")
		return err == nil && strings.Contains(out, `"east/acme/lab"`), fmt.Sprint(out, err)
	})
	// New instances of its tenants run beside it, and a restart keeps the volume.
	p.on(t, p.first, "run", "-d", "--tenant", "east/acme", "--name", "new", "--node", "isle2", "busybox", "sleep", "100000")
	p.on(t, p.first, "restart", "--tenant", "east/acme", "web")
	eventually(t, "web runs anew, in its tenant's group", func() (bool, string) {
		pid := p.pidsOn(t, p.first)["east/acme/web"]
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		return pid != 0 && pid != p.pids["acme/web"] && strings.Contains(string(b), p.second.Group+"/east.t/acme.t/"), fmt.Sprint(pid, string(b))
	})
	p.served(t)
	if out := p.on(t, p.first, "exec", "--tenant", "east/acme", "new", "sh", "-c", fetchLine(p.address(t, "web"), 80)); !strings.HasSuffix(out, "\nkept\n") {
		t.Fatalf("new does not reach web, of the same tenant: %s", out)
	}
}

func (p *adopting) address(t *testing.T, name string) string {
	t.Helper()
	c, err := p.first.Client()
	if err != nil {
		t.Fatal(err)
	}
	in, err := store.Get[*api.Instance](t.Context(), c, api.Ref{Kind: api.KindInstance, Tenant: "east/acme", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return in.Status.Address
}

func (p *adopting) leave(t *testing.T) {
	p.on(t, p.first, "delete", "deployment/api", "--tenant", "east/acme/lab")
	for _, ref := range [][2]string{{"east/acme", "web"}, {"east/acme", "new"}, {"east/acme/lab", "inner"}, {"east/demo", "worker"}} {
		p.on(t, p.first, "delete", "instance/"+ref[1], "--tenant", ref[0])
	}
	for _, n := range []string{"east/acme/lab", "east/acme", "east/demo"} {
		eventually(t, n+" goes", func() (bool, string) {
			_, err := p.first.Do("tenant", "delete", n)
			return err == nil, fmt.Sprint(err)
		})
	}
	eventually(t, "no group and no record is left", func() (bool, string) {
		var left []string
		for _, pattern := range []string{"/sys/fs/cgroup/*/" + p.second.Group + "/*.t", "/sys/fs/cgroup/" + p.second.Group + "/*.t", filepath.Join(p.second.State, "container", "i", "*")} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, found...)
		}
		left = slices.DeleteFunc(left, func(s string) bool { return strings.HasSuffix(s, "/east.t") || strings.HasSuffix(s, "/demo.t") })
		return len(left) == 0, fmt.Sprint(left)
	})
	p.on(t, p.first, "node", "remove", "isle2")
}
