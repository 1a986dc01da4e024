package container

import (
	"path/filepath"
	"strings"
	"testing"

	"atoll/internal/driver"
	"atoll/internal/sys/mount"
)

// Two instances with one file system in a file must see each other's writes: two loop devices
// on it would each have a cache of their own and destroy it.
func TestTwoInstancesShareASizedVolume(t *testing.T) {
	f := open(t)
	if !mount.CanLoop() {
		t.Skip("no loop devices")
	}
	image := filepath.Join(filepath.Dir(f.layer), "disk.img")
	if err := mount.MakeImage(image, 8<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"one", "two"} {
		s := f.spec(id, "sleep", "1000")
		s.Mounts = []driver.Mount{{Source: image, FSType: "ext4", Target: "/v"}}
		f.begin(s)
	}
	f.mustExec("one", "sh", "-c", "echo from one >/v/f")
	if got := f.mustExec("two", "cat", "/v/f"); got != "from one\n" {
		t.Fatalf("%q", got)
	}
	if got := f.mustExec("two", "sh", "-c", "dd if=/dev/zero of=/v/big bs=1M count=16 2>/dev/null || echo full"); !strings.Contains(got, "full") {
		t.Fatalf("no limit: %q", got)
	}
}
