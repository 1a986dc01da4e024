// Package e2e runs the real binaries on the real kernel: etcd, crun, conmon,
// nftables and a bridge, in a network namespace that stands for the host.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"atoll/test/rig"
)

// start gives a running pool with the tenant demo; the test ends with everything gone.
func start(t *testing.T, flags ...string) *rig.Pool {
	t.Helper()
	return startAfter(t, func(*rig.Pool) {}, flags...)
}

// startAfter prepares the pool's host before its daemon starts.
func startAfter(t *testing.T, before func(*rig.Pool), flags ...string) *rig.Pool {
	t.Helper()
	if m := rig.Missing(); m != "" {
		t.Skipf("a real pool needs %s", m)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	bin, err := rig.Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p, err := rig.New(bin, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("daemon's log:\n%s", p.Tail())
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if left := traces(p); len(left) > 0 {
			t.Errorf("left behind after down:\n  %s", strings.Join(left, "\n  "))
		}
	})
	before(p)
	up(t, p)
	do(t, p, "tenant", "create", "demo", "--guarantee", "cpu=500m,memory=256Mi", "--limit", "instances=500")
	return p
}

func up(t *testing.T, p *rig.Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// do runs the CLI, which must succeed.
func do(t *testing.T, p *rig.Pool, args ...string) string {
	t.Helper()
	out, err := p.Do(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ends runs the CLI and gives everything it said and its exit code.
func ends(t *testing.T, p *rig.Pool, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := p.Atoll(args...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &o, &e
	err := cmd.Run()
	var x *exec.ExitError
	if err != nil && !errors.As(err, &x) {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, fn func() (bool, string)) {
	t.Helper()
	within(t, 20*time.Second, what, fn)
}

func within(t *testing.T, d time.Duration, what string, fn func() (bool, string)) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ok, now := fn()
		if ok {
			return
		}
		last = now
	}
	t.Fatalf("%s: still %s", what, last)
}

// object reads an object as JSON.
func object(t *testing.T, p *rig.Pool, ref string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(do(t, p, "get", ref, "-o", "json")), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func at(m map[string]any, path ...string) any {
	var v any = m
	for _, k := range path {
		o, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = o[k]
	}
	return v
}

// traces lists what a pool has on this machine beside its own files.
func traces(p *rig.Pool) []string {
	var out []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(filepath.Join(root, p.Group)) // the pattern is well-formed
		out = append(out, dirs...)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, f := range procs {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), p.Run+"/") {
			out = append(out, "process "+filepath.Dir(f)+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return append(out, err.Error())
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, p.Run) || strings.Contains(line, p.Dir) {
			out = append(out, "mount "+line)
		}
	}
	return out
}

// inside lists what instances have left on a pool that has none any more.
func inside(p *rig.Pool) []string {
	var out []string
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + p.Group + "/*.t/x*") // the pattern is well-formed
	out = append(out, dirs...)
	links, err := p.Host("ip", "-o", "link").Output()
	if err != nil {
		return append(out, err.Error())
	}
	for _, l := range strings.Split(string(links), "\n") {
		if f := strings.Fields(l); len(f) > 1 && strings.HasPrefix(f[1], "av") {
			out = append(out, "link "+f[1])
		}
	}
	rules, err := p.Host("nft", "list", "ruleset").Output()
	if err != nil {
		return append(out, err.Error())
	}
	for _, l := range strings.Split(string(rules), "\n") {
		if strings.Contains(l, "10.88.0.") && strings.Contains(l, "elements") {
			out = append(out, "rule "+strings.TrimSpace(l))
		}
	}
	for _, dir := range []string{filepath.Join(p.Run, "container", "i"), filepath.Join(p.Dir, "state", "container", "i")} {
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			out = append(out, err.Error())
		}
		for _, e := range list {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, f := range procs {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), p.Run+"/") && !strings.Contains(string(b), "atolld") {
			out = append(out, "process "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

func TestTour(t *testing.T) {
	p := start(t, "--listen", "127.0.0.1:17443")
	t.Run("hello", func(t *testing.T) {
		if out := do(t, p, "run", "--rm", "busybox", "echo", "hi"); out != "hi\n" {
			t.Fatalf("got %q", out)
		}
	})
	t.Run("exit code and streams", func(t *testing.T) {
		o, e, code := ends(t, p, "", "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
		if o != "out\n" || !strings.Contains(e, "err\n") || code != 7 {
			t.Fatalf("%q %q %d", o, e, code)
		}
	})
	t.Run("stdin", func(t *testing.T) {
		in := strings.Repeat("0123456789abcdef\n", 20000)
		o, _, code := ends(t, p, in, "run", "--rm", "-i", "busybox", "cat")
		if code != 0 || o != in {
			t.Fatalf("code %d, %d of %d bytes back", code, len(o), len(in))
		}
	})
	t.Run("no such program", func(t *testing.T) {
		_, e, code := ends(t, p, "", "run", "--rm", "busybox", "no-such-program")
		if code != 127 || !strings.Contains(e, "no-such-program") {
			t.Fatalf("%d %q", code, e)
		}
	})
	t.Run("no capacity leaves nothing", func(t *testing.T) {
		_, e, code := ends(t, p, "", "run", "--cpu", "64", "busybox", "sleep", "1")
		if code != 5 || !strings.Contains(e, "63.5 CPU more") {
			t.Fatalf("%d %q", code, e)
		}
	})
	t.Run("web", func(t *testing.T) { web(t, p) })
	t.Run("stop and start", func(t *testing.T) {
		do(t, p, "stop", "web")
		if s := at(object(t, p, "instance/web"), "status", "state"); s != "stopped" {
			t.Fatalf("state %v", s)
		}
		do(t, p, "start", "web")
		fetch(t, p)
		do(t, p, "restart", "web")
		fetch(t, p)
	})
	t.Run("live limits", func(t *testing.T) { limits(t, p) })
	t.Run("a core of its own", func(t *testing.T) { ownCores(t, p) })
	t.Run("doctor", func(t *testing.T) {
		o, _, _ := ends(t, p, "", "doctor")
		if !strings.Contains(o, "overlayfs") || !strings.Contains(o, "image layers are shared") {
			t.Errorf("doctor: %q", o)
		}
	})
	t.Run("token", func(t *testing.T) { token(t, p) })
	t.Run("plan", func(t *testing.T) { plans(t, p) })
	t.Run("images", func(t *testing.T) { images(t, p) })
	t.Run("delete", func(t *testing.T) {
		do(t, p, "delete", "instance/web", "--now")
		eventually(t, "traces of instances", func() (bool, string) { l := inside(p); return len(l) == 0, strings.Join(l, "\n") })
	})
}

func web(t *testing.T, p *rig.Pool) {
	do(t, p, "run", "-d", "--name", "web", "--stop-timeout", "1s", "-p", "127.0.0.1:8080:80", "--cpu", "100m", "--memory", "32Mi", "--health-http", "80/", "busybox", "httpd", "-f", "-p", "80", "-h", "/var/www")
	fetch(t, p)
	if out := do(t, p, "exec", "web", "--", "hostname"); out != "web\n" {
		t.Errorf("exec: %q", out)
	}
	_, _, code := ends(t, p, "", "exec", "web", "--", "sh", "-c", "exit 9")
	if code != 9 {
		t.Errorf("exec: code %d", code)
	}
	o, _, _ := ends(t, p, "a\nb\n", "exec", "-i", "web", "--", "wc", "-l")
	if strings.TrimSpace(o) != "2" {
		t.Errorf("exec -i: %q", o)
	}
	if out := do(t, p, "why", "instance/web"); !strings.Contains(out, "isle1") {
		t.Errorf("why: %q", out)
	}
	if out := do(t, p, "get", "instances", "-o", "wide"); !strings.Contains(out, "running") || !strings.Contains(out, "burstable") {
		t.Errorf("get: %q", out)
	}
	if out := do(t, p, "top", "tenants"); !strings.Contains(out, "demo") {
		t.Errorf("top: %q", out)
	}
	eventually(t, "health", func() (bool, string) {
		h := at(object(t, p, "instance/web"), "status", "healthy")
		return h == true, fmt.Sprint(h)
	})
	f := filepath.Join(t.TempDir(), "page")
	if err := os.WriteFile(f, []byte("copied"), 0o600); err != nil {
		t.Fatal(err)
	}
	do(t, p, "cp", f, "web:/tmp/page")
	if out := do(t, p, "exec", "web", "--", "cat", "/tmp/page"); out != "copied" {
		t.Errorf("cp: %q", out)
	}
	do(t, p, "run", "-d", "--name", "talk", "--restart", "never", "--network", "none", "busybox", "sh", "-c", "echo one; echo two >&2")
	eventually(t, "logs", func() (bool, string) {
		out := do(t, p, "logs", "talk")
		return strings.Contains(out, "one"), out
	})
	do(t, p, "delete", "instance/talk")
}

func fetch(t *testing.T, p *rig.Pool) {
	t.Helper()
	eventually(t, "GET http://127.0.0.1:8080/", func() (bool, string) {
		out, err := p.Host("timeout", "3", "bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3`).CombinedOutput()
		return err == nil && strings.Contains(string(out), "200 OK"), fmt.Sprint(err, string(out))
	})
}

// token calls the API over TLS as somebody who may only look.
func token(t *testing.T, p *rig.Pool) {
	do(t, p, "user", "create", "bot")
	do(t, p, "user", "bind", "bot", "viewer", "--in", "demo")
	secret := ""
	for _, f := range strings.Fields(do(t, p, "token", "create", "t1", "--user", "bot")) {
		if strings.HasPrefix(f, "atoll_t1_") {
			secret = f
		}
	}
	if secret == "" {
		t.Fatal("no secret was shown")
	}
	b, err := os.ReadFile(p.Log)
	if err != nil || strings.Contains(string(b), secret) {
		t.Fatalf("the secret is in the log (or there is none: %v)", err)
	}
	call := func(env []string, args ...string) (string, error) {
		cmd := p.Host(filepath.Join(p.Bin, "atoll"), args...)
		cmd.Env = append(append(p.Env(), "ATOLL_SOCKET=", "ATOLL_SERVER=https://127.0.0.1:17443"), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	ca := "--ca-file=" + filepath.Join(p.Dir, "state", "pki", "ca.crt")
	if out, err := call([]string{"ATOLL_TOKEN=" + secret}, "get", "instances", ca); err != nil || !strings.Contains(out, "web") {
		t.Errorf("list: %v %s", err, out)
	}
	if out, err := call([]string{"ATOLL_TOKEN=" + secret}, "delete", "instance/web", "--now", ca); err == nil {
		t.Errorf("a viewer deleted: %s", out)
	}
	if out, err := call([]string{"ATOLL_TOKEN=" + secret + "x"}, "get", "instances", ca); err == nil {
		t.Errorf("a wrong secret was taken: %s", out)
	}
	do(t, p, "delete", "token/t1")
	if out, err := call([]string{"ATOLL_TOKEN=" + secret}, "get", "instances", ca); err == nil {
		t.Errorf("a revoked token was taken: %s", out)
	}
}

// images takes an image out of the pool and back in, by every format people have.
func images(t *testing.T, p *rig.Pool) {
	dir := t.TempDir()
	rootfs := filepath.Join(dir, "rootfs.tar")
	if err := os.MkdirAll(filepath.Join(dir, "r", "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	bb, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "r", "bin", "echo"), bb, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "cf", rootfs, "-C", filepath.Join(dir, "r"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	do(t, p, "image", "import", rootfs, "mini:1")
	for _, format := range []string{"oci", "docker"} {
		tar := filepath.Join(dir, format+".tar")
		do(t, p, "image", "export", "mini:1", tar, "--format", format)
		do(t, p, "image", "import", tar, "again:"+format)
		if out := do(t, p, "run", "--rm", "--network", "none", "again:"+format, "/bin/echo", format); out != format+"\n" {
			t.Errorf("%s: %q", format, out)
		}
	}
	if out := do(t, p, "image", "list"); !strings.Contains(out, "again:docker") || !strings.Contains(out, "busybox") {
		t.Errorf("list: %q", out)
	}
	// Another name works at once, without the content moving; a name that was removed does not.
	run := []string{"run", "--rm", "--network", "none", "--pull", "never"}
	for ref, tag := range map[string]string{"mini:1": "mini:two", "busybox": "own-busybox:1"} {
		do(t, p, "image", "tag", ref, tag)
		eventually(t, tag+" on the node", func() (bool, string) {
			nodes, _ := at(object(t, p, "image/"+strings.ReplaceAll(tag, ":", "-")), "status", "nodes").([]any)
			return len(nodes) == 1, fmt.Sprint(nodes)
		})
		if out := do(t, p, append(run, tag, "/bin/echo", "hi")...); out != "hi\n" {
			t.Errorf("%s: %q", tag, out)
		}
	}
	do(t, p, "image", "remove", "mini:two")
	eventually(t, "mini:two to be forgotten", func() (bool, string) {
		_, said, code := ends(t, p, "", append(run, "mini:two", "/bin/echo", "hi")...)
		return code != 0 && strings.Contains(said, "mini:two"), said
	})
	if out := do(t, p, append(run, "mini:1", "/bin/echo", "hi")...); out != "hi\n" {
		t.Errorf("the other name of what was removed: %q", out)
	}
}

// limits changes the ceiling of what runs and sees it in force.
func limits(t *testing.T, p *rig.Pool) {
	f := filepath.Join(t.TempDir(), "web.yaml")
	for _, mem := range []string{"64Mi", "96Mi"} {
		doc := "kind: Instance\nmetadata: {name: lim, tenant: demo}\nspec: {image: busybox, command: [sleep, \"100000\"], networks: [{name: none}], limits: {memory: " + mem + ", pids: 50}}\n"
		if err := os.WriteFile(f, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		do(t, p, "apply", "-f", f, "--wait")
		want := map[string]string{"64Mi": "67108864", "96Mi": "100663296"}[mem]
		eventually(t, "limit "+mem, func() (bool, string) {
			files, _ := filepath.Glob("/sys/fs/cgroup/memory/" + p.Group + "/demo.t/x*/memory.limit_in_bytes") // v1
			if len(files) == 0 {
				files, _ = filepath.Glob("/sys/fs/cgroup/" + p.Group + "/demo.t/x*/memory.max") // v2
			}
			got := ""
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err == nil {
					got += strings.TrimSpace(string(b)) + " "
				}
			}
			return strings.Contains(got, want), got
		})
	}
	do(t, p, "delete", "instance/lim", "--now")
}

// ownCores gives an instance a core that nothing else runs on, and takes it back.
func ownCores(t *testing.T, p *rig.Pool) {
	if runtime.NumCPU() < 2 {
		t.Skip("a core of one's own needs a host with two")
	}
	cores := func(name string) string {
		return strings.TrimSpace(do(t, p, "exec", name, "sh", "-c", "grep Cpus_allowed_list /proc/self/status | cut -f 2"))
	}
	do(t, p, "run", "-d", "--name", "shared", "--network", "none", "busybox", "sleep", "100000")
	all := cores("shared")
	f := filepath.Join(t.TempDir(), "own.yaml")
	doc := "kind: Instance\nmetadata: {name: own, tenant: demo}\nspec: {image: busybox, command: [sleep, \"100000\"], networks: [{name: none}], exclusiveCpus: true, " +
		"requests: {cpu: 1, memory: 32Mi}, limits: {cpu: 1, memory: 32Mi}}\n"
	if err := os.WriteFile(f, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	do(t, p, "apply", "-f", f, "--wait")
	mine := cores("own")
	if strings.ContainsAny(mine, ",-") {
		t.Errorf("its cores are %s, not one", mine)
	}
	eventually(t, "the others to leave core "+mine, func() (bool, string) {
		now := cores("shared")
		return now != all && !slices.Contains(strings.Split(now, ","), mine), now
	})
	do(t, p, "delete", "instance/own")
	eventually(t, "the core to be everybody's again", func() (bool, string) { now := cores("shared"); return now == all, now })
	do(t, p, "delete", "instance/shared")
}

func TestBackupRestoresALostStore(t *testing.T) {
	p := start(t)
	do(t, p, "run", "-d", "--name", "keep", "--network", "none", "busybox", "sleep", "100000")
	tar := filepath.Join(p.Dir, "backup.tar")
	do(t, p, "backup", "create", tar)
	p.Stop()
	if err := os.RemoveAll(filepath.Join(p.Dir, "state", "etcd")); err != nil {
		t.Fatal(err)
	}
	up(t, p)
	if out := do(t, p, "get", "tenants", "-o", "name"); strings.Contains(out, "demo") {
		t.Fatalf("the store was not lost: %q", out)
	}
	do(t, p, "backup", "restore", tar, "--yes")
	eventually(t, "instance back", func() (bool, string) {
		s, _, err := p.Do2("get", "instance/keep", "-o", "json")
		return err == nil && strings.Contains(s, "running"), s
	})
}

func TestInstancesSurviveTheDaemon(t *testing.T) {
	p := start(t)
	do(t, p, "run", "-d", "--name", "long", "--network", "none", "--restart", "never", "busybox", "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 42")
	pid := at(object(t, p, "instance/long"), "status", "pid")
	p.Kill()
	if _, err := os.Stat(fmt.Sprintf("/proc/%v", pid)); err != nil {
		t.Fatalf("the instance died with the daemon: %v", err)
	}
	up(t, p)
	do(t, p, "exec", "long", "--", "true") // adopted
	if again := at(object(t, p, "instance/long"), "status", "pid"); again != pid {
		t.Fatalf("pid %v became %v", pid, again)
	}
	do(t, p, "exec", "long", "--", "touch", "/tmp/go")
	eventually(t, "exit code", func() (bool, string) {
		c := at(object(t, p, "instance/long"), "status", "exitCode")
		return c == float64(42), fmt.Sprint(c)
	})
	// And one that ends while nobody watches.
	do(t, p, "run", "-d", "--name", "alone", "--network", "none", "--restart", "never", "busybox", "sh", "-c", "sleep 0.5; exit 43")
	p.Kill()
	time.Sleep(800 * time.Millisecond)
	up(t, p)
	eventually(t, "exit code", func() (bool, string) {
		c := at(object(t, p, "instance/alone"), "status", "exitCode")
		return c == float64(43), fmt.Sprint(c)
	})
}
