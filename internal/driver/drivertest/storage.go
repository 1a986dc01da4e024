package drivertest

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Storage checks that a driver keeps the contract of driver.Storage. open gives a driver whose Probe
// succeeds, with no volumes; reopen is a new life of the daemon on the same host.
func Storage(t *testing.T, open func(t *testing.T) (s driver.Storage, reopen func() driver.Storage)) {
	ids := driver.IDRange{Base: 1 << 20, Count: 65536}
	t.Run("life", func(t *testing.T) {
		s, reopen := open(t)
		ctx := ctxOf(t)
		if c, err := s.Probe(ctx); err != nil || c.Type != "storage" || c.Name == "" {
			t.Fatalf("%+v %v", c, err)
		}
		a, err := s.Ensure(ctx, "acme/lab", "data", 0, ids)
		if err != nil {
			t.Fatal(err)
		}
		b, err := reopen().Ensure(ctx, "acme/lab", "data", 0, ids)
		if err != nil || a.Source != b.Source || a.FSType != b.FSType {
			t.Fatalf("again: %+v %+v %v", a, b, err)
		}
		other, err := s.Ensure(ctx, "acme", "data", 0, ids)
		if err != nil || other.Source == a.Source {
			t.Fatalf("two tenants share %s (%v)", other.Source, err)
		}
		if a.FSType == "" {
			st, err := os.Stat(a.Source)
			if err != nil || st.Sys().(*syscall.Stat_t).Uid != ids.Base {
				t.Fatalf("%s does not belong to root inside (%v)", a.Source, err)
			}
		}
		if got, err := reopen().Observe(ctx); err != nil || !slices.Equal(got, []string{"acme/data", "acme/lab/data"}) {
			t.Fatalf("%v %v", got, err)
		}
		for range 2 {
			if err := s.Remove(ctx, "acme/lab", "data"); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.Observe(ctx); err != nil || !slices.Equal(got, []string{"acme/data"}) {
			t.Fatalf("%v %v", got, err)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		s, reopen := open(t)
		ren, ok := s.(driver.Renamer)
		if !ok {
			t.Skip("it cannot be told of other names")
		}
		ctx := ctxOf(t)
		for _, tenant := range []string{"acme", "acme/lab", "demo"} {
			if _, err := s.Ensure(ctx, tenant, "data", 0, ids); err != nil {
				t.Fatal(err)
			}
		}
		m, err := s.Ensure(ctx, "acme", "data", 0, ids)
		if err != nil {
			t.Fatal(err)
		}
		if m.FSType == "" {
			if err := os.WriteFile(m.Source+"/f", []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := ren.Rename(ctx, map[string]string{"acme": "east/acme", "acme/lab": "east/acme/lab", "none": "east/none"}); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := reopen().Observe(ctx); err != nil || !slices.Equal(got, []string{"demo/data", "east/acme/data", "east/acme/lab/data"}) {
			t.Fatalf("%v %v", got, err)
		}
		if m, err = s.Ensure(ctx, "east/acme", "data", 0, ids); err != nil {
			t.Fatal(err)
		}
		if m.FSType == "" {
			if b, err := os.ReadFile(m.Source + "/f"); err != nil || string(b) != "kept" {
				t.Fatalf("%q %v", b, err)
			}
		}
	})
	t.Run("keeps", func(t *testing.T) {
		s, _ := open(t)
		m, err := s.Ensure(ctxOf(t), "t", "v", 0, ids)
		if err != nil {
			t.Fatal(err)
		}
		if m.FSType != "" {
			t.Skip("content is inside a file system")
		}
		if err := os.WriteFile(m.Source+"/f", []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if m, err = s.Ensure(ctxOf(t), "t", "v", 1<<30, ids); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(m.Source + "/f"); err != nil || string(b) != "x" {
			t.Fatalf("%q %v", b, err)
		}
	})
	t.Run("names", func(t *testing.T) {
		s, _ := open(t)
		for _, n := range [][2]string{{"t", "../x"}, {"..", "x"}, {"t", ""}, {"", "x"}, {"t/../u", "x"}, {"t", "a/b"}, {"t", "A"}} {
			if _, err := s.Ensure(ctxOf(t), n[0], n[1], 0, ids); !errors.Is(err, errs.Invalid) {
				t.Errorf("%q: %v", n, err)
			}
			if err := s.Remove(ctxOf(t), n[0], n[1]); err != nil {
				t.Errorf("remove %q: %v", n, err)
			}
		}
	})
	t.Run("sized", func(t *testing.T) {
		s, _ := open(t)
		m, err := s.Ensure(ctxOf(t), "t", "sized", 16<<20, ids)
		if err != nil {
			t.Fatal(err)
		}
		if m.FSType == "" && m.Warning == "" {
			t.Fatalf("neither limited nor said that it is not: %+v", m)
		}
	})
}
