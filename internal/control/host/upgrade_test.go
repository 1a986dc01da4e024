package host

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/store"
)

var upgradeStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// convoy is hosts that do as they are told, some time or never.
type convoy struct {
	sit     upgradeSituation
	broken  map[string]bool // the new version does not prove itself there
	full    map[string]bool // no room for the programs
	restart map[string]int  // instances that start anew when the host changes
	changed []string        // hosts, in the order in which they changed
}

func newConvoy(members, others int) *convoy {
	f := &convoy{broken: map[string]bool{}, full: map[string]bool{}, restart: map[string]int{}}
	for i := range members + others {
		f.sit.hosts = append(f.sit.hosts, upgradeHost{name: fmt.Sprint("h", i), live: true, version: "v1", release: 1,
			told: api.NodeUpgrade{Active: "v1", Staged: []string{"v1"}}, member: i < members, voter: i < members})
	}
	f.sit.now, f.sit.level, f.sit.self = upgradeStart, 1, "h0"
	f.sit.up = &api.Upgrade{Head: api.Head{K: api.KindUpgrade, Meta: api.Meta{Name: api.PoolName}}, Spec: api.UpgradeSpec{Version: "v2", Release: 2, Phase: api.UpgradePrepare, Try: 1}}
	f.sit.seen = func(h string, _ time.Time) (int, int) { return 3, f.restart[h] }
	return f
}

// ask is what an administrator does.
func (f *convoy) ask(p api.UpgradePhase) { f.sit.up.Spec.Phase = p; f.sit.up.Spec.Try++ }

// step is one decision of the controller.
func (f *convoy) step() decision {
	d := nextUpgrade(f.sit)
	f.sit.up.Status, f.sit.level = d.status, d.level
	f.sit.now = f.sit.now.Add(time.Second)
	return d
}

// work has a host do its task at once.
func (f *convoy) work(i int) {
	h := &f.sit.hosts[i]
	l := f.sit.up.Status.Host(h.name)
	if l == nil || !h.live || h.told.Try == l.Try && h.told.Error != "" {
		return
	}
	to := f.sit.up.Spec.Version
	switch l.Task {
	case api.TaskStage:
		if f.full[h.name] {
			h.told.Try, h.told.Error = l.Try, "no room"
		} else if !slices.Contains(h.told.Staged, to) {
			h.told.Staged = append(h.told.Staged, to)
		}
		return
	case api.TaskBack:
		to = l.From
	case api.TaskNone:
		return
	}
	if f.broken[h.name] && l.Task == api.TaskActivate {
		h.told.Try, h.told.Error = l.Try, "v2: it ended before it was up"
		return
	}
	if h.version != to {
		f.changed = append(f.changed, h.name)
	}
	h.version, h.told.Active, h.told.Try, h.told.Error = to, to, l.Try, ""
	h.release = map[string]int{"v1": 1, "v2": 2}[to]
}

func (f *convoy) run(n int) {
	for range n {
		f.step()
		for i := range f.sit.hosts {
			f.work(i)
		}
	}
}

func (f *convoy) state(t *testing.T, want api.UpgradeState, says string) {
	t.Helper()
	if st := f.sit.up.Status; st.State != want || !strings.Contains(st.Message, says) {
		t.Fatalf("%s %q, want %s with %q\n%+v", st.State, st.Message, want, says, st.Hosts)
	}
}

func TestUpgradeWalksToItsEnd(t *testing.T) {
	f := newConvoy(3, 2)
	f.run(3)
	f.state(t, api.UpgradePrepared, "ready")
	f.ask(api.UpgradeActivate)
	f.run(40)
	f.state(t, api.UpgradeActivated, "all hosts run it")
	if want := []string{"h3", "h4", "h1", "h2", "h0"}; !slices.Equal(f.changed, want) {
		t.Errorf("changed in the order %v, want %v: who keeps no state first, who leads last", f.changed, want)
	}
	if f.sit.level != 1 {
		t.Fatal("new formats are written before the end")
	}
	f.ask(api.UpgradeFinalise)
	f.run(2)
	f.state(t, api.UpgradeFinalised, "done")
	if f.sit.level != 2 {
		t.Errorf("level %d", f.sit.level)
	}
}

func TestUpgradeGoesBack(t *testing.T) {
	f := newConvoy(3, 0)
	f.run(3)
	f.ask(api.UpgradeActivate)
	f.run(2) // some have changed
	if n := len(f.changed); n == 0 || n == 3 {
		t.Fatalf("%d have changed", n)
	}
	f.ask(api.UpgradeAbort)
	f.run(40)
	f.state(t, api.UpgradeAborted, "before")
	for _, h := range f.sit.hosts {
		if h.version != "v1" {
			t.Errorf("%s runs %s", h.name, h.version)
		}
	}
}

