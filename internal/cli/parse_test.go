package cli

import (
	"encoding/json"
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
		got, err := parsePort(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", in, got, err)
		}
	}
	for _, in := range []string{"", ":", "0", "65536", ":80", "x:80", "80:", "1:2:3", "::1:8080:80", "[127.0.0.1]:1:2", "80/sctp", "+80", "127.0.0.1:80:80:80", "[fe80::1%eth0]:1:2", "/tcp"} {
		if p, err := parsePort(in); errs.KindOf(err) != errs.Invalid {
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
		p, err := parsePort(s)
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
		got, err := parseVolume(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", in, got, err)
		}
	}
	for _, in := range []string{"", "data", "data:", "data:x", "data:/", "Data:/x", "a:/b:/c", ":/x", "ro", "/x:/y:/z:ro", "-:/x"} {
		if m, err := parseVolume(in); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q was taken as %+v (%v)", in, m, err)
		}
	}
	if m, err := parseVolume("./x:/y"); err != nil || !strings.HasPrefix(m.HostPath, "/") || !strings.HasSuffix(m.HostPath, "/cli/x") {
		t.Errorf("./x: %+v %v", m, err)
	}
}

// FuzzParseVolume: what is taken has at most one source and passes the rules of the kind.
func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"data:/x", "/a:/b:ro", "/x", "./a:/b", "a:b:c:d", "..:/x:rw"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseVolume(s)
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
	got, err := parseEnvFile([]byte("# comment\n\nA=1\r\n  B=x=y z\nHOME\nUNSET\nE=\n"), func(k string) string { return env[k] })
	want := []api.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "x=y z"}, {Name: "HOME", Value: "/root"}, {Name: "E"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v %v", got, err)
	}
	_, err = parseEnvFile([]byte("OK=1\nBAD NAME=hunter2\n"), func(string) string { return "" })
	if err == nil || !strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), "hunter2") {
		t.Fatalf("error must name the line and not the value: %v", err)
	}
}

