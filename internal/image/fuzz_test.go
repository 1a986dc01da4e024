package image

import (
	"bytes"
	"errors"
	"testing"

	"atoll/internal/errs"
)

func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"`+dockerConfig+`","digest":"`+someDigest+`","size":2},"layers":[{"mediaType":"`+dockerLayer+`","digest":"`+someDigest+`","size":3}]}`), dockerManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","size":2,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`), dockerIndex)
	f.Fuzz(func(t *testing.T, raw []byte, mediaType string) {
		doc, err := decodeManifest(raw, mediaType, Limits{Image: 1 << 30, Layers: 10})
		if err != nil {
			if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Unsupported) {
				t.Fatal(err)
			}
			return
		}
		for _, d := range append(doc.layers, doc.config) {
			if !doc.index && (!digestRE.MatchString(d.Digest) || d.Size < 0) {
				t.Fatalf("%+v", d)
			}
		}
		if doc.index {
			for _, want := range []platform{{"linux", "amd64", ""}, {"linux", "arm", "v6"}, {"linux", "arm", ""}} {
				_, _ = doc.choose(want)
			}
		}
	})
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"Env":["A=1"],"Volumes":{"/v":{}}},"rootfs":{"diff_ids":["` + someDigest + `"]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := decodeConfig(raw)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if n := len(chainIDs(c.diffIDs)); n != len(c.diffIDs) {
			t.Fatal(n)
		}
	})
}

func FuzzDecodeDocker(f *testing.F) {
	f.Add([]byte(`[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]`), "a:1")
	f.Fuzz(func(t *testing.T, raw []byte, name string) {
		list, err := decodeDocker(raw, Limits{Layers: 10})
		if err == nil {
			_, _, err = pickDocker(list, name)
		}
		if err != nil && !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeAuthFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"am9lOnNlY3JldA=="},"h:5000/ns":{"username":"u","password":"p"}},"credHelpers":{"x.y":"z"}}`), "h:5000", "ns/app")
	f.Fuzz(func(t *testing.T, raw []byte, host, repo string) {
		a, err := decodeAuthFile(raw)
		if err != nil {
			return
		}
		if _, ok, err := a.lookup(host, repo); ok && err != nil {
			t.Fatal("both found and an error")
		}
	})
}

func FuzzDecodeNames(f *testing.F) {
	f.Add([]byte(`{"version":1,"names":[{"scope":"a","reference":"docker.io/library/x:1","digest":"` + someDigest + `"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := decodeNames(raw)
		if err != nil {
			return
		}
		for _, i := range list {
			if !digestRE.MatchString(i.Digest) || i.Name() == "" {
				t.Fatalf("%+v", i)
			}
		}
	})
}

func FuzzDetect(f *testing.F) {
	f.Add(makeTar(f, dir("./"), file("oci-layout", "{}")))
	f.Add(makeTar(f, file("bin/sh", "x")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		format, r, err := detect(bytes.NewReader(raw))
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
