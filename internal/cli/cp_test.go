package cli

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCopyRoundTrip(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	r.must(t, "run", "-d", "--name", "web", "busybox", "sleep")
	src, dst := t.TempDir(), t.TempDir()
	write := func(p, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write(src+"/conf/a.txt", "one")
	write(src+"/conf/deep/b.txt", strings.Repeat("x", 100_000))
	if err := os.Symlink("a.txt", src+"/conf/link"); err != nil {
		t.Fatal(err)
	}
	// The destination is not there, so it is the new name below /etc.
	r.must(t, "cp", src+"/conf", "web:/etc/app")
	if b := r.world.files["/etc"]; len(b) == 0 {
		t.Fatalf("nothing arrived in /etc: %v", r.world.files)
	}
	r.world.files["/etc/app"] = r.world.files["/etc"]
	r.must(t, "cp", "web:/etc/app", dst+"/new")
	if b, err := os.ReadFile(dst + "/new/deep/b.txt"); err != nil || len(b) != 100_000 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if l, err := os.Readlink(dst + "/new/link"); err != nil || l != "a.txt" {
		t.Errorf("link %q %v", l, err)
	}
	if st, err := os.Stat(dst + "/new/a.txt"); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v %v", st, err)
	}
	// The destination is a directory here: the source goes into it, under its own name.
	r.must(t, "cp", "web:/etc/app", dst)
	if _, err := os.Stat(dst + "/app/a.txt"); err != nil {
		t.Error(err)
	}
	r.must(t, "cp", "web:/etc/app", "-")
	if h, err := tar.NewReader(strings.NewReader(r.out.String())).Next(); err != nil || h.Name != "app/" {
		t.Errorf("%+v %v", h, err)
	}
	r.fails(t, 3, "is not there", "cp", "web:/nothing", dst)
	r.fails(t, 2, "one side must be", "cp", src, dst)
	r.fails(t, 2, "absolute path", "cp", src, "web:etc")
	r.fails(t, 3, "no such file", "cp", src+"/nothing", "web:/etc")
}
