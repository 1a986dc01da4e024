package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func write(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), "run.json")
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		r    run
		want int
	}{
		"code":      {run{Argv: []string{"sh", "-c", "exit 7"}}, 7},
		"signal":    {run{Argv: []string{"sh", "-c", "kill -9 $$"}}, 137},
		"not found": {run{Argv: []string{"no-such-program"}}, 127},
		"not ours":  {run{Argv: []string{"/etc/hostname"}}, 126},
		"nothing":   {run{}, 125},
		"env, dir":  {run{Argv: []string{"sh", "-c", `[ "$X" = 1 ] && [ "$(pwd)" = / ]`}, Env: []string{"X=1", "PATH=/bin:/usr/bin"}, Dir: "/"}, 0},
		"orphans":   {run{Argv: []string{"sh", "-c", "(true) & exit 3"}}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			code, err := start(write(t, c.r))
			if code != c.want {
				t.Fatalf("got %d %v, want %d", code, err, c.want)
			}
		})
	}
}

func TestNoConfig(t *testing.T) {
	if code, err := start("/nonexistent"); code != 125 || err == nil {
		t.Fatalf("%d %v", code, err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"argv":["true"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := filepath.Join(t.TempDir(), "run.json")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := read(p); err == nil && len(r.Argv) == 0 {
			t.Fatal("nothing to run, and no error")
		}
	})
}
