package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver/network/overlay/bpf"
)

// TestHostileTenant has root in an instance try everything it can send. What arrives is looked at in instances of
// the same tenant, on the same host and another, and in one of another tenant with the same addresses.
func TestHostileTenant(t *testing.T) {
	if err := bpf.Probe(); err != nil {
		t.Skip(err)
	}
	h := &hostile{networks: networks{several: several{labOf(t, 2)}}}
	inTurn(t, []part{{"Grow", h.begin}, {"SameHost", h.near}, {"OtherHost", h.far}, {"Mark", h.mark}, {"HostAndOutside", h.host}, {"Scan", h.scan}, {"ThreeHundred", h.many}})
}

type hostile struct{ networks }

const attacker = "bad"

func (h *hostile) begin(t *testing.T) {
	h.grow(t)
	bin := filepath.Join(t.TempDir(), "hostile")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./hostile")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, x := range []struct{ tenant, name, node string }{{"red", attacker, "isle1"}, {"red", "near", "isle1"}, {"red", "db", "isle2"}, {"red", "web", "isle2"},
		{"blue", "web", "isle1"}, {"blue", "db", "isle2"}, {"blue", "more", "isle1"}, {"blue", "most", "isle1"}, {"blue", "only", "isle1"}} {
		h.serve(t, x.tenant, x.name, x.node, "--cap-add", "NET_RAW,NET_ADMIN")
		h.do(t, "cp", "--tenant", x.tenant, bin, x.name+":/hostile")
	}
}

// watch runs fn while instances are watched, and tells what came to each.
func (h *hostile) watch(t *testing.T, fn func(), who ...string) map[string][]string {
	t.Helper()
	var mu sync.Mutex
	came := map[string][]string{}
	var ready, done sync.WaitGroup
	for _, w := range who {
		tenant, name, _ := strings.Cut(w, "/")
		ready.Add(1)
		done.Go(func() {
			cmd := h.Serving()[0].Atoll("exec", "--tenant", tenant, name, "--", "/hostile", "watch", "8s")
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Error(err)
				ready.Done()
				return
			}
			once := sync.OnceFunc(ready.Done)
			defer once()
			for s := bufio.NewScanner(out); s.Scan(); {
				if s.Text() == "watching" {
					once()
				}
				if c, ok := strings.CutPrefix(s.Text(), "came "); ok {
					mu.Lock()
					came[w] = append(came[w], c)
					mu.Unlock()
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("watch in %s: %v", w, err)
			}
		})
	}
	ready.Wait()
	fn()
	done.Wait()
	return came
}

// attack sends everything at a victim, pretending to be red's web.
func (h *hostile) attack(t *testing.T, victim string) {
	t.Helper()
	v, o := h.find(t, "red", victim).Spec.Interfaces[0], h.find(t, "red", "web").Spec.Interfaces[0]
	var sent int
	came := h.watch(t, func() {
		args := []string{"exec", "--tenant", "red", attacker, "--", "/hostile", "send"}
		for _, i := range []api.Interface{v, o} {
			args = append(args, i.Addresses()[0], i.Addresses()[1], i.MAC)
		}
		sent = strings.Count(h.do(t, append(args, h.Hosts[0].Address)...), "sent ")
	}, "red/near", "red/db", "blue/web", "blue/db")
	if sent < 50 {
		t.Errorf("only %d kinds of frames were sent", sent)
	}
	for who, names := range came {
		slices.Sort(names)
		var want []string
		if who == "red/"+victim {
			want = []string{"honest", "honest6"}
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s attacked: %s got %v, want %v", victim, who, names, want)
		}
	}
	if came["red/"+victim] == nil {
		t.Errorf("%s saw nothing, not even what it may", victim)
	}
	h.reaches(t, "red", "web", victim) // nobody was led astray
	h.reaches(t, "red", victim, "web")
}

func (h *hostile) near(t *testing.T) { h.attack(t, "near") }
func (h *hostile) far(t *testing.T)  { h.attack(t, "db") }

// A packet mark, in which identities travel on a host, does not make anybody of it.
func (h *hostile) mark(t *testing.T) {
	h.apply(t, "kind: SecurityGroup\nmetadata: {name: guard, tenant: red}\nspec: {select: {app: db}, ingress: [{from: [{labels: {app: web}}], ports: [tcp/80]}]}\n")
	defer h.do(t, "delete", "--tenant", "red", "securitygroup", "guard")
	eventually(t, "the group is in force", func() (bool, string) {
		got := h.ask("red", attacker, h.addr["red/db"])
		return got == "", got
	})
	h.reaches(t, "red", "web", "db")
	for _, id := range []uint16{h.find(t, "red", "web").Spec.Interfaces[0].Identity, 1, 2} {
		out := h.do(t, "exec", "--tenant", "red", attacker, "--", "/hostile", "as", fmt.Sprint(id), h.addr["red/db"]+":80")
		if !strings.Contains(out, "nobody") {
			t.Errorf("with mark %d: %s", id, out)
		}
	}
}

