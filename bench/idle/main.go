// Command idle measures what Atoll costs when nothing happens: the daemon's memory,
// CPU and time to be ready, and the memory an idle container costs beyond its own process.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"atoll/bench/lib"
	"atoll/test/rig"
)

func main() {
	lib.Enter()
	window := flag.Duration("window", 20*time.Second, "how long idleness is watched")
	n := flag.Int("n", 50, "idle containers")
	starts := flag.Int("starts", 10, "cold starts")
	flag.Parse()
	lib.WithPool(func(ctx context.Context, p *rig.Pool) error { return measure(ctx, p, *window, *n, *starts) })
}

func measure(ctx context.Context, p *rig.Pool, window time.Duration, n, starts int) error {
	var cold []float64
	for range starts {
		p.Stop()
		d, err := p.Start(ctx)
		if err != nil {
			return err
		}
		cold = append(cold, lib.Ms(d))
	}
	// Warm: what a daemon holds that has worked a little, not one that was just started.
	if _, err := p.Do("run", "--rm", "busybox", "true"); err != nil {
		return err
	}
	time.Sleep(3 * time.Second)
	pid := p.Pid()
	rss, err := field(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
	if err != nil {
		return err
	}
	c0, err := cpu(pid)
	if err != nil {
		return err
	}
	t0 := time.Now()
	time.Sleep(window)
	c1, err := cpu(pid)
	if err != nil {
		return err
	}
	pct := (c1 - c0).Seconds() / time.Since(t0).Seconds() * 100

	for i := range n {
		if _, err := p.Do("run", "-d", "--name", fmt.Sprint("idle", i), "--network", "none", "busybox", "sleep", "100000"); err != nil {
			return err
		}
	}
	time.Sleep(time.Second)
	beyond, procs, err := overhead(p)
	if err != nil {
		return err
	}
	per := float64(beyond) / float64(n)
	fmt.Printf("cold start to ready   median %.0f ms (min %.0f, max %.0f, n=%d)\n", lib.Middle(cold), minOf(cold), maxOf(cold), len(cold))
	fmt.Printf("daemon idle           RSS %.1f MB, CPU %.2f %% of a core over %s\n", float64(rss)/1024, pct, window)
	fmt.Printf("per idle container    %.0f kB PSS beyond its own process (%d monitors for %d containers)\n", per, procs, n)
	lib.JSON(map[string]any{"bench": "idle", "rss_mb": lib.Round(float64(rss)/1024, 1), "cpu_pct": lib.Round(pct, 2),
		"pss_per_container_kb": lib.Round(per, 0), "cold_ms": lib.Round(lib.Middle(cold), 0)})
	return nil
}

func minOf(v []float64) float64 {
	m := v[0]
	for _, x := range v {
		m = min(m, x)
	}
	return m
}

func maxOf(v []float64) float64 {
	m := v[0]
	for _, x := range v {
		m = max(m, x)
	}
	return m
}

// field reads a "Name:  123 kB" line.
func field(path, name string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// cpu is user and system time of a process.
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	ut, err := strconv.ParseInt(f[11], 10, 64)
	if err != nil {
		return 0, err
	}
	st, err := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(ut+st) * 10 * time.Millisecond, err
}

// overhead sums the PSS of everything that runs for this pool's containers and is
// not the container: the monitors, found by the pool's run directory in their arguments.
func overhead(p *rig.Pool) (kb int64, procs int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, err
	}
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil || !strings.Contains(string(cmd), p.Run+"/") || strings.Contains(string(cmd), "atolld") {
			continue
		}
		v, err := field(d+"/smaps_rollup", "Pss:")
		if err != nil {
			continue // it ended meanwhile
		}
		kb += v
		procs++
	}
	return kb, procs, nil
}
