package registry

import (
	"testing"
)

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
