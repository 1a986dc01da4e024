package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestModesFromMountTables(t *testing.T) {
	v1 := "30 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
	joint := "31 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
	named := "32 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd"
	v2 := "33 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
	for _, c := range []struct {
		lines []string
		want  Mode
	}{{[]string{v1, joint, named}, V1}, {[]string{v1, v2}, Hybrid}, {[]string{"33 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"}, V2}} {
		h, err := parseMounts(c.lines)
		if err != nil || h.Mode != c.want {
			t.Errorf("%v: %+v %v", c.lines, h, err)
		}
	}
	h, _ := parseMounts([]string{v1, joint, named, "garbage", ""})
	if h.Dir("cpuacct", "a/b") != "/sys/fs/cgroup/cpu,cpuacct/a/b" || h.Has("pids") || len(h.mounts) != 3 {
		t.Errorf("%+v", h)
	}
	if _, err := parseMounts(nil); err == nil {
		t.Error("no hierarchy is not an error")
	}
}

func TestPaths(t *testing.T) {
	for p, want := range map[string]bool{"a": true, "atoll/acme.t/x1": true, "": false, "/a": false, "../a": false, "a/../b": false, ".": false, "a/": false, "a\nb": false} {
		if Valid(p) != want {
			t.Errorf("%q: %v", p, !want)
		}
	}
}

func TestSettings(t *testing.T) {
	if Shares(100) != 1024 || Shares(1) != 10 || Shares(10000) != 102400 {
		t.Error(Shares(100), Shares(1), Shares(10000))
	}
	h := &Host{Mode: V1, dirs: map[string]string{}}
	got := map[string]string{}
	for _, s := range h.v1(Limits{CPUWeight: 200, CPUMax: 1500, MemoryMax: 1 << 20, MemoryLow: 4096, Pids: 7}) {
		got[s.file] = s.value
	}
	for f, want := range map[string]string{"cpu.shares": "2048", "cpu.cfs_quota_us": "150000", "memory.limit_in_bytes": "1048576", "memory.soft_limit_in_bytes": "4096", "pids.max": "7", "cpu.idle": "0"} {
		if got[f] != want {
			t.Errorf("v1 %s: %q, want %q", f, got[f], want)
		}
	}
	clear(got)
	for _, s := range v2(Limits{CPUIdle: true, MemoryMin: 1, MemoryMax: 2, GroupOOM: true}) {
		got[s.file] = s.value
	}
	for f, want := range map[string]string{"cpu.idle": "1", "cpu.weight": "", "cpu.max": "max 100000", "memory.min": "1", "memory.max": "2", "memory.oom.group": "1", "pids.max": "max"} {
		if got[f] != want {
			t.Errorf("v2 %s: %q, want %q", f, got[f], want)
		}
	}
	for _, c := range []struct {
		now, want string
		same      bool
	}{{"9223372036854771712", "-1", true}, {"4096", "-1", false}, {"1048576", "1048577", true}, {"max", "max", true}, {"default 100", "100", true}, {"5", "6", false}} {
		if same(c.now, c.want) != c.same {
			t.Errorf("%+v", c)
		}
	}
}

func TestParsers(t *testing.T) {
	if field([]byte("under_oom 0\noom_kill 12\n"), "oom_kill") != 12 || field(nil, "x") != 0 {
		t.Error("field")
	}
	if r, w := blkio([]byte("254:0 Read 10\n254:0 Write 20\n254:16 Read 1\nTotal 31\n")); r != 11 || w != 20 {
		t.Error(r, w)
	}
	f := filepath.Join(t.TempDir(), "p")
	for text, want := range map[string]float64{"some avg10=12.50 avg60=0 avg300=0 total=1\nfull avg10=99\n": 0.125, "": -1, "some avg10=x": -1, "some avg10=1e9": -1} {
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := pressure(f); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// TestOnThisHost makes a real group, limits it, fills it, and removes it.
func TestOnThisHost(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	path := "atolltest-cgroup-" + filepath.Base(t.TempDir()) + strings.ReplaceAll(t.Name(), "/", "-")
	t.Cleanup(func() {
		if err := h.Remove(t.Context(), path); err != nil {
			_ = h.rmdir(path)
		}
	})
	sub := path + "/sub"
	if w, err := h.Ensure(path, Limits{CPUMax: 500, MemoryMax: 64 << 20, Pids: 20}); err != nil || len(w) > 0 {
		t.Skipf("groups cannot be limited here: %v %v", w, err)
	}
	for range 2 {
		if _, err := h.Ensure(sub, Limits{CPUWeight: 50, Pids: 10}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if err := h.Join(sub, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if !h.Contains(sub, cmd.Process.Pid) || h.Contains(path, cmd.Process.Pid) {
		t.Error("contains")
	}
	u, err := h.Usage(path)
	if err != nil || u.Pids != 1 {
		t.Errorf("%+v %v", u, err)
	}
	if err := h.RemoveEmpty(sub); err == nil {
		t.Error("a group with a process was removed")
	}
	if l := h.List(path); len(l) != 1 || l[0] != sub {
		t.Errorf("%v", l)
	}
	go func() { _ = cmd.Wait() }()
	begin := time.Now()
	if err := h.Remove(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if time.Since(begin) > 5*time.Second {
		t.Error("slow")
	}
	if _, err := h.Usage(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("still there")
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("33 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
	f.Fuzz(func(t *testing.T, l string) {
		if h, err := parseMounts(strings.Split(l, "\n")); err == nil && len(h.mounts) == 0 {
			t.Fatal("no mounts and no error")
		}
	})
}
