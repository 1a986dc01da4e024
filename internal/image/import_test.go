package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"atoll/internal/errs"
	"atoll/internal/image/archive"
	"atoll/internal/image/busybox"
	"atoll/internal/image/imagetest"
	"atoll/internal/image/oci"
)

func zs(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImportRootfs(t *testing.T) {
	raw := imagetest.Tar(t, imagetest.Dir("./"), imagetest.Dir("./bin/"), imagetest.File("./bin/sh", imagetest.Noise(1, 100<<10)), imagetest.Symlink("./bin/ls", "sh"))
	cfg := oci.Config{Cmd: []string{"sh"}, Env: []string{"A=b"}, User: "1", Volumes: []string{"/v"}, StopSignal: "INT", Labels: map[string]string{"x": "y"}}
	var first []string
	for what, in := range map[string][]byte{"plain": raw, "gzip": imagetest.Gz(t, raw), "zstd": zs(t, raw)} {
		s := newStore(t, Options{})
		info, err := s.Import(ctx, "", "mine:1", bytes.NewReader(in), ImportOptions{Config: cfg})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		root, err := s.Unpack(ctx, info.Digest)
		if err != nil || len(root.Layers) != 1 || !reflect.DeepEqual(root.Config, cfg) {
			t.Fatalf("%s: %+v %v", what, root, err)
		}
		got := imagetest.Tree(t, root.Layers[0])
		if first == nil {
			first = got
		}
		if !reflect.DeepEqual(first, got) {
			t.Errorf("%s: %v", what, got)
		}
		again, err := newStore(t, Options{}).Import(ctx, "", "mine:1", bytes.NewReader(in), ImportOptions{Config: cfg})
		if err != nil || again.Digest != info.Digest {
			t.Errorf("%s: the same input gave another digest: %v", what, err)
		}
		if got, err := s.Resolve(ctx, "acme", "mine:1"); err != nil || got.Name() != "mine:1" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRoundTrips(t *testing.T) {
	g := newRegistry(t)
	img := makeImage(t, gzLayer(t, imagetest.Dir("a/"), imagetest.File("a/f", imagetest.Noise(2, 64<<10))), gzLayer(t, imagetest.File(".wh.a", ""), imagetest.File("b", "x")), gzLayer(t, imagetest.File("b", "y")))
	ref := g.push(t, "team/app:1", img)
	a := newStore(t, Options{})
	info := pull(t, a, "t", ref)
	for _, format := range []string{archive.OCI, archive.Docker} {
		var one, two bytes.Buffer
		if err := a.Export(ctx, "t", ref, format, &one); err != nil {
			t.Fatal(err)
		}
		b := newStore(t, Options{})
		got, err := b.Import(ctx, "u", "", bytes.NewReader(one.Bytes()), ImportOptions{}) // format and name from the archive
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		if got.Reference != info.Reference || got.Layers != 3 {
			t.Errorf("%s: %+v", format, got)
		}
		if format == archive.OCI && got.Digest != info.Digest {
			t.Errorf("the digest changed: %s", got.Digest)
		}
		ra, _ := a.Unpack(ctx, info.Digest)
		rb, err := b.Unpack(ctx, got.Digest)
		if err != nil || !reflect.DeepEqual(ra.Config, rb.Config) {
			t.Fatalf("%s: %+v %v", format, rb, err)
		}
		for i := range ra.Layers {
			if !reflect.DeepEqual(imagetest.Tree(t, ra.Layers[i]), imagetest.Tree(t, rb.Layers[i])) {
				t.Errorf("%s: layer %d differs", format, i)
			}
		}
		if err := b.Export(ctx, "u", ref, format, &two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Errorf("%s: exported again it differs: %v", format, err)
		}
	}
}

func TestImportOfOthersArchives(t *testing.T) {
	same := gzLayer(t, imagetest.File("f", imagetest.Noise(3, 10<<10)))
	img := makeImage(t, same, gzLayer(t, imagetest.File("g", "x")), same)
	tag, err := name.NewTag("team/app:2")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, img, &b); err != nil {
		t.Fatal(err)
	}
	for what, in := range map[string][]byte{"plain": b.Bytes(), "gzip": imagetest.Gz(t, b.Bytes())} {
		s := newStore(t, Options{})
		info, err := s.Import(ctx, "", "", bytes.NewReader(in), ImportOptions{})
		if err != nil || info.Name() != "team/app:2" || info.Layers != 3 {
			t.Errorf("%s: %+v %v", what, info, err)
		}
	}
	// docker save of old: layers are plain tars, and a repeated one is a link.
	l1, l2 := imagetest.Tar(t, imagetest.File("f", "1")), imagetest.Tar(t, imagetest.File("g", "2"))
	cfg, _ := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "config": map[string]any{"Cmd": []string{"x"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{oci.Digest(l1), oci.Digest(l2), oci.Digest(l1)}}})
	id := strings.TrimPrefix(oci.Digest(cfg), "sha256:")
	man, _ := json.Marshal([]archive.Saved{{Config: id + ".json", RepoTags: []string{"old:1"}, Layers: []string{"a/layer.tar", "b/layer.tar", "c/layer.tar"}}})
	old := imagetest.Tar(t, imagetest.Dir(strings.Repeat("a", 64)+"/"), imagetest.File("a/layer.tar", string(l1)), imagetest.File("b/layer.tar", string(l2)), imagetest.Symlink("c/layer.tar", "../a/layer.tar"),
		imagetest.File(id+".json", string(cfg)), imagetest.File("manifest.json", string(man)), imagetest.File("repositories", "{}"))
	s := newStore(t, Options{})
	info, err := s.Import(ctx, "t", "renamed:3", bytes.NewReader(old), ImportOptions{})
	if err != nil || info.Name() != "renamed:3" {
		t.Fatal(info, err)
	}
	root, err := s.Unpack(ctx, info.Digest)
	if err != nil || len(root.Layers) != 3 {
		t.Fatal(root, err)
	}
	if b, _ := os.ReadFile(root.Layers[2] + "/f"); string(b) != "1" {
		t.Errorf("%q", b)
	}
}

func TestImportRefuses(t *testing.T) {
	layer := imagetest.Tar(t, imagetest.File("f", "1"))
	blob := imagetest.Gz(t, layer)
	cfg := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + oci.Digest(layer) + `"]}}`)
	man := func(size int) []byte {
		m, _ := json.Marshal(map[string]any{"schemaVersion": 2, "config": map[string]any{"mediaType": types.OCIConfigJSON, "digest": oci.Digest(cfg), "size": len(cfg)},
			"layers": []any{map[string]any{"mediaType": types.OCILayer, "digest": oci.Digest(blob), "size": size}}})
		return m
	}
	layout := func(m []byte, blobs ...[]byte) []byte {
		ix, _ := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{"mediaType": types.OCIManifestSchema1, "digest": oci.Digest(m), "size": len(m)}}})
		e := []imagetest.Entry{imagetest.File("oci-layout", "{}"), imagetest.File("index.json", string(ix)), imagetest.File("blobs/sha256/"+oci.Digest(m)[7:], string(m)), imagetest.File("blobs/sha256/"+oci.Digest(cfg)[7:], string(cfg))}
		for _, b := range blobs {
			e = append(e, imagetest.File("blobs/sha256/"+oci.Digest(blob)[7:], string(b)))
		}
		return imagetest.Tar(t, e...)
	}
	good := layout(man(len(blob)), blob)
	bad := bytes.Clone(blob)
	bad[len(bad)-1] ^= 1
	docker := func(m string) []byte {
		return imagetest.Tar(t, imagetest.File("manifest.json", m), imagetest.File("c.json", string(cfg)))
	}
	for what, c := range map[string]struct {
		in   []byte
		name string
		opt  ImportOptions
		want string
	}{
		"forged blob":         {layout(man(len(blob)), bad), "x", ImportOptions{}, oci.Digest(blob)},
		"wrong size":          {layout(man(len(blob)+1), blob), "x", ImportOptions{}, oci.Digest(blob)},
		"lacking blob":        {layout(man(len(blob))), "x", ImportOptions{}, "lacks"},
		"no name":             {good, "", ImportOptions{}, "name"},
		"bad name":            {good, "Bad Name", ImportOptions{}, "reference"},
		"name with digest":    {good, "a@" + imagetest.SomeDigest, ImportOptions{}, "digest"},
		"bad format":          {good, "x", ImportOptions{Format: "zip"}, "format"},
		"cut":                 {good[:len(good)/2], "x", ImportOptions{}, "archive"},
		"cut gzip":            {imagetest.Gz(t, layer)[:40], "x", ImportOptions{}, "archive"},
		"no archive":          {[]byte("hello, this is no archive at all"), "x", ImportOptions{}, "archive"},
		"empty":               {imagetest.Tar(t), "x", ImportOptions{}, "empty"},
		"no image":            {imagetest.Tar(t, imagetest.File("repositories", "{}")), "x", ImportOptions{}, "neither"},
		"member leaves":       {imagetest.Tar(t, imagetest.File("oci-layout", ""), imagetest.File("../x", "")), "x", ImportOptions{}, "leaves"},
		"docker: no images":   {docker(`[]`), "x", ImportOptions{}, "manifest.json"},
		"docker: path":        {docker(`[{"Config":"../../../etc/passwd","Layers":[]}]`), "x", ImportOptions{}, "lacks"},
		"docker: lacks layer": {docker(`[{"Config":"c.json","Layers":["../../l"]}]`), "x", ImportOptions{}, "lacks"},
		"docker: layer count": {docker(`[{"Config":"c.json","Layers":[]}]`), "x", ImportOptions{}, "layers"},
		"docker: two images":  {docker(`[{"Config":"c.json","RepoTags":["a:1"]},{"Config":"c.json","RepoTags":["b:1"]}]`), "x", ImportOptions{}, "a:1, b:1"},
		"rootfs leaves":       {imagetest.Tar(t, imagetest.File("../x", "")), "x", ImportOptions{}, "leaves"},
	} {
		s := newStore(t, Options{})
		_, err := s.Import(ctx, "", c.name, bytes.NewReader(c.in), c.opt)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
		if len(s.List("")) != 0 || len(s.leases) != 0 {
			t.Errorf("%s: something stayed", what)
		}
		if l, _ := os.ReadDir(s.path("tmp")); len(l) != 0 {
			t.Errorf("%s: %d temporary files stayed", what, len(l))
		}
	}
	for _, in := range []string{"\xfd7zXZ\x00...", "BZh9..."} {
		if _, err := newStore(t, Options{}).Import(ctx, "", "x", strings.NewReader(in), ImportOptions{}); !errors.Is(err, errs.Unsupported) || errs.HintOf(err) == "" {
			t.Error(err)
		}
	}
	if _, err := newStore(t, Options{}).Import(ctx, "", "x", bytes.NewReader(good), ImportOptions{}); err != nil {
		t.Error("the good one:", err)
	}
}

