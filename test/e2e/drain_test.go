package e2e

import (
	"strings"
	"testing"
)

// What is bound to its host is stopped in good order and starts there again, with its
// data, also when the daemon was killed meanwhile.
func TestMaintenance(t *testing.T) {
	p := start(t)
	do(t, p, "run", "-d", "--name", "db", "-v", "data:/data", "busybox", "sh", "-c",
		"trap 'echo end >>/data/log; exit 0' TERM; echo begin >>/data/log; while :; do sleep 0.1; done")
	eventually(t, "its first line", func() (bool, string) { // before that nothing in it hears that it is to end
		log, err := p.Do("exec", "db", "cat", "/data/log")
		return err == nil && log == "begin\n", log
	})
	state := func(name string) string {
		return strings.TrimSpace(do(t, p, "get", "instance/"+name, "--no-headers"))
	}
	out := do(t, p, "drain", "isle1", "--yes", "--timeout", "1m", "--why", "new memory")
	if !strings.Contains(out, "db stops there: volume data is on isle1") || !strings.Contains(out, "1 stopped there until: atoll restore isle1") {
		t.Fatal(out)
	}
	if s := state("db"); !strings.Contains(s, "stopped") {
		t.Fatal(s)
	}
	if why := do(t, p, "why", "instance/db"); !strings.Contains(why, "It is stopped as long as isle1 is in maintenance, and starts there again: isle1 is in maintenance: new memory") {
		t.Fatal(why)
	}
	p.Kill()
	up(t, p)
	if s := state("db"); !strings.Contains(s, "stopped") {
		t.Fatalf("it started though its host is in maintenance: %s", s)
	}
	if out := do(t, p, "restore", "isle1", "--timeout", "1m"); !strings.Contains(out, "isle1 is restored") {
		t.Fatal(out)
	}
	do(t, p, "wait", "instance/db", "--for", "running", "--timeout", "30s")
	if log := do(t, p, "exec", "db", "cat", "/data/log"); log != "begin\nend\nbegin\n" {
		t.Fatalf("its data: %q", log)
	}
	if out := do(t, p, "node", "shutdown", "--self"); !strings.Contains(out, "no other host takes instances: nothing to do") {
		t.Fatal(out)
	}
	// What could move, but has nowhere to go: a drain waits for room, an evacuation stops it.
	do(t, p, "run", "-d", "--name", "web", "busybox", "sleep", "1000")
	if _, stderr, code := ends(t, p, "", "drain", "isle1", "--yes", "--timeout", "3s"); code != 9 || !strings.Contains(stderr, "waiting: demo/web: no other host can run it") {
		t.Fatalf("code %d: %s", code, stderr)
	}
	if s := state("web") + state("db"); strings.Count(s, "running") != 2 {
		t.Fatal(s)
	}
	do(t, p, "evacuate", "isle1", "--yes", "--timeout", "1m")
	if s := state("web") + state("db"); strings.Count(s, "stopped") != 2 {
		t.Fatal(s)
	}
	do(t, p, "restore", "isle1", "--timeout", "1m")
	for _, name := range []string{"db", "web"} {
		do(t, p, "wait", "instance/"+name, "--for", "running", "--timeout", "30s")
	}
}
