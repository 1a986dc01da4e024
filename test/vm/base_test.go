package vm

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"atoll/test/rig"
)

// suite is the Debian release of the guests, whatever the host is: the last one whose kernel
// still has all cgroup v1 controllers.
const suite = "bookworm"

// mirrorVar names another mirror than the distribution's own.
const mirrorVar = "ATOLL_TEST_MIRROR"

// extra is what the guests have beside what the product asks for: a service manager,
// modprobe, make for the two commands, and the other OCI runtime.
var extra = []string{"systemd-sysv", "udev", "kmod", "make", "runc"}

// drivers are the modules without which a guest cannot find its disks.
var drivers = []string{"virtio_pci", "virtio_blk"}

// finish completes the guests' root: the kernel is unpacked, not installed, and leaves the root
// for the folder that $OUT names.
const finish = `set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1)
cd "$OUT"
apt-get download "$image"
dpkg-deb -x linux-image-*.deb kernel
rm linux-image-*.deb
mv kernel/boot/vmlinuz-* vmlinuz
version=$(ls kernel/lib/modules)
mkdir -p "$1/usr/lib/modules"
mv "kernel/lib/modules/$version" "$1/usr/lib/modules/"
rm -r kernel
chroot "$1" depmod "$version"
: >"$1/etc/fstab"
echo isle1 >"$1/etc/hostname"
for u in serial-getty@ttyS0 getty-static getty@tty1 e2scrub_reap; do
  ln -sf /dev/null "$1/etc/systemd/system/$u.service"
done
`

//go:embed testdata/init.sh
var initScript []byte

// base is what all guests start from: a folder with root.ext4, vmlinuz and initrd.
type base struct{ dir string }

// missing says what this machine lacks for guests; "" when nothing.
func missing() string {
	switch {
	case runtime.GOARCH != "amd64":
		return "an amd64 processor: so are the guests"
	case os.Geteuid() != 0:
		return "root"
	}
	var names []string
	for _, p := range []struct{ program, pkg string }{{"qemu-system-x86_64", "qemu-system-x86"}, {"mmdebstrap", "mmdebstrap"}, {"mke2fs", "e2fsprogs"}, {"dpkg-deb", "dpkg"}} {
		if _, err := exec.LookPath(p.program); err != nil {
			names = append(names, p.pkg)
		}
	}
	if len(names) > 0 {
		return strings.Join(names, " ") + " (make packages)"
	}
	return ""
}

// prepared finds the base, or makes it; later runs find it. Its name is made of all that it is made from.
func prepared(ctx context.Context) (base, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return base{}, err
	}
	cache = filepath.Join(cache, "atoll-test")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return base{}, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return base{}, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return base{}, fmt.Errorf("wait for another run: %w", err)
	}
	list, err := packages()
	if err != nil {
		return base{}, err
	}
	mirror := os.Getenv(mirrorVar)
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%s\n%s\n%s", suite, mirror, list, drivers, finish, initScript))
	b := base{filepath.Join(cache, "guest-"+hex.EncodeToString(sum[:8]))}
	if _, err := os.Stat(b.dir); err == nil {
		return b, nil
	}
	old, err := filepath.Glob(filepath.Join(cache, "guest-*"))
	if err != nil {
		return base{}, err
	}
	for _, o := range old { // of another recipe, or half made
		if err := os.RemoveAll(o); err != nil {
			return base{}, err
		}
	}
	tmp := b.dir + ".tmp"
	if err := build(ctx, tmp, list, mirror); err != nil {
		return base{}, errors.Join(err, os.RemoveAll(tmp))
	}
	return b, os.Rename(tmp, b.dir)
}

// packages lists what a guest has.
func packages() ([]string, error) {
	out, err := exec.Command(filepath.Join(rig.Root(), "deploy", "packages.sh"), "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("deploy/packages.sh --list: %w", err)
	}
	list := append(strings.Fields(string(out)), extra...)
	slices.Sort(list)
	return slices.Compact(list), nil
}

