// Package mount makes the mounts of an instance: layers with shifted IDs, the
// overlay, binds, memory and loop file systems. Its callers run it on threads in
// mount namespaces of their own (package proc); it starts no goroutine and never
// mounts in the host's namespace by itself.
package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Clone is an open_tree copy of the mount that path is on, at path, not attached yet.
// With userNS, IDs are shifted: what is owned by 0..count-1 on disk is owned by that range of the host.
func Clone(path string, userNS *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone mount of %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if userNS == nil {
		return f, nil
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("shift IDs of %s: %w", path, err)
	}
	return f, nil
}

// Restrict sets attributes (unix.MOUNT_ATTR_*) on a clone.
func Restrict(f *os.File, attrs uint64) error {
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs}); err != nil {
		return fmt.Errorf("restrict mount of %s: %w", f.Name(), err)
	}
	return nil
}

// Attributes for Restrict.
const (
	ReadOnly = unix.MOUNT_ATTR_RDONLY
	NoSuid   = unix.MOUNT_ATTR_NOSUID
	NoDev    = unix.MOUNT_ATTR_NODEV
)

// Attach puts a clone at a directory (or a file at a file) in the calling thread's namespace.
func Attach(f *os.File, at string) error {
	if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s at %s: %w", f.Name(), at, err)
	}
	return nil
}

// Layers is what an overlay is made of.
type Layers struct {
	Lower       []string // lowest first
	Upper, Work string
	// Volatile leaves out all syncing; the upper layer may be damaged when the host loses power.
	Volatile bool
}

// OverlayIn mounts an overlay at a directory. Lower layers below base are named relative to
// it, because all options together must fit in a page; it changes the calling
// thread's working directory to base, so the thread must have one of its own.
func OverlayIn(base, at string, l Layers) error {
	if err := unix.Chdir(base); err != nil {
		return fmt.Errorf("enter %s: %w", base, err)
	}
	rev := make([]string, 0, len(l.Lower))
	for i := len(l.Lower) - 1; i >= 0; i-- {
		if strings.ContainsAny(l.Lower[i], ":,\\") {
			return fmt.Errorf("overlay layer %q: ':', ',' and '\\' are not possible in its path", l.Lower[i])
		}
		rev = append(rev, strings.TrimPrefix(l.Lower[i], base+"/"))
	}
	opts := "lowerdir=" + strings.Join(rev, ":") + ",upperdir=" + l.Upper + ",workdir=" + l.Work + ",index=off,metacopy=off"
	if l.Volatile {
		opts += ",volatile"
	}
	if len(opts) >= os.Getpagesize() {
		return fmt.Errorf("overlay of %d layers: options are longer than a page", len(l.Lower))
	}
	if err := unix.Mount("overlay", at, "overlay", unix.MS_NODEV|unix.MS_RELATIME, opts); err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(l.Lower), err)
	}
	return nil
}

// ReadOnlyOverlay is Overlay without a writable layer.
func ReadOnlyOverlay(at string, lower []string) error {
	rev := make([]string, 0, len(lower))
	for i := len(lower) - 1; i >= 0; i-- {
		rev = append(rev, lower[i])
	}
	if err := unix.Mount("overlay", at, "overlay", unix.MS_NODEV|unix.MS_RDONLY, "lowerdir="+strings.Join(rev, ":")); err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(lower), err)
	}
	return nil
}

// Tmpfs mounts memory at a directory.
func Tmpfs(at string, size int64, mode os.FileMode) error {
	opts := "mode=" + strconv.FormatUint(uint64(mode.Perm()), 8)
	if size > 0 {
		opts += ",size=" + strconv.FormatInt(size, 10)
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, opts); err != nil {
		return fmt.Errorf("mount memory at %s: %w", at, err)
	}
	return nil
}

// Detach unmounts, also when in use; nil when nothing is mounted there.
func Detach(at string) error {
	err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	return nil
}

// OpenIn opens path below root as if root were /: no symbolic link, "..", or magic
// link leads out of it. FIFOs and devices do not block.
func OpenIn(root *os.File, path string, flags int, perm uint32) (*os.File, error) {
	rel := strings.TrimLeft(path, "/")
	if rel == "" {
		rel = "."
	}
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if flags&unix.O_PATH != 0 {
		how.Flags = uint64(flags) | unix.O_CLOEXEC
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(perm)
	}
	for range 32 { // EAGAIN: something above was renamed meanwhile
		fd, err := unix.Openat2(int(root.Fd()), rel, how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: unix.EAGAIN}
}

// OpenDir opens a directory as a root for OpenIn.
func OpenDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Device is the block device a directory is on, as "major:minor"; of a partition, the whole disk's.
func Device(dir string) string {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || unix.Major(st.Dev) == 0 {
		return ""
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	if _, err := os.Stat("/sys/dev/block/" + dev + "/partition"); err == nil {
		if b, err := os.ReadFile("/sys/dev/block/" + dev + "/../dev"); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	return dev
}

// ReadOnlyFile shows a file, read-only, at another file of the calling thread's namespace.
func ReadOnlyFile(path, at string) error {
	f, err := Clone(path, nil)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := Restrict(f, ReadOnly|NoSuid|NoDev); err != nil {
		return err
	}
	return Attach(f, at)
}

// BPF mounts a file system for pinned eBPF objects at a directory, if it is none yet.
func BPF(at string) error {
	if ok, err := IsBPF(at); err != nil || ok {
		return err
	}
	if err := unix.Mount("bpf", at, "bpf", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount a BPF file system at %s: %w", at, err)
	}
	return nil
}

// IsBPF reports whether a path is in such a file system. False when there is no such path.
func IsBPF(path string) (bool, error) {
	var st unix.Statfs_t
	switch err := unix.Statfs(path, &st); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}
