package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// mount is one line of mountinfo.
type mount struct {
	Point, Type, Source string
	Options             []string // of the mount and of the filesystem
}

// parseMountinfo reads /proc/self/mountinfo; lines that do not fit are left out.
func parseMountinfo(s string) []mount {
	var out []mount
	for l := range lines(s) {
		left, right, ok := strings.Cut(l, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 6 || len(g) < 2 {
			continue
		}
		m := mount{Point: unescape(f[4]), Type: g[0], Source: unescape(g[1]), Options: strings.Split(f[5], ",")}
		if len(g) > 2 {
			m.Options = append(m.Options, strings.Split(g[2], ",")...)
		}
		out = append(out, m)
	}
	return out
}

// unescape undoes the kernel's \040 for what would break the format.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountOf is the mount that a path is on: the last one with the longest matching point.
func mountOf(ms []mount, path string) (mount, bool) {
	var best mount
	found := false
	for _, m := range ms {
		if (m.Point == "/" || path == m.Point || strings.HasPrefix(path, m.Point+"/")) && (!found || len(m.Point) >= len(best.Point)) {
			best, found = m, true
		}
	}
	return best, found
}

// cgroupView is where which controller is.
type cgroupView struct {
	mode string // v1, hybrid, v2, none
	v1   map[string]string
	v2   []string
	at   string // mount point of v2
}

// wanted are the controllers sharing is built on, by their v2 names.
var wanted = []struct{ v2, v1, without string }{
	{"cpu", "cpu", "CPU shares and ceilings are not enforced"},
	{"memory", "memory", "memory ceilings are not enforced, and one instance can starve all"},
	{"pids", "pids", "a fork bomb is not stopped"},
	{"io", "blkio", "disk bandwidth is not shared by weight"},
	{"cpuset", "cpuset", "instances cannot be pinned to cores"},
}

func viewCgroups(ms []mount, controllers string) cgroupView {
	v := cgroupView{v1: map[string]string{}}
	for _, m := range ms {
		switch m.Type {
		case "cgroup2":
			// The one below /sys/fs/cgroup counts; others are views of the same tree.
			if v.at == "" || strings.HasPrefix(m.Point, "/sys/fs/cgroup") {
				v.at, v.v2 = m.Point, strings.Fields(controllers)
			}
		case "cgroup":
			for _, o := range m.Options {
				for _, w := range wanted {
					if o == w.v1 {
						v.v1[w.v1] = m.Point
					}
				}
			}
		}
	}
	switch {
	case len(v.v1) > 0 && v.at != "":
		v.mode = "hybrid"
	case len(v.v1) > 0:
		v.mode = "v1"
	case v.at != "":
		v.mode = "v2"
	default:
		v.mode = "none"
	}
	return v
}

const unifiedFix = `add systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all to the kernel's command line (GRUB_CMDLINE_LINUX in /etc/default/grub)
update-grub && reboot`

func (p *probe) cgroupView() cgroupView {
	at := ""
	for _, m := range p.mounts {
		if m.Type == "cgroup2" && (at == "" || strings.HasPrefix(m.Point, "/sys/fs/cgroup")) {
			at = m.Point
		}
	}
	controllers := ""
	if at != "" {
		controllers, _ = readLine(filepath.Join(at, "cgroup.controllers")) // unreadable: none
	}
	return viewCgroups(p.mounts, controllers)
}

func (p *probe) cgroups(context.Context) []Check { return judgeCgroups(p.cgroupView()) }

func judgeCgroups(v cgroupView) []Check {
	var have, miss, means []string
	for _, w := range wanted {
		_, old := v.v1[w.v1]
		if old || slices.Contains(v.v2, w.v2) {
			have = append(have, w.v2)
		} else {
			miss, means = append(miss, w.v2), append(means, w.without)
		}
	}
	var mode Check
	switch v.mode {
	case "v2":
		mode = good("cgroup", "v2, the main road: guarantees, ceilings and weights are enforced by the kernel")
	case "none":
		return []Check{bad("cgroup", Failure, "no cgroups are mounted: nothing can be limited or shared", "mount -t cgroup2 none /sys/fs/cgroup")}
	default:
		mode = bad("cgroup", Warning, v.mode+": ceilings and CPU weights are enforced; memory guarantees (memory.min, memory.low) and weighted disk I/O under pressure exist only in v2 and are not", unifiedFix)
	}
	if len(miss) > 0 {
		fix := "use a kernel with these controllers"
		if v.mode == "v2" && slices.Contains(miss, "memory") {
			fix = "add cgroup_enable=memory to the kernel's command line and reboot"
		}
		return []Check{mode, bad("cgroup-controllers", Failure, fmt.Sprintf("missing: %s (there: %s): %s", strings.Join(miss, ", "), strings.Join(have, ", "), strings.Join(means, "; ")), fix)}
	}
	return []Check{mode, good("cgroup-controllers", strings.Join(have, ", "))}
}

// psi looks for pressure files: of the system, and of each cgroup.
func (p *probe) psi(context.Context) []Check {
	const fix = "add psi=1 to the kernel's command line and reboot (the kernel needs CONFIG_PSI)"
	if _, err := readLine("/proc/pressure/cpu"); err != nil {
		return []Check{bad("psi", Warning, "no pressure figures: noisy neighbours are found by usage alone", fix)}
	}
	v := p.cgroupView()
	if v.at == "" {
		return []Check{bad("psi", Warning, "pressure of the system only: without a cgroup v2 tree the figures per tenant are missing", "mount -t cgroup2 none /sys/fs/cgroup/unified")}
	}
	for _, f := range []string{"cpu.pressure", "cgroup.pressure"} {
		if _, err := os.Stat(filepath.Join(v.at, f)); err == nil {
			return []Check{good("psi", "pressure of the system and of every cgroup")}
		}
	}
	// The root may lack the files where children have them.
	found, err := filepath.Glob(filepath.Join(v.at, "*", "cpu.pressure"))
	if err == nil && len(found) > 0 {
		return []Check{good("psi", "pressure of the system and of every cgroup")}
	}
	return []Check{bad("psi", Warning, "pressure of the system only, not of each cgroup", fix)}
}
