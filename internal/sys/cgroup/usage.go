package cgroup

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a group and all below it have used and use.
type Usage struct {
	CPU, Throttled        time.Duration
	Memory, MemoryPeak    int64 // bytes; Memory without cache that can be dropped
	ReadBytes, WriteBytes int64
	ReadOps, WriteOps     int64
	Pids                  int64
	OOMKills              int64
	// Pressure: some avg10, 0..1; -1 when the host cannot tell.
	PressureCPU, PressureMemory, PressureIO float64
}

// Usage reads a group's counters; os.ErrNotExist when there is no such group. It
// reads about ten small files and walks no directory.
func (h *Host) Usage(path string) (Usage, error) {
	var u Usage
	if !exists(filepath.Join(h.mounts[0], path)) {
		return u, os.ErrNotExist
	}
	if h.Mode == V2 {
		h.usageV2(path, &u)
	} else {
		h.usageV1(path, &u)
	}
	u.PressureCPU, u.PressureMemory, u.PressureIO = -1, -1, -1
	if h.Unified != "" {
		dir := filepath.Join(h.Unified, path)
		u.PressureCPU, u.PressureMemory, u.PressureIO = pressure(dir+"/cpu.pressure"), pressure(dir+"/memory.pressure"), pressure(dir+"/io.pressure")
	}
	return u, nil
}

// OOMKills reads how many processes of the group the kernel killed for memory.
func (h *Host) OOMKills(path string) int64 {
	file := "memory.oom_control"
	if h.Mode == V2 {
		file = "memory.events"
	}
	return field(read(h.Dir("memory", path), file), "oom_kill")
}

func (h *Host) usageV2(path string, u *Usage) {
	dir := filepath.Join(h.Unified, path)
	cpu := read(dir, "cpu.stat")
	u.CPU = time.Duration(field(cpu, "usage_usec")) * time.Microsecond
	u.Throttled = time.Duration(field(cpu, "throttled_usec")) * time.Microsecond
	u.Memory = max(number(read(dir, "memory.current"))-field(read(dir, "memory.stat"), "inactive_file"), 0)
	u.MemoryPeak = number(read(dir, "memory.peak"))
	u.Pids = number(read(dir, "pids.current"))
	u.OOMKills = field(read(dir, "memory.events"), "oom_kill")
	for _, l := range strings.Split(string(read(dir, "io.stat")), "\n") {
		for _, kv := range strings.Fields(l) {
			k, v, _ := strings.Cut(kv, "=")
			n, _ := strconv.ParseInt(v, 10, 64)
			switch k {
			case "rbytes":
				u.ReadBytes += n
			case "wbytes":
				u.WriteBytes += n
			case "rios":
				u.ReadOps += n
			case "wios":
				u.WriteOps += n
			}
		}
	}
}

func (h *Host) usageV1(path string, u *Usage) {
	u.CPU = time.Duration(number(read(h.Dir("cpuacct", path), "cpuacct.usage")))
	u.Throttled = time.Duration(field(read(h.Dir("cpu", path), "cpu.stat"), "throttled_time"))
	mem := h.Dir("memory", path)
	u.Memory = max(number(read(mem, "memory.usage_in_bytes"))-field(read(mem, "memory.stat"), "total_inactive_file"), 0)
	u.MemoryPeak = number(read(mem, "memory.max_usage_in_bytes"))
	u.OOMKills = field(read(mem, "memory.oom_control"), "oom_kill")
	u.Pids = number(read(h.Dir("pids", path), "pids.current"))
	blk := h.Dir("blkio", path)
	u.ReadBytes, u.WriteBytes = blkio(read(blk, "blkio.throttle.io_service_bytes_recursive"))
	u.ReadOps, u.WriteOps = blkio(read(blk, "blkio.throttle.io_serviced_recursive"))
}

// read returns nothing for what is not there: the counter stays zero.
func read(dir, file string) []byte {
	if dir == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil
	}
	return b
}

func number(b []byte) int64 {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 0
	}
	return n
}

// field finds "name value" in a flat-keyed file.
func field(b []byte, name string) int64 {
	for len(b) > 0 {
		var l []byte
		l, b, _ = bytes.Cut(b, []byte("\n"))
		if k, v, ok := bytes.Cut(l, []byte(" ")); ok && string(k) == name {
			return number(v)
		}
	}
	return 0
}

func blkio(b []byte) (r, w int64) {
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) != 3 {
			continue
		}
		n, _ := strconv.ParseInt(f[2], 10, 64)
		switch f[1] {
		case "Read":
			r += n
		case "Write":
			w += n
		}
	}
	return r, w
}

// pressure reads avg10 of the "some" line as 0..1; -1 when it cannot be told.
func pressure(file string) float64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return -1
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for _, kv := range strings.Fields(line) {
		if v, ok := strings.CutPrefix(kv, "avg10="); ok && strings.HasPrefix(line, "some") {
			if f, err := strconv.ParseFloat(v, 64); err == nil && f >= 0 && f <= 100 {
				return f / 100
			}
		}
	}
	return -1
}
