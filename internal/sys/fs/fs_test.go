//go:build linux

package fs

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestInNeverLeaves(t *testing.T) {
	base := t.TempDir()
	root := filepath.Join(base, "root")
	for _, p := range []string{"root/a/b", "outside", "root/outside"} {
		if err := os.MkdirAll(filepath.Join(base, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"abs": "/outside", "up": "../../outside", "far": "a/../../../../outside"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, root)
	for _, p := range []string{"abs", "up", "far", "../outside", "/outside", "a/b/../../../../outside"} {
		in, err := d.In(p)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		f, err := in.Create("x", 0o600)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		f.Close()
		in.Close()
		if _, err := os.Lstat(filepath.Join(base, "outside", "x")); err == nil {
			t.Fatalf("%s: left the root", p)
		}
		if err := os.Remove(filepath.Join(root, "outside", "x")); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
	}
}

func TestNamesAreSingle(t *testing.T) {
	d := open(t, t.TempDir())
	for _, n := range []string{"", "..", "a/b", "/x", "a\x00b"} {
		if err := d.Mkdir(n, 0o755); err == nil {
			t.Errorf("%q accepted", n)
		}
		if err := d.RemoveAll(n); err == nil {
			t.Errorf("%q removed", n)
		}
	}
	if d.RemoveAll(".") == nil {
		t.Error("the directory itself removed")
	}
}

func TestEntries(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes device nodes and foreign owners")
	}
	d := open(t, t.TempDir())
	f, err := d.Create("f", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	at := time.Unix(1_000_000, 5)
	for step, err := range map[string]error{
		"chown": d.Chown("f", 7, 8), "chmod": d.Chmod("f", 0o4755), "times": d.Chtimes("f", at), "whiteout": d.Whiteout("w"),
		"link": d.Link(d, "f", "g"), "symlink": d.Symlink("/nowhere", "s"), "fifo": d.Mkfifo("p", 0o600), "chown link": d.Chown("s", 1, 1),
	} {
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	if _, err := d.Create("f", 0o600); err == nil {
		t.Error("an existing file was opened for writing")
	}
	st, err := d.Lstat("w")
	if err != nil || !st.IsWhiteout() {
		t.Errorf("whiteout: %+v %v", st, err)
	}
	st, err = d.Lstat("g")
	if err != nil || st.Nlink != 2 || !st.IsRegular() {
		t.Errorf("link: %+v %v", st, err)
	}
	if err := d.SetXattr(".", "trusted.overlay.opaque", []byte("y")); err != nil {
		t.Fatal(err)
	}
	v, err := d.Xattr(".", "trusted.overlay.opaque")
	if err != nil || string(v) != "y" {
		t.Errorf("xattr %q %v", v, err)
	}
	if v, err := d.Xattr(".", "trusted.none"); v != nil || err != nil {
		t.Errorf("absent xattr %q %v", v, err)
	}
	if s, err := d.Readlink("s"); s != "/nowhere" || err != nil {
		t.Errorf("readlink %q %v", s, err)
	}
}

func TestLockGoesWithTheFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "lock")
	a, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if ok, err := TryLock(a); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := TryLock(b); ok || err != nil {
		t.Fatal("locked twice", err)
	}
	a.Close()
	if ok, err := TryLock(b); !ok || err != nil {
		t.Fatal(ok, err)
	}
}

func TestFree(t *testing.T) {
	if n, err := Free(t.TempDir()); err != nil || n <= 0 {
		t.Fatal(n, err)
	}
}