func TestUpgradeStops(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*convoy)
		says  string
	}{
		"a host fell back":           {func(f *convoy) { f.broken["h1"] = true }, "h1: v2: it ended before it was up"},
		"instances started anew":     {func(f *convoy) { f.restart["h1"] = 2 }, "h1: 2 of 3 instances"},
		"a host does not come back":  {func(f *convoy) { f.sit.hosts[1].live = false }, "h1: it has not come back"},
		"a host is not well in time": {func(f *convoy) { f.sit.hosts[1].voter = false }, "h1: it does not become well"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newConvoy(3, 0)
			f.run(3)
			f.ask(api.UpgradeActivate)
			f.step() // h1 is told
			if l := f.sit.up.Status.Host("h1"); l.Task != api.TaskActivate {
				t.Fatalf("%+v", l)
			}
			c.spoil(f)
			f.run(2)
			f.sit.now = f.sit.now.Add(upgradePatience)
			f.run(3)
			f.state(t, api.UpgradeStopped, c.says)
			if slices.Contains(f.changed, "h2") || slices.Contains(f.changed, "h0") {
				t.Errorf("the walk went on: %v", f.changed)
			}
			// Asked again, it goes on where it stopped.
			f.broken, f.restart, f.sit.hosts[1].live, f.sit.hosts[1].voter = nil, nil, true, true
			f.ask(api.UpgradeActivate)
			f.run(40)
			f.state(t, api.UpgradeActivated, "all hosts run it")
		})
	}
}

func TestUpgradePassesAbsentHostsOver(t *testing.T) {
	f := newConvoy(3, 1)
	f.sit.hosts[3].live = false
	f.run(3)
	f.state(t, api.UpgradePrepared, "not there now: h3")
	f.ask(api.UpgradeActivate)
	f.run(40)
	f.state(t, api.UpgradeActivated, "not there now: h3")
	// Finalised without a word about it, it is refused; left behind, it follows.
	f.ask(api.UpgradeFinalise)
	f.run(2)
	f.state(t, api.UpgradeActivated, "cannot be finalised: h3 runs v1")
	f.sit.up.Spec.Absent = []string{"h3"}
	f.ask(api.UpgradeFinalise)
	f.run(2)
	f.state(t, api.UpgradeFinalised, "follow when they return: h3")
	f.sit.hosts[3].live = true
	f.run(3)
	if h := f.sit.hosts[3]; h.version != "v2" {
		t.Errorf("it came back and runs %s: %+v", h.version, f.sit.up.Status.Host("h3"))
	}
}

func TestUpgradePausesAndRests(t *testing.T) {
	f := newConvoy(0, 3)
	f.sit.self = "h9"
	f.run(3)
	f.sit.up.Spec.Pause = api.Duration(time.Minute)
	f.ask(api.UpgradeActivate)
	f.run(10)
	if len(f.changed) != 1 {
		t.Fatalf("within the pause: %v", f.changed)
	}
	f.state(t, api.UpgradeActivating, "h1 is next, after the pause")
	f.sit.up.Spec.Paused = true
	f.sit.now = f.sit.now.Add(time.Hour)
	f.run(5)
	f.state(t, api.UpgradeActivating, "paused")
	f.sit.up.Spec.Paused, f.sit.up.Spec.Hosts = false, []string{"h2"}
	f.run(5)
	if want := []string{"h0", "h2"}; len(f.changed) < 2 || f.changed[1] != want[1] {
		t.Errorf("changed %v, want %v", f.changed, want)
	}
	f.sit.now = f.sit.now.Add(time.Hour)
	f.run(3)
	f.state(t, api.UpgradeActivated, "the chosen hosts are done")
}

func TestUpgradeWaitsForTheOtherMembers(t *testing.T) {
	f := newConvoy(3, 0)
	f.run(3)
	f.sit.hosts[2].voter = false
	f.ask(api.UpgradeActivate)
	f.run(5)
	f.state(t, api.UpgradeActivating, "waits for h2")
	if len(f.changed) != 0 && f.changed[0] != "h2" {
		t.Errorf("changed %v although there would be no majority", f.changed)
	}
}

func TestUpgradeSaysWhyAHostCannotHaveThePrograms(t *testing.T) {
	f := newConvoy(3, 0)
	f.full["h1"] = true
	f.run(4)
	f.state(t, api.UpgradePreparing, "h1: no room")
}

