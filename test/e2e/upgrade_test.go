package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/release"
	"atoll/test/rig"
)

// TestUpgrade takes two hosts and a witness to the next release and back, tries one that is broken, and
// ends the way back. What runs has the same process all the while.
func TestUpgrade(t *testing.T) {
	if m := rig.Missing(); m != "" {
		t.Skip("this machine lacks ", m)
	}
	dir := t.TempDir()
	next, broken := filepath.Join(dir, "next"), filepath.Join(dir, "broken")
	compile := func(out, flags, what string) {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", flags, "-o", out, what)
		cmd.Dir, cmd.Env = rig.Root(), append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
	}
	compile(filepath.Join(next, "atolld"), "-s -w -X main.version=next -X atoll/internal/release.number="+strconv.Itoa(release.Number()+1), "./cmd/atolld")
	// A program that says what it is and ends at its start.
	src := filepath.Join(dir, "broken.go")
	if err := os.WriteFile(src, []byte(`package main

import "os"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		os.Stdout.WriteString("{\"version\":\"broken\",\"release\":2}\n")
		return
	}
	os.Exit(1)
}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	compile(filepath.Join(broken, "atolld"), "-s -w", src)

	l := labOf(t, 3)
	if err := l.Found(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Join(t.Context(), l.Hosts[1]); err != nil {
		t.Fatal(err)
	}
	if err := l.JoinAs(t.Context(), l.Hosts[2], api.RoleWitness); err != nil {
		t.Fatal(err)
	}
	eventually(t, "three that keep the state", func() (bool, string) {
		out, err := l.Do("get", "members")
		return err == nil && strings.Count(out, "voter") == 3 && strings.Contains(out, "voter,witness"), out
	})
	must := func(args ...string) string {
		t.Helper()
		out, err := l.Do(args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for i := range 4 {
		must("run", "-d", "--name", "w"+strconv.Itoa(i), "busybox", "sleep", "100000")
	}
	pids := func() string {
		t.Helper()
		var list struct{ Items []api.Instance }
		if err := json.Unmarshal([]byte(must("get", "instances", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, i := range list.Items {
			out = append(out, i.Name+"="+strconv.Itoa(i.Status.Pid)+" starts="+strconv.FormatInt(i.Status.Starts, 10)+" "+string(i.Status.State))
		}
		return strings.Join(out, "\n")
	}
	before := pids()
	if strings.Count(before, "running") != 4 {
		t.Fatal(before)
	}
	var daemons []int
	for _, h := range l.Hosts {
		daemons = append(daemons, h.Pid())
	}

	must("upgrade", "prepare", "--dir", next)
	out := must("upgrade", "activate")
	if !strings.Contains(out, "activated") || strings.Count(out, "active ") < 3 {
		t.Fatal(out)
	}
	for i, h := range l.Hosts {
		exe, err := os.Readlink("/proc/" + strconv.Itoa(h.Pid()) + "/exe")
		if err != nil || h.Pid() != daemons[i] || exe != filepath.Join(h.State, "versions", "next", "atolld") {
			t.Errorf("%s: process %d runs %s (%v); it was process %d", h.Name, h.Pid(), exe, err, daemons[i])
		}
	}
	if now := pids(); now != before {
		t.Errorf("instances changed:\n%s\nwere\n%s", now, before)
	}
	if out := must("upgrade", "abort"); !strings.Contains(out, "aborted") {
		t.Fatal(out)
	}

	must("upgrade", "prepare", "--dir", broken)
	if out, err := l.Do("upgrade", "activate"); err == nil || !strings.Contains(err.Error(), "it ended before it was up") {
		t.Fatalf("%s %v", out, err)
	}
	must("upgrade", "abort")
	for _, h := range l.Hosts {
		if err := h.Serving(t.Context()); err != nil && h == l.Hosts[0] {
			t.Errorf("%s: %v", h.Name, err)
		}
	}
	if now := pids(); now != before {
		t.Errorf("instances changed:\n%s\nwere\n%s", now, before)
	}

	must("upgrade", "prepare", "--dir", next)
	must("upgrade", "activate")
	must("upgrade", "finalise", "--yes")
	if out := must("get", "pools"); !strings.Contains(out, strconv.Itoa(release.Number()+1)) {
		t.Errorf("the level did not grow: %s", out)
	}
	if out, err := l.Do("upgrade", "abort"); err == nil {
		t.Errorf("there was a way back: %s", out)
	}
	if now := pids(); now != before {
		t.Errorf("instances changed:\n%s\nwere\n%s", now, before)
	}
}
