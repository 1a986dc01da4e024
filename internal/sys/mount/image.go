package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// minImage is the smallest ext4 file system worth making.
const minImage = 4 << 20

// MakeImage makes an ext4 file system of that size in a sparse file, its root directory owned by
// owner, unless there is one. errors.ErrUnsupported: this host cannot.
func MakeImage(path string, size int64, owner uint32) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !CanLoop() {
		return fmt.Errorf("no loop devices, or mke2fs (package e2fsprogs) is not installed: %w", errors.ErrUnsupported)
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(max(size, minImage)), f.Close())
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		// No reserved blocks; tables are filled when they are used.
		cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-I", "256",
			"-E", fmt.Sprintf("lazy_itable_init=1,nodiscard,root_owner=%d:%d", owner, owner), tmp)
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("mke2fs of %d bytes: %w: %.200s", size, err, out)
		}
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// Image mounts the ext4 file system in a file at a directory. The loop device goes away with its last mount;
// an image that is mounted already, in whatever namespace, is mounted through the same
// device, because two devices would destroy its content.
func Image(path, at string) error {
	// Opened twice: the loop device keeps what it is given, and a lock on that with it.
	lock, err := os.Open(path)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // until closed: one at a time
		return fmt.Errorf("lock %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	dev, err := loopOf(file)
	if err != nil {
		return err
	}
	if dev == nil {
		if dev, err = attachLoop(file); err != nil {
			return err
		}
	}
	defer dev.Close() // with autoclear the mount is what keeps the device
	if err := unix.Mount(dev.Name(), at, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_RELATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

// loopOf finds the device a file is attached to; nil when there is none.
func loopOf(file *os.File) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, b := range backing {
		name := filepath.Base(filepath.Dir(filepath.Dir(b)))
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0) // an open device is not cleared
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino {
			return dev, nil
		}
		_ = dev.Close()
	}
	return nil, nil
}

// attachLoop ties a file to a free loop device.
func attachLoop(file *os.File) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("no loop devices: %w", err)
	}
	defer ctl.Close()
	for range 64 { // somebody else may take the free one before us
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		cfg := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
		if err == nil {
			return dev, nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("loop device %d: %w", n, err)
		}
	}
	return nil, errors.New("loop devices are taken faster than they are found")
}

// CanLoop reports whether small file systems in files can be made and mounted.
func CanLoop() bool {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		return false
	}
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CTL_GET_FREE)
	return err == nil
}
