// Command share measures what a guarantee is worth: tenant A is guaranteed one of
// two cores, tenant B runs fifty spinning best-effort instances and a memory hog.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"atoll/bench/lib"
	"atoll/test/rig"
)

func main() {
	lib.Enter()
	span := flag.Duration("time", 3*time.Second, "how long each is measured")
	rounds := flag.Int("rounds", 5, "rounds")
	flag.Parse()
	if runtime.NumCPU() < 2 {
		lib.Fatal(fmt.Errorf("needs at least two cores"))
	}
	lib.WithPool(func(_ context.Context, p *rig.Pool) error { return measure(p, *span, *rounds) })
}

// spin counts how often it got round, and between which uptimes; read is a builtin, so nothing is forked.
const spin = `read s _ </proc/uptime; end=$(( ${s%%.*} + %d )); n=0; while :; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; n=$((n+1)); read t _ </proc/uptime; [ ${t%%.*} -ge $end ] && break; done; echo $n $s $t`

func measure(p *rig.Pool, span time.Duration, rounds int) error {
	steps := [][]string{
		{"tenant", "create", "a", "--guarantee", "cpu=1,memory=256Mi"},
		{"tenant", "create", "b", "--limit", "memory=2Gi"},
	}
	for _, s := range steps {
		if _, err := p.Do(s...); err != nil {
			return err
		}
	}
	secs := int(span.Seconds())
	work := func(name string, extra ...string) (float64, error) {
		args := append([]string{"run", "--rm", "--tenant", "a", "--name", name, "--network", "none"}, extra...)
		out, err := p.Do(append(args, "busybox", "sh", "-c", fmt.Sprintf(spin, secs))...)
		if err != nil {
			return 0, err
		}
		var n, from, to float64
		if _, err := fmt.Sscan(out, &n, &from, &to); err != nil || to <= from {
			return 0, fmt.Errorf("worker said %q: %w", out, err)
		}
		return n / (to - from), nil
	}
	halves := func() (float64, error) { return both(work) }

	idle, err := rest(p, span) // what B could have at most: everything nobody uses
	if err != nil {
		return err
	}
	if err := spinners(p, 50); err != nil {
		return err
	}
	bAlone, err := used(p, "b", span)
	if err != nil {
		return err
	}
	// Machines are noisy: alone and against take turns, B being frozen for the one.
	var alone, alone2, against, against2 []float64
	for r := range rounds {
		for _, m := range []struct {
			frozen bool
			into   *[]float64
			fn     func() (float64, error)
		}{
			{true, &alone, func() (float64, error) { return work(fmt.Sprint("w", r), "--cpu", "1") }},
			{false, &against, func() (float64, error) { return work(fmt.Sprint("x", r), "--cpu", "1") }},
			{true, &alone2, halves},
			{false, &against2, halves},
		} {
			if err := freeze(p, "b", m.frozen); err != nil {
				return err
			}
			v, err := m.fn()
			if err != nil {
				return err
			}
			*m.into = append(*m.into, v)
		}
	}
	a1, a2 := lib.Middle(against)/lib.Middle(alone), lib.Middle(against2)/lib.Middle(alone2)
	b := bAlone / idle
	fmt.Printf("A, one thread        %.0f rounds/s alone, %.0f against 50 spinners: %.2f\n", lib.Middle(alone), lib.Middle(against), a1)
	fmt.Printf("A, two half threads  %.0f rounds/s alone, %.0f against 50 spinners: %.2f\n", lib.Middle(alone2), lib.Middle(against2), a2)
	fmt.Printf("B while A sleeps     %.2f of %.2f idle cores: %.2f\n", bAlone, idle, b)
	oom, err := hog(p)
	if err != nil {
		return err
	}
	fmt.Printf("out-of-memory kills in A while B hogs memory: %d\n", oom)
	lib.JSON(map[string]any{"bench": "share", "a_ratio": lib.Round(min(a1, a2), 3), "a_ratio_one": lib.Round(a1, 3), "a_ratio_two": lib.Round(a2, 3),
		"b_ratio": lib.Round(b, 3), "oom_in_a": oom})
	return nil
}

// freeze stops or thaws everything of a tenant, behind the pool's back.
func freeze(p *rig.Pool, tenant string, on bool) error {
	if _, err := os.Stat("/sys/fs/cgroup/freezer"); err == nil {
		state := "THAWED"
		if on {
			state = "FROZEN"
		}
		return os.WriteFile("/sys/fs/cgroup/freezer/"+p.Group+"/"+tenant+".t/freezer.state", []byte(state), 0)
	}
	return os.WriteFile("/sys/fs/cgroup/"+p.Group+"/"+tenant+".t/cgroup.freeze", fmt.Appendf(nil, "%d", map[bool]int{true: 1}[on]), 0)
}

