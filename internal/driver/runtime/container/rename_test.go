package container

import (
	"testing"

	"atoll/internal/driver"
)

// A tenant gets another name: what runs does not notice, also after a restart of the
// daemon, and what is started later is in the tenant's new group.
func TestRenamedTenant(t *testing.T) {
	f := open(t)
	ctx := t.Context()
	s := f.spec("x1", "sleep", "1000")
	o, err := f.Ensure(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(ctx, s.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r := f.reopen() // nothing of it is in memory
		if err := r.Rename(ctx, map[string]string{"t": "east/t", "x": "east/x"}); err != nil {
			t.Fatal(err)
		}
	}
	r := f.reopen()
	seen, err := r.Observe(ctx)
	if err != nil || len(seen) != 1 || seen[0].Ref.Tenant != "east/t" || seen[0].Pid != o.Pid || seen[0].Phase != driver.PhaseRunning || seen[0].UID != s.Instance.UID {
		t.Fatalf("%+v %v", seen, err)
	}
	// Limits are changed where it is.
	moved := s
	moved.Cgroup.Path = f.group + "/east.t/x1"
	moved.Instance.Tenant = "east/t"
	if _, err := r.Ensure(ctx, moved); err != nil {
		t.Fatal(err)
	}
	if !f.groups.Contains(s.Cgroup.Path, o.Pid) || f.groups.Contains(moved.Cgroup.Path, o.Pid) || r.Groups(s.ID)[0] != s.Cgroup.Path {
		t.Fatalf("it was moved: %v", r.Groups(s.ID))
	}
	if err := r.Stop(ctx, s.ID, "KILL", 0); err != nil {
		t.Fatal(err)
	}
	again, err := r.Ensure(ctx, moved)
	if err != nil {
		t.Fatal(err)
	}
	if !f.groups.Contains(moved.Cgroup.Path, again.Pid) {
		t.Error("it was started in the old group")
	}
	if len(f.groups.List(f.group)) == 0 {
		t.Fatal("no groups at all")
	}
	for _, g := range f.groups.List(f.group) {
		if g == s.Cgroup.Path {
			t.Errorf("%s is left", g)
		}
	}
}
