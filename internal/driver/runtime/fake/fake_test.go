package fake

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/driver/drivertest"
	"atoll/internal/errs"
)

func spec(id string, command ...string) driver.Spec {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: id, Tenant: "t", UID: "uid-" + id}}}
	in.Spec.Command = command
	return driver.Spec{ID: id, Instance: in, Generation: 1, Image: driver.Image{Digest: "sha256:x"}}
}

func TestConformance(t *testing.T) {
	drivertest.Runtime(t, func(t *testing.T) drivertest.Host {
		r, err := New(driver.Deps{Node: "n", Clock: clock.Real{}}, Config{})
		if err != nil {
			t.Fatal(err)
		}
		return drivertest.Host{Runtime: r, Spec: spec, Reopen: func() driver.Runtime { return r }}
	})
}

func TestTheClockMovesLife(t *testing.T) {
	m := clock.NewManual(time.Unix(1000, 0))
	r, _ := New(driver.Deps{Node: "n", Clock: m}, Config{})
	ctx := context.Background()
	if _, err := r.Ensure(ctx, spec("a", "sh", "-c", "sleep 5; echo late; exit 3")); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	m.Advance(4 * time.Second)
	if o, _ := r.Observe(ctx); o[0].Phase != driver.PhaseRunning {
		t.Fatalf("%+v", o)
	}
	m.Advance(time.Minute)
	o, _ := r.Observe(ctx)
	if o[0].Phase != driver.PhaseExited || o[0].ExitCode != 3 || !o[0].FinishedAt.Equal(time.Unix(1005, 0)) {
		t.Fatalf("%+v", o)
	}
	var out bytes.Buffer
	if err := r.Logs(ctx, "a", api.LogRequest{Timestamps: true}, driver.Stream{Out: &out}); err != nil || out.String() != "1970-01-01T00:16:45Z late\n" {
		t.Fatalf("%q %v", &out, err)
	}
}

func TestSameSeedSameLife(t *testing.T) {
	live := func(seed uint64) (fails []bool) {
		r, _ := New(driver.Deps{Clock: clock.NewManual(time.Unix(0, 0))}, Config{Seed: seed, StartFailures: 0.5})
		for range 64 {
			_, err := r.Ensure(context.Background(), spec("a", "sleep", "1000"))
			if err != nil && !errors.Is(err, errs.Unavailable) {
				t.Fatal(err)
			}
			fails = append(fails, err != nil)
			_ = r.Remove(context.Background(), "a")
		}
		return fails
	}
	if !reflect.DeepEqual(live(1), live(1)) || reflect.DeepEqual(live(1), live(2)) {
		t.Fatal("the seed does not decide")
	}
}

func TestSlowStartsAndReboot(t *testing.T) {
	m := clock.NewManual(time.Unix(0, 0))
	r, _ := New(driver.Deps{Clock: m}, Config{StartMin: api.Duration(time.Second)})
	done := make(chan error, 1)
	go func() {
		_, err := r.Ensure(context.Background(), spec("a", "sleep", "1000"))
		done <- err
	}()
	for {
		if _, waiting := m.Next(); waiting {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if o, _ := r.Observe(context.Background()); len(o) != 0 {
		t.Fatalf("there before its time: %+v", o)
	}
	m.Advance(time.Second)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := r.Start(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	if r.Reboot() != 1 {
		t.Fatal("nothing ran")
	}
	if o, _ := r.Observe(context.Background()); o[0].ExitCode != 137 {
		t.Fatalf("%+v", o)
	}
}

func TestScriptedExitAndUsage(t *testing.T) {
	m := clock.NewManual(time.Unix(0, 0))
	r, _ := New(driver.Deps{Clock: m}, Config{Load: 0.5, Warnings: []string{"w"}})
	s := spec("a", "server")
	s.Instance.Spec.Requests = api.Resources{api.CPU: 1000, api.Memory: 100}
	ctx := context.Background()
	if _, err := r.Ensure(ctx, s); err != nil {
		t.Fatal(err)
	}
	if r.Exit("a", 1, false) {
		t.Fatal("ended before it started")
	}
	_ = r.Start(ctx, "a")
	m.Advance(10 * time.Second)
	if u, err := r.Usage(ctx, "a"); err != nil || u.CPU != 5*time.Second || u.Memory != 50 {
		t.Fatalf("%+v %v", u, err)
	}
	r.SetUsage("a", &api.Usage{Memory: 7})
	if u, _ := r.Usage(ctx, "a"); u.Memory != 7 || !u.At.Equal(m.Now()) {
		t.Fatalf("%+v", u)
	}
	if !r.Exit("a", 137, true) || r.Exit("a", 1, false) {
		t.Fatal("exit")
	}
	if o, _ := r.Observe(ctx); !o[0].OOMKilled || o[0].Warnings[0] != "w" {
		t.Fatalf("%+v", o)
	}
	r.Fail(errs.New(errs.Unavailable, "down"))
	if _, err := r.Observe(ctx); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("echo a; sleep 0.5; trap 'exit 3' TERM; exit 7")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parse([]string{"sh", "-c", s})
		if err == nil {
			if after, _, _ := p.end(-1); after < 0 {
				t.Fatal("ends before it starts")
			}
		}
	})
}