func TestImportCannotNameOthersLayers(t *testing.T) {
	s := newStore(t, Options{})
	layer := imagetest.Tar(t, imagetest.File("secret", "1"))
	if _, err := s.Import(ctx, "a", "mine", bytes.NewReader(imagetest.Gz(t, layer)), ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Export(ctx, "a", "mine", "", &b); err != nil {
		t.Fatal(err)
	}
	var thin []imagetest.Entry
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		raw, _ := io.ReadAll(tr)
		if h.Name != "blobs/sha256/"+oci.Digest(imagetest.Gz(t, layer))[7:] {
			thin = append(thin, imagetest.File(h.Name, string(raw)))
		}
	}
	if _, err := s.Import(ctx, "b", "stolen", bytes.NewReader(imagetest.Tar(t, thin...)), ImportOptions{}); !errors.Is(err, errs.Invalid) {
		t.Fatal("another tenant's layer was taken by its digest", err)
	}
	if _, err := s.Import(ctx, "a", "thin", bytes.NewReader(imagetest.Tar(t, thin...)), ImportOptions{}); err != nil {
		t.Fatal("the owner need not bring it again", err)
	}
}

func TestNames(t *testing.T) {
	s := newStore(t, Options{})
	raw := imagetest.Tar(t, imagetest.File("f", "1"))
	shared, err := s.Import(ctx, "", "base", bytes.NewReader(raw), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.Import(ctx, "a", "base", bytes.NewReader(imagetest.Tar(t, imagetest.File("f", "2"))), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Resolve(ctx, "a", "base"); got.Digest != own.Digest {
		t.Error("the scope's own comes first")
	}
	if got, _ := s.Resolve(ctx, "b", "docker.io/library/base:latest"); got.Digest != shared.Digest {
		t.Error("then everybody's")
	}
	if _, err := s.Tag(ctx, "b", "base", "team/copy:2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "b", "base"); !errors.Is(err, errs.NotFound) {
		t.Error("a tenant removed everybody's name", err)
	}
	if err := s.Remove(ctx, "", "base"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openStore(t, s.dir, Options{})
	if l := s.List("b"); len(l) != 1 || l[0].Name() != "team/copy:2" || l[0].Digest != shared.Digest {
		t.Fatal(l)
	}
	if err := s.Remove(ctx, "b", shared.Digest); err != nil || len(s.List("b")) != 0 {
		t.Fatal(err)
	}
	if _, err := s.Tag(ctx, "b", "none", "x"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if err := os.WriteFile(s.path("names.json"), []byte(`{"version":1,"names":[{"reference":"x","digest":"../.."}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(s.dir, s.opt); !errors.Is(err, errs.Internal) || errs.HintOf(err) == "" {
		t.Error("a damaged table was taken", err)
	}
}

func TestImageWithoutLayers(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	info := pull(t, s, "", g.push(t, "scratch:1", makeImage(t)))
	root, err := s.Unpack(ctx, info.Digest)
	if err != nil || len(root.Layers) != 1 {
		t.Fatal(root, err)
	}
	if l, err := os.ReadDir(root.Layers[0]); err != nil || len(l) != 0 {
		t.Error(l, err)
	}
	if _, _, err := s.GC(ctx, nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openStore(t, s.dir, Options{})
	if root, err := s.Unpack(ctx, info.Digest); err != nil || len(root.Layers) != 1 {
		t.Fatal(root, err)
	}
}

func TestZstdAndPlainLayers(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	a, b := imagetest.Tar(t, imagetest.File("a", "1")), imagetest.Tar(t, imagetest.File("b", "2"))
	var layers []ggcr.Layer
	layers = append(layers, tarLayer{a, zs(t, a), types.OCILayerZStd}, tarLayer{b, b, types.OCIUncompressedLayer})
	info := pull(t, s, "", g.push(t, "z:1", makeImage(t, layers...)))
	root, err := s.Unpack(ctx, info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range []string{"a", "b"} {
		if _, err := os.Stat(filepath.Join(root.Layers[i], f)); err != nil {
			t.Error(err)
		}
	}
}

const busyboxPath = "/usr/bin/busybox"

func TestBusybox(t *testing.T) {
	var one, two bytes.Buffer
	if err := busybox.Rootfs(ctx, busyboxPath, &one); errors.Is(err, errs.Unsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if err := busybox.Rootfs(ctx, busyboxPath, &two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Fatal("not reproducible", err)
	}
	s := newStore(t, Options{})
	info, err := s.Import(ctx, "", "busybox", &one, ImportOptions{Config: busybox.Config()})
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Unpack(ctx, info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for p, mode := range map[string]os.FileMode{"tmp": os.ModeDir | os.ModeSticky | 0o777, "bin/sh": os.ModeSymlink | 0o777, "bin/httpd": os.ModeSymlink | 0o777,
		"bin/busybox": 0o755, "etc/passwd": 0o644, "var/www/index.html": 0o644, "proc": os.ModeDir | 0o755, "root": os.ModeDir | 0o700, "etc/hosts": 0o644} {
		if fi, err := os.Lstat(filepath.Join(root.Layers[0], p)); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v %v", p, fi, err)
		}
	}
	if err := busybox.Rootfs(ctx, "/nonexistent", io.Discard); !errors.Is(err, errs.Unsupported) || errs.HintOf(err) == "" {
		t.Error(err)
	}
}

func BenchmarkUnpackReady(b *testing.B) {
	s := newStore(b, Options{})
	info, err := s.Import(ctx, "", "x", bytes.NewReader(imagetest.Tar(b, imagetest.File("f", "x"))), ImportOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Unpack(ctx, info.Digest); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	s := newStore(b, Options{})
	if _, err := s.Import(ctx, "", "busybox", bytes.NewReader(imagetest.Tar(b, imagetest.File("f", "x"))), ImportOptions{}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Resolve(ctx, "acme/research", "busybox"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkImportBusybox(b *testing.B) {
	var tarball bytes.Buffer
	if err := busybox.Rootfs(ctx, busyboxPath, &tarball); err != nil {
		b.Skip(err)
	}
	b.SetBytes(int64(tarball.Len()))
	for b.Loop() {
		b.StopTimer()
		s, err := Open(b.TempDir(), newStoreOptions())
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := s.Import(ctx, "", "busybox", bytes.NewReader(tarball.Bytes()), ImportOptions{}); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
