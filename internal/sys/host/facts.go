// Package host is the door to what the host is and can do: facts for the node's
// status, and probes for 'atoll doctor' and node conditions, each with the command
// that puts it right.
//
// A probe tries the thing itself where it can (a bridge in a throw-away namespace, a
// mount that is never attached) instead of trusting a version number. Goroutines are
// waited for before a call returns. It must never change the host: no mount, link,
// rule or setting outlives a probe.
package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Info is what the host is.
type Info struct {
	CPUs      int          // online
	NUMA      []NUMANode   // at least one
	Memory    int64        // bytes
	Swap      int64        // bytes
	Kernel    string       // release, such as "6.1.0-18-amd64"
	OS        string       // distribution, such as "Debian GNU/Linux 12 (bookworm)"
	Arch      string       // as Go and OCI call it: "amd64"
	BootID    string       // changes with every boot
	Hostname  string       //
	Addresses []netip.Addr // of all interfaces that are up, without loopback and link-local ones
	Disk      Disk         // of the path given
}

// NUMANode is one memory node.
type NUMANode struct {
	ID     int
	CPUs   []int
	Memory int64 // bytes
	Huge   int64 // bytes of it set aside as huge pages, of all sizes
}

// Disk is a filesystem, in bytes. Free is what may be written, without the reserve for root.
type Disk struct{ Total, Free int64 }

// Facts reads what the host is; path says which filesystem Disk is about.
func Facts(ctx context.Context, path string) (Info, error) {
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	i := Info{Arch: runtime.GOARCH}
	online, err := readCPUs("/sys/devices/system/cpu/online")
	if err != nil {
		return Info{}, err
	}
	i.CPUs = len(online)
	mem, err := readFile("/proc/meminfo")
	if err != nil {
		return Info{}, err
	}
	m := parseMeminfo(mem)
	i.Memory, i.Swap = m["MemTotal"], m["SwapTotal"]
	if i.NUMA, err = numaNodes(online, i.Memory); err != nil {
		return Info{}, err
	}
	if i.Kernel, err = readLine("/proc/sys/kernel/osrelease"); err != nil {
		return Info{}, err
	}
	if i.BootID, err = readLine("/proc/sys/kernel/random/boot_id"); err != nil {
		return Info{}, err
	}
	if i.Hostname, err = os.Hostname(); err != nil {
		return Info{}, fmt.Errorf("read hostname: %w", err)
	}
	i.OS = osRelease()["PRETTY_NAME"]
	if i.Addresses, err = addresses(); err != nil {
		return Info{}, err
	}
	i.Disk, err = DiskOf(path)
	return i, err
}

// DiskOf measures the filesystem that path is on, or would be on once it exists.
func DiskOf(path string) (Disk, error) {
	var st unix.Statfs_t
	path = existing(path)
	if err := unix.Statfs(path, &st); err != nil {
		return Disk{}, errs.New(errs.NotFound, "measure disk of %s: %w", path, err)
	}
	return Disk{Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}, nil
}

// existing is the path or the nearest parent that exists.
func existing(path string) string {
	path = filepath.Clean("/" + path)
	for path != "/" {
		if _, err := os.Stat(path); err == nil {
			break
		}
		path = filepath.Dir(path)
	}
	return path
}

func addresses() ([]netip.Addr, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []netip.Addr
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		as, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range as {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && !p.Addr().IsLinkLocalUnicast() && !slices.Contains(out, p.Addr()) {
				out = append(out, p.Addr())
			}
		}
	}
	return out, nil
}

func numaNodes(online []int, memory int64) ([]NUMANode, error) {
	dirs, err := filepath.Glob("/sys/devices/system/node/node[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("list NUMA nodes: %w", err)
	}
	var out []NUMANode
	for _, d := range dirs {
		id, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(d), "node"))
		if err != nil {
			continue
		}
		cpus, err := readCPUs(filepath.Join(d, "cpulist"))
		if err != nil {
			return nil, err
		}
		mem, err := readFile(filepath.Join(d, "meminfo"))
		if err != nil {
			return nil, err
		}
		out = append(out, NUMANode{ID: id, CPUs: cpus, Memory: parseMeminfo(mem)["MemTotal"], Huge: hugePages(d)})
	}
	if len(out) == 0 { // a kernel without NUMA
		out = []NUMANode{{CPUs: online, Memory: memory}}
	}
	slices.SortFunc(out, func(a, b NUMANode) int { return a.ID - b.ID })
	return out, nil
}

