package shaping

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// wire is a network whose cables carry what their bounds let pass of what is wanted.
type wire struct {
	driver.Network
	uplink int64
	wants  map[driver.Cable]int64 // bits per second, in each direction
	bands  map[driver.Cable][2]api.Band
	bytes  map[driver.Cable]uint64
	waits  map[driver.Cable]bool
	moves  int
}

func (w *wire) Uplink() int64 { return w.uplink }

func (w *wire) Shape(_ context.Context, c driver.Cable, to, from api.Band) error {
	if _, ok := w.wants[c]; !ok {
		return errs.New(errs.NotFound, "no %v", c)
	}
	w.moves++
	w.bands[c] = [2]api.Band{to, from}
	return nil
}

func (w *wire) Traffic(context.Context) (map[driver.Cable]driver.Traffic, error) {
	out := map[driver.Cable]driver.Traffic{}
	for c, b := range w.bands {
		if b[0].Limit == 0 && b[1].Limit == 0 {
			continue
		}
		f := driver.Passed{Limit: b[0].Limit, Bytes: w.bytes[c]}
		if w.waits[c] {
			f.Waiting = 1000
		}
		out[c] = driver.Traffic{To: f, From: f}
		out[c] = driver.Traffic{To: f, From: driver.Passed{Limit: b[1].Limit, Bytes: w.bytes[c], Waiting: f.Waiting}}
	}
	return out, nil
}

// pass lets a beat go by.
func (w *wire) pass(d time.Duration) {
	for c, want := range w.wants {
		rate := want
		if l := w.bands[c][0].Limit; l != 0 && l < rate {
			rate = l
		}
		w.waits[c] = rate < want
		w.bytes[c] += uint64(float64(rate) * d.Seconds() / 8)
	}
}

type scene struct {
	*testing.T
	s   *Shaping
	w   *wire
	st  store.Store
	clk *clock.Manual
}

func newScene(t *testing.T, uplink int64) *scene {
	w := &wire{uplink: uplink, wants: map[driver.Cable]int64{}, bands: map[driver.Cable][2]api.Band{}, bytes: map[driver.Cable]uint64{}, waits: map[driver.Cable]bool{}}
	clk := clock.NewManual(time.Unix(1e9, 0))
	st := store.NewMem()
	return &scene{t, New(Deps{Node: "isle1", Store: st, Clock: clk, Log: slog.New(slog.DiscardHandler), Network: w}), w, st, clk}
}

func (x *scene) put(o api.Object) {
	x.Helper()
	ref := api.RefOf(o)
	if old, err := x.st.Get(x.Context(), ref); err == nil {
		o.Metadata().Revision, o.Metadata().UID = old.Metadata().Revision, old.Metadata().UID
		_, err = x.st.Commit(x.Context(), store.Update(o))
		x.must(err)
	} else {
		_, err := x.st.Commit(x.Context(), store.Create(o))
		x.must(err)
	}
	_, err := controller{x.s}.Reconcile(x.Context(), x.st, ref)
	x.must(err)
}

func (x *scene) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

func (x *scene) tenant(name string, guarantee, limit int64) {
	t := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: name}}}
	if guarantee != 0 {
		t.Spec.Guarantee = api.Resources{api.NetBandwidth: guarantee}
	}
	if limit != 0 {
		t.Spec.Limit = api.Resources{api.NetBandwidth: limit}
	}
	x.put(t)
}

func (x *scene) instance(tenant, name string, guarantee, limit int64) (driver.Cable, *api.Instance) {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: tenant}}}
	if guarantee != 0 {
		in.Spec.Requests = api.Resources{api.NetBandwidth: guarantee}
	}
	if limit != 0 {
		in.Spec.Limits = api.Resources{api.NetBandwidth: limit}
	}
	in.Status = api.InstanceStatus{Node: "isle1", State: api.StateRunning, RuntimeID: "x" + name}
	x.put(in)
	c := driver.Cable{ID: "x" + name, Name: "eth0"}
	if _, ok := x.w.wants[c]; !ok {
		x.w.wants[c] = 0
	}
	return c, in
}

// beats lets some go by and gives what passed in the last one, in Mbit/s.
func (x *scene) beats(n int) map[string]int64 {
	x.Helper()
	var before map[driver.Cable]uint64
	for range n {
		_, err := x.s.turn(x.Context())
		x.must(err)
		before = map[driver.Cable]uint64{}
		for c, b := range x.w.bytes {
			before[c] = b
		}
		x.w.pass(beat)
		x.clk.Advance(beat)
	}
	out := map[string]int64{}
	for c := range x.w.wants {
		out[c.ID] = int64(float64(x.w.bytes[c]-before[c]) * 8 / beat.Seconds() / mbit)
	}
	return out
}

