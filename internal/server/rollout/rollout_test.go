package rollout

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/release"
	"atoll/internal/stage"
	"atoll/internal/store"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// desk has a pool of two hosts on v1, and v2 on its disk.
func desk(t *testing.T) (*Desk, *store.Mem) {
	t.Helper()
	dir := t.TempDir()
	s := store.NewMem()
	d := &Desk{Store: s, Dir: stage.Of(dir), Backups: filepath.Join(dir, "backups"), Node: "h0", Clock: clock.NewManual(began), Level: func() int { return 1 }}
	var ops []store.Op
	for _, n := range []string{"h0", "h1"} {
		ops = append(ops,
			store.Create(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: n}}, Status: api.NodeStatus{Version: "v1", Release: 1, Arch: runtime.GOARCH}}),
			store.Create(&api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: "node-" + n}}, Spec: api.LeaseSpec{Holder: n, State: api.LeaseHeld}}),
			store.Create(&api.Member{Head: api.Head{K: api.KindMember, Meta: api.Meta{Name: n}}, Spec: api.MemberSpec{State: api.MemberVoter}}))
	}
	if _, err := s.Commit(context.Background(), ops...); err != nil {
		t.Fatal(err)
	}
	keep(t, d, "v2", `{"version":"v2","release":2}`)
	return d, s
}

// keep puts a program that says so into the desk's versions.
func keep(t *testing.T, d *Desk, version, says string) {
	t.Helper()
	from := t.TempDir()
	p := filepath.Join(from, "atolld")
	if err := os.WriteFile(p, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.Dir.Save(context.Background(), version, from, p); err != nil {
		t.Fatal(err)
	}
}

func (d *Desk) ask(action string, fn ...func(*api.UpgradeRequest)) (*api.Upgrade, error) {
	req := api.UpgradeRequest{Action: action}
	if action == "prepare" {
		req.Version = "v2"
	}
	for _, f := range fn {
		f(&req)
	}
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return d.Ask(context.Background(), req, "user root")
}

func change[T api.Object](t *testing.T, s store.Store, ref api.Ref, fn func(T)) {
	t.Helper()
	o, err := store.Get[T](context.Background(), s, ref)
	if err != nil {
		t.Fatal(err)
	}
	n := api.Clone(o)
	fn(n)
	if _, err := s.Commit(context.Background(), store.Update(n)); err != nil {
		t.Fatal(err)
	}
}

func node(n string) api.Ref { return api.Ref{Kind: api.KindNode, Name: n} }

func TestPrepareChecksAndKeepsABackup(t *testing.T) {
	d, s := desk(t)
	up, err := d.ask("prepare")
	if err != nil {
		t.Fatal(err)
	}
	if up.Spec.Release != 2 || up.Spec.Source != "h0" || up.Spec.By != "user root" || len(up.Spec.Files) != 1 || up.Spec.Phase != api.UpgradePrepare {
		t.Fatalf("%+v", up.Spec)
	}
	fi, err := os.Stat(up.Spec.Backup)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("the backup: %v %v", fi, err)
	}
	f, err := os.Open(up.Spec.Backup)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := store.Load(context.Background(), store.NewMem(), f, store.LoadOptions{}); err != nil || n != 6 {
		t.Errorf("the backup cannot be restored: %d %v", n, err)
	}
	if _, err := d.ask("prepare"); err != nil {
		t.Errorf("once more: %v", err)
	}
	if got, err := store.Get[*api.Upgrade](context.Background(), s, api.UpgradeRef()); err != nil || got.Spec.Try != 2 {
		t.Errorf("%+v %v", got, err)
	}
}

func TestPrepareRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, d *Desk, s store.Store)
		kind  errs.Kind
		says  string
	}{
		"a version nobody sent": {func(t *testing.T, d *Desk, _ store.Store) { _ = os.RemoveAll(d.Dir.Root) }, errs.NotFound, "not on this host"},
		"another one": {func(t *testing.T, d *Desk, _ store.Store) {
			_ = d.Dir.Prune()
			keep(t, d, "v2", `{"version":"v9","release":2}`)
		}, errs.Conflict, "says that it is v9"},
		"too new for the pool": {func(t *testing.T, d *Desk, _ store.Store) {
			_ = d.Dir.Prune()
			keep(t, d, "v2", `{"version":"v2","release":4}`)
		}, errs.Unsupported, "too new"},
		"too old for the pool": {func(t *testing.T, _ *Desk, s store.Store) {
			_, _ = s.Commit(context.Background(), store.Create(&api.Pool{Head: api.Head{K: api.KindPool, Meta: api.Meta{Name: "pool"}}, Spec: api.PoolSpec{Level: 3}}))
		}, errs.Unsupported, "too old"},
		"a host too far away": {func(t *testing.T, _ *Desk, s store.Store) {
			change(t, s, node("h1"), func(n *api.Node) { n.Status.Release = 5 })
		}, errs.Unsupported, "too far apart"},
		"a host of another processor": {func(t *testing.T, _ *Desk, s store.Store) {
			change(t, s, node("h1"), func(n *api.Node) { n.Status.Arch = "s390x" })
		}, errs.Invalid, "no atolld for that"},
		"a member that is away": {func(t *testing.T, _ *Desk, s store.Store) {
			change(t, s, api.NodeLease("h1"), func(l *api.Lease) { l.Spec.State = api.LeaseExpired })
		}, errs.Conflict, "no majority"},
		"a member on its way in": {func(t *testing.T, _ *Desk, s store.Store) {
			change(t, s, api.Ref{Kind: api.KindMember, Name: "h1"}, func(m *api.Member) { m.Spec.State = api.MemberLearner })
		}, errs.Conflict, "learner"},
		"a drain": {func(t *testing.T, _ *Desk, s store.Store) {
			_, _ = s.Commit(context.Background(), store.Create(&api.Drain{Head: api.Head{K: api.KindDrain, Meta: api.Meta{Name: "h1"}}, Spec: api.DrainSpec{State: api.DrainMoving}}))
		}, errs.Conflict, "being emptied"},
		"hosts that run it": {func(t *testing.T, _ *Desk, s store.Store) {
			for _, h := range []string{"h0", "h1"} {
				change(t, s, node(h), func(n *api.Node) { n.Status.Version = "v2" })
			}
		}, errs.Conflict, "already"},
	} {
		d, s := desk(t)
		c.spoil(t, d, s)
		_, err := d.ask("prepare")
		if errs.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v (%s)", name, err, errs.KindOf(err))
		}
		if left, _ := filepath.Glob(filepath.Join(d.Backups, "*")); len(left) > 0 {
			t.Errorf("%s: a backup was made for nothing", name)
		}
	}
}

func TestStepsFollowEachOther(t *testing.T) {
	d, s := desk(t)
	refused := func(action, says string, fn ...func(*api.UpgradeRequest)) {
		t.Helper()
		if _, err := d.ask(action, fn...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", action, err, says)
		}
	}
	for _, a := range []string{"activate", "pause", "resume", "finalise", "abort"} {
		refused(a, "no upgrade is under way")
	}
	if _, err := d.ask("prepare"); err != nil {
		t.Fatal(err)
	}
	refused("activate", "is not ready")
	refused("finalise", "nothing to finalise")
	status := func(st api.UpgradeState) {
		change(t, s, api.UpgradeRef(), func(u *api.Upgrade) {
			u.Status.State, u.Status.Hosts = st, []api.UpgradeHost{{Name: "h0"}, {Name: "h1"}}
		})
	}
	status(api.UpgradePrepared)
	refused("activate", "no host h9", func(r *api.UpgradeRequest) { r.Hosts = []string{"h9"} })
	up, err := d.ask("activate", func(r *api.UpgradeRequest) { p := api.Duration(time.Second); r.Pause = &p })
	if err != nil || up.Spec.Phase != api.UpgradeActivate || up.Spec.Pause.D() != time.Second || up.Spec.Try != 2 {
		t.Fatalf("%+v %v", up, err)
	}
	refused("prepare", "is activating")
	if up, err = d.ask("pause"); err != nil || !up.Spec.Paused {
		t.Fatal(err)
	}
	if up, err = d.ask("resume"); err != nil || up.Spec.Paused {
		t.Fatal(err)
	}
	refused("finalise", "do not run v2 yet: h0, h1")
	change(t, s, node("h0"), func(n *api.Node) { n.Status.Version, n.Status.Upgrade = "v2", &api.NodeUpgrade{Active: "v2"} })
	refused("finalise", "do not run v2 yet: h1", func(r *api.UpgradeRequest) { r.Absent = []string{"h1"} }) // it is there
	change(t, s, api.NodeLease("h1"), func(l *api.Lease) { l.Spec.State = api.LeaseExpired })
	refused("finalise", "away run an older version: h1")
	if up, err = d.ask("finalise", func(r *api.UpgradeRequest) { r.Absent = []string{"h1"} }); err != nil || up.Spec.Phase != api.UpgradeFinalise {
		t.Fatal(err)
	}
	refused("abort", "no way back")
	status(api.UpgradeFinalised)
	for _, a := range []string{"activate", "pause", "finalise", "abort"} {
		refused(a, "is over")
	}
}

