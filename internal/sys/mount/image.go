package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// minImage is the smallest ext4 file system worth making.
const minImage = 4 << 20

// Image mounts the ext4 file system in a sparse file at a directory, and makes it with that
// size when there is none. The loop device goes away with the mount.
// errors.ErrUnsupported: this host cannot.
func Image(path string, size int64, at string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := makeImage(path, max(size, minImage)); err != nil {
			return err
		}
	}
	dev, err := attachLoop(path)
	if err != nil {
		return err
	}
	defer dev.Close() // with autoclear the mount is what keeps the device
	if err := unix.Mount(dev.Name(), at, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_RELATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

func makeImage(path string, size int64) error {
	prog, err := exec.LookPath("mke2fs")
	if err != nil {
		return fmt.Errorf("mke2fs is not installed (package e2fsprogs): %w", errors.ErrUnsupported)
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(size), f.Close())
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		// No journal: the layer is as durable as the instance. No reserved blocks; tables are filled when used.
		cmd := exec.CommandContext(ctx, prog, "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", "-I", "256", tmp)
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("mke2fs of %s: %w: %.200s", strconv.FormatInt(size, 10), err, out)
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

// attachLoop ties a file to a free loop device.
func attachLoop(path string) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("no loop devices (%w): %w", err, errors.ErrUnsupported)
	}
	defer ctl.Close()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for range 64 { // somebody else may take the free one before us
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device (%w): %w", err, errors.ErrUnsupported)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("loop device %d (%w): %w", n, err, errors.ErrUnsupported)
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