// hugePages sums up "hugepages-2048kB/nr_hugepages" and its kind; what cannot be read counts as none.
func hugePages(node string) int64 {
	sizes, err := filepath.Glob(filepath.Join(node, "hugepages", "hugepages-*kB"))
	if err != nil {
		return 0
	}
	total := int64(0)
	for _, s := range sizes {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(s), "hugepages-"), "kB"), 10, 64)
		line, rerr := readLine(filepath.Join(s, "nr_hugepages"))
		n, nerr := strconv.ParseInt(line, 10, 64)
		if err == nil && rerr == nil && nerr == nil && n > 0 && kib > 0 && n < 1<<40/kib {
			total += n * kib << 10
		}
	}
	return total
}

// maxFile bounds what is read of any file: the kernel's are far smaller, others are not trusted.
const maxFile = 4 << 20

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return string(b), nil
}

func readLine(path string) (string, error) {
	s, err := readFile(path)
	s, _, _ = strings.Cut(s, "\n")
	return strings.TrimSpace(s), err
}

func readCPUs(path string) ([]int, error) {
	s, err := readLine(path)
	if err != nil {
		return nil, err
	}
	return parseCPUList(s)
}

// maxCPUs is what the kernel can be built for at most.
const maxCPUs = 8192

// parseCPUList reads "0-3,8".
func parseCPUList(s string) ([]int, error) {
	var out []int
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(lo)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(hi)
		}
		if err != nil || a < 0 || b < a || b >= maxCPUs {
			return nil, errs.New(errs.Invalid, "CPU list %.64q is not like 0-3,8", s)
		}
		for c := a; c <= b && len(out) < maxCPUs; c++ {
			out = append(out, c)
		}
	}
	return out, nil
}

var meminfoRE = regexp.MustCompile(`^(?:Node \d+ )?(\w+):\s+(\d+) kB$`)

// parseMeminfo reads /proc/meminfo and a NUMA node's; values in bytes.
func parseMeminfo(s string) map[string]int64 {
	out := map[string]int64{}
	for l := range lines(s) {
		if m := meminfoRE.FindStringSubmatch(strings.TrimSpace(l)); m != nil {
			if v, err := strconv.ParseInt(m[2], 10, 53); err == nil {
				out[m[1]] = v << 10
			}
		}
	}
	return out
}

func osRelease() map[string]string {
	for _, p := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		s, err := readFile(p)
		if err == nil {
			return parseOSRelease(s)
		}
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return map[string]string{"PRETTY_NAME": "Linux"}
}

// parseOSRelease reads os-release(5): shell assignments, values perhaps quoted.
func parseOSRelease(s string) map[string]string {
	out := map[string]string{}
	for l := range lines(s) {
		k, v, ok := strings.Cut(strings.TrimSpace(l), "=")
		if !ok || strings.HasPrefix(k, "#") {
			continue
		}
		if len(v) >= 2 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
			v = v[1 : len(v)-1]
		}
		v = strings.NewReplacer(`\"`, `"`, `\$`, `$`, "\\`", "`", `\\`, `\`).Replace(v)
		out[k] = printable(v, 128)
	}
	return out
}

// printable drops control characters and cuts: what is read from a host's files is shown on terminals.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == '\ufffd' {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > n {
		s = string(r[:n])
	}
	return s
}

func lines(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		sc := bufio.NewScanner(strings.NewReader(s))
		sc.Buffer(nil, maxFile)
		for sc.Scan() {
			if !yield(sc.Text()) {
				return
			}
		}
	}
}
