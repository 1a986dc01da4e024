package oci

import (
	"errors"
	"strings"
	"testing"

	"atoll/internal/errs"
	"atoll/internal/image/imagetest"
)

func TestParseReference(t *testing.T) {
	for in, want := range map[string]string{
		"busybox":                           "docker.io/library/busybox:latest",
		"debian:12":                         "docker.io/library/debian:12",
		"team/app":                          "docker.io/team/app:latest",
		"docker.io/busybox":                 "docker.io/library/busybox:latest",
		"index.docker.io/library/busybox:1": "docker.io/library/busybox:1",
		"localhost/app":                     "localhost/app:latest",
		"127.0.0.1:5000/a/b/c:v1":           "127.0.0.1:5000/a/b/c:v1",
		"[::1]:5000/app":                    "[::1]:5000/app:latest",
		"Registry.Example.com/app":          "registry.example.com/app:latest",
		"debian@" + imagetest.SomeDigest:    "docker.io/library/debian@" + imagetest.SomeDigest,
		"registry.lan:5000/x:1@" + imagetest.SomeDigest: "registry.lan:5000/x:1@" + imagetest.SomeDigest,
		"registry.lan/a__b/c--d/e.f/g_h:A.B-C_":         "registry.lan/a__b/c--d/e.f/g_h:A.B-C_",
	} {
		r, err := Parse(in)
		if err != nil || r.String() != want {
			t.Errorf("%s: got %s %v, want %s", in, r, err, want)
			continue
		}
		for _, form := range []string{r.String(), r.Short()} {
			if again, err := Parse(form); err != nil || again != r {
				t.Errorf("%s: %s gives %+v %v", in, form, again, err)
			}
		}
	}
}

func TestParseReferenceSaysWhatIsWrong(t *testing.T) {
	for in, field := range map[string]string{
		"": "reference", "a b": "reference", strings.Repeat("a", 600): "reference", "https://x.y/z": "reference",
		"Busybox": "repository", "a//b": "repository", "a/": "repository", "../etc": "registry", "a/../b": "repository", "x.y/": "repository",
		"busybox:": "tag", "busybox:-x": "tag", "busybox:" + strings.Repeat("x", 129): "tag",
		"busybox@sha256:12": "digest", "busybox@md5:12": "digest", "busybox@": "digest", "x.y:port/z": "registry", "-x.y/z": "registry",
	} {
		_, err := Parse(in)
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Invalid || len(e.Fields) != 1 {
			t.Errorf("%q: got %v", in, err)
			continue
		}
		if f := e.Fields[0]; f.Field != field || f.Rule == "" || f.Example == "" {
			t.Errorf("%q: got %+v, want field %s", in, f, field)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"busybox", "a.b:1/c/d:e@" + imagetest.SomeDigest, "localhost:1/x", "[::1]/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		for _, form := range []string{r.String(), r.Short()} {
			if again, err := Parse(form); err != nil || again != r {
				t.Fatalf("%q: %+v, but %q gives %+v %v", s, r, form, again, err)
			}
		}
		if strings.Contains(r.Repo, "..") || strings.HasPrefix(r.Repo, "/") {
			t.Fatalf("%q: repository %q", s, r.Repo)
		}
	})
}
