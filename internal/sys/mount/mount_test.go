package mount

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNothingLeadsOutOfARoot(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := errors.Join(os.MkdirAll(root+"/etc", 0o755), os.WriteFile(dir+"/secret", []byte("s"), 0o600), os.WriteFile(root+"/etc/f", []byte("in"), 0o600),
		os.Symlink("../../secret", root+"/up"), os.Symlink(dir+"/secret", root+"/abs"), os.Symlink("/etc/f", root+"/ok"), os.Symlink("/", root+"/top"), unix.Mkfifo(root+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	r, err := OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, p := range []string{"up", "abs", "../secret", "/../secret", "top/../../secret", "etc/../../secret"} {
		if f, err := OpenIn(r, p, os.O_RDONLY, 0); err == nil {
			t.Errorf("%s was opened: %s", p, f.Name())
		}
	}
	for _, p := range []string{"ok", "/ok", "top/etc/f", "../../etc/f"} {
		f, err := OpenIn(r, p, os.O_RDONLY, 0)
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		b := make([]byte, 2)
		if _, err := f.Read(b); err != nil || string(b) != "in" {
			t.Errorf("%s: %q %v", p, b, err)
		}
		_ = f.Close()
	}
	f, err := OpenIn(r, "fifo", os.O_RDONLY, 0) // must not block
	if err != nil {
		t.Error(err)
	} else {
		_ = f.Close()
	}
}

func TestFilesAreMadeInside(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Symlink("../..", root+"/out"), os.WriteFile(dir+"/victim", []byte("v"), 0o600), os.Symlink("../victim", root+"/v")); err != nil {
		t.Fatal(err)
	}
	r, err := OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d, err := MkdirAllIn(r, "out/a/b", os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	_ = d.Close()
	if _, err := os.Stat(root + "/a/b"); err != nil {
		t.Error("a link to above the root does not end at the root")
	}
	f, err := CreateIn(r, "v", 0o600, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString("new")
	_ = f.Close()
	if b, _ := os.ReadFile(dir + "/victim"); string(b) != "v" {
		t.Errorf("a link was followed: %q", b)
	}
}

func TestCopyShifted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "to")
	if err := errors.Join(os.WriteFile(from+"/f", []byte("x"), 0o600), os.Chown(from+"/f", 5, 6), os.Chmod(from+"/f", 0o755|fs.ModeSetuid), os.Link(from+"/f", from+"/g"),
		os.Symlink("f", from+"/l"), os.Mkdir(from+"/d", 0o700), os.Chown(from+"/d", 70000, 0), os.Mkdir(to, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Mknod(from+"/whiteout", unix.S_IFCHR, 0), unix.Setxattr(from+"/f", "trusted.overlay.opaque", []byte("y"), 0)); err != nil {
		t.Skip(err)
	}
	if err := CopyShifted(context.Background(), from, to, 1000000, 65536); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]uint32{"": {1000000, 1000000}, "f": {1000005, 1000006}, "g": {1000005, 1000006}, "l": {1000000, 1000000}, "d": {1065534, 1000000}, "whiteout": {1000000, 1000000}} {
		st, err := os.Lstat(filepath.Join(to, name))
		if err != nil {
			t.Error(err)
			continue
		}
		s := st.Sys().(*syscall.Stat_t)
		if s.Uid != want[0] || s.Gid != want[1] {
			t.Errorf("%s: %d:%d", name, s.Uid, s.Gid)
		}
		if name == "f" && (st.Mode() != 0o755|fs.ModeSetuid || s.Nlink != 2) {
			t.Errorf("f: %v, %d links", st.Mode(), s.Nlink)
		}
	}
	b := make([]byte, 8)
	if n, err := unix.Getxattr(to+"/f", "trusted.overlay.opaque", b); err != nil || string(b[:n]) != "y" {
		t.Errorf("attribute: %v", err)
	}
}

func TestOverlayRefusesWhatItCannotName(t *testing.T) {
	wd, _ := os.Getwd()
	defer func() { _ = os.Chdir(wd) }()
	dir := t.TempDir()
	if err := OverlayIn(dir, dir, Layers{Lower: []string{"/a:b"}}); err == nil {
		t.Error("accepted")
	}
}