// TestUpgradeProperties: whatever hosts do and administrators ask for, at most one host is
// told to change at a time, the level grows only when every host that is there runs the new
// version, and left alone with good hosts it comes to its end.
func TestUpgradeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newConvoy(rapid.SampledFrom([]int{1, 3}).Draw(t, "members"), rapid.IntRange(0, 4).Draw(t, "others"))
		for range rapid.IntRange(5, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, len(f.sit.hosts)-1).Draw(t, "host")
			h := &f.sit.hosts[i]
			switch rapid.SampledFrom([]string{"work", "work", "work", "away", "here", "break", "mend", "ask", "wait"}).Draw(t, "what") {
			case "work":
				f.work(i)
			case "away":
				h.live = false
			case "here":
				h.live = true
			case "break":
				f.broken[h.name] = true
			case "mend":
				delete(f.broken, h.name)
			case "wait":
				f.sit.now = f.sit.now.Add(upgradePatience)
			case "ask":
				if f.sit.level == 1 { // the desk refuses after that
					f.ask(rapid.SampledFrom([]api.UpgradePhase{api.UpgradeActivate, api.UpgradeActivate, api.UpgradeAbort, api.UpgradeFinalise}).Draw(t, "phase"))
				}
			}
			before := f.sit.level
			f.step()
			busy := 0
			for _, l := range f.sit.up.Status.Hosts {
				if l.State == hostActivating || l.State == hostReturning {
					busy++
				}
			}
			if busy > 1 && f.sit.level == 1 {
				t.Fatalf("%d hosts change at once: %+v", busy, f.sit.up.Status)
			}
			if f.sit.level > before {
				for _, h := range f.sit.hosts {
					if h.live && h.version != "v2" {
						t.Fatalf("the level grew although %s runs %s", h.name, h.version)
					}
				}
			}
		}
		if f.sit.level > 1 {
			return
		}
		f.broken = map[string]bool{}
		for i := range f.sit.hosts {
			f.sit.hosts[i].live = true
		}
		f.ask(api.UpgradeActivate)
		for range 40 {
			f.run(3)
			f.sit.now = f.sit.now.Add(upgradePatience)
		}
		if f.sit.up.Status.State != api.UpgradeActivated {
			t.Fatalf("it does not come to its end: %s %s\n%+v", f.sit.up.Status.State, f.sit.up.Status.Message, f.sit.up.Status.Hosts)
		}
	})
}

func TestUpgradeControllerWritesStatusAndLevel(t *testing.T) {
	ctx := context.Background()
	s, clk := store.NewMem(), clock.NewManual(upgradeStart)
	node := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "h0"}}, Status: api.NodeStatus{Version: "v2", Release: 2, Upgrade: &api.NodeUpgrade{Active: "v2", Staged: []string{"v2"}},
		Conditions: []api.Condition{{Type: api.ConditionReady, Status: true}}}}
	lease := &api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: "node-h0"}}, Spec: api.LeaseSpec{Holder: "h0", State: api.LeaseHeld}}
	up := &api.Upgrade{Head: api.Head{K: api.KindUpgrade, Meta: api.Meta{Name: api.PoolName}}, Spec: api.UpgradeSpec{Version: "v2", Release: 2, Phase: api.UpgradeFinalise, Try: 1}}
	if _, err := s.Commit(ctx, store.Create(node), store.Create(lease), store.Create(up)); err != nil {
		t.Fatal(err)
	}
	c := NewUpgrade(UpgradeDeps{Clock: clk, Self: "h0"})
	if _, err := c.Reconcile(ctx, s, api.UpgradeRef()); err != nil {
		t.Fatal(err)
	}
	pool, err := store.Get[*api.Pool](ctx, s, api.PoolRef())
	if err != nil || pool.Spec.Level != 2 {
		t.Fatalf("%+v %v", pool, err)
	}
	got, err := store.Get[*api.Upgrade](ctx, s, api.UpgradeRef())
	if err != nil || got.Status.State != api.UpgradeFinalised || got.Status.EndedAt == nil || got.Revision != pool.Revision {
		t.Fatalf("not in one commit, or not at all: %+v %v", got, err)
	}
	if _, err := c.Reconcile(ctx, s, api.UpgradeRef()); err != nil {
		t.Fatal(err)
	}
	if again, err := store.Get[*api.Upgrade](ctx, s, api.UpgradeRef()); err != nil || again.Revision != got.Revision {
		t.Errorf("written again although nothing changed: %v", err)
	}
}
