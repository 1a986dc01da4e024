package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// overlay opens the filesystem without mounting anything.
func (p *probe) overlay(context.Context) []Check {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	switch {
	case err == nil:
		unix.Close(fd)
		return []Check{good("overlayfs", "image layers are shared")}
	case errors.Is(err, unix.EPERM):
		return []Check{bad("overlayfs", Failure, "mounting is not allowed here", "run atolld as root with CAP_SYS_ADMIN")}
	case errors.Is(err, unix.ENOSYS): // before Linux 5.2
		if s, err := readFile("/proc/filesystems"); err == nil && containsWord(s, "overlay") {
			return []Check{good("overlayfs", "image layers are shared")}
		}
	}
	return []Check{bad("overlayfs", Failure, "the kernel has no overlayfs: containers cannot start", "modprobe overlay")}
}

// withUserNS runs fn with an open user namespace that maps 0..65535 to a range of its own.
func withUserNS(ctx context.Context, fn func(fd int) error) error {
	cat, err := exec.LookPath("cat")
	if err != nil {
		return fmt.Errorf("hold a user namespace: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("hold a user namespace: %w", err)
	}
	defer r.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 20, Size: 1 << 16}}
	cmd := exec.CommandContext(ctx, cat) // waits until its input ends
	cmd.Stdin, cmd.Stdout = r, io.Discard
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer func() {
		w.Close()
		_ = cmd.Wait() // how cat ends says nothing
	}()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		return fmt.Errorf("open a user namespace: %w", err)
	}
	defer f.Close()
	return fn(int(f.Fd()))
}

const usernsFix = "sysctl -w user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1"

func (p *probe) userns(ctx context.Context) []Check {
	if err := withUserNS(ctx, func(int) error { return nil }); err != nil {
		return []Check{bad("userns", Failure, "no user namespaces: root inside would be root on the host, so nothing is started ("+err.Error()+")", usernsFix)}
	}
	return []Check{good("userns", "root inside an instance is nobody on the host")}
}

// idmap maps a detached copy of the state directory's mount; it is never attached anywhere.
func (p *probe) idmap(ctx context.Context) []Check {
	dir, err := os.MkdirTemp(existing(p.State), ".probe-")
	if err != nil {
		return []Check{bad("idmapped-mounts", Warning, "cannot be tried out in "+p.State+": "+err.Error(), "")}
	}
	defer os.Remove(dir)
	err = withUserNS(ctx, func(ns int) error {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open_tree: %w", err)
		}
		defer unix.Close(fd)
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("mount_setattr: %w", err)
		}
		return nil
	})
	if err != nil {
		return []Check{bad("idmapped-mounts", Warning, "not on this kernel or filesystem ("+err.Error()+"): every tenant needs its own copy of an image's files",
			"use Linux 5.19 or later and put "+p.State+" on ext4, xfs or btrfs")}
	}
	return []Check{good("idmapped-mounts", "one copy of an image serves all tenants")}
}

func (p *probe) seccomp(context.Context) []Check {
	s, err := readLine("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil || !containsWord(s, "errno") {
		return []Check{bad("seccomp", Failure, "the kernel cannot filter system calls: the wall around containers would be missing", "use a kernel with CONFIG_SECCOMP_FILTER")}
	}
	return []Check{good("seccomp", "system calls are filtered")}
}

// bridgeVeth makes both in a namespace that ends with the probe's thread.
func (p *probe) bridgeVeth(context.Context) []Check {
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		defer h.Close()
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}}
		if err := h.LinkAdd(br); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe1"}, PeerName: "probe2"}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		if err := h.LinkSetMaster(veth, br); err != nil {
			return fmt.Errorf("veth on bridge: %w", err)
		}
		return nil
	})
	switch {
	case errors.Is(err, unix.EPERM):
		return []Check{bad("bridge", Failure, "may not make network devices: "+err.Error(), "run atolld as root with CAP_NET_ADMIN and CAP_SYS_ADMIN")}
	case err != nil:
		return []Check{bad("bridge", Failure, "no bridge network: "+err.Error(), "modprobe bridge veth")}
	}
	return []Check{good("bridge", "bridge and veth work")}
}

func (p *probe) brNetfilter(context.Context) []Check {
	v, err := readLine("/proc/sys/net/bridge/bridge-nf-call-iptables")
	switch {
	case err != nil:
		return []Check{good("br-netfilter", "not loaded; not needed")}
	case v == "1":
		return []Check{good("br-netfilter", "on (Docker or Kubernetes wants it): bridged packets also pass the host's other firewall rules; ours allow for it")}
	}
	return []Check{good("br-netfilter", "off")}
}

func (p *probe) forwarding(context.Context) []Check {
	v, err := readLine("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return []Check{bad("ip-forward", Failure, "cannot be read: "+err.Error(), "mount -t proc proc /proc")}
	}
	if v == "1" {
		return []Check{good("ip-forward", "on")}
	}
	if err := unix.Access("/proc/sys/net/ipv4/ip_forward", unix.W_OK); err != nil {
		return []Check{bad("ip-forward", Failure, "off and cannot be switched on from here: instances do not reach the outside", "sysctl -w net.ipv4.ip_forward=1")}
	}
	return []Check{good("ip-forward", "off; switched on with the first instance on the bridge, and back by 'make down'")}
}

func (p *probe) systemd(context.Context) []Check {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return []Check{bad("systemd", Note, "not running: atolld runs in the background with a pid file, and nothing restarts it after a crash or boot", "")}
	}
	return []Check{good("systemd", "running")}
}