// A host that runs no instances tells its version and gets its line, and counts like any other.
func TestToldVersion(t *testing.T) {
	d, s := desk(t)
	id := &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: "vote1"}}, Spec: api.NodeIdentitySpec{Role: api.RoleWitness}}
	if _, err := s.Commit(t.Context(), store.Create(id), store.Create(&api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: "node-vote1"}}, Spec: api.LeaseSpec{Holder: "vote1", State: api.LeaseHeld}})); err != nil {
		t.Fatal(err)
	}
	told := api.NodeIdentityStatus{Version: "v1", Release: 1, Arch: runtime.GOARCH, Upgrade: &api.NodeUpgrade{Active: "v1"}}
	tell := func() *api.Upgrade {
		t.Helper()
		up, err := d.Told(t.Context(), "vote1", told)
		if err != nil {
			t.Fatal(err)
		}
		return up
	}
	if up := tell(); len(up.Status.Hosts) != 0 || up.Spec.Version != "" {
		t.Fatalf("a task without an upgrade: %+v", up)
	}
	rev := s.Revision()
	if tell(); s.Revision() != rev {
		t.Error("what was known was written again")
	}
	if _, err := d.Told(t.Context(), "nobody", told); errs.KindOf(err) != errs.NotFound {
		t.Error(err)
	}
	told.Arch = "s390x"
	tell()
	if _, err := d.ask("prepare"); err == nil || !strings.Contains(err.Error(), "host vote1 is s390x") {
		t.Errorf("it was not looked at: %v", err)
	}
	told.Arch = runtime.GOARCH
	tell()
	if _, err := d.ask("prepare"); err != nil {
		t.Fatal(err)
	}
	change(t, s, api.UpgradeRef(), func(u *api.Upgrade) {
		u.Status.State = api.UpgradeActivated
		u.Status.Hosts = []api.UpgradeHost{{Name: "h0"}, {Name: "vote1", Task: api.TaskActivate, Try: 3}}
	})
	if up := tell(); len(up.Status.Hosts) != 1 || up.Status.Host("vote1").Task != api.TaskActivate || up.Spec.Version != "v2" {
		t.Errorf("told %+v", up.Status)
	}
	if _, err := d.ask("activate"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"h0", "h1"} {
		change(t, s, node(n), func(n *api.Node) { n.Status.Version, n.Status.Upgrade = "v2", &api.NodeUpgrade{Active: "v2"} })
	}
	if _, err := d.ask("finalise"); err == nil || !strings.Contains(err.Error(), "do not run v2 yet: vote1") {
		t.Errorf("finalised without it: %v", err)
	}
	told.Version, told.Release, told.Upgrade = "v2", 2, &api.NodeUpgrade{Active: "v2"}
	tell()
	if _, err := d.ask("finalise"); err != nil {
		t.Error(err)
	}
}

