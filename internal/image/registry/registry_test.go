package registry

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/image/imagetest"
	"atoll/internal/image/oci"
)

func TestPlainHTTPOnlyWhereAllowed(t *testing.T) {
	c := New(Options{Insecure: []string{"10.9.8.7:5000"}}, clock.Real{}, slog.New(slog.DiscardHandler))
	for host, want := range map[string]bool{"127.0.0.1:1": true, "localhost": true, "[::1]:5": true, "10.9.8.7:5000": true, "10.9.8.7": false, "example.com": false, "127.0.0.1.example.com": false} {
		if c.plainAllowed(host) != want {
			t.Errorf("%s: %v", host, !want)
		}
	}
	g := &guard{origin: "registry.example.com", c: c, base: http.NewFileTransport(http.Dir("/nonexistent"))}
	for _, u := range []string{"http://registry.example.com/", "https://127.0.0.1:8080/", "http://localhost/", "http://169.254.169.254/"} {
		if _, err := g.RoundTrip(httptest.NewRequest("GET", u, nil)); !errors.Is(err, errs.Denied) {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestForeignLayerComesFromItsAddressOnly(t *testing.T) {
	d, err := oci.DecodeManifest([]byte(`{"schemaVersion":2,"config":{"mediaType":"`+oci.DockerConfig+`","digest":"`+imagetest.SomeDigest+`","size":2},
		"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"`+imagetest.SomeDigest+`","size":3,"urls":["https://x.example/l","http://plain.example/l","file:///etc/passwd"]}]}`), oci.DockerManifest, oci.Limits{Image: 100, Layers: 1})
	if err != nil || !d.Layers[0].Foreign() {
		t.Fatal(d, err)
	}
	c := New(Options{}, clock.Real{}, slog.New(slog.DiscardHandler))
	if n := len(c.openers(c.Sources(oci.Reference{Host: "a.b", Repo: "c"}, ""), d.Layers[0])); n != 2 {
		t.Errorf("%d places, want the registry and the one https address", n)
	}
}
