package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"atoll/internal/errs"
	"atoll/internal/sys/fs"
)

// sandbox is a directory to unpack into, beside files that must stay as they are.
type sandbox struct {
	base, root string
	before     []string
}

func newSandbox(t testing.TB) *sandbox {
	t.Helper()
	needRoot(t)
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
	for _, l := range tree(t, sb.base) {
		if !strings.HasPrefix(l, "layer/fs") {
			out = append(out, l)
		}
	}
	return out
}

func (sb *sandbox) apply(t testing.TB, raw []byte, lower ...string) (*applier, error) {
	t.Helper()
	root, err := fs.OpenDir(sb.root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	a := &applier{ctx: ctx, root: root, lim: Limits{Unpacked: 1 << 20, Entries: 1000}}
	for _, l := range lower {
		d, err := fs.OpenDir(l)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		a.lower = append(a.lower, d)
	}
	err = a.apply(bytes.NewReader(raw))
	after := sb.outside(t)
	if strings.Join(after, "\n") != strings.Join(sb.before, "\n") {
		t.Fatalf("something outside of the layer changed:\n%s\n%s", strings.Join(sb.before, "\n"), strings.Join(after, "\n"))
	}
	return a, err
}

func node(name string, typ byte, major, minor int64) entry {
	return entry{tar.Header{Typeflag: typ, Name: name, Mode: 0o666, Devmajor: major, Devminor: minor}, ""}
}

func TestHostileTarsStayInside(t *testing.T) {
	long := strings.Repeat("d/", 300) + "f"
	owner := file("f", "x")
	owner.h.Uid = 70000
	for what, c := range map[string]struct {
		entries []entry
		kind    errs.Kind // "": taken, harmlessly
		absent  string    // must not be in the layer
	}{
		"dot dot":                       {[]entry{file("../victim", "bad")}, errs.Invalid, ""},
		"dot dot in the middle":         {[]entry{file("a/../../victim", "bad")}, errs.Invalid, ""},
		"absolute path":                 {[]entry{file("/victim", "bad")}, "", ""},
		"link out, write through":       {[]entry{symlink("l", "../.."), file("l/victim", "bad")}, "", ""},
		"absolute link, write through":  {[]entry{dir("etc/"), symlink("l", "/etc"), file("l/passwd", "bad")}, "", ""},
		"host path link, write through": {[]entry{symlink("l", "/proc/self/cwd"), file("l/victim", "bad")}, errs.Invalid, ""},
		"link swapped for a directory":  {[]entry{dir("d/"), symlink("d", "../.."), file("d/victim", "bad")}, "", ""},
		"file through a link by name":   {[]entry{symlink("victim", "../../victim"), file("victim", "bad")}, "", ""},
		"directory over a link out":     {[]entry{symlink("d", "../.."), dir("d/"), file("d/victim", "bad")}, "", ""},
		"hard link out":                 {[]entry{hardlink("h", "../../victim")}, errs.Invalid, "h"},
		"hard link by absolute path":    {[]entry{hardlink("h", "/etc/passwd")}, errs.Invalid, "h"},
		"hard link through a link":      {[]entry{symlink("l", "../.."), hardlink("h", "l/victim")}, errs.Invalid, "h"},
		"hard link to a link, written":  {[]entry{symlink("l", "../../victim"), hardlink("h", "l"), file("h", "bad")}, "", ""},
		"hard link to a directory":      {[]entry{dir("d/"), hardlink("h", "d")}, errs.Invalid, "h"},
		"hard link to a whiteout":       {[]entry{file(".wh.a", ""), hardlink("h", "a")}, errs.Invalid, "h"},
		"hard link to the root":         {[]entry{hardlink("h", ".")}, errs.Invalid, "h"},
		"disk device":                   {[]entry{node("sda", tar.TypeBlock, 8, 0)}, "", "sda"},
		"memory device":                 {[]entry{node("mem", tar.TypeChar, 1, 1)}, "", "mem"},
		"whiteout made by hand":         {[]entry{node("w", tar.TypeChar, 0, 0)}, "", "w"},
		"whiteout of nothing":           {[]entry{file(".wh.", "")}, errs.Invalid, ""},
		"whiteout of dot":               {[]entry{file("a/.wh..", "")}, errs.Invalid, ""},
		"whiteout of dot dot":           {[]entry{file("a/.wh...", "")}, errs.Invalid, ""},
		"path through a whiteout":       {[]entry{file(".wh.a/b", "")}, errs.Invalid, ""},
		"aufs marks":                    {[]entry{file(".wh..wh.plnk", ""), dir(".wh..wh.aufs/")}, "", ".wh..wh.plnk"},
		"too deep":                      {[]entry{file(long, "")}, errs.Invalid, ""},
		"long name":                     {[]entry{file(strings.Repeat("n", 256), "")}, errs.Invalid, ""},
		"owner out of range":            {[]entry{owner}, errs.Unsupported, ""},
		"root is a file":                {[]entry{file(".", "")}, errs.Invalid, ""},
		"dangling link as a directory":  {[]entry{symlink("l", "nowhere"), file("l/x", "")}, errs.Invalid, ""},
		"link to itself":                {[]entry{symlink("l", "l"), file("l/x", "")}, errs.Invalid, ""},
		"empty link":                    {[]entry{symlink("l", "")}, errs.Invalid, "l"},
		"unknown type":                  {[]entry{{tar.Header{Typeflag: 'Z', Name: "z"}, ""}}, errs.Invalid, "z"},
		"too many bytes":                {[]entry{file("a", noise(1, 700<<10)), file("b", noise(1, 700<<10))}, errs.Invalid, ""},
	} {
		t.Run(what, func(t *testing.T) {
			sb := newSandbox(t)
			_, err := sb.apply(t, makeTar(t, c.entries...))
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
	var many []entry
	for i := range 1001 {
		many = append(many, file(fmt.Sprint(i), ""))
	}
	if _, err := newSandbox(t).apply(t, makeTar(t, many...)); !errors.Is(err, errs.Invalid) {
		t.Error("too many entries:", err)
	}
	// Directories that are only implied count too.
	many = nil
	for i := range 10 {
		many = append(many, file(fmt.Sprintf("%d/%sf", i, strings.Repeat("x/", 200)), ""))
	}
	if _, err := newSandbox(t).apply(t, makeTar(t, many...)); !errors.Is(err, errs.Invalid) {
		t.Error("too many implied directories:", err)
	}
}

func TestBombsAreBounded(t *testing.T) {
	zeros := makeTar(t, file("zero", string(make([]byte, 4<<20))))
	var z bytes.Buffer
	zw, _ := zstd.NewWriter(&z)
	zw.Write(zeros)
	zw.Close()
	tail := append(makeTar(t, file("f", "x")), make([]byte, 80<<20)...) // padding without end
	for what, packed := range map[string][]byte{"gzip": gz(t, zeros), "zstd": z.Bytes(), "padding": gz(t, tail)} {
		s := newStore(t, Options{Limits: Limits{Unpacked: 1 << 20}})
		_, err := s.Import(ctx, "", "bomb", bytes.NewReader(packed), ImportOptions{})
		if !errors.Is(err, errs.Invalid) || len(s.List("")) != 0 {
			t.Errorf("%s: %v", what, err)
		}
	}
	s := newStore(t, Options{Limits: Limits{Image: 1 << 10}})
	if _, err := s.Import(ctx, "", "big", strings.NewReader(noise(1, 10<<10)), ImportOptions{Format: FormatRootfs}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

func TestWhiteouts(t *testing.T) {
	sb := newSandbox(t)
	a, err := sb.apply(t, makeTar(t,
		file(".wh.removed", ""),
		file("kept", "new"), file(".wh.kept", ""), // own files are not meant
		dir("own/"), file("own/f", "x"), file(".wh.own", ""), // the lower directory of that name is
		file(".wh.again", ""), dir("again/"), file("again/f", "x"), // gone and made anew
		file(".wh.implied", ""), file("implied/f", "x"),
		dir("opaque/"), file("opaque/.wh..wh..opq", ""), file("opaque/f", "x"),
		file(".wh.file", ""), file("file", "y"),
	))
	if err != nil || a.opaque {
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
	if a, err := newSandbox(t).apply(t, makeTar(t, file("./.wh..wh..opq", ""))); err != nil || !a.opaque {
		t.Error("opaque root", err)
	}
}

func TestOpaqueRootHidesLowerLayers(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	ref := g.push(t, "a:1", makeImage(t, gzLayer(t, file("old", "x")), gzLayer(t, file(".wh..wh..opq", ""), file("new", "y")), gzLayer(t, file("top", "z"))))
	info := pull(t, s, "", ref)
	root, err := s.Unpack(ctx, info.Digest)
	if err != nil || len(root.Layers) != 2 {
		t.Fatal(root.Layers, err)
	}
	if _, err := os.Stat(root.Layers[0] + "/new"); err != nil {
		t.Error(err)
	}
}

func TestMetadataIsKept(t *testing.T) {
	sb := newSandbox(t)
	at := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	su := file("su", "#!")
	su.h.Mode, su.h.Uid, su.h.Gid, su.h.ModTime = 0o4755, 12, 65535, at
	su.h.PAXRecords = map[string]string{paxXattr + "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		paxXattr + "user.mine": "1", paxXattr + "trusted.overlay.opaque": "y", paxXattr + "user.overlay.redirect": "/etc", paxXattr + "security.selinux": "x"}
	d := dir("d/")
	d.h.Mode, d.h.ModTime, d.h.Gid = 0o2751, at, 5
	d.h.PAXRecords = map[string]string{paxXattr + "trusted.overlay.redirect": "/etc"}
	l := symlink("l", "/nowhere")
	l.h.Uid, l.h.ModTime = 9, at
	sparse := file("sparse", string(make([]byte, 256<<10))+"end")
	if _, err := sb.apply(t, makeTar(t, dir("./"), d, su, file("d/later", "x"), l, hardlink("su2", "su"), sparse,
		node("fifo", tar.TypeFifo, 0, 0), node("null", tar.TypeChar, 1, 3), file("twice", "old"), file("twice", "new"))); err != nil {
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
	d := dir("srv/")
	d.h.Mode, d.h.Uid = 0o1770, 33
	if _, err := low.apply(t, makeTar(t, d)); err != nil {
		t.Fatal(err)
	}
	up := newSandbox(t)
	if _, err := up.apply(t, makeTar(t, file("srv/new/f", "x")), low.root); err != nil {
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
		var entries []entry
		for ; len(raw) >= 3 && len(entries) < 40; raw = raw[3:] {
			h := tar.Header{Typeflag: types[int(raw[0])%len(types)], Name: names[int(raw[1])%len(names)], Mode: int64(raw[2]) * 16}
			e := entry{h: h}
			if strings.HasSuffix(h.Name, "/") && h.Typeflag != tar.TypeDir {
				continue
			}
			switch h.Typeflag {
			case tar.TypeReg:
				e.data, e.h.Size = "bad", 3
			case tar.TypeSymlink, tar.TypeLink:
				e.h.Linkname = links[int(raw[2])%len(links)]
			case tar.TypeChar:
				e.h.Devmajor, e.h.Devminor = int64(raw[2]%2), int64(raw[2]%8)
			}
			entries = append(entries, e)
		}
		if _, err := newSandbox(t).apply(t, makeTar(t, entries...)); err != nil && errs.KindOf(err) == errs.Internal {
			t.Errorf("an error without a kind: %v", err)
		}
	})
}

func FuzzApply(f *testing.F) {
	f.Add(makeTar(f, dir("a/"), file("a/b", "x"), symlink("l", ".."), hardlink("h", "a/b"), file("l/x", "y"), file(".wh.z", ""), file("a/.wh..wh..opq", "")))
	f.Add(makeTar(f, symlink("l", "/"), file("l/victim", "y"), node("n", tar.TypeChar, 1, 3), dir("./")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := newSandbox(t).apply(t, raw)
		if err != nil && errs.KindOf(err) == errs.Internal && !errors.Is(err, os.ErrInvalid) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("an error without a kind: %v", err)
		}
	})
}
