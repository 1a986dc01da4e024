package oci

import (
	"errors"
	"testing"

	"atoll/internal/errs"
	"atoll/internal/image/imagetest"
)

func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"`+DockerConfig+`","digest":"`+imagetest.SomeDigest+`","size":2},"layers":[{"mediaType":"`+dockerLayer+`","digest":"`+imagetest.SomeDigest+`","size":3}]}`), DockerManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+imagetest.SomeDigest+`","size":2,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`), dockerIndex)
	f.Fuzz(func(t *testing.T, raw []byte, mediaType string) {
		doc, err := DecodeManifest(raw, mediaType, Limits{Image: 1 << 30, Layers: 10})
		if err != nil {
			if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Unsupported) {
				t.Fatal(err)
			}
			return
		}
		for _, d := range append(doc.Layers, doc.Config) {
			if !doc.IsIndex && (!IsDigest(d.Digest) || d.Size < 0) {
				t.Fatalf("%+v", d)
			}
		}
		if doc.IsIndex {
			for _, want := range []Platform{{"linux", "amd64", ""}, {"linux", "arm", "v6"}, {"linux", "arm", ""}} {
				_, _ = doc.Choose(want)
			}
		}
	})
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"Env":["A=1"],"Volumes":{"/v":{}}},"rootfs":{"diff_ids":["` + imagetest.SomeDigest + `"]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := DecodeConfig(raw)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if n := len(chainIDs(c.DiffIDs)); n != len(c.DiffIDs) {
			t.Fatal(n)
		}
	})
}
