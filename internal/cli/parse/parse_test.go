package parse

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

func TestParsePort(t *testing.T) {
	for in, want := range map[string]api.Port{
		"80":                    {Port: 80},
		"8080:80":               {Port: 80, Publish: 8080},
		"8080:80/udp":           {Port: 80, Publish: 8080, Protocol: "udp"},
		"127.0.0.1:8080:80/tcp": {Port: 80, Publish: 8080, HostIP: "127.0.0.1", Protocol: "tcp"},
		"[::1]:8080:80":         {Port: 80, Publish: 8080, HostIP: "::1"},
	} {
		got, err := Port(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", in, got, err)
		}
	}
	for _, in := range []string{"", ":", "0", "65536", ":80", "x:80", "80:", "1:2:3", "::1:8080:80", "[127.0.0.1]:1:2", "80/sctp", "+80", "127.0.0.1:80:80:80", "[fe80::1%eth0]:1:2", "/tcp"} {
		if p, err := Port(in); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q was taken as %+v (%v)", in, p, err)
		}
	}
}

// FuzzParsePort: what is taken passes the rules of the kind, and reads back the same.
func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"80", "8080:80", "127.0.0.1:8080:80/tcp", "[::1]:1:2/udp", ":::", "a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Port(s)
		if err != nil {
			return
		}
		in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "x", Tenant: "acme"}}, Spec: api.InstanceSpec{Image: "busybox", Ports: []api.Port{p}}}
		if err := api.Check(in); err != nil {
			t.Fatalf("%q gives %+v: %v", s, p, err)
		}
	})
}

func TestParseVolume(t *testing.T) {
	for in, want := range map[string]api.Mount{
		"data:/var/lib/db":    {Name: "data", Path: "/var/lib/db"},
		"data:/var/lib/db:ro": {Name: "data", Path: "/var/lib/db", ReadOnly: true},
		"data:/x:rw":          {Name: "data", Path: "/x"},
		"/srv/../etc:/x:ro":   {HostPath: "/etc", Path: "/x", ReadOnly: true},
		"/scratch":            {Path: "/scratch"},
	} {
		got, err := Volume(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", in, got, err)
		}
	}
	for _, in := range []string{"", "data", "data:", "data:x", "data:/", "Data:/x", "a:/b:/c", ":/x", "ro", "/x:/y:/z:ro", "-:/x"} {
		if m, err := Volume(in); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q was taken as %+v (%v)", in, m, err)
		}
	}
	if m, err := Volume("./x:/y"); err != nil || !strings.HasPrefix(m.HostPath, "/") || !strings.HasSuffix(m.HostPath, "/parse/x") {
		t.Errorf("./x: %+v %v", m, err)
	}
}

// FuzzParseVolume: what is taken has at most one source and passes the rules of the kind.
func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"data:/x", "/a:/b:ro", "/x", "./a:/b", "a:b:c:d", "..:/x:rw"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := Volume(s)
		if err != nil || strings.ContainsAny(s, "\x00\n") {
			return
		}
		in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "x", Tenant: "acme"}}, Spec: api.InstanceSpec{Image: "busybox", Volumes: []api.Mount{m}}}
		if err := api.Check(in); err != nil {
			t.Fatalf("%q gives %+v: %v", s, m, err)
		}
	})
}

func TestParseEnvFile(t *testing.T) {
	env := map[string]string{"HOME": "/root"}
	got, err := EnvFile([]byte("# comment\n\nA=1\r\n  B=x=y z\nHOME\nUNSET\nE=\n"), func(k string) string { return env[k] })
	want := []api.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "x=y z"}, {Name: "HOME", Value: "/root"}, {Name: "E"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v %v", got, err)
	}
	_, err = EnvFile([]byte("OK=1\nBAD NAME=hunter2\n"), func(string) string { return "" })
	if err == nil || !strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), "hunter2") {
		t.Fatalf("error must name the line and not the value: %v", err)
	}
}

// FuzzParseEnvFile: names never hold what the kind refuses, and errors never hold values.
func FuzzParseEnvFile(f *testing.F) {
	f.Add([]byte("A=1\n#x\nB"))
	f.Add([]byte("=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := EnvFile(b, func(string) string { return "own" })
		if err != nil {
			return
		}
		for _, v := range list {
			if v.Name == "" || strings.ContainsAny(v.Name, "=\x00\n ") || strings.ContainsRune(v.Value, 0) {
				t.Fatalf("%q gives %+v", b, v)
			}
		}
	})
}

func TestParseOther(t *testing.T) {
	if k, err := DetachKeys("ctrl-p,ctrl-q"); err != nil || string(k) != "\x10\x11" {
		t.Errorf("detach keys: %q %v", k, err)
	}
	if k, err := DetachKeys("a,ctrl-],ctrl-A"); err != nil || string(k) != "a\x1d\x01" {
		t.Errorf("detach keys: %q %v", k, err)
	}
	for _, bad := range []string{"ctrl-1", "ab", "ctrl-", ","} {
		if k, err := DetachKeys(bad); err == nil {
			t.Errorf("%q was taken as %q", bad, k)
		}
	}
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	if s, err := Since("10m", now); err != nil || !s.Equal(now.Add(-10*time.Minute)) {
		t.Errorf("since: %v %v", s, err)
	}
	if s, err := Since("2026-01-02T01:00:00Z", now); err != nil || s.Hour() != 1 {
		t.Errorf("since: %v %v", s, err)
	}
	if _, err := Since("yesterday", now); err == nil {
		t.Error("yesterday was taken")
	}
	if x, err := Taint("taint", "gpu=only:noexecute"); err != nil || x != (api.Taint{Key: "gpu", Value: "only", Effect: "NoExecute"}) {
		t.Errorf("taint: %+v %v", x, err)
	}
	if x, err := Taint("tolerate", "gpu"); err != nil || x != (api.Taint{Key: "gpu"}) {
		t.Errorf("toleration: %+v %v", x, err)
	}
	if _, err := Taint("taint", "gpu"); err == nil {
		t.Error("a taint without effect was taken")
	}
	if a, err := Affinity("avoid", "app=db,tier=x@zone"); err != nil || a.Topology != "zone" || len(a.Labels) != 2 {
		t.Errorf("affinity: %+v %v", a, err)
	}
	if s, err := Spread("zone:2"); err != nil || s != (api.SpreadTerm{Topology: "zone", MaxSkew: 2}) {
		t.Errorf("spread: %+v %v", s, err)
	}
}

// FuzzParseDocs: hostile files are refused or read, never worse, and what is read is of a known kind.
func FuzzParseDocs(f *testing.F) {
	f.Add([]byte("kind: Tenant\nmetadata: {name: acme}\n---\nkind: Instance\nmetadata: {name: a}\nspec: {image: x}\n"))
	f.Add([]byte(`{"kind":"List","items":[{"kind":"Tenant","metadata":{"name":"a"}}]}`))
	f.Add([]byte("--- \n---\n&a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<14 {
			return
		}
		docs, err := parseDocs("file", b)
		if err != nil {
			return
		}
		for _, d := range docs {
			if _, ok := api.Lookup(string(d.Object.ObjectKind())); !ok {
				t.Fatalf("kind %q", d.Object.ObjectKind())
			}
		}
	})
}
