package image

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"atoll/internal/errs"
	"atoll/internal/image/archive"
	"atoll/internal/image/imagetest"
	"atoll/internal/image/oci"
)

func TestBombsAreBounded(t *testing.T) {
	zeros := imagetest.Tar(t, imagetest.File("zero", string(make([]byte, 4<<20))))
	var z bytes.Buffer
	zw, _ := zstd.NewWriter(&z)
	zw.Write(zeros)
	zw.Close()
	tail := append(imagetest.Tar(t, imagetest.File("f", "x")), make([]byte, 80<<20)...) // padding without end
	for what, packed := range map[string][]byte{"gzip": imagetest.Gz(t, zeros), "zstd": z.Bytes(), "padding": imagetest.Gz(t, tail)} {
		s := newStore(t, Options{Limits: oci.Limits{Unpacked: 1 << 20}})
		_, err := s.Import(ctx, "", "bomb", bytes.NewReader(packed), ImportOptions{})
		if !errors.Is(err, errs.Invalid) || len(s.List("")) != 0 {
			t.Errorf("%s: %v", what, err)
		}
	}
	s := newStore(t, Options{Limits: oci.Limits{Image: 1 << 10}})
	if _, err := s.Import(ctx, "", "big", strings.NewReader(imagetest.Noise(1, 10<<10)), ImportOptions{Format: archive.Rootfs}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

func TestOpaqueRootHidesLowerLayers(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	ref := g.push(t, "a:1", makeImage(t, gzLayer(t, imagetest.File("old", "x")), gzLayer(t, imagetest.File(".wh..wh..opq", ""), imagetest.File("new", "y")), gzLayer(t, imagetest.File("top", "z"))))
	info := pull(t, s, "", ref)
	root, err := s.Unpack(ctx, info.Digest)
	if err != nil || len(root.Layers) != 2 {
		t.Fatal(root.Layers, err)
	}
	if _, err := os.Stat(root.Layers[0] + "/new"); err != nil {
		t.Error(err)
	}
}
