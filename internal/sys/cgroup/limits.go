package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits is what a group may use. Zero values mean: no limit, no guarantee, default weight.
type Limits struct {
	CPUWeight  uint64 // 1..10000, 100 is the default
	CPUMax     int64  // thousandths of a core
	CPUIdle    bool   // runs only when nobody else wants to
	MemoryMax  int64  // bytes: beyond it the kernel reclaims, then kills
	MemoryHigh int64  // bytes: beyond it the group is slowed down and reclaimed
	MemoryLow  int64  // bytes kept from reclaim as long as others can give
	MemoryMin  int64  // bytes never reclaimed
	Pids       int64
	IOWeight   uint64 // 1..10000, 100 is the default
	ReadIOPS   int64
	WriteIOPS  int64
	ReadBPS    int64
	WriteBPS   int64
	IODevice   string // "major:minor" the I/O ceilings are for
	CPUs, Mems string // cores and memory nodes to use; "": all of the parent's
	NoSwap     bool
	GroupOOM   bool // an out-of-memory kill takes all processes of the group
}

// period of the CPU ceiling in microseconds.
const period = 100_000

// setting is one control file and its value; verify reads it back.
type setting struct {
	controller, file, value string
	what                    string // what it enforces, for the warning
	optional                bool   // a default: silence when the file is not there
}

// Ensure makes the group with these limits, or changes them. It returns a warning
// for everything that this host cannot enforce.
func (h *Host) Ensure(path string, l Limits) ([]string, error) {
	if err := h.Create(path); err != nil {
		return nil, err
	}
	return h.Set(path, l)
}

// Set writes the limits of a group that exists.
func (h *Host) Set(path string, l Limits) (warnings []string, err error) {
	settings := h.v1(l)
	if h.Mode == V2 {
		settings = v2(l)
	}
	dev := l.IODevice
	settings = append(settings, h.io(l, dev)...)
	for _, s := range settings {
		w, err := h.apply(path, s)
		if err != nil {
			return warnings, err
		}
		if w != "" {
			warnings = append(warnings, w)
		}
	}
	w, err := h.setCPUSet(path, l)
	return append(warnings, w...), err
}

// apply writes one setting unless it holds already.
func (h *Host) apply(path string, s setting) (warning string, err error) {
	cannot := func(why string) string {
		if s.optional {
			return ""
		}
		return fmt.Sprintf("%s is not enforced: %s", s.what, why)
	}
	dir := h.Dir(s.controller, path)
	if dir == "" {
		return cannot("this host has no " + s.controller + " controller"), nil
	}
	file := filepath.Join(dir, s.file)
	now, rerr := os.ReadFile(file)
	if errors.Is(rerr, os.ErrNotExist) {
		return cannot("this kernel has no " + s.file), nil
	}
	if rerr == nil && same(strings.TrimSpace(string(now)), s.value) {
		return "", nil
	}
	if err := write(file, s.value); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
			return cannot("the kernel refuses " + s.file), nil
		}
		if errors.Is(err, unix.EBUSY) && strings.HasPrefix(s.file, "memory.") {
			return fmt.Sprintf("%s is not in force yet: more is in use and cannot be reclaimed", s.what), nil
		}
		return "", fmt.Errorf("set %s: %w", s.what, err)
	}
	return "", nil
}

// same compares a control file's content with what was wanted.
func same(now, want string) bool {
	if now == want {
		return true
	}
	// v1 shows "no limit" as the largest multiple of a page, and rounds limits down to pages.
	if n, err := strconv.ParseInt(now, 10, 64); err == nil {
		if want == "-1" {
			return n >= math.MaxInt64-1<<20
		}
		if w, err := strconv.ParseInt(want, 10, 64); err == nil && w > 4096 {
			return n == w/4096*4096
		}
	}
	return strings.TrimPrefix(now, "default ") == want
}

