package container

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// oci is an OCI config whose seccomp part is JSON already.
type oci struct {
	specs.Spec
	Linux *ociLinux `json:"linux"`

	seccompKey string // of the profile that the runtime will compile
}

type ociLinux struct {
	specs.Linux
	Seccomp json.RawMessage `json:"seccomp,omitempty"`
}

// defaultCaps is what root inside keeps. NET_RAW is not among them: ping works by the
// ping_group_range sysctl, and raw sockets forge addresses.
var defaultCaps = [...]string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID"}

// knownCaps is what may be added by name (capabilities(7)).
var knownCaps = [...]string{"AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE",
	"DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD",
	"NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_ADMIN", "SYS_BOOT",
	"SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "WAKE_ALARM"}

// capabilities is the bounding set: the defaults, less Drop, plus Add.
func capabilities(c *api.Capabilities) ([]string, error) {
	set := slices.Clone(defaultCaps[:])
	if c != nil {
		for _, d := range c.Drop {
			d = strings.TrimPrefix(strings.ToUpper(d), "CAP_")
			if d == "ALL" {
				set = nil
			}
			set = slices.DeleteFunc(set, func(s string) bool { return s == d })
		}
		for _, a := range c.Add {
			a = strings.TrimPrefix(strings.ToUpper(a), "CAP_")
			if !slices.Contains(knownCaps[:], a) {
				return nil, errs.InvalidFields("instance", []errs.Field{{Field: "spec.capabilities.add", Value: a, Rule: "must be the name of a capability", Example: "NET_ADMIN"}})
			}
			if !slices.Contains(set, a) {
				set = append(set, a)
			}
		}
	}
	out := make([]string, len(set))
	for i, s := range set {
		out[i] = "CAP_" + s
	}
	slices.Sort(out)
	return out, nil
}

var (
	maskedPaths = [...]string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = [...]string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// argv is what to run.
func argv(s driver.Spec) ([]string, error) {
	entry, cmd := s.Image.Config.Entrypoint, s.Image.Config.Cmd
	if len(s.Instance.Spec.Entry) > 0 {
		entry, cmd = s.Instance.Spec.Entry, nil
	}
	if len(s.Instance.Spec.Command) > 0 {
		cmd = s.Instance.Spec.Command
	}
	args := append(slices.Clone(entry), cmd...)
	if len(args) == 0 || args[0] == "" {
		return nil, errs.New(errs.Invalid, "no command: neither the instance nor the image names one").WithHint("give one after the image's name")
	}
	for _, a := range args {
		if strings.ContainsRune(a, 0) {
			return nil, errs.New(errs.Invalid, "the command contains a zero byte")
		}
	}
	return args, nil
}

// environ merges the image's variables and the instance's, later ones winning.
func environ(s driver.Spec, home string) []string {
	out := []string{defaultPath, "HOSTNAME=" + hostname(s), "HOME=" + home}
	if s.Instance.Spec.TTY {
		out = append(out, "TERM=xterm")
	}
	vars := slices.Clone(s.Image.Config.Env)
	for _, v := range s.Instance.Spec.Env {
		vars = append(vars, v.Name+"="+v.Value)
	}
	return mergeEnv(out, vars)
}

func mergeEnv(base, add []string) []string {
	at := map[string]int{}
	var out []string
	for _, v := range append(slices.Clone(base), add...) {
		name, _, ok := strings.Cut(v, "=")
		if !ok || name == "" || strings.ContainsRune(v, 0) {
			continue
		}
		if i, twice := at[name]; twice {
			out[i] = v
			continue
		}
		at[name] = len(out)
		out = append(out, v)
	}
	return out
}

func hostname(s driver.Spec) string {
	for _, h := range []string{s.Network.Hostname, s.Instance.Spec.Hostname, s.Instance.Name} {
		if h != "" {
			return h
		}
	}
	return s.ID
}

// build makes the OCI config; mounts are those of volumes.
func (r *Runtime) build(e *environment, s driver.Spec, u user, volumes []specs.Mount) (*oci, error) {
	args, err := argv(s)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(s.Instance.Spec.Capabilities)
	if err != nil {
		return nil, err
	}
	held := caps
	if u.UID != 0 {
		held = []string{}
	}
	cwd := s.Instance.Spec.Workdir
	if cwd == "" {
		cwd = s.Image.Config.WorkingDir
	}
	if !path.IsAbs(cwd) {
		cwd = "/" + cwd
	}
	oom := max(s.Cgroup.OOMScoreAdj, e.oomMin)
	o := &oci{Spec: specs.Spec{
		Version:  "1.0.2",
		Hostname: hostname(s),
		Root:     &specs.Root{Path: r.run("rootfs"), Readonly: s.Instance.Spec.ReadOnlyRoot},
		Process: &specs.Process{
			Terminal: s.Instance.Spec.TTY, Args: args, Cwd: path.Clean(cwd), Env: environ(s, u.Home), NoNewPrivileges: true, OOMScoreAdj: &oom,
			User:         specs.User{UID: u.UID, GID: u.GID, AdditionalGids: u.Groups},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Permitted: held, Effective: held},
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: min(e.nofile, 65536), Hard: min(e.nofile, 1<<20)},
				{Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
			},
		},
		Mounts: append(r.standardMounts(e, s), volumes...),
	}}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: s.IDs.Base, Size: s.IDs.Count}}
	o.Linux = &ociLinux{Linux: specs.Linux{
		UIDMappings: ids, GIDMappings: ids, CgroupsPath: "/" + s.Cgroup.Path,
		MaskedPaths: maskedPaths[:], ReadonlyPaths: readonlyPaths[:],
		Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace}, {Type: specs.UserNamespace}, {Type: specs.CgroupNamespace}},
		Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
	}}
	if s.Network.Mode != "host" {
		o.Linux.Namespaces = append(o.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
		o.Linux.Sysctl = map[string]string{"net.ipv4.ping_group_range": fmt.Sprintf("0 %d", min(s.IDs.Count-1, 1<<31-2)), "net.ipv4.ip_unprivileged_port_start": "0"}
	}
	return o, r.addSeccomp(e, o)
}

// standardMounts is what every instance has.
func (r *Runtime) standardMounts(e *environment, s driver.Spec) []specs.Mount {
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	if s.Network.Mode == "host" { // sysfs shows the network namespace, and ours does not own the host's
		m = append(m, specs.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}})
	} else {
		m = append(m, specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}})
		if e.groups.Mode == "v2" {
			m = append(m, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}})
		}
	}
	for _, f := range etcFiles {
		m = append(m, specs.Mount{Destination: "/etc/" + f, Type: "bind", Source: r.run("i", s.ID, f), Options: []string{"bind", "nosuid", "nodev", "noexec", "ro"}})
	}
	return m
}

// etcFiles are made by us and cannot be written: they stand in the host's memory.
var etcFiles = [...]string{"hosts", "hostname", "resolv.conf"}

// etc is the content of one of etcFiles.
func etc(s driver.Spec, file string) string {
	name := hostname(s)
	switch file {
	case "hostname":
		return name + "\n"
	case "hosts":
		h := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
		if s.Network.Address != "" {
			return h + s.Network.Address + "\t" + name + "\n"
		}
		return h + "127.0.1.1\t" + name + "\n"
	}
	return s.Network.ResolvConf()
}