func TestServe(t *testing.T) {
	d, _ := desk(t)
	var status int
	var sent string
	serve := func(d *Desk, who auth.Identity, method, path, body string, values map[string]string) error {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		for k, v := range values {
			r.SetPathValue(k, v)
		}
		return d.Serve(Call{R: r, Body: r.Body, Who: who, Answer: func(s int, _ any) error { status = s; return nil },
			Send: func(f io.Reader, n int64) error {
				b, err := io.ReadAll(io.LimitReader(f, n))
				sent = string(b)
				return err
			}})
	}
	file := map[string]string{"version": "v2", "os": runtime.GOOS, "arch": runtime.GOARCH, "binary": "atolld"}
	host, user, root := auth.Identity{Node: "h1"}, auth.Identity{User: "eve"}, auth.Identity{User: "root", Admin: true}
	if err := serve(d, host, "GET", "/", "", file); err != nil || !strings.HasPrefix(sent, "#!/bin/sh") {
		t.Errorf("a host: %q %v", sent, err)
	}
	if err := serve(d, user, "GET", "/", "", file); !errors.Is(err, errs.Denied) {
		t.Errorf("a user: %v", err)
	}
	file["binary"] = "../manifest.json"
	if err := serve(d, root, "GET", "/", "", file); !errors.Is(err, errs.NotFound) {
		t.Errorf("a file that is no program: %v", err)
	}
	if err := serve(d, root, "POST", "/v1/upgrade", `{"action":"prepare","version":"v2"}`, nil); err != nil || status != http.StatusOK {
		t.Errorf("%d %v", status, err)
	}
	for _, bad := range []string{``, `{`, `{"action":"x"}`, `{"action":"prepare"}`, `{"action":"activate","version":"v2"}`, `{"action":"pause","hosts":["h0"]}`, `{"action":"activate","hosts":["A B"]}`, `{"acton":"pause"}`, `{"action":"activate","pause":"2h"}`} {
		if err := serve(d, root, "POST", "/v1/upgrade", bad, nil); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, v := range []string{"..", "a b", "current"} {
		if err := serve(d, root, "POST", "/", "x", map[string]string{"version": v}); !errors.Is(err, errs.Invalid) {
			t.Errorf("version %q: %v", v, err)
		}
	}
	if err := serve(d, root, "POST", "/", "no tar", map[string]string{"version": "-"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("%v", err)
	}
	if err := serve(nil, root, "POST", "/v1/upgrade", `{"action":"pause"}`, nil); !errors.Is(err, errs.Unsupported) {
		t.Errorf("a server that does not upgrade: %v", err)
	}
}

func TestAdmitTurnsOldWritersAway(t *testing.T) {
	level := 1
	d := &Desk{Level: func() int { return level }}
	try := func(method, rel string, who auth.Identity) error {
		r := httptest.NewRequest(method, "/v1/commit", nil)
		if rel != "" {
			r.Header.Set(api.HeaderRelease, rel)
		}
		return d.Admit(who, r)
	}
	host := auth.Identity{Node: "h1", Via: "certificate"}
	for level = 1; level <= 3; level++ {
		for _, c := range []struct {
			method, rel string
			who         auth.Identity
			ok          bool
		}{{"POST", "1", host, level == 1}, {"POST", "", host, level == release.First}, {"POST", "3", host, true}, {"PUT", "2", host, level <= 2}, {"GET", "1", host, true},
			{"POST", "1", auth.Identity{User: "eve"}, true}, {"POST", "", auth.Identity{Node: "h0", Via: auth.ViaProcess}, true}} {
			if err := try(c.method, c.rel, c.who); (err == nil) != c.ok || err != nil && !errors.Is(err, errs.Unsupported) {
				t.Errorf("level %d, %s of release %q by %s: %v", level, c.method, c.rel, c.who, err)
			}
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(`{"action":"prepare","version":"v2"}`)
	f.Add(`{"action":"activate","pause":"10s","hosts":["h0"]}`)
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := request(strings.NewReader(s)); err != nil && errs.KindOf(err) != errs.Invalid {
			t.Fatalf("%q: %v", s, err)
		}
	})
}