// build makes the base in a new folder.
func build(ctx context.Context, dir string, list []string, mirror string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	args := []string{"--mode=root", "--variant=minbase", "--quiet", "--include=" + strings.Join(list, ","), "--customize-hook=" + finish}
	opts, err := aptOptions(ctx)
	if err != nil {
		return err
	}
	args = append(append(args, opts...), suite, root)
	if mirror != "" {
		args = append(args, mirror)
	}
	if err := run(ctx, []string{"OUT=" + dir}, "mmdebstrap", args...); err != nil {
		return err
	}
	if err := writeInitrd(filepath.Join(dir, "initrd"), root); err != nil {
		return err
	}
	disk := filepath.Join(dir, "root.ext4")
	if err := run(ctx, nil, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", root, disk, "1536M"); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// aptOption is what a guest's packages are fetched with as the host's own are: proxies, certificates, dates.
var aptOption = regexp.MustCompile(`^Acquire::((http|https)(::[A-Za-z0-9_.:-]+)?|Check-Valid-Until|Check-Date|Retries|ForceIPv4) "[^"]+";$`)

func aptOptions(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil, fmt.Errorf("apt-config dump: %w", err)
	}
	var opts []string
	for l := range strings.Lines(string(out)) {
		if l = strings.TrimSpace(l); aptOption.MatchString(l) {
			opts = append(opts, "--aptopt="+l)
		}
	}
	return opts, nil
}

func run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	// What it mounts in the guests' root is never in the host's own table: however it ends, that folder
	// can be removed without reaching through it into the host's devices.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out[max(0, len(out)-3000):])
	}
	return nil
}

// writeInitrd makes the first root: busybox, the drivers of the disks, and init.sh.
func writeInitrd(to, root string) error {
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*/modules.dep"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("%d kernels in the guests' root, want one (%w)", len(found), err)
	}
	modules, err := loadOrder(found[0], drivers)
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile(filepath.Join(root, "bin/busybox"))
	if err != nil {
		return err
	}
	var c cpio
	for _, d := range []string{"bin", "modules"} {
		c.add(d, 0o040755, nil)
	}
	c.add("init", 0o100755, initScript)
	c.add("bin/busybox", 0o100755, busybox)
	var order strings.Builder
	for _, m := range modules {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(found[0]), m))
		if err != nil {
			return err
		}
		c.add("modules/"+path.Base(m), 0o100644, b)
		order.WriteString(path.Base(m) + "\n")
	}
	c.add("modules/order", 0o100644, []byte(order.String()))
	c.add("TRAILER!!!", 0, nil)
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := z.Write(c.Bytes()); err != nil {
		return err
	}
	return errors.Join(z.Close(), os.WriteFile(to, packed.Bytes(), 0o644))
}

// loadOrder lists modules and what they need, needed ones first, as depmod wrote it down. What is built
// into the kernel is not in the list.
func loadOrder(dep string, names []string) ([]string, error) {
	f, err := os.Open(dep)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		file, needs, _ := strings.Cut(sc.Text(), ":")
		name, _, _ := strings.Cut(path.Base(file), ".ko")
		if !slices.Contains(names, name) {
			continue
		}
		chain := append([]string{file}, strings.Fields(needs)...)
		slices.Reverse(chain)
		for _, m := range chain {
			if !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
	}
	return out, nil
}

// cpio is an archive of the kind that the kernel unpacks (newc).
type cpio struct {
	bytes.Buffer
	inode int
}

func (c *cpio) add(name string, mode int, data []byte) {
	c.inode++
	fmt.Fprintf(c, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.WriteString(name + "\x00")
	c.pad()
	c.Write(data)
	c.pad()
}

func (c *cpio) pad() { c.Write(make([]byte, -c.Len()&3)) }