// Nothing of the hosts answers, nor what clouds have at the link-local address.
func (h *hostile) host(t *testing.T) {
	for _, addr := range []string{h.Hosts[0].Address, h.Hosts[1].Address, "10.1.0.1", "10.88.0.1", "169.254.169.254", "127.0.0.1"} {
		for _, port := range []string{"7443", "7444", "22", "4798", "80"} {
			if addr == "127.0.0.1" && port == "80" {
				continue // its own
			}
			out := h.do(t, "exec", "--tenant", "red", attacker, "--", "/hostile", "as", "0", addr+":"+port)
			if !strings.Contains(out, "nobody") {
				t.Errorf("%s port %s answers: %s", addr, port, out)
			}
		}
	}
}

// Whatever address it asks, nobody of another tenant answers.
func (h *hostile) scan(t *testing.T) {
	out := h.do(t, "exec", "--tenant", "red", attacker, "--", "sh", "-c",
		`for i in $(seq 2 14); do (printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 10.1.0.$i 80 | tail -n 1) & done; wait`)
	if strings.Contains(out, "blue") || strings.Count(out, "I am red/") < 4 {
		t.Errorf("the scan found:\n%s", out)
	}
}

var changing = regexp.MustCompile(`(packets|bytes|expires|handle|id|lifetime) [0-9a-fx]+|ago|\bused [0-9/]+`)

// listings are what a host shows of its network, without what changes by itself.
func (h *hostile) listings(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, x := range h.Hosts {
		for _, c := range []string{"ip -br link", "ip -br addr", "ip route show table all", "ip -6 route show table all", "ip rule", "ip neigh show proxy", "ip netns", "nft list ruleset", "ls /sys/class/net"} {
			f := strings.Fields(c)
			b, err := x.Exec(f[0], f[1:]...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v: %s", c, err, b)
			}
			out[x.Name+": "+c] = changing.ReplaceAllString(string(b), "")
		}
		left, err := filepath.Glob(filepath.Join(x.Run, "overlay", "net", "*"))
		if err != nil {
			t.Fatal(err)
		}
		out[x.Name+": networks"] = strings.Join(left, " ")
	}
	for _, c := range []string{"prog", "map", "link"} {
		b, err := exec.Command("bpftool", c, "list").CombinedOutput()
		if err != nil {
			t.Skipf("bpftool: %v: %s", err, b)
		}
		ours := regexp.MustCompile(`name \S+`).FindAllString(string(b), -1) // sorted, and no more: numbers and order change
		slices.Sort(ours)
		out["bpftool "+c] = strings.Join(ours, "\n")
	}
	return out
}

// Three hundred instances come and go, and nothing of them is left.
func (h *hostile) many(t *testing.T) {
	for _, tenant := range []string{"red", "blue"} {
		h.do(t, append([]string{"delete", "--tenant", tenant}, strings.Fields(h.do(t, "get", "instances", "--tenant", tenant, "-o", "name"))...)...)
	}
	h.empty(t)
	before := h.listings(t)
	for _, tenant := range []string{"red", "blue"} {
		h.apply(t, fmt.Sprintf("kind: Deployment\nmetadata: {name: crowd, tenant: %s}\nspec:\n  replicas: 150\n  template:\n    spec: {image: busybox, command: [sleep, \"100000\"], networks: [{name: main}], requests: {cpu: 1m, memory: 1Mi}, limits: {memory: 16Mi}}\n", tenant))
	}
	within(t, 3*time.Minute, "three hundred run", func() (bool, string) {
		n := 0
		for _, tenant := range []string{"red", "blue"} {
			out, err := h.Do("get", "instances", "--tenant", tenant)
			if err != nil {
				return false, err.Error()
			}
			n += strings.Count(out, " running ")
		}
		return n == 300, fmt.Sprint(n)
	})
	for _, tenant := range []string{"red", "blue"} {
		h.do(t, "delete", "--tenant", tenant, "deployment", "crowd", "--yes")
	}
	h.empty(t)
	for what, now := range h.listings(t) {
		if now != before[what] {
			t.Errorf("%s:\n%s\nwas:\n%s", what, now, before[what])
		}
	}
}

// empty waits until no host has a network any more.
func (h *hostile) empty(t *testing.T) {
	t.Helper()
	within(t, 2*time.Minute, "no host has a network", func() (bool, string) {
		for _, x := range h.Hosts {
			left, err := filepath.Glob(filepath.Join(x.Run, "overlay", "net", "*"))
			if err != nil || len(left) > 0 {
				return false, fmt.Sprint(left, err)
			}
		}
		return true, ""
	})
}