// FuzzParseEnvFile: names never hold what the kind refuses, and errors never hold values.
func FuzzParseEnvFile(f *testing.F) {
	f.Add([]byte("A=1\n#x\nB"))
	f.Add([]byte("=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseEnvFile(b, func(string) string { return "own" })
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
	if k, err := parseDetachKeys("ctrl-p,ctrl-q"); err != nil || string(k) != "\x10\x11" {
		t.Errorf("detach keys: %q %v", k, err)
	}
	if k, err := parseDetachKeys("a,ctrl-],ctrl-A"); err != nil || string(k) != "a\x1d\x01" {
		t.Errorf("detach keys: %q %v", k, err)
	}
	for _, bad := range []string{"ctrl-1", "ab", "ctrl-", ","} {
		if k, err := parseDetachKeys(bad); err == nil {
			t.Errorf("%q was taken as %q", bad, k)
		}
	}
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	if s, err := parseSince("10m", now); err != nil || !s.Equal(now.Add(-10*time.Minute)) {
		t.Errorf("since: %v %v", s, err)
	}
	if s, err := parseSince("2026-01-02T01:00:00Z", now); err != nil || s.Hour() != 1 {
		t.Errorf("since: %v %v", s, err)
	}
	if _, err := parseSince("yesterday", now); err == nil {
		t.Error("yesterday was taken")
	}
	if x, err := parseTaint("taint", "gpu=only:noexecute"); err != nil || x != (api.Taint{Key: "gpu", Value: "only", Effect: "NoExecute"}) {
		t.Errorf("taint: %+v %v", x, err)
	}
	if x, err := parseTaint("tolerate", "gpu"); err != nil || x != (api.Taint{Key: "gpu"}) {
		t.Errorf("toleration: %+v %v", x, err)
	}
	if _, err := parseTaint("taint", "gpu"); err == nil {
		t.Error("a taint without effect was taken")
	}
	if a, err := parseAffinity("avoid", "app=db,tier=x@zone"); err != nil || a.Topology != "zone" || len(a.Labels) != 2 {
		t.Errorf("affinity: %+v %v", a, err)
	}
	if s, err := parseSpread("zone:2"); err != nil || s != (api.SpreadTerm{Topology: "zone", MaxSkew: 2}) {
		t.Errorf("spread: %+v %v", s, err)
	}
}

func TestSpecFlags(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	r.must(t, "create", "--name", "x", "--cpu", "500m", "--memory", "1Gi", "--limit", "iops=2000,pids=99", "--memory-limit", "2Gi", "--isolation", "sandbox",
		"-w", "/srv", "-u", "7:8", "--hostname", "h", "-p", "8080:80", "-v", "data:/d:ro", "--tmpfs", "/run:64Mi", "--network", "main", "--ip", "10.0.0.9",
		"--restart", "on-failure", "-l", "app=db", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--read-only", "--entrypoint", "/bin/x", "--pull", "always",
		"--health-tcp", "80", "--health-every", "5s", "--health-failures", "2", "--stop-timeout", "3s", "--stop-signal", "INT", "--cpuset", "0-3,8",
		"--node", "isle1", "--node-label", "disk=ssd", "--priority", "batch", "--spread", "zone", "--avoid", "app=db", "--tolerate", "gpu=only:NoSchedule", "-it",
		"busybox", "sh", "-c", "echo --name y")
	got := r.must(t, "get", "instance/x", "-o", "json")
	var in api.Instance
	if err := json.Unmarshal([]byte(got), &in); err != nil {
		t.Fatal(err)
	}
	three, five := api.Duration(3*time.Second), api.Duration(5*time.Second)
	want := api.InstanceSpec{Image: "busybox", Pull: "always", Command: []string{"sh", "-c", "echo --name y"}, Entry: []string{"/bin/x"},
		Workdir: "/srv", User: "7:8", Hostname: "h", Isolation: "sandbox",
		Requests: api.Resources{api.CPU: 500, api.Memory: 1 << 30}, Limits: api.Resources{api.IOPS: 2000, api.Pids: 99, api.Memory: 2 << 30},
		CPUs: "0-3,8", Restart: "on-failure", Stopped: true, Priority: "batch",
		Placement: &api.Placement{Node: "isle1", NodeLabels: map[string]string{"disk": "ssd"}, Tolerate: []api.Taint{{Key: "gpu", Value: "only", Effect: "NoSchedule"}},
			Spread: []api.SpreadTerm{{Topology: "zone"}}, Avoid: []api.AffinityTerm{{Labels: map[string]string{"app": "db"}}}},
		Networks: []api.Attach{{Name: "main", Address: "10.0.0.9"}}, Ports: []api.Port{{Port: 80, Publish: 8080}},
		Volumes: []api.Mount{{Name: "data", Path: "/d", ReadOnly: true}, {Tmpfs: true, Path: "/run", Size: "64Mi"}},
		Health:  &api.Health{TCP: "80", Every: &five, Failures: 2}, Stdin: true, TTY: true,
		Capabilities: &api.Capabilities{Add: []string{"NET_ADMIN"}, Drop: []string{"ALL"}}, ReadOnlyRoot: true, StopSignal: "INT", StopTimeout: &three}
	if !reflect.DeepEqual(in.Spec, want) {
		t.Errorf("got  %+v\nwant %+v", in.Spec, want)
	}
	if in.Labels["app"] != "db" {
		t.Errorf("labels %v", in.Labels)
	}
}

func TestDetacher(t *testing.T) {
	for _, c := range []struct {
		keys   string
		chunks []string
		want   string
		hit    bool
	}{
		{"pq", []string{"hello"}, "hello", false},
		{"pq", []string{"apq", "rest"}, "a", true},
		{"pq", []string{"ap", "qx"}, "a", true},
		{"pq", []string{"ppq"}, "p", true},
		{"pq", []string{"p", "x"}, "px", false},
		{"aab", []string{"aaab"}, "a", true},
		{"abac", []string{"ababac"}, "ab", true},
		{"", []string{"pq"}, "pq", false},
	} {
		d := detacher{keys: []byte(c.keys)}
		got, hit := "", false
		for _, ch := range c.chunks {
			out, h := d.filter([]byte(ch))
			got += string(out)
			if hit = h; h {
				break
			}
		}
		if !hit {
			got += string(d.flush())
		}
		if got != c.want || hit != c.hit {
			t.Errorf("%q in %q: %q %v, want %q %v", c.keys, c.chunks, got, hit, c.want, c.hit)
		}
	}
}

// FuzzDetacher: without the sequence every byte comes through, in order; with it, all before it.
func FuzzDetacher(f *testing.F) {
	f.Add("aab", "aaaab", 2)
	f.Add("\x10\x11", "x\x10\x10\x11", 1)
	f.Fuzz(func(t *testing.T, keys, text string, cut int) {
		if keys == "" || len(keys) > 16 {
			return
		}
		cut = min(max(cut, 0), len(text))
		d := detacher{keys: []byte(keys)}
		got, hit := d.filter([]byte(text[:cut]))
		if !hit {
			var more []byte
			more, hit = d.filter([]byte(text[cut:]))
			got = append(got, more...)
		}
		want, _, has := strings.Cut(text, keys)
		if !hit {
			got = append(got, d.flush()...)
		}
		if hit != has || string(got) != want {
			t.Fatalf("%q in %q cut at %d: %q %v, want %q %v", keys, text, cut, got, hit, want, has)
		}
	})
}

func TestThreeWay(t *testing.T) {
	obj := func(s string) map[string]any {
		if s == "" {
			return nil
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(s), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, c := range []struct{ name, before, mine, live, want string }{
		{"new key", `{"a":1}`, `{"a":1,"b":2}`, `{"a":1}`, `{"a":1,"b":2}`},
		{"removed key", `{"a":1,"b":2}`, `{"a":1}`, `{"a":1,"b":2}`, `{"a":1}`},
		{"others' key stays", `{"a":1}`, `{"a":2}`, `{"a":1,"c":3}`, `{"a":2,"c":3}`},
		{"deep", `{"s":{"x":1,"y":2}}`, `{"s":{"x":5}}`, `{"s":{"x":1,"y":2,"z":3}}`, `{"s":{"x":5,"z":3}}`},
		{"removed map keeps what others put in", `{"l":{"a":1}}`, `{}`, `{"l":{"a":1,"b":2}}`, `{"l":{"b":2}}`},
		{"removed map", `{"l":{"a":1}}`, `{}`, `{"l":{"a":1}}`, `{}`},
		{"lists are one value", `{"l":[1,2]}`, `{"l":[2]}`, `{"l":[1,2]}`, `{"l":[2]}`},
		{"never applied", ``, `{"a":2}`, `{"a":1,"c":3}`, `{"a":2,"c":3}`},
	} {
		if got := threeWay(obj(c.before), obj(c.mine), obj(c.live)); !reflect.DeepEqual(got, obj(c.want)) {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
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
			if _, ok := api.Lookup(string(d.obj.ObjectKind())); !ok {
				t.Fatalf("kind %q", d.obj.ObjectKind())
			}
		}
	})
}
