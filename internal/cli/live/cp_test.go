package live

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

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
