package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/internal/errs"
	"atoll/internal/image/imagetest"
	"atoll/internal/image/oci"
	"atoll/internal/sys/fs"
)

// sandbox is a directory to unpack into, beside files that must stay as they are.
type sandbox struct {
	base, root string
	before     []string
}

func newSandbox(t testing.TB) *sandbox {
	t.Helper()
	imagetest.NeedRoot(t)
	sb := &sandbox{base: t.TempDir()}
	sb.root = filepath.Join(sb.base, "layer", "fs")
	for p, content := range map[string]string{"victim": "untouched", "etc/passwd": "root", "layer/meta.json": "{}"} {
		full := filepath.Join(sb.base, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sb.before = sb.outside(t)
	if err := os.Mkdir(sb.root, 0o755); err != nil {
		t.Fatal(err)
	}
	return sb
}

// outside lists everything but the layer.
func (sb *sandbox) outside(t testing.TB) []string {
	var out []string
	for _, l := range imagetest.Tree(t, sb.base) {
		if !strings.HasPrefix(l, "layer/fs") {
			out = append(out, l)
		}
	}
	return out
}

func (sb *sandbox) apply(t testing.TB, raw []byte, lower ...string) (*Applier, error) {
	t.Helper()
	root, err := fs.OpenDir(sb.root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	a := &Applier{Ctx: context.Background(), Root: root, Lim: oci.Limits{Unpacked: 1 << 20, Entries: 1000}}
	for _, l := range lower {
		d, err := fs.OpenDir(l)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		a.Lower = append(a.Lower, d)
	}
	err = a.Apply(bytes.NewReader(raw))
	after := sb.outside(t)
	if strings.Join(after, "\n") != strings.Join(sb.before, "\n") {
		t.Fatalf("something outside of the layer changed:\n%s\n%s", strings.Join(sb.before, "\n"), strings.Join(after, "\n"))
	}
	return a, err
}

func node(name string, typ byte, major, minor int64) imagetest.Entry {
	return imagetest.Entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o666, Devmajor: major, Devminor: minor}}
}

func TestHostileTarsStayInside(t *testing.T) {
	long := strings.Repeat("d/", 300) + "f"
	owner := imagetest.File("f", "x")
	owner.Header.Uid = 70000
	for what, c := range map[string]struct {
		entries []imagetest.Entry
		kind    errs.Kind // "": taken, harmlessly
		absent  string    // must not be in the layer
	}{
		"dot dot":                       {[]imagetest.Entry{imagetest.File("../victim", "bad")}, errs.Invalid, ""},
		"dot dot in the middle":         {[]imagetest.Entry{imagetest.File("a/../../victim", "bad")}, errs.Invalid, ""},
		"absolute path":                 {[]imagetest.Entry{imagetest.File("/victim", "bad")}, "", ""},
		"link out, write through":       {[]imagetest.Entry{imagetest.Symlink("l", "../.."), imagetest.File("l/victim", "bad")}, "", ""},
		"absolute link, write through":  {[]imagetest.Entry{imagetest.Dir("etc/"), imagetest.Symlink("l", "/etc"), imagetest.File("l/passwd", "bad")}, "", ""},
		"host path link, write through": {[]imagetest.Entry{imagetest.Symlink("l", "/proc/self/cwd"), imagetest.File("l/victim", "bad")}, errs.Invalid, ""},
		"link swapped for a directory":  {[]imagetest.Entry{imagetest.Dir("d/"), imagetest.Symlink("d", "../.."), imagetest.File("d/victim", "bad")}, "", ""},
		"file through a link by name":   {[]imagetest.Entry{imagetest.Symlink("victim", "../../victim"), imagetest.File("victim", "bad")}, "", ""},
		"directory over a link out":     {[]imagetest.Entry{imagetest.Symlink("d", "../.."), imagetest.Dir("d/"), imagetest.File("d/victim", "bad")}, "", ""},
		"hard link out":                 {[]imagetest.Entry{imagetest.Hardlink("h", "../../victim")}, errs.Invalid, "h"},
		"hard link by absolute path":    {[]imagetest.Entry{imagetest.Hardlink("h", "/etc/passwd")}, errs.Invalid, "h"},
		"hard link through a link":      {[]imagetest.Entry{imagetest.Symlink("l", "../.."), imagetest.Hardlink("h", "l/victim")}, errs.Invalid, "h"},
		"hard link to a link, written":  {[]imagetest.Entry{imagetest.Symlink("l", "../../victim"), imagetest.Hardlink("h", "l"), imagetest.File("h", "bad")}, "", ""},
		"hard link to a directory":      {[]imagetest.Entry{imagetest.Dir("d/"), imagetest.Hardlink("h", "d")}, errs.Invalid, "h"},
		"hard link to a whiteout":       {[]imagetest.Entry{imagetest.File(".wh.a", ""), imagetest.Hardlink("h", "a")}, errs.Invalid, "h"},
		"hard link to the root":         {[]imagetest.Entry{imagetest.Hardlink("h", ".")}, errs.Invalid, "h"},
		"disk device":                   {[]imagetest.Entry{node("sda", tar.TypeBlock, 8, 0)}, "", "sda"},
		"memory device":                 {[]imagetest.Entry{node("mem", tar.TypeChar, 1, 1)}, "", "mem"},
		"whiteout made by hand":         {[]imagetest.Entry{node("w", tar.TypeChar, 0, 0)}, "", "w"},
		"whiteout of nothing":           {[]imagetest.Entry{imagetest.File(".wh.", "")}, errs.Invalid, ""},
		"whiteout of dot":               {[]imagetest.Entry{imagetest.File("a/.wh..", "")}, errs.Invalid, ""},
		"whiteout of dot dot":           {[]imagetest.Entry{imagetest.File("a/.wh...", "")}, errs.Invalid, ""},
		"path through a whiteout":       {[]imagetest.Entry{imagetest.File(".wh.a/b", "")}, errs.Invalid, ""},
		"aufs marks":                    {[]imagetest.Entry{imagetest.File(".wh..wh.plnk", ""), imagetest.Dir(".wh..wh.aufs/")}, "", ".wh..wh.plnk"},
		"too deep":                      {[]imagetest.Entry{imagetest.File(long, "")}, errs.Invalid, ""},
		"long name":                     {[]imagetest.Entry{imagetest.File(strings.Repeat("n", 256), "")}, errs.Invalid, ""},
		"owner out of range":            {[]imagetest.Entry{owner}, errs.Unsupported, ""},
		"root is a file":                {[]imagetest.Entry{imagetest.File(".", "")}, errs.Invalid, ""},
		"dangling link as a directory":  {[]imagetest.Entry{imagetest.Symlink("l", "nowhere"), imagetest.File("l/x", "")}, errs.Invalid, ""},
		"link to itself":                {[]imagetest.Entry{imagetest.Symlink("l", "l"), imagetest.File("l/x", "")}, errs.Invalid, ""},
		"empty link":                    {[]imagetest.Entry{imagetest.Symlink("l", "")}, errs.Invalid, "l"},
		"unknown type":                  {[]imagetest.Entry{{Header: tar.Header{Typeflag: 'Z', Name: "z"}}}, errs.Invalid, "z"},
		"too many bytes":                {[]imagetest.Entry{imagetest.File("a", imagetest.Noise(1, 700<<10)), imagetest.File("b", imagetest.Noise(1, 700<<10))}, errs.Invalid, ""},
	} {
		t.Run(what, func(t *testing.T) {
			sb := newSandbox(t)
			_, err := sb.apply(t, imagetest.Tar(t, c.entries...))
			if c.kind == "" && err != nil || c.kind != "" && !errors.Is(err, c.kind) {
				t.Errorf("got %v, want %q", err, c.kind)
			}
			if c.absent != "" {
				if _, err := os.Lstat(filepath.Join(sb.root, c.absent)); err == nil {
					t.Errorf("%s was made", c.absent)
				}
			}
		})
	}
}

func TestHugeSizesAreRefused(t *testing.T) {
	// A sparse file of 1 TiB in a few hundred bytes of tar: the size is what counts.
	h := tar.Header{Typeflag: tar.TypeReg, Name: "huge", Mode: 0o644, Size: 1 << 40, Format: tar.FormatGNU}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := newSandbox(t).apply(t, b.Bytes()); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "limit") {
		t.Error(err)
	}
	var many []imagetest.Entry
	for i := range 1001 {
		many = append(many, imagetest.File(fmt.Sprint(i), ""))
	}
	if _, err := newSandbox(t).apply(t, imagetest.Tar(t, many...)); !errors.Is(err, errs.Invalid) {
		t.Error("too many entries:", err)
	}
	// Directories that are only implied count too.
	many = nil
	for i := range 10 {
		many = append(many, imagetest.File(fmt.Sprintf("%d/%sf", i, strings.Repeat("x/", 200)), ""))
	}
	if _, err := newSandbox(t).apply(t, imagetest.Tar(t, many...)); !errors.Is(err, errs.Invalid) {
		t.Error("too many implied directories:", err)
	}
}

