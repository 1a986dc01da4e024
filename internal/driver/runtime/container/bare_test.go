package container

import (
	"os"

	"atoll/internal/sys/mount"
)

// mountBare mounts the same kind of root as ours for bare crun.
func mountBare(x *bare) error {
	ns, err := x.f.env.userNS(x.f.spec("x", "true").IDs)
	if err != nil {
		return err
	}
	c, err := mount.Clone(x.f.layer, ns)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := mount.Attach(c, x.f.run("l", "0")); err != nil {
		return err
	}
	if err := os.RemoveAll(x.bundle + "/work"); err != nil {
		return err
	}
	if err := os.Mkdir(x.bundle+"/work", 0o700); err != nil {
		return err
	}
	if err := os.Chown(x.bundle+"/upper", 1<<20, 1<<20); err != nil {
		return err
	}
	return mount.OverlayIn(x.f.run("l"), x.bundle+"/rootfs", mount.Layers{Lower: []string{x.f.run("l", "0")}, Upper: x.bundle + "/upper", Work: x.bundle + "/work"})
}