func orMax(v int64) string {
	if v <= 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

func orMinus(v int64) string {
	if v <= 0 {
		return "-1"
	}
	return strconv.FormatInt(v, 10)
}

func v2(l Limits) []setting {
	quota := "max 100000"
	if l.CPUMax > 0 {
		quota = fmt.Sprintf("%d %d", max(l.CPUMax*period/1000, 1000), period)
	}
	group := "0"
	if l.GroupOOM {
		group = "1"
	}
	s := []setting{
		{"cpu", "cpu.idle", boolean(l.CPUIdle), "CPU of best-effort instances only when idle", !l.CPUIdle},
		{"cpu", "cpu.max", quota, "the CPU ceiling", l.CPUMax <= 0},
		{"memory", "memory.max", orMax(l.MemoryMax), "the memory ceiling", l.MemoryMax <= 0},
		{"memory", "memory.high", orMax(l.MemoryHigh), "slowing down before the memory ceiling", l.MemoryHigh <= 0},
		{"memory", "memory.low", strconv.FormatInt(l.MemoryLow, 10), "the memory guarantee", l.MemoryLow == 0},
		{"memory", "memory.min", strconv.FormatInt(l.MemoryMin, 10), "the hard memory guarantee", l.MemoryMin == 0},
		{"memory", "memory.oom.group", group, "killing all of an instance that runs out of memory", !l.GroupOOM},
		{"pids", "pids.max", orMax(l.Pids), "the limit of processes", l.Pids <= 0},
	}
	if !l.CPUIdle { // an idle group has no weight
		s = append(s, setting{"cpu", "cpu.weight", strconv.FormatUint(weight(l.CPUWeight), 10), "the CPU weight", l.CPUWeight == 0})
	}
	if l.NoSwap {
		s = append(s, setting{"memory", "memory.swap.max", "0", "no swapping", true})
	}
	return s
}

func (h *Host) v1(l Limits) []setting {
	quota := "-1"
	if l.CPUMax > 0 {
		quota = strconv.FormatInt(max(l.CPUMax*period/1000, 1000), 10)
	}
	soft := max(l.MemoryLow, l.MemoryMin)
	s := []setting{
		{"cpu", "cpu.idle", boolean(l.CPUIdle), "CPU of best-effort instances only when idle", true},
		{"cpu", "cpu.cfs_period_us", strconv.Itoa(period), "the CPU ceiling", l.CPUMax <= 0},
		{"cpu", "cpu.cfs_quota_us", quota, "the CPU ceiling", l.CPUMax <= 0},
		{"memory", "memory.limit_in_bytes", orMinus(l.MemoryMax), "the memory ceiling", l.MemoryMax <= 0},
		{"memory", "memory.soft_limit_in_bytes", orMinus(soft), "the memory guarantee", soft == 0},
		{"pids", "pids.max", orMax(l.Pids), "the limit of processes", l.Pids <= 0},
	}
	if !l.CPUIdle {
		s = append(s, setting{"cpu", "cpu.shares", strconv.FormatUint(Shares(weight(l.CPUWeight)), 10), "the CPU weight", l.CPUWeight == 0})
	}
	if l.NoSwap {
		s = append(s, setting{"memory", "memory.swappiness", "0", "no swapping", true})
	}
	return s
}

func boolean(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func weight(w uint64) uint64 {
	if w == 0 {
		return 100
	}
	return min(max(w, 1), 10000)
}

// Shares converts a v2 weight (1..10000, default 100) to v1 shares (2..262144, default 1024).
func Shares(w uint64) uint64 { return min(max(w*1024/100, 2), 262144) }

// io lists the I/O settings; ceilings are per device.
func (h *Host) io(l Limits, dev string) []setting {
	var s []setting
	if h.Mode == V2 {
		s = append(s, setting{"io", "io.weight", strconv.FormatUint(weight(l.IOWeight), 10), "the I/O weight", l.IOWeight == 0})
		if dev != "" {
			s = append(s, setting{"io", "io.max", fmt.Sprintf("%s rbps=%s wbps=%s riops=%s wiops=%s", dev, orMax(l.ReadBPS), orMax(l.WriteBPS), orMax(l.ReadIOPS), orMax(l.WriteIOPS)),
				"the I/O ceiling", l.ReadBPS+l.WriteBPS+l.ReadIOPS+l.WriteIOPS == 0})
		}
		return s
	}
	if l.IOWeight != 0 {
		file, w := "blkio.weight", l.IOWeight*5 // v1: 10..1000, default 500
		if d := h.dirs["blkio"]; d != "" {
			if _, err := os.Stat(d + "/blkio.weight"); err != nil {
				file, w = "blkio.bfq.weight", l.IOWeight // 1..1000, default 100
			}
		}
		s = append(s, setting{"blkio", file, strconv.FormatUint(min(max(w, 10), 1000), 10), "the I/O weight", false})
	}
	if dev == "" {
		return s
	}
	for _, t := range []struct {
		file string
		v    int64
	}{{"blkio.throttle.read_bps_device", l.ReadBPS}, {"blkio.throttle.write_bps_device", l.WriteBPS},
		{"blkio.throttle.read_iops_device", l.ReadIOPS}, {"blkio.throttle.write_iops_device", l.WriteIOPS}} {
		s = append(s, setting{"blkio", t.file, dev + " " + strconv.FormatInt(t.v, 10), "the I/O ceiling", t.v == 0})
	}
	return s
}

// setCPUSet pins the group, or lets it follow its parent.
func (h *Host) setCPUSet(path string, l Limits) ([]string, error) {
	dir := h.Dir("cpuset", path)
	if dir == "" {
		if l.CPUs+l.Mems != "" {
			return []string{"pinning to cores is not enforced: this host has no cpuset controller"}, nil
		}
		return nil, nil
	}
	for file, want := range map[string]string{"cpuset.cpus": l.CPUs, "cpuset.mems": l.Mems} {
		if want == "" && h.Mode != V2 {
			want = readTrim(filepath.Join(filepath.Dir(dir), file))
		}
		if readTrim(filepath.Join(dir, file)) == want {
			continue
		}
		if want == "" {
			want = "\n" // an empty write is not seen
		}
		if err := write(filepath.Join(dir, file), want); err != nil {
			return nil, fmt.Errorf("pin to %s: %w", want, err)
		}
	}
	return nil, nil
}

// Missing lists in plain words what this host cannot enforce for any group.
func (h *Host) Missing() []string {
	var out []string
	for _, c := range []struct{ name, what string }{{"cpu", "CPU"}, {"memory", "memory"}, {"pids", "number of processes"}, {"blkio", "disk I/O"}, {"cpuset", "pinning to cores"}} {
		if !h.Has(c.name) {
			out = append(out, c.what+": no "+c.name+" controller")
		}
	}
	if h.Mode == V2 {
		return out
	}
	out = append(out, "memory guarantee: cgroup v1 only reclaims from others first")
	if d := h.dirs["blkio"]; d != "" && !exists(d+"/blkio.weight") && !exists(d+"/blkio.bfq.weight") {
		out = append(out, "I/O weight: this kernel has none")
	}
	return out
}