func TestWhiteouts(t *testing.T) {
	sb := newSandbox(t)
	a, err := sb.apply(t, imagetest.Tar(t,
		imagetest.File(".wh.removed", ""),
		imagetest.File("kept", "new"), imagetest.File(".wh.kept", ""), // own files are not meant
		imagetest.Dir("own/"), imagetest.File("own/f", "x"), imagetest.File(".wh.own", ""), // the lower directory of that name is
		imagetest.File(".wh.again", ""), imagetest.Dir("again/"), imagetest.File("again/f", "x"), // gone and made anew
		imagetest.File(".wh.implied", ""), imagetest.File("implied/f", "x"),
		imagetest.Dir("opaque/"), imagetest.File("opaque/.wh..wh..opq", ""), imagetest.File("opaque/f", "x"),
		imagetest.File(".wh.file", ""), imagetest.File("file", "y"),
	))
	if err != nil || a.Opaque {
		t.Fatal(err)
	}
	d, err := fs.OpenDir(sb.root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, want := range map[string]string{"removed": "whiteout", "kept": "file", "own": "opaque", "again": "opaque", "implied": "opaque", "opaque": "opaque", "file": "file"} {
		st, err := d.Lstat(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		x, _ := d.Xattr(name, opaqueXattr)
		got := "directory"
		switch {
		case st.IsWhiteout():
			got = "whiteout"
		case st.IsRegular():
			got = "file"
		case string(x) == "y":
			got = "opaque"
		}
		if got != want {
			t.Errorf("%s is a %s, want %s", name, got, want)
		}
	}
	if a, err := newSandbox(t).apply(t, imagetest.Tar(t, imagetest.File("./.wh..wh..opq", ""))); err != nil || !a.Opaque {
		t.Error("opaque root", err)
	}
}

func TestMetadataIsKept(t *testing.T) {
	sb := newSandbox(t)
	at := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	su := imagetest.File("su", "#!")
	su.Header.Mode, su.Header.Uid, su.Header.Gid, su.Header.ModTime = 0o4755, 12, 65535, at
	su.Header.PAXRecords = map[string]string{paxXattr + "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		paxXattr + "user.mine": "1", paxXattr + "trusted.overlay.opaque": "y", paxXattr + "user.overlay.redirect": "/etc", paxXattr + "security.selinux": "x"}
	d := imagetest.Dir("d/")
	d.Header.Mode, d.Header.ModTime, d.Header.Gid = 0o2751, at, 5
	d.Header.PAXRecords = map[string]string{paxXattr + "trusted.overlay.redirect": "/etc"}
	l := imagetest.Symlink("l", "/nowhere")
	l.Header.Uid, l.Header.ModTime = 9, at
	sparse := imagetest.File("sparse", string(make([]byte, 256<<10))+"end")
	if _, err := sb.apply(t, imagetest.Tar(t, imagetest.Dir("./"), d, su, imagetest.File("d/later", "x"), l, imagetest.Hardlink("su2", "su"), sparse,
		node("fifo", tar.TypeFifo, 0, 0), node("null", tar.TypeChar, 1, 3), imagetest.File("twice", "old"), imagetest.File("twice", "new"))); err != nil {
		t.Fatal(err)
	}
	stat := func(name string) *syscall.Stat_t {
		fi, err := os.Lstat(filepath.Join(sb.root, name))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t)
	}
	if st := stat("su"); st.Mode != syscall.S_IFREG|0o4755 || st.Uid != 12 || st.Gid != 65535 || st.Mtim.Sec != at.Unix() || st.Nlink != 2 {
		t.Errorf("su: %+v", st)
	}
	if st := stat("d"); st.Mode != syscall.S_IFDIR|0o2751 || st.Gid != 5 || st.Mtim.Sec != at.Unix() {
		t.Errorf("d: %+v", st)
	}
	if st := stat("l"); st.Uid != 9 || st.Mtim.Sec != at.Unix() {
		t.Errorf("l: %+v", st)
	}
	if st := stat("sparse"); st.Size != 256<<10+3 || st.Blocks*512 > 64<<10 {
		t.Errorf("sparse: %d bytes in %d blocks", st.Size, st.Blocks)
	}
	if st := stat("null"); st.Mode != syscall.S_IFCHR|0o666 || st.Rdev != 1<<8|3 {
		t.Errorf("null: %+v", st)
	}
	if b, _ := os.ReadFile(sb.root + "/twice"); string(b) != "new" {
		t.Errorf("twice: %q", b)
	}
	root, err := fs.OpenDir(sb.root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"su", "d"} {
		attrs, err := root.Xattrs(name)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"su": "security.capability user.mine", "d": ""}[name]
		for _, w := range strings.Fields(want) {
			if !strings.Contains(strings.Join(attrs, " "), w) {
				t.Errorf("%s lacks %s: %v", name, w, attrs)
			}
		}
		for _, a := range attrs {
			if strings.HasPrefix(a, "trusted.") || strings.HasPrefix(a, "user.overlay.") {
				t.Errorf("%s has %s", name, a)
			}
		}
	}
}

func TestImpliedDirectoriesLookLikeBelow(t *testing.T) {
	low := newSandbox(t)
	d := imagetest.Dir("srv/")
	d.Header.Mode, d.Header.Uid = 0o1770, 33
	if _, err := low.apply(t, imagetest.Tar(t, d)); err != nil {
		t.Fatal(err)
	}
	up := newSandbox(t)
	if _, err := up.apply(t, imagetest.Tar(t, imagetest.File("srv/new/f", "x")), low.root); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(up.root + "/srv")
	if err != nil || fi.Mode() != os.ModeDir|os.ModeSticky|0o770 || fi.Sys().(*syscall.Stat_t).Uid != 33 {
		t.Error(fi.Mode(), err)
	}
	if fi, err := os.Stat(up.root + "/srv/new"); err != nil || fi.Mode() != os.ModeDir|0o755 {
		t.Error(fi.Mode(), err)
	}
}

// FuzzApplyEntries makes well-formed tars of nasty entries, three bytes each: random
// bytes rarely get past a tar's checksums.
func FuzzApplyEntries(f *testing.F) {
	names := []string{"a", "a/b", "a/b/c", "l", "l/x", "l/../x", "../victim", "/etc/passwd", "victim", ".wh.a", "a/.wh..wh..opq", "a/.wh.b", ".wh.l", "./", "l/a/l", "etc/passwd", ".wh..wh..opq", "l/l"}
	links := []string{"a", "..", "../..", "/", "/etc", "../../victim", "l", "a/b", "l/x", "/proc/self/root", ".", "b/../../../.."}
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo}
	f.Add([]byte{2, 3, 2, 0, 4, 0})
	f.Add([]byte{1, 0, 0, 2, 3, 4, 0, 4, 0, 3, 8, 5, 4, 0, 0, 0, 9, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var entries []imagetest.Entry
		for ; len(raw) >= 3 && len(entries) < 40; raw = raw[3:] {
			h := tar.Header{Typeflag: types[int(raw[0])%len(types)], Name: names[int(raw[1])%len(names)], Mode: int64(raw[2]) * 16}
			e := imagetest.Entry{Header: h}
			if strings.HasSuffix(h.Name, "/") && h.Typeflag != tar.TypeDir {
				continue
			}
			switch h.Typeflag {
			case tar.TypeReg:
				e.Data, e.Header.Size = "bad", 3
			case tar.TypeSymlink, tar.TypeLink:
				e.Header.Linkname = links[int(raw[2])%len(links)]
			case tar.TypeChar:
				e.Header.Devmajor, e.Header.Devminor = int64(raw[2]%2), int64(raw[2]%8)
			}
			entries = append(entries, e)
		}
		if _, err := newSandbox(t).apply(t, imagetest.Tar(t, entries...)); err != nil && errs.KindOf(err) == errs.Internal {
			t.Errorf("an error without a kind: %v", err)
		}
	})
}

func FuzzApply(f *testing.F) {
	f.Add(imagetest.Tar(f, imagetest.Dir("a/"), imagetest.File("a/b", "x"), imagetest.Symlink("l", ".."), imagetest.Hardlink("h", "a/b"), imagetest.File("l/x", "y"), imagetest.File(".wh.z", ""), imagetest.File("a/.wh..wh..opq", "")))
	f.Add(imagetest.Tar(f, imagetest.Symlink("l", "/"), imagetest.File("l/victim", "y"), node("n", tar.TypeChar, 1, 3), imagetest.Dir("./")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := newSandbox(t).apply(t, raw)
		if err != nil && errs.KindOf(err) == errs.Internal && !errors.Is(err, os.ErrInvalid) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("an error without a kind: %v", err)
		}
	})
}
