package mount

import (
	"os"
	"testing"
)

func TestInMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := Tmpfs(dir, 1<<20, 0o755); err != nil {
		t.Fatal(err)
	}
	if in, err := InMemory(dir); err != nil || !in {
		t.Error(in, err)
	}
	if err := Detach(dir); err != nil {
		t.Fatal(err)
	}
	if in, err := InMemory("/proc"); err != nil || in {
		t.Error(in, err)
	}
}
