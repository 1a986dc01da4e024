package cli

import (
	"archive/tar"
	"bytes"
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

// TestUnpackStaysInside: a hostile tar writes nothing outside of its destination.
func TestUnpackStaysInside(t *testing.T) {
	outside := t.TempDir()
	for name, entries := range map[string][]tar.Header{
		"dotdot":          {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/../../evil", Typeflag: tar.TypeReg}},
		"absolute":        {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "/evil", Typeflag: tar.TypeReg}},
		"sibling":         {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d2/evil", Typeflag: tar.TypeReg}},
		"through a link":  {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "d/l/evil", Typeflag: tar.TypeReg}},
		"hard link out":   {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/h", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}},
		"over a link":     {{Name: "d", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "d/evil", Typeflag: tar.TypeReg}},
		"hard then write": {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: outside + "/evil"}, {Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/l/x"}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := unpack(tar.NewReader(&b), root, "to"); err == nil {
			t.Errorf("%s: was taken", name)
		}
		root.Close()
		if left, _ := filepath.Glob(outside + "/*"); len(left) > 0 {
			t.Fatalf("%s: wrote %v", name, left)
		}
	}
}

// FuzzUnpack: no tar makes anything outside.
func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Name: "d/a", Typeflag: tar.TypeSymlink, Linkname: "../../out"})
	_ = w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		parent := t.TempDir()
		if err := os.Mkdir(parent+"/in", 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(parent + "/in")
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = unpack(tar.NewReader(bytes.NewReader(data)), root, "to") // refused or not: nothing may be outside
		if names, _ := filepath.Glob(parent + "/*"); len(names) != 1 {
			t.Fatalf("outside: %v", names)
		}
	})
}
