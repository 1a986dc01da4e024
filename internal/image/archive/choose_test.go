package archive

import (
	"bytes"
	"errors"
	"testing"

	"atoll/internal/errs"
	"atoll/internal/image/imagetest"
	"atoll/internal/image/oci"
)

func FuzzDecodeDocker(f *testing.F) {
	f.Add([]byte(`[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]`), "a:1")
	f.Fuzz(func(t *testing.T, raw []byte, name string) {
		list, err := DecodeSaved(raw, oci.Limits{Layers: 10})
		if err == nil {
			_, _, err = PickSaved(list, name)
		}
		if err != nil && !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
}

func FuzzDetect(f *testing.F) {
	f.Add(imagetest.Tar(f, imagetest.Dir("./"), imagetest.File("oci-layout", "{}")))
	f.Add(imagetest.Tar(f, imagetest.File("bin/sh", "x")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		format, r, err := Detect(bytes.NewReader(raw))
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		var all bytes.Buffer
		if _, err := all.ReadFrom(r); err != nil || !bytes.Equal(all.Bytes(), raw) {
			t.Fatalf("%s: the stream changed: %v", format, err)
		}
	})
}
