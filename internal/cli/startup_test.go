package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestStartsFast builds the program and times it: 15 ms is what the product promises.
func TestStartsFast(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("timing means nothing here")
	}
	bin := filepath.Join(t.TempDir(), "atoll")
	build := exec.Command("go", "build", "-o", bin, "atoll/cmd/atoll")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var took []time.Duration
	for range 25 {
		cmd := exec.Command(bin, "version", "--client")
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		start := time.Now()
		out, err := cmd.Output()
		took = append(took, time.Since(start))
		if err != nil || string(out) != "client  dev\n" {
			t.Fatalf("%q %v", out, err)
		}
	}
	slices.Sort(took)
	median := took[len(took)/2]
	t.Logf("median %s, fastest %s", median, took[0])
	// A machine shared with other builds is not the program's fault: the fastest run must hold too, before this fails.
	if median > 15*time.Millisecond && took[0] > 10*time.Millisecond {
		t.Errorf("starts in %s (fastest %s), promised are 15 ms", median, took[0])
	}
}
