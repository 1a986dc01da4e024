package container

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/sys/cgroup"
	"atoll/internal/sys/mount"
	"atoll/internal/sys/proc"
)

// bare is crun alone on the same layer, with a user namespace, but without seccomp, supervisor
// and log: what is compared with.
type bare struct {
	f      *fixture
	bundle string
	root   string
	ns     *proc.Base
}

func newBare(b *testing.B, f *fixture) *bare {
	x := &bare{f: f, bundle: filepath.Join(filepath.Dir(f.layer), "bare"), root: f.run("bare")}
	for _, d := range []string{x.bundle, x.root, x.bundle + "/upper", x.bundle + "/work", x.bundle + "/rootfs"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	ns, err := proc.NewBase(func() error {
		if f.groups.Mode == cgroup.Hybrid {
			if err := mount.HideUnified(f.groups.Unified, x.root); err != nil {
				return err
			}
		}
		return mountBare(x)
	})
	must(b, err)
	b.Cleanup(func() { must(b, ns.Close()) })
	x.ns = ns
	return x
}

// config writes a plain config, as `crun spec` makes it.
func (x *bare) config(b *testing.B, id string, args ...string) string {
	dir := filepath.Join(x.bundle, id)
	m := func(dst, typ string, opts ...string) map[string]any {
		return map[string]any{"destination": dst, "type": typ, "source": typ, "options": opts}
	}
	ns := []map[string]string{}
	for _, n := range []string{"pid", "mount", "ipc", "uts", "network", "user"} {
		ns = append(ns, map[string]string{"type": n})
	}
	ids := []map[string]any{{"containerID": 0, "hostID": 1 << 20, "size": 65536}}
	cfg := map[string]any{"ociVersion": "1.0.2", "hostname": "x", "root": map[string]any{"path": x.bundle + "/rootfs"},
		"process": map[string]any{"user": map[string]int{"uid": 0, "gid": 0}, "args": args, "env": []string{"PATH=/bin"}, "cwd": "/", "noNewPrivileges": true},
		"mounts":  []any{m("/proc", "proc"), m("/dev", "tmpfs", "nosuid", "mode=755"), m("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666"), m("/dev/shm", "tmpfs", "nosuid"), m("/sys", "sysfs", "ro", "nosuid", "nodev", "noexec")},
		"linux":   map[string]any{"uidMappings": ids, "gidMappings": ids, "namespaces": ns, "cgroupsPath": "/" + x.f.group + "/bare-" + id}}
	raw, err := json.Marshal(cfg)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(dir+"/config.json", raw, 0o644); err != nil {
		b.Fatal(err)
	}
	return dir
}

// time runs crun in the namespace where it works, and tells how long it took.
func (x *bare) time(b *testing.B, want string, args ...string) (d time.Duration) {
	err := x.ns.InBase(func() error {
		begin := time.Now()
		cmd := exec.Command(x.f.env.runtime, append([]string{"--root", x.root, "--cgroup-manager=cgroupfs"}, args...)...)
		if want == "" {
			err := cmd.Run() // a container in the background must not hold a pipe of ours
			d = time.Since(begin)
			return err
		}
		out, err := cmd.Output()
		d = time.Since(begin)
		if err == nil && string(out) != want {
			err = fmt.Errorf("printed %q", out)
		}
		return err
	})
	if err != nil {
		b.Fatalf("bare crun %v: %v", args, err)
	}
	return d
}

func median(d []time.Duration) time.Duration {
	s := slices.Clone(d)
	slices.Sort(s)
	return s[len(s)/2]
}

func must(b testing.TB, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkBesideCrun measures every claim side by side with bare crun in one run: the
// ratios are of medians of interleaved tries.
func BenchmarkBesideCrun(b *testing.B) {
	f := open(b)
	if !f.env.isCrun {
		b.Skip("there is no crun to compare with")
	}
	x := newBare(b, f)
	ctx := context.Background()
	warm := f.spec("warm", "true")
	_, err := f.Ensure(ctx, warm)
	must(b, err)
	must(b, f.Remove(ctx, "warm"))
	var ours, theirs struct{ start, remove, exec, ensure []time.Duration }
	bareRun := x.config(b, "run", "sh", "-c", "echo hi")
	bareSleep := x.config(b, "sleep", "sleep", "1000")
	for i := range max(b.N, 30) {
		id := fmt.Sprintf("b%d", i)
		theirs.start = append(theirs.start, x.time(b, "hi\n", "run", "-b", bareRun, id))
		e, s := firstByte(b, f, id)
		ours.ensure, ours.start = append(ours.ensure, e), append(ours.start, s)
		must(b, f.Remove(ctx, id))

		x.time(b, "", "create", "-b", bareSleep, id)
		x.time(b, "", "start", id)
		_, err = f.Ensure(ctx, f.spec(id, "sleep", "1000"))
		must(b, err)
		must(b, f.Start(ctx, id))
		theirs.exec = append(theirs.exec, x.time(b, "", "exec", id, "true"))
		begin := time.Now()
		code, err := f.Exec(ctx, id, api.ExecRequest{Argv: []string{"true"}}, driver.Stream{})
		if err != nil || code != 0 {
			b.Fatalf("exec: %d %v", code, err)
		}
		ours.exec = append(ours.exec, time.Since(begin))
		theirs.remove = append(theirs.remove, x.time(b, "", "delete", "-f", id))
		begin = time.Now()
		must(b, f.Remove(ctx, id))
		ours.remove = append(ours.remove, time.Since(begin))
	}
	for _, c := range []struct {
		name         string
		ours, theirs []time.Duration
	}{{"start", ours.start, theirs.start}, {"ensure", ours.ensure, theirs.start}, {"exec", ours.exec, theirs.exec}, {"remove", ours.remove, theirs.remove}} {
		o, t := median(c.ours), median(c.theirs)
		b.Logf("%-8s ours %7.2f ms   bare crun %7.2f ms   ratio %.2f", c.name, ms(o), ms(t), float64(o)/float64(t))
		b.ReportMetric(ms(o), c.name+"_ms")
		b.ReportMetric(float64(o)/float64(t), c.name+"_ratio")
	}
	b.ReportMetric(0, "ns/op")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// firstByte is the time from Ensure to the first byte of output in the log.
func firstByte(b *testing.B, f *fixture, id string) (ensure, all time.Duration) {
	must(b, os.MkdirAll(filepath.Dir(f.logFile(id)), 0o700))
	must(b, os.RemoveAll(f.state("i", id)))
	begin := time.Now()
	_, err := f.Ensure(context.Background(), f.spec(id, "sh", "-c", "echo hi"))
	must(b, err)
	ensure = time.Since(begin)
	w, err := proc.NewWatch(proc.Modified, f.logFile(id))
	must(b, err)
	defer w.Close()
	must(b, f.Start(context.Background(), id))
	for {
		if st, err := os.Stat(f.logFile(id)); err == nil && st.Size() > 0 {
			return ensure, time.Since(begin)
		}
		_, err := w.Next(context.Background(), time.Second)
		must(b, err)
	}
}

// BenchmarkStorm starts 50 sleepers, 8 at a time, and removes them, beside bare crun.
func BenchmarkStorm(b *testing.B) {
	f := open(b)
	if !f.env.isCrun {
		b.Skip("there is no crun to compare with")
	}
	x := newBare(b, f)
	ctx := context.Background()
	const n, width = 50, 8
	pool := func(fn func(i int)) time.Duration {
		begin := time.Now()
		var wg sync.WaitGroup
		next := make(chan int)
		for range width {
			wg.Go(func() {
				for i := range next {
					fn(i)
				}
			})
		}
		for i := range n {
			next <- i
		}
		close(next)
		wg.Wait()
		return time.Since(begin)
	}
	_, err := f.Ensure(ctx, f.spec("warm", "true"))
	must(b, err)
	must(b, f.Remove(ctx, "warm"))
	for i := range n {
		x.config(b, fmt.Sprint("s", i), "sleep", "1000")
	}
	// The bare runs are started from one process in the namespace, by a shell loop of the same width.
	script := func(verb string) time.Duration {
		line := fmt.Sprintf(`crun() { %s --root %s --cgroup-manager=cgroupfs "$@" >/dev/null 2>&1 </dev/null; }; export -f crun; seq 0 %d | xargs -P %d -I{} bash -c '%s'`,
			f.env.runtime, x.root, n-1, width, verb)
		var d time.Duration
		must(b, x.ns.InBase(func() error {
			begin := time.Now()
			out, err := exec.Command("bash", "-c", line).CombinedOutput()
			d = time.Since(begin)
			if err != nil {
				err = fmt.Errorf("bare: %w %s", err, out)
			}
			return err
		}))
		return d
	}
	var up, down []float64
	for range 3 {
		bareUp := script("crun run -d -b " + x.bundle + "/s{} s{}")
		ourUp := pool(func(i int) {
			id := fmt.Sprint("s", i)
			if _, err := f.Ensure(ctx, f.spec(id, "sleep", "1000")); err != nil {
				b.Error(err)
				return
			}
			if err := f.Start(ctx, id); err != nil {
				b.Error(err)
			}
		})
		b.Logf("conmon PSS %d kB each", conmonPSS(f))
		bareDown := script("crun delete -f s{}")
		ourDown := pool(func(i int) {
			if err := f.Remove(ctx, fmt.Sprint("s", i)); err != nil {
				b.Error(err)
			}
		})
		b.Logf("start: ours %.0f/s, bare crun %.0f/s; remove: ours %.0f/s, bare crun %.0f/s", n/ourUp.Seconds(), n/bareUp.Seconds(), n/ourDown.Seconds(), n/bareDown.Seconds())
		up, down = append(up, bareUp.Seconds()/ourUp.Seconds()), append(down, bareDown.Seconds()/ourDown.Seconds())
	}
	slices.Sort(up)
	slices.Sort(down)
	b.ReportMetric(up[1], "start_rate_ratio")
	b.ReportMetric(down[1], "remove_rate_ratio")
	b.ReportMetric(0, "ns/op")
}

// conmonPSS is the mean of the supervisors' proportional set sizes in kB.
func conmonPSS(f *fixture) int {
	ids, _ := f.ids()
	sum, n := 0, 0
	for _, id := range ids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", f.conmonPid(id)))
		if err != nil {
			continue
		}
		for l := range strings.Lines(string(b)) {
			if w := strings.Fields(l); len(w) > 1 && w[0] == "Pss:" {
				sum += readNumber(w[1])
				n++
			}
		}
	}
	return sum / max(n, 1)
}
