package dir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"atoll/internal/driver"
	"atoll/internal/errs"
)

func open(t *testing.T) *Driver {
	t.Helper()
	d, err := New(driver.Deps{State: filepath.Join(t.TempDir(), "v")}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Probe(context.Background()); err != nil {
		t.Fatal(err)
	}
	return d
}

func ids() driver.IDRange {
	return driver.IDRange{Base: uint32(os.Getuid()), Count: 65536}
}

func TestAVolumeOutlivesWhoAsksForIt(t *testing.T) {
	d, ctx := open(t), context.Background()
	m, err := d.Ensure(ctx, "acme/research", "data", 0, ids())
	if err != nil || m.Warning != "" {
		t.Fatal(m, err)
	}
	if err := os.WriteFile(filepath.Join(m.Source, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := d.Ensure(ctx, "acme/research", "data", 1<<30, ids())
	if err != nil || again.Source != m.Source || again.Warning == "" {
		t.Fatal(again, err)
	}
	if _, err := os.Stat(filepath.Join(again.Source, "f")); err != nil {
		t.Fatal(err)
	}
	if list, err := d.Observe(ctx); err != nil || len(list) != 1 || list[0] != "acme/research/data" {
		t.Fatal(list, err)
	}
	for range 2 {
		if err := d.Remove(ctx, "acme/research", "data"); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := d.Observe(ctx); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
}

func TestNamesCannotLeaveTheDirectory(t *testing.T) {
	d := open(t)
	for _, n := range [][2]string{{"..", "a"}, {"a", ".."}, {"a", "../b"}, {"a", ""}, {"", "a"}, {"a", ".new-1"}, {"a/../b", "c"}} {
		if _, err := d.Ensure(context.Background(), n[0], n[1], 0, ids()); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", n, err)
		}
		if err := d.Remove(context.Background(), n[0], n[1]); !errors.Is(err, errs.Invalid) {
			t.Errorf("remove %q: %v", n, err)
		}
	}
}

func TestALinkIsNotAVolume(t *testing.T) {
	d, outside := open(t), t.TempDir()
	if err := os.MkdirAll(filepath.Join(d.root, "t"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(d.root, "t", "data")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Ensure(context.Background(), "t", "data", 0, ids()); !errors.Is(err, errs.Conflict) {
		t.Fatalf("got %v", err)
	}
	if err := d.Remove(context.Background(), "t", "data"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Fatal("the link was followed")
	}
}