// both runs two workers of half a core at once and adds their work.
func both(work func(string, ...string) (float64, error)) (float64, error) {
	type res struct {
		v   float64
		err error
	}
	ch := make(chan res, 2)
	for i := range 2 {
		go func() {
			v, err := work(fmt.Sprintf("h%d-%d", i, time.Now().UnixNano()), "--cpu", "500m", "--limit", "cpu=500m")
			ch <- res{v, err}
		}()
	}
	sum := 0.0
	for range 2 {
		r := <-ch
		if r.err != nil {
			return 0, r.err
		}
		sum += r.v
	}
	return sum, nil
}

func spinners(p *rig.Pool, n int) error {
	for i := range n {
		if _, err := p.Do("run", "-d", "--tenant", "b", "--name", fmt.Sprint("s", i), "--network", "none", "busybox", "sh", "-c", "while :; do :; done"); err != nil {
			return err
		}
	}
	return nil
}

// rest measures how many cores are idle when nothing of ours runs.
func rest(_ *rig.Pool, span time.Duration) (float64, error) {
	busy := func() (float64, error) {
		b, err := os.ReadFile("/proc/stat")
		if err != nil {
			return 0, err
		}
		f := strings.Fields(strings.SplitN(string(b), "\n", 2)[0])
		sum := 0.0
		for i, v := range f[1:9] {
			if i == 3 || i == 4 { // idle, iowait
				continue
			}
			x, err := strconv.ParseFloat(v, 64)
			if err != nil {
				return 0, err
			}
			sum += x / 100
		}
		return sum, nil
	}
	a, err := busy()
	if err != nil {
		return 0, err
	}
	t0 := time.Now()
	time.Sleep(span)
	b, err := busy()
	if err != nil {
		return 0, err
	}
	return float64(runtime.NumCPU()) - (b-a)/time.Since(t0).Seconds(), nil
}

// used is how many cores a tenant uses, by the pool's own account.
func used(p *rig.Pool, tenant string, span time.Duration) (float64, error) {
	read := func() (cpu, at float64, err error) {
		resp, err := p.Client().Get("http://atoll/v1/usage")
		if err != nil {
			return 0, 0, err
		}
		defer resp.Body.Close()
		var u struct {
			Tenants []struct {
				Tenant string
				Usage  struct {
					At  time.Time
					CPU float64
				}
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&u); err != nil {
			return 0, 0, err
		}
		for _, t := range u.Tenants {
			if t.Tenant == tenant {
				return t.Usage.CPU / 1e9, float64(t.Usage.At.UnixNano()) / 1e9, nil
			}
		}
		return 0, 0, fmt.Errorf("no usage of tenant %s", tenant)
	}
	c0, t0, err := read()
	if err != nil {
		return 0, err
	}
	time.Sleep(span)
	c1, t1, err := read()
	if err != nil {
		return 0, err
	}
	return (c1 - c0) / (t1 - t0), nil
}

// hog lets B take all memory it can get while A uses what it was promised, and counts A's losses.
func hog(p *rig.Pool) (int64, error) {
	if _, err := p.Do("run", "-d", "--tenant", "a", "--name", "mem", "--network", "none", "--memory", "200Mi", "--restart", "never", "--tmpfs", "/m:180Mi",
		"busybox", "sh", "-c", "dd if=/dev/zero of=/m/x bs=1M count=150 2>/dev/null; sleep 100000"); err != nil {
		return 0, err
	}
	// It ends when the kernel kills it, or after a minute at most; either way B was at its ceiling.
	cmd := p.Atoll("run", "--rm", "--tenant", "b", "--name", "hog", "--network", "none", "busybox", "sh", "-c",
		"timeout 60 tail /dev/zero >/dev/null")
	if err := cmd.Run(); err != nil {
		if _, ok := err.(*exec.ExitError); !ok { //nolint:errorlint // the process's own end is what is wanted
			return 0, err
		}
	}
	out, err := p.Do("get", "instance/mem", "--tenant", "a", "-o", "json")
	if err != nil {
		return 0, err
	}
	if !strings.Contains(out, `"state": "running"`) && !strings.Contains(out, `"state":"running"`) {
		return 1, nil
	}
	return 0, nil
}
