package host

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
)

func TestFacts(t *testing.T) {
	i, err := Facts(context.Background(), filepath.Join(t.TempDir(), "not", "there", "yet"))
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, n := range i.NUMA {
		sum += len(n.CPUs)
	}
	if i.CPUs < 1 || sum != i.CPUs || i.Memory < 1<<26 || i.Kernel == "" || len(i.BootID) != 36 || i.Hostname == "" || i.OS == "" || i.Disk.Total <= 0 || i.Disk.Free > i.Disk.Total {
		t.Errorf("facts are not plausible: %+v", i)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Facts(ctx, "/"); err == nil {
		t.Error("no error although the context had ended")
	}
}

func TestProbe(t *testing.T) {
	state := t.TempDir()
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	var best time.Duration
	seen := map[string]bool{}
	for range 3 {
		start := time.Now()
		checks := Probe(context.Background(), Options{State: state})
		if d := time.Since(start); best == 0 || d < best {
			best = d
		}
		clear(seen)
		for _, c := range checks {
			if c.Name == "" || c.Detail == "" || seen[c.Name] {
				t.Errorf("check %+v needs a name of its own and a detail", c)
			}
			seen[c.Name] = true
			if !c.OK && c.Severity == Failure && c.Fix == "" {
				t.Errorf("%s fails and does not say what to do", c.Name)
			}
			t.Logf("%-20s %-5v %-8s %s | %s", c.Name, c.OK, c.Severity, c.Detail, c.Fix)
		}
	}
	t.Logf("took %v", best)
	for _, n := range []string{"cgroup", "overlayfs", "idmapped-mounts", "userns", "seccomp", "psi", "nftables", "bridge", "crun", "docker", "ufw", "firewalld", "br-netfilter",
		"ip-forward", "project-quota", "disk", "clock", "systemd", "kvm", "swap", "lsm"} {
		if !seen[n] {
			t.Errorf("no check %s", n)
		}
	}
	if best > 2*time.Second { // 150 ms on a quiet machine; this one may be anything but
		t.Errorf("the probes took %v", best)
	}
	after, _ := os.ReadFile("/proc/self/mountinfo")
	if string(after) != string(mounts) {
		t.Error("the probes left a mount")
	}
	if left, _ := os.ReadDir(state); len(left) != 0 {
		t.Errorf("the probes left %v", left)
	}
}

func TestJudgeCgroups(t *testing.T) {
	old := func(names ...string) map[string]string {
		m := map[string]string{}
		for _, n := range names {
			m[n] = "/x"
		}
		return m
	}
	for name, c := range map[string]struct {
		view cgroupView
		ok   []bool
		says string
	}{
		"v2":             {cgroupView{mode: "v2", v2: []string{"cpu", "memory", "pids", "io", "cpuset"}}, []bool{true, true}, "main road"},
		"v2, no memory":  {cgroupView{mode: "v2", v2: []string{"cpu", "pids", "io", "cpuset"}}, []bool{true, false}, "cgroup_enable=memory"},
		"hybrid":         {cgroupView{mode: "hybrid", v1: old("cpu", "memory", "pids", "blkio", "cpuset"), v2: []string{"hugetlb"}}, []bool{false, true}, "memory.min"},
		"v1 without cpu": {cgroupView{mode: "v1", v1: old("memory", "pids", "blkio", "cpuset")}, []bool{false, false}, "CPU shares"},
		"none":           {cgroupView{mode: "none"}, []bool{false}, "nothing can be limited"},
	} {
		var ok []bool
		said := ""
		for _, ch := range judgeCgroups(c.view) {
			ok = append(ok, ch.OK)
			said += ch.Detail + ch.Fix
		}
		if !reflect.DeepEqual(ok, c.ok) || !strings.Contains(said, c.says) {
			t.Errorf("%s: %v %q, want %v and %q", name, ok, said, c.ok, c.says)
		}
	}
}

const sampleMounts = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,prjquota
30 22 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
40 22 0:50 / /mnt/a\040b rw - xfs /dev/sd\134a rw,noquota
broken line
`

func TestMounts(t *testing.T) {
	ms := parseMountinfo(sampleMounts)
	if len(ms) != 5 {
		t.Fatalf("%d mounts, want 5: %+v", len(ms), ms)
	}
	if m, _ := mountOf(ms, "/mnt/a b/c"); m.Type != "xfs" || m.Source != `/dev/sd\a` {
		t.Errorf("mount of /mnt/a b/c is %+v", m)
	}
	if m, _ := mountOf(ms, "/mnt/a bc"); m.Point != "/" {
		t.Errorf("mount of a sibling is %+v", m)
	}
	v := viewCgroups(ms, "hugetlb")
	if v.mode != "hybrid" || v.v1["cpu"] == "" || v.at != "/sys/fs/cgroup/unified" {
		t.Errorf("cgroups: %+v", v)
	}
	if c := judgeQuota(ms[0], "/var/lib/atoll"); !c.OK {
		t.Errorf("ext4 with prjquota: %+v", c)
	}
	for _, m := range []mount{{Type: "ext4", Point: "/", Source: "/dev/vda"}, ms[4], {Type: "tmpfs", Point: "/t"}, {Type: "xfs", Options: []string{"pqnoenforce"}}} {
		if c := judgeQuota(m, "/var/lib/atoll"); c.OK || c.Fix == "" {
			t.Errorf("%s without project quota: %+v", m.Type, c)
		}
	}
}

func TestJudgeFirewalls(t *testing.T) {
	forward := fwChain{Table: "filter", Name: "FORWARD", Family: nftables.TableFamilyIPv4, Forward: true, Drop: true}
	user := fwChain{Table: "filter", Name: "DOCKER-USER", Family: nftables.TableFamilyIPv4}
	ours := user
	ours.Ours = true
	for name, c := range map[string]struct {
		f    filter
		bad  string // name of the check that must fail; "" none
		says string
	}{
		"nothing":         {filter{}, "", "not here"},
		"docker":          {filter{chains: []fwChain{forward, user}}, "", "are put into DOCKER-USER"},
		"docker with us":  {filter{chains: []fwChain{forward, ours}}, "", "our accept rules are in"},
		"docker legacy":   {filter{docker: true, legacy: []string{"nat", "filter"}}, "docker", "iptables-legacy -I DOCKER-USER -i atoll0"},
		"ufw":             {filter{chains: []fwChain{forward, {Name: "ufw-before-forward"}}}, "ufw", "ufw allow 4798/udp"},
		"ufw configured":  {filter{ufw: true}, "ufw", "ufw allow in on atoll0"},
		"firewalld":       {filter{firewld: true}, "firewalld", "--add-interface=atoll0"},
		"somebody's own":  {filter{chains: []fwChain{forward}}, "forward-policy", "nft insert rule ip filter"},
		"IPv6 is not our": {filter{chains: []fwChain{{Table: "filter", Name: "FORWARD", Family: nftables.TableFamilyIPv6, Forward: true, Drop: true}}}, "", "not active"},
	} {
		said, failed := "", ""
		for _, ch := range judgeFirewalls(c.f, "atoll0") {
			said += ch.Detail + ch.Fix
			if !ch.OK {
				failed += ch.Name
			}
		}
		if failed != c.bad || !strings.Contains(said, c.says) {
			t.Errorf("%s: failed %q, said %q; want %q and %q", name, failed, said, c.bad, c.says)
		}
	}
}

func TestJudgeDisk(t *testing.T) {
	for free, want := range map[int64]bool{100 * gib: true, 3 * gib: false, 1 << 20: false} {
		if c := judgeDisk(Disk{Total: 200 * gib, Free: free}, "/x"); c.OK != want {
			t.Errorf("%d free: %+v", free, c)
		}
	}
}

func TestParsers(t *testing.T) {
	if c, err := parseCPUList("0-2,8"); err != nil || !reflect.DeepEqual(c, []int{0, 1, 2, 8}) {
		t.Errorf("CPU list: %v %v", c, err)
	}
	for _, s := range []string{"x", "3-1", "-1", "0-99999999", "1,,2"} {
		if _, err := parseCPUList(s); err == nil {
			t.Errorf("CPU list %q was accepted", s)
		}
	}
	m := parseMeminfo("MemTotal:       24684092 kB\nNode 0 SwapTotal:   4 kB\nHugePages_Total: 3\n")
	if m["MemTotal"] != 24684092<<10 || m["SwapTotal"] != 4096 || len(m) != 2 {
		t.Errorf("meminfo: %v", m)
	}
	o := parseOSRelease("# comment\nPRETTY_NAME=\"Debian \\\"12\\\" \x1b[31m\"\nID=debian\nX='y'\n")
	if o["PRETTY_NAME"] != `Debian "12" [31m` || o["ID"] != "debian" || o["X"] != "y" {
		t.Errorf("os-release: %q", o)
	}
	for s, want := range map[string]string{"crun version 1.8.1\ncommit: f8a096be": "1.8.1", "nftables v1.0.6 (Lester Gooch #5)": "1.0.6", "ip utility, iproute2-6.1.0, libbpf 1.1.0": "6.1.0",
		"BusyBox v1.35.0 (Debian 1:1.35.0-4+b7) multi-call": "1.35.0", "conmon version 2.1.6": "2.1.6", "runc version 1.1.5+ds1": "1.1.5+ds1", "none": ""} {
		if got := parseVersion(s); got != want {
			t.Errorf("version of %q is %q, want %q", s, got, want)
		}
	}
}

func FuzzParsers(f *testing.F) {
	f.Add(sampleMounts)
	f.Add("MemTotal: 1 kB\nA=\"b\\\"\n0-3,8\nx v1.2.3")
	f.Add("0-8191,0-8191")
	f.Fuzz(func(t *testing.T, s string) {
		for _, m := range parseMountinfo(s) {
			mountOf([]mount{m}, "/a/b")
			judgeQuota(m, "/a")
		}
		judgeCgroups(viewCgroups(parseMountinfo(s), s))
		for _, v := range parseMeminfo(s) {
			if v < 0 {
				t.Errorf("negative memory from %q", s)
			}
		}
		for _, v := range parseOSRelease(s) {
			if strings.ContainsAny(v, "\x1b\x00\n\u009b") || len([]rune(v)) > 128 {
				t.Errorf("unprintable value %q", v)
			}
		}
		if cpus, err := parseCPUList(s); err == nil && len(cpus) > maxCPUs {
			t.Errorf("%d CPUs", len(cpus))
		}
		if strings.ContainsAny(parseVersion(s), " \n\x1b") {
			t.Errorf("version %q", parseVersion(s))
		}
	})
}

func BenchmarkProbe(b *testing.B) {
	for b.Loop() {
		Probe(context.Background(), Options{State: b.TempDir()})
	}
}
