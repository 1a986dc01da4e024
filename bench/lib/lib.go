// Package lib is what the benches share: interleaved timing, medians, tables, the
// JSON line, bare crun as the floor, and peers where they are installed.
package lib

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"atoll/test/rig"
)

// Variant is one way to do the thing that is measured.
type Variant struct {
	Name  string
	Run   func(n int) (time.Duration, error) // n is unique
	After func(n int) error                  // untimed; may be nil
}

// Result is what came of a variant.
type Result struct {
	Name  string
	Times []time.Duration
	Fails int
	Err   error
}

// Interleave runs every variant once a round, in an order that rotates, after one
// warm-up round that is thrown away.
func Interleave(rounds int, vs []Variant) []*Result {
	out := make([]*Result, len(vs))
	for i, v := range vs {
		out[i] = &Result{Name: v.Name}
	}
	n := os.Getpid() * 1000
	for r := -1; r < rounds; r++ {
		for k := range vs {
			i := (k + r + len(vs)) % len(vs)
			n++
			d, err := vs[i].Run(n)
			if vs[i].After != nil {
				if aerr := vs[i].After(n); err == nil {
					err = aerr
				}
			}
			switch {
			case err != nil:
				out[i].Fails++
				out[i].Err = err
			case r >= 0:
				out[i].Times = append(out[i].Times, d)
			}
		}
	}
	return out
}

// Quantile of the times in milliseconds, 0.5 being the median.
func (r *Result) Quantile(q float64) float64 {
	if len(r.Times) == 0 {
		return 0
	}
	t := slices.Clone(r.Times)
	slices.Sort(t)
	return Ms(t[min(int(q*float64(len(t))), len(t)-1)])
}

// Median in milliseconds.
func (r *Result) Median() float64 { return r.Quantile(0.5) }

// Ms is a duration in milliseconds.
func Ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Ratio of two medians, rounded to two digits; 0 when one is missing.
func Ratio(a, b float64) float64 {
	if a == 0 || b == 0 {
		return 0
	}
	return Round(a/b, 2)
}

// Round to so many digits behind the point.
func Round(v float64, digits int) float64 {
	f, err := strconv.ParseFloat(strconv.FormatFloat(v, 'f', digits, 64), 64)
	if err != nil {
		return v
	}
	return f
}

// Table prints medians.
func Table(w io.Writer, title string, rs []*Result) {
	fmt.Fprintf(w, "%-34s %4s %9s %9s %9s\n", title, "n", "median", "p90", "min")
	for _, r := range rs {
		fmt.Fprintf(w, "%-34s %4d %6.1f ms %6.1f ms %6.1f ms", r.Name, len(r.Times), r.Median(), r.Quantile(0.9), r.Quantile(0))
		if r.Fails > 0 {
			fmt.Fprintf(w, "  %d failed: %v", r.Fails, r.Err)
		}
		fmt.Fprintln(w)
	}
}

// JSON prints the last line.
func JSON(m map[string]any) {
	b, err := json.Marshal(m)
	if err != nil {
		Fatal(err)
	}
	fmt.Println(string(b))
}

// Fatal ends a bench that cannot go on.
func Fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// FirstByte starts a command and times its first byte of output; then waits for its end.
func FirstByte(cmd *exec.Cmd) (time.Duration, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var b [1]byte
	_, rerr := io.ReadFull(out, b[:])
	took := time.Since(began)
	_, _ = io.Copy(io.Discard, out) // the rest is not timed
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd.Path, err, stderr.String())
	}
	return took, rerr
}

// Whole times a command to its end.
func Whole(cmd *exec.Cmd) (time.Duration, error) {
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd.Path, err, out)
	}
	return time.Since(began), nil
}

// WithPool runs fn with a fresh pool and takes it away afterwards, also on Ctrl-C.
func WithPool(fn func(ctx context.Context, p *rig.Pool) error, flags ...string) {
	if m := rig.Missing(); m != "" {
		Fatal(fmt.Errorf("this machine lacks %s", m))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := func() error {
		bin, err := rig.Build(ctx)
		if err != nil {
			return err
		}
		p, err := rig.New(bin, flags...)
		if err != nil {
			return err
		}
		defer func() {
			if err := p.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "bench: clean up:", err)
			}
		}()
		sctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if _, err := p.Start(sctx); err != nil {
			return err
		}
		if _, err := p.Do("tenant", "create", "demo"); err != nil {
			return err
		}
		return fn(ctx, p)
	}()
	stop()
	if err != nil {
		Fatal(err)
	}
}

// Crun is bare crun: a bundle with the same busybox, and no engine around it.
type Crun struct {
	dir string
}

// NewCrun makes a root file system and bundles.
func NewCrun() (*Crun, error) {
	dir, err := os.MkdirTemp("", "atoll-bench-crun-")
	if err != nil {
		return nil, err
	}
	c := &Crun{dir: dir}
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return nil, err
		}
	}
	bb, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), bb, 0o755); err != nil {
		return nil, err
	}
	for _, a := range []string{"sh", "echo", "sleep", "cat", "dd"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Close removes the files.
func (c *Crun) Close() error { return os.RemoveAll(c.dir) }

// Path is a place in the directory that goes with Close.
func (c *Crun) Path(name string) string { return filepath.Join(c.dir, name) }

// Bundle writes a bundle as crun itself would (crun spec), running argv without a terminal.
func (c *Crun) Bundle(name string, argv ...string) (string, error) {
	dir := filepath.Join(c.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	gen := exec.Command("crun", "spec")
	gen.Dir = dir
	if out, err := gen.CombinedOutput(); err != nil {
		return "", fmt.Errorf("crun spec: %w: %s", err, out)
	}
	path := filepath.Join(dir, "config.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var spec map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return "", err
	}
	p := spec["process"].(map[string]any)
	p["args"], p["terminal"] = argv, false
	spec["root"] = map[string]any{"path": filepath.Join(c.dir, "rootfs"), "readonly": false}
	if b, err = json.Marshal(spec); err != nil {
		return "", err
	}
	return dir, os.WriteFile(path, b, 0o600)
}

// Enter re-executes the bench in a mount namespace where bare crun can work: on
// hybrid hosts crun refuses the v2 tree, so it is unmounted there, and what crun
// then writes in its place goes to a tmpfs. Pools of the
// bench run in the namespace it came from. Call it first in main.
func Enter() {
	b, err := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers")
	if os.Getenv(rig.MountsVar) != "" || err != nil || len(strings.TrimSpace(string(b))) == 0 {
		return
	}
	self, err := os.Executable()
	if err != nil {
		Fatal(err)
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c", `umount /sys/fs/cgroup/unified && mount -t tmpfs none /sys/fs/cgroup/unified && exec "$0" "$@"`, self}, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=/proc/%d/ns/mnt", rig.MountsVar, os.Getpid()))
	signal.Ignore(os.Interrupt) // the child cleans up
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// Cmd is a crun call that is not started yet.
func (c *Crun) Cmd(args ...string) *exec.Cmd {
	args = append([]string{"--cgroup-manager=cgroupfs", "--root", filepath.Join(c.dir, "run")}, args...)
	return exec.Command("crun", args...)
}

// Middle is the median of numbers.
func Middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}
