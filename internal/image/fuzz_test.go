package image

import (
	"testing"

	"atoll/internal/image/imagetest"
	"atoll/internal/image/oci"
)

func FuzzDecodeNames(f *testing.F) {
	f.Add([]byte(`{"version":1,"names":[{"scope":"a","reference":"docker.io/library/x:1","digest":"` + imagetest.SomeDigest + `"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := decodeNames(raw)
		if err != nil {
			return
		}
		for _, i := range list {
			if !oci.IsDigest(i.Digest) || i.Name() == "" {
				t.Fatalf("%+v", i)
			}
		}
	})
}