const kvmGetAPIVersion = 0xAE00

func (p *probe) kvm(context.Context) []Check {
	const fix = "enable virtualisation (VT-x or AMD-V) in the firmware, or nested virtualisation in the outer hypervisor; then: modprobe kvm_intel || modprobe kvm_amd"
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return []Check{bad("kvm", Note, "no /dev/kvm ("+err.Error()+"): VMs are emulated, 5 to 20 times slower", fix)}
	}
	defer unix.Close(fd)
	if v, err := unix.IoctlRetInt(fd, kvmGetAPIVersion); err != nil || v != 12 {
		return []Check{bad("kvm", Note, fmt.Sprintf("/dev/kvm does not answer (version %d): VMs are emulated", v), fix)}
	}
	return []Check{good("kvm", "the device is there; whether guests run on it is found out by running one")}
}

func (p *probe) lsm(context.Context) []Check {
	if v, err := readLine("/sys/fs/selinux/enforce"); err == nil {
		if v == "1" {
			return []Check{bad("lsm", Warning, "SELinux is enforcing: containers need their files labelled", "semanage fcontext -a -t container_file_t '"+p.State+"(/.*)?' && restorecon -R "+p.State)}
		}
		return []Check{good("lsm", "SELinux is permissive")}
	}
	if v, err := readLine("/sys/module/apparmor/parameters/enabled"); err == nil && v == "Y" {
		return []Check{good("lsm", "AppArmor is on")}
	}
	return []Check{good("lsm", "neither SELinux nor AppArmor is on; walls are user namespaces, capabilities and seccomp")}
}

// containsWord looks for a whole word between white space.
func containsWord(s, word string) bool {
	for _, f := range strings.Fields(s) {
		if f == word {
			return true
		}
	}
	return false
}

// quota looks at the filesystem of the state directory.
func (p *probe) quota(context.Context) []Check {
	m, ok := mountOf(p.mounts, filepath.Clean(existing(p.State)))
	if !ok {
		return []Check{bad("project-quota", Warning, "cannot find out what "+p.State+" is on", "")}
	}
	return []Check{judgeQuota(m, p.State)}
}

func judgeQuota(m mount, state string) Check {
	has := func(names ...string) bool {
		for _, o := range m.Options {
			for _, n := range names {
				if o == n {
					return true
				}
			}
		}
		return false
	}
	weaker := "; the size of writable layers and volumes is checked now and then instead of enforced by the kernel"
	switch m.Type {
	case "ext4":
		if has("prjquota") {
			return good("project-quota", "on "+m.Point+" (ext4)")
		}
		return bad("project-quota", Warning, m.Point+" (ext4) is mounted without prjquota"+weaker,
			fmt.Sprintf("tune2fs -O project -Q prjquota %s   # while it is not mounted\nmount -o remount,prjquota %s", m.Source, m.Point))
	case "xfs":
		if has("prjquota", "pquota", "pqnoenforce") && !has("pqnoenforce") {
			return good("project-quota", "on "+m.Point+" (xfs)")
		}
		return bad("project-quota", Warning, m.Point+" (xfs) is mounted without prjquota"+weaker, "add prjquota to the options of "+m.Point+" in /etc/fstab (for /: rootflags=prjquota on the kernel's command line) and reboot")
	case "btrfs", "zfs":
		return good("project-quota", m.Type+" has quotas of its own")
	}
	return bad("project-quota", Warning, m.Point+" is "+printable(m.Type, 32)+", which has no project quota"+weaker, "put "+state+" on ext4 or xfs with prjquota, or on btrfs")
}

const gib = 1 << 30

func (p *probe) disk(context.Context) []Check {
	d, err := DiskOf(p.State)
	if err != nil {
		return []Check{bad("disk", Failure, err.Error(), "")}
	}
	return []Check{judgeDisk(d, p.State)}
}

func judgeDisk(d Disk, state string) Check {
	detail := fmt.Sprintf("%.1f of %.1f GiB free for %s", float64(d.Free)/gib, float64(d.Total)/gib, state)
	switch {
	case d.Free < gib/2:
		return bad("disk", Failure, detail+": images cannot be pulled", "free space there, or: atoll image prune")
	case d.Free < 5*gib || d.Free < d.Total/20:
		return bad("disk", Warning, detail, "free space there, or: atoll image prune")
	}
	return good("disk", detail)
}

func (p *probe) clockSane(context.Context) []Check {
	const fix = "timedatectl set-ntp true, or install chrony"
	if y := p.Clock.Now().Year(); y < 2025 || y > 2100 {
		return []Check{bad("clock", Failure, fmt.Sprintf("it is the year %d here: certificates will not be valid", y), fix)}
	}
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil || t.Status&unix.STA_UNSYNC != 0 {
		return []Check{bad("clock", Note, "not synchronised with a time server; hosts of one pool should agree within a second", fix)}
	}
	return []Check{good("clock", "synchronised")}
}

func (p *probe) swap(context.Context) []Check {
	s, err := readFile("/proc/swaps")
	if err != nil {
		return []Check{good("swap", "none")}
	}
	n := -1 // the heading
	for range lines(s) {
		n++
	}
	if n <= 0 {
		return []Check{good("swap", "none")}
	}
	return []Check{bad("swap", Note, fmt.Sprintf("%d swap area(s) in use: a tenant over its guarantee gets slow before it is stopped", n), "swapoff -a   # if you prefer early and hard limits")}
}
