package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A deployment on real containers: rolled out by health while the daemon is killed, held up
// by a template that never works, undone, and gone without a trace; a job to its end.
func TestWorkloadsOnARealPool(t *testing.T) {
	p := start(t)
	must := func(args ...string) string {
		t.Helper()
		out, err := p.Do(args...)
		if err != nil {
			t.Fatalf("atoll %s: %v\n%s\n%s", strings.Join(args, " "), err, out, p.Tail())
		}
		return out
	}
	images := func() map[string]int {
		t.Helper()
		count := map[string]int{}
		for line := range strings.Lines(must("get", "instances", "-l", "app=web", "-o", "wide")) {
			if f := strings.Fields(line); len(f) > 2 && f[1] == "running" {
				count[f[0][:strings.LastIndexByte(f[0], '-')]]++
			}
		}
		return count
	}
	must("create", "deployment", "web", "--image", "busybox", "--replicas", "4", "--max-surge", "1", "--max-unavailable", "0", "--progress-deadline", "8s",
		"--network", "none", "-l", "app=web", "--health-cmd", "true", "--health-every", "300ms", "--stop-timeout", "0s", "--", "sleep", "100000")
	if got := images(); len(got) != 1 {
		t.Fatalf("running %v", got)
	}
	restarted := make(chan string)
	go func() {
		out, err := p.Do("rollout", "restart", "web", "--timeout", "1m")
		if err != nil {
			out += err.Error()
		}
		restarted <- out
	}()
	for range 3 {
		time.Sleep(400 * time.Millisecond)
		p.Kill()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := p.Start(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Log("restart under kills:", <-restarted) // the caller's connection may have been cut
	t.Log(must("rollout", "status", "web", "--timeout", "1m"))
	if got := images(); len(got) != 1 {
		t.Fatalf("after a restart under kills: %v", got)
	}

	// Never healthy: it stands still, and what worked goes on working.
	good := must("get", "deployment/web", "-o", "yaml")
	if _, err := p.Do("rollout", "history", "web"); err != nil {
		t.Fatal(err)
	}
	must("apply", "-f", write(t, `kind: Deployment
metadata: {name: web, tenant: demo}
spec:
  replicas: 4
  progressDeadline: 8s
  strategy: {maxSurge: 1, maxUnavailable: 0}
  template:
    labels: {app: web}
    spec: {image: busybox, command: [sleep, "100000"], networks: [{name: none}], stopTimeout: 0s, health: {exec: ["false"], every: 300ms}}
`))
	out, err := p.Do("rollout", "status", "web")
	if err == nil || !strings.Contains(err.Error(), "exit status 9") || !strings.Contains(err.Error(), "got no further for 8s") {
		t.Fatalf("a template that is never healthy: %v %s", err, out)
	}
	if d := must("get", "deployment/web"); !strings.Contains(d, "stuck") || !strings.Contains(d, "4/4") {
		t.Fatalf("%s\nbefore:\n%s", d, good)
	}
	t.Log(must("rollout", "undo", "web", "--timeout", "1m"))
	t.Log(must("rollout", "history", "web"))
	t.Log(must("scale", "web=2"))
	must("delete", "deployment/web")
	if out := must("get", "instances", "-o", "name"); strings.Contains(out, "/web-") {
		t.Fatalf("left: %s", out)
	}

	t.Log(must("create", "job", "sum", "--image", "busybox", "--network", "none", "--completions", "4", "--parallelism", "2", "--wait", "--timeout", "1m", "--", "sh", "-c", "echo part $ATOLL_JOB_INDEX"))
	if out := must("logs", "sum-3"); !strings.Contains(out, "part 3") {
		t.Fatalf("log %q", out)
	}
	if out, err := p.Do("create", "job", "bad", "--image", "busybox", "--network", "none", "--backoff-limit", "0", "--wait", "--timeout", "1m", "--", "false"); err == nil || !strings.Contains(err.Error(), "gave up") {
		t.Fatalf("a job that fails: %v %s", err, out)
	}
	must("delete", "job/sum", "job/bad")
	if out := must("get", "instances", "-o", "name"); strings.Contains(out, "/sum-") || strings.Contains(out, "/bad-") {
		t.Fatalf("left: %s", out)
	}
}

// write puts a document in a file of its own.
func write(t *testing.T, doc string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "doc.yaml")
	if err := os.WriteFile(f, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}