func (x *scene) check(what string, got map[string]int64, id string, least, most int64) {
	x.Helper()
	if got[id] < least || got[id] > most {
		x.Errorf("%s: %s has %d Mbit/s, want %d to %d; all: %v", what, id, got[id], least, most, got)
	}
}

func TestTenantsLimitHoldsOverItsInstances(t *testing.T) {
	x := newScene(t, 0)
	x.tenant("acme", 0, 100*mbit)
	a, _ := x.instance("acme", "a", 0, 0)
	b, _ := x.instance("acme/research", "b", 0, 0)
	x.w.wants[a], x.w.wants[b] = 1000*mbit, 1000*mbit
	got := x.beats(6)
	x.check("both", got, "xa", 47, 53)
	x.check("both", got, "xb", 47, 53)
	x.w.wants[b] = 0
	x.check("one is idle", x.beats(6), "xa", 97, 100)
	x.w.wants[b] = 1000 * mbit
	got = x.beats(4)
	x.check("it is back", got, "xb", 45, 53)
	if got["xa"]+got["xb"] > 100 {
		t.Errorf("together %v", got)
	}
	// A change of the limit holds with the next beat, and nothing is left of it when it is gone.
	x.tenant("acme", 0, 20*mbit)
	got = x.beats(2)
	if got["xa"]+got["xb"] > 20 {
		t.Errorf("together %v of 20", got)
	}
	x.tenant("acme", 0, 0)
	got = x.beats(2)
	if x.w.bands[a] != [2]api.Band{} || got["xa"] != 1000 {
		t.Errorf("left: %v, %v", x.w.bands[a], got)
	}
	moves := x.w.moves
	x.beats(3)
	if x.w.moves != moves {
		t.Errorf("bounds were moved %d times though nothing is shared", x.w.moves-moves)
	}
}

func TestGuaranteeIsThereWhenTheUplinkIsFull(t *testing.T) {
	x := newScene(t, 1000*mbit)
	a, _ := x.instance("acme", "a", 400*mbit, 0)
	b, _ := x.instance("other", "b", 0, 0)
	c, _ := x.instance("other", "c", 0, 0)
	x.w.wants[b], x.w.wants[c] = 5000*mbit, 5000*mbit
	got := x.beats(8)
	if got["xb"]+got["xc"] < 950 {
		t.Errorf("what is guaranteed and not used is not borrowed: %v", got)
	}
	x.w.wants[a] = 400 * mbit
	x.check("wanted again", x.beats(8), "xa", 380, 1000)
}

func TestSeveralInterfacesHaveOneLimit(t *testing.T) {
	x := newScene(t, 0)
	a, in := x.instance("acme", "a", 0, 100*mbit)
	b := driver.Cable{ID: a.ID, Name: "eth1"}
	in = api.Clone(in)
	in.Spec.Networks = []api.Attach{{Name: "front"}, {Name: "back"}}
	x.put(in)
	x.w.wants[a], x.w.wants[b] = 1000*mbit, 1000*mbit
	x.beats(6)
	if sum := x.w.bands[a][0].Limit + x.w.bands[b][0].Limit; sum > 100*mbit || sum < 95*mbit {
		t.Errorf("together %d", sum)
	}
}

func TestBandsAtFirst(t *testing.T) {
	x := newScene(t, 0)
	x.tenant("acme", 0, 100*mbit)
	_, a := x.instance("acme/lab", "a", 0, 500*mbit)
	if b := x.s.Bands(a); b[0].Limit != 100*mbit || b[1].Limit != 100*mbit {
		t.Errorf("alone: %+v", b)
	}
	_, c := x.instance("acme", "c", 0, 0)
	if b := x.s.Bands(c); b[0].Limit != 5*mbit {
		t.Errorf("beside another: %+v", b)
	}
	_, d := x.instance("free", "d", 0, 0)
	if b := x.s.Bands(d); *b != [2]api.Band{} {
		t.Errorf("without any limit: %+v", b)
	}
}

// Run follows the store, and ends.
func TestRun(t *testing.T) {
	x := newScene(t, 0)
	s := New(Deps{Node: "isle1", Store: x.st, Clock: clock.Real{}, Log: x.s.Log, Network: x.w})
	x.tenant("acme", 0, 100*mbit)
	c, _ := x.instance("acme", "a", 0, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-ctx.Done()
	if err := <-done; err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	if l := x.w.bands[c][1].Limit; l < 99*mbit || l > 100*mbit {
		t.Error(fmt.Sprint("bounded to ", l))
	}
}
