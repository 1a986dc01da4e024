package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestStartsFast builds the program and times it: 15 ms is what the product promises on a
// quiet machine. Where starting anything takes longer than a third of that, the machine is
// busy or slow at it, and what counts is the time beside that of a program that does
// nothing, started in turn with it. The best of each counts: the rest is others' work.
func TestStartsFast(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("the race detector and -short make the time meaningless")
	}
	dir := t.TempDir()
	bin, nothing := filepath.Join(dir, "atoll"), filepath.Join(dir, "nothing")
	src := filepath.Join(dir, "nothing.go")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() { print() }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for out, what := range map[string]string{bin: "atoll/cmd/atoll", nothing: src} {
		build := exec.Command("go", "build", "-o", out, what)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	const promised = 15 * time.Millisecond
	best, floor := time.Hour, time.Hour
	for range 60 {
		a, b := startOnce(t, bin, nothing)
		best, floor = min(best, a), min(floor, b)
		if best <= promised || best-floor <= promised && floor > promised/3 {
			t.Logf("starts in %s, nothing at all in %s", best, floor)
			return
		}
	}
	t.Errorf("starts in %s at best, a program that does nothing in %s; promised are %s, where starting anything takes long beside that", best, floor, promised)
}

// startOnce times both programs, one after the other.
func startOnce(t *testing.T, bin, nothing string) (ours, floor time.Duration) {
	t.Helper()
	cmd := exec.Command(bin, "version", "--client")
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	start := time.Now()
	out, err := cmd.Output()
	ours = time.Since(start)
	if err != nil || string(out) != "client  dev\n" {
		t.Fatalf("%q %v", out, err)
	}
	start = time.Now()
	if err := exec.Command(nothing).Run(); err != nil {
		t.Fatal(err)
	}
	return ours, time.Since(start)
}
