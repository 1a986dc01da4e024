// Package cgroup accounts and limits processes on hosts with cgroup v1, v2 or both
// (hybrid). A group has one path, such as "atoll/acme.t/x1f3", which is a directory
// in every hierarchy. What a host cannot enforce is returned as a warning, never
// passed over. It starts no goroutine and touches nothing outside of the paths it is given.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mode is how the host arranges its hierarchies.
type Mode string

// The modes.
const (
	V1     Mode = "v1"
	Hybrid Mode = "hybrid" // v1 controllers, and a v2 tree beside them
	V2     Mode = "v2"
)

// Host is the host's hierarchies.
type Host struct {
	Mode Mode
	// Unified is where the v2 tree is mounted; "" when there is none.
	Unified string
	// controllers maps a v1 controller to its mount point; on v2 all to Unified.
	dirs map[string]string
	// mounts lists every hierarchy once.
	mounts     []string
	cpus, mems string
}

// Detect reads the host's hierarchies from its mount table.
func Detect() (*Host, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	var lines []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		lines = append(lines, sc.Text())
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	h, err := parseMounts(lines)
	if err != nil {
		return nil, err
	}
	if d := h.dirs["cpuset"]; d != "" && h.Mode != V2 {
		h.cpus, h.mems = readTrim(d+"/cpuset.cpus"), readTrim(d+"/cpuset.mems")
	}
	return h, nil
}

var v1Controllers = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc"}

func parseMounts(lines []string) (*Host, error) {
	h := &Host{dirs: map[string]string{}}
	for _, l := range lines {
		left, right, ok := strings.Cut(l, " - ")
		a, b := strings.Fields(left), strings.Fields(right)
		if !ok || len(a) < 6 || len(b) < 3 || !strings.HasPrefix(a[4], "/sys/fs/cgroup") {
			continue
		}
		at := a[4]
		switch b[0] {
		case "cgroup2":
			if h.Unified == "" {
				h.Unified = at
			}
		case "cgroup":
			if slices.Contains(h.mounts, at) {
				continue
			}
			h.mounts = append(h.mounts, at)
			for _, o := range strings.Split(b[2], ",") {
				if slices.Contains(v1Controllers, o) {
					h.dirs[o] = at
				}
			}
		}
	}
	switch {
	case len(h.mounts) == 0 && h.Unified == "":
		return nil, errors.New("no cgroup hierarchy is mounted below /sys/fs/cgroup")
	case len(h.mounts) == 0:
		h.Mode, h.mounts = V2, []string{h.Unified}
		for _, c := range strings.Fields(readTrim(h.Unified + "/cgroup.controllers")) {
			h.dirs[c] = h.Unified
		}
		h.dirs["cpuacct"], h.dirs["blkio"] = h.Unified, h.dirs["io"]
	case h.Unified == "":
		h.Mode = V1
	default:
		h.Mode = Hybrid
	}
	return h, nil
}

// Has reports whether a controller (by its v1 name: cpu, memory, pids, blkio, cpuset) is there.
func (h *Host) Has(controller string) bool { return h.dirs[controller] != "" }

// Dir is the directory of a group in a controller's hierarchy; "" when the controller is not there.
func (h *Host) Dir(controller, path string) string {
	d := h.dirs[controller]
	if d == "" {
		return ""
	}
	return filepath.Join(d, path)
}

// Valid reports whether path can name a group: relative, clean, and below a directory of its own.
func Valid(path string) bool {
	return path != "" && len(path) < 512 && path[0] != '/' && filepath.Clean(path) == path && path != "." && !strings.HasPrefix(path, "..") && !strings.ContainsAny(path, "\x00\n")
}

// all lists the directories of a group in every hierarchy, the v2 tree of a hybrid host last.
func (h *Host) all(path string) []string {
	out := make([]string, 0, len(h.mounts)+1)
	for _, m := range h.mounts {
		out = append(out, filepath.Join(m, path))
	}
	if h.Mode == Hybrid {
		out = append(out, filepath.Join(h.Unified, path))
	}
	return out
}

// Create makes the group in every hierarchy; it may be there already.
func (h *Host) Create(path string) error {
	if !Valid(path) {
		return fmt.Errorf("cgroup path %q is not relative and clean", path)
	}
	for _, d := range h.all(path) {
		err := unix.Mkdir(d, 0o755)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if errors.Is(err, unix.ENOENT) {
			err = os.MkdirAll(d, 0o755)
		}
		if err != nil {
			return fmt.Errorf("create cgroup %s: %w", d, err)
		}
	}
	if h.Mode == V2 {
		return h.delegate(path)
	}
	if cs := h.dirs["cpuset"]; cs != "" {
		return h.fillCPUSet(cs, path)
	}
	return nil
}

// delegate enables the controllers on the way down to path (v2).
func (h *Host) delegate(path string) error {
	dir := h.Unified
	for _, part := range append([]string{""}, strings.Split(filepath.Dir(path), "/")...) {
		if part == "." {
			continue
		}
		dir = filepath.Join(dir, part)
		have := strings.Fields(readTrim(dir + "/cgroup.subtree_control"))
		for _, c := range strings.Fields(readTrim(dir + "/cgroup.controllers")) {
			if !slices.Contains(have, c) && slices.Contains([]string{"cpu", "cpuset", "memory", "io", "pids"}, c) {
				if err := write(dir+"/cgroup.subtree_control", "+"+c); err != nil {
					return fmt.Errorf("enable controller %s below %s: %w", c, dir, err)
				}
			}
		}
	}
	return nil
}

// fillCPUSet copies cpus and mems down: a v1 cpuset without them takes no process.
func (h *Host) fillCPUSet(root, path string) error {
	dir := root
	for _, part := range strings.Split(path, "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		for _, f := range []string{"/cpuset.cpus", "/cpuset.mems"} {
			if readTrim(dir+f) != "" {
				continue
			}
			if err := write(dir+f, readTrim(parent+f)); err != nil {
				return fmt.Errorf("copy %s down: %w", dir+f, err)
			}
		}
	}
	return nil
}

// Join moves a process into the group in every hierarchy.
func (h *Host) Join(path string, pid int) error {
	for _, d := range h.all(path) {
		if err := write(d+"/cgroup.procs", fmt.Sprint(pid)); err != nil {
			return fmt.Errorf("move process into cgroup %s: %w", d, err)
		}
	}
	return nil
}

// Contains reports whether the process is in the group, as the first hierarchy says.
func (h *Host) Contains(path string, pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for _, l := range strings.Split(string(b), "\n") {
		if p := strings.SplitN(l, ":", 3); len(p) == 3 && strings.TrimPrefix(p[2], "/") == path {
			return true
		}
	}
	return false
}

func readTrim(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// write writes in one system call, as control files want it.
func write(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(value))
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return &os.PathError{Op: "write " + value, Path: path, Err: err}
	}
	return nil
}

// StartIn is for os/exec: the child starts in the group of the v2 tree. A host without one
// has nothing to set: nil. done must be called after the start.
func (h *Host) StartIn(path string) (attr *syscall.SysProcAttr, done func()) {
	if h.Unified == "" || h.Create(path) != nil {
		return nil, func() {}
	}
	f, err := os.Open(filepath.Join(h.Unified, path))
	if err != nil {
		return nil, func() {}
	}
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}, func() { _ = f.Close() }
}

// StartBeside is StartIn on a hybrid host only: there the OCI runtime takes no notice of the v2 tree.
func (h *Host) StartBeside(path string) (attr *syscall.SysProcAttr, done func()) {
	if h.Mode != Hybrid {
		return nil, func() {}
	}
	return h.StartIn(path)
}
