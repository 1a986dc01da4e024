package cgroup

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// bomb starts a shell in the group that forks as fast as it may.
func bomb(t *testing.T, h *Host, path string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read go; while :; do (while :; do sh -c : & done) & done")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }() // killed
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	if err := h.Join(path, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
}

// TestSweep empties groups whose processes fork without end, on this host as it is and as
// one without the pids controller.
func TestSweep(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	real, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	if !real.Has("pids") {
		t.Skip("no pids controller: a fork bomb would not be bounded")
	}
	frozen := *real
	frozen.dirs = maps.Clone(real.dirs)
	delete(frozen.dirs, "pids")
	for name, h := range map[string]*Host{"pids": real, "freezer": &frozen} {
		if name == "freezer" && !h.Has("freezer") {
			continue // v2: the kernel kills by group
		}
		t.Run(name, func(t *testing.T) {
			root := fmt.Sprintf("atolltest-sweep-%d", os.Getpid())
			t.Cleanup(func() {
				if err := real.Remove(context.Background(), root); err != nil {
					t.Error(err)
				}
			})
			paths := []string{root + "/a", root + "/b", root + "/not-there"}
			if w, err := real.Ensure(root, Limits{Pids: 300, CPUWeight: 50, CPUMax: 1500}); err != nil || len(w) > 0 {
				t.Skipf("groups cannot be limited here: %v %v", w, err)
			}
			for _, p := range []string{root + "/a", root + "/b/below"} {
				if err := real.Create(p); err != nil {
					t.Fatal(err)
				}
				bomb(t, real, p)
			}
			time.Sleep(300 * time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			begin := time.Now()
			empty := 0
			if left, err := h.Sweep(ctx, paths, func(int) { empty++ }); err != nil || left != 0 || empty != len(paths) {
				t.Fatalf("%d left, %d groups empty: %v", left, empty, err)
			}
			t.Logf("two fork bombs ended in %v", time.Since(begin))
			time.Sleep(50 * time.Millisecond)
			if d := real.Dir("cpu", root); !slices.Contains([]string{"512", "50"}, readTrim(d+"/cpu.shares")+readTrim(d+"/cpu.weight")) {
				t.Error("the limits above were not put back")
			}
			for _, p := range append(real.List(root), root) {
				if pids, err := real.Pids(p); err != nil || len(pids) > 0 {
					t.Errorf("%s: %v %v", p, pids, err)
				}
			}
		})
	}
	if _, err := real.Sweep(t.Context(), []string{"/"}, func(int) {}); err == nil || !strings.Contains(err.Error(), "clean") {
		t.Error("the root was swept", err)
	}
}
