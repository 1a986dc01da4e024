package container

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"atoll/internal/sys/mount"
	"atoll/internal/sys/proc"
)

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func ownOOMScore() int {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

func deviceOf(dir string) string { return mount.Device(dir) }

func maxOpenFiles() uint64 { return proc.MaxOpenFiles() }

// tryIdmap shifts the IDs of a directory of ours on its file system, where layers are
// too; whether the overlay takes such layers is tried with the first instance.
func (r *Runtime) tryIdmap(e *environment) bool {
	ns, err := proc.UserNS(1<<20, 65536)
	if err != nil {
		return false
	}
	defer ns.Close()
	ok := false
	_ = e.base.InCopy(func() error {
		dir := r.state("probe")
		defer os.RemoveAll(dir)
		for _, d := range []string{"/l", "/u", "/w"} {
			if err := os.MkdirAll(dir+d, 0o755); err != nil {
				return err
			}
		}
		f, err := mount.Clone(dir+"/l", ns)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := mount.Attach(f, r.run("l", "0")); err != nil {
			return err
		}
		if err := mount.OverlayIn(r.run("l"), r.run("rootfs"), mount.Layers{Lower: []string{r.run("l", "0")}, Upper: dir + "/u", Work: dir + "/w"}); err != nil {
			return err
		}
		ok = true
		return nil
	})
	return ok
}
