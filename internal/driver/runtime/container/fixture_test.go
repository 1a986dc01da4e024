package container

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/sys/cgroup"
)

// fixture is a driver of its own with a busybox image, in directories and cgroups of its own.
type fixture struct {
	t      testing.TB
	deps   driver.Deps
	layer  string
	group  string
	groups *cgroup.Host
	*Runtime
}

func open(t testing.TB) *fixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs /bin/busybox (package busybox-static)")
	}
	dir, err := os.MkdirTemp("/var/tmp", "atoll-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("/dev/shm", "atoll-test-") // in memory, as /run is
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(run, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(run); err != nil {
			t.Errorf("files: %v", err)
		}
	})
	f := &fixture{t: t, group: "atolltest-" + filepath.Base(dir)[11:], layer: filepath.Join(dir, "layer"),
		deps: driver.Deps{Node: "test", State: filepath.Join(dir, "state"), Run: run, Clock: clock.Real{}, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}}
	makeLayer(t, f.layer)
	f.Runtime = f.reopen()
	e, err := f.setup()
	if err != nil {
		t.Skipf("this host cannot run containers: %v", err)
	}
	f.groups = e.groups
	if err := f.groups.Create(f.group); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ids, _ := f.ids()
		for _, id := range ids {
			if err := f.Runtime.Remove(t.Context(), id); err != nil {
				_ = f.reopen().Remove(contextForCleanup(), id)
			}
		}
		if err := f.groups.Remove(contextForCleanup(), f.group); err != nil {
			t.Errorf("cgroup: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("files: %v", err)
		}
	})
	return f
}

// runtimeVar names another OCI runtime than the one that is chosen where both are: runc.
const runtimeVar = "ATOLL_TEST_RUNTIME"

// reopen is a new life of the daemon.
func (f *fixture) reopen() *Runtime {
	r, err := New(f.deps, Config{Runtime: os.Getenv(runtimeVar)})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Helper()
	l.t.Logf("log: %s", strings.TrimSpace(string(b)))
	return len(b), nil
}

func makeLayer(t testing.TB, dir string) {
	t.Helper()
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "var"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in, err := os.Open("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, "bin/busybox"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	for _, a := range strings.Fields("sh sleep echo cat true false id ls mount ip grep ps wc head dd stat touch mkdir rm kill seq yes tail env hostname mknod ping nc stty chmod df unshare") {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n", "group": "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n"} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (f *fixture) spec(id string, command ...string) driver.Spec {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: id, Tenant: "t", UID: fmt.Sprintf("%032x", len(id))}}}
	in.Spec.Command = command
	return driver.Spec{ID: id, Instance: in, Generation: 1, Cgroup: driver.Cgroup{Path: f.group + "/" + id}, IDs: driver.IDRange{Base: 1 << 20, Count: 65536},
		Image: driver.Image{Digest: "sha256:busybox", Layers: []string{f.layer}}, Network: driver.NetworkSpec{Mode: "none"}}
}
