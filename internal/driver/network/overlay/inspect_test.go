package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"sync"
	"testing"
	"time"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/systest"
)

// inspected is a network of two hosts, on which db lets in only web, and only to port 80.
func inspected(t *testing.T) (hs []*host, web, db, other *box, l *lan) {
	hs = hosts(t, 2)
	web, db, other = hs[0].box("web", 2, 256), hs[1].box("db", 3, 257), hs[0].box("other", 4, 258)
	l = newLAN(70001, "acme", web, db, other)
	l.policy[db.four] = driver.Policy{Ingress: 9, IngressDry: 11}
	l.table = driver.Table{Pairs: map[driver.PairKey]driver.Pair{{Set: 9, Peer: 256}: {List: 8, Lens: 1 << 16}, {Set: 11, Peer: 258}: {All: 12}},
		Lists: map[driver.ListKey]uint32{{List: 8, Proto: 6, Len: 16, Port: 80}: 7}}
	l.replace(hs...)
	l.attach()
	for _, b := range l.boxes {
		b.serve(80)
	}
	return hs, web, db, other, l
}

func TestTellsWhatTheTablesSay(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs, web, db, other, l := inspected(t)
	d := hs[1].d
	wires, err := d.Wires()
	must(t, err)
	if len(wires) != 1 || wires[0].Instance.Name != "db" || wires[0].VNI != 70001 || wires[0].Addrs[0] != db.four {
		t.Fatalf("%+v", wires)
	}
	ask := func(d *Driver, local, remote netip.Addr, ingress bool, port uint16) driver.Verdict {
		v, err := d.Judge(driver.Question{VNI: 70001, Local: local, Remote: remote, Ingress: ingress, Proto: 6, Port: port})
		must(t, err)
		return v
	}
	if v := ask(d, db.four, web.four, true, 80); !v.Allowed || v.Rule != 7 || v.Peer != 256 || v.Port != wires[0].Port || v.Dry == nil || v.Dry.Allowed {
		t.Errorf("web to db: %+v", v)
	}
	if v := ask(d, db.four, web.four, true, 81); v.Allowed {
		t.Errorf("web to another port of db: %+v", v)
	}
	if v := ask(d, db.four, other.four, true, 80); v.Allowed || v.Dry == nil || !v.Dry.Allowed {
		t.Errorf("other to db: %+v", v)
	}
	if v := ask(hs[0].d, web.four, db.four, false, 80); !v.Allowed || v.Set != 0 {
		t.Errorf("web may not send: %+v", v)
	}
	if _, err := d.Judge(driver.Question{VNI: 70001, Local: web.four, Remote: db.four}); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a wire of another host: %v", err)
	}
	if _, err := d.Judge(driver.Question{VNI: 5, Local: web.four, Remote: db.four}); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("a network that is not here: %v", err)
	}

	// Refused packets are told, allowed ones when they are sampled or their rule is logged.
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var told []driver.FlowEvent
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Events(ctx, func(e driver.FlowEvent) { mu.Lock(); told = append(told, e); mu.Unlock() }); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	seen := func(what string, fn func(driver.FlowEvent) bool) {
		t.Helper()
		for range 100 {
			mu.Lock()
			for _, e := range told {
				if fn(e) {
					mu.Unlock()
					return
				}
			}
			mu.Unlock()
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("%s was not told: %+v", what, told)
	}
	must(t, d.Log(7, true))
	web.reaches(db, 80)
	other.misses(db, 80)
	seen("the logged flow", func(e driver.FlowEvent) bool {
		return e.Refused == "" && e.Rule == 7 && e.Src == web.four && e.DstPort == 80 && e.Ingress && e.Dry && e.VNI == 70001
	})
	seen("the refusal", func(e driver.FlowEvent) bool {
		return e.Refused != "" && e.Judged && e.Src == other.four && e.Dst == db.four
	})
	found := false
	must(t, d.Flows(func(f driver.Flow) bool {
		found = found || f.Ingress && f.Local == db.four && f.Remote == web.four && f.LocalPort == 80 && f.Rule == 7 && f.Packets > 2 && f.Age < time.Minute && f.VNI == 70001
		return true
	}))
	if !found {
		t.Error("the flow is not in the table")
	}
	c, err := d.Counts()
	must(t, err)
	if c.Rules[7] == 0 || c.Dry[11].Refused == 0 || len(c.Drops[wires[0].Port]) == 0 {
		t.Errorf("%+v", c)
	}
	must(t, d.Sample(1))
	db.reaches(web, 80) // out of db: no set, no rule
	seen("the sampled flow", func(e driver.FlowEvent) bool { return e.Refused == "" && e.Src == db.four && !e.Ingress })
	must(t, d.Sample(0))
	_ = l
}

func TestTapsAndTriesPaths(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs, web, db, other, _ := inspected(t)
	var got [][]byte
	errSeen := errors.New("seen")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ready := make(chan error, 1)
	go func() {
		_, err := hs[0].d.Tap(ctx, 70001, web.four, 96, func(f driver.Frame) error {
			if f.At.IsZero() || f.Size < len(f.Data) || len(f.Data) > 96 {
				return fmt.Errorf("frame of %d of %d bytes at %s", len(f.Data), f.Size, f.At)
			}
			got = append(got, bytes.Clone(f.Data))
			if len(got) >= 6 {
				return errSeen
			}
			return nil
		})
		ready <- err
	}()
	time.Sleep(50 * time.Millisecond)
	web.reaches(db, 80)
	if err := <-ready; !errors.Is(err, errSeen) {
		t.Fatal(err)
	}
	tcp := 0
	for _, b := range got {
		if len(b) > 34 && binary.BigEndian.Uint16(b[12:]) == 0x0800 && b[23] == 6 {
			tcp++
		}
	}
	if tcp == 0 {
		t.Errorf("no TCP among %d packets", len(got))
	}
	if _, err := hs[0].d.Tap(ctx, 70001, db.four, 96, nil); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a wire of another host: %v", err)
	}
	// It ends with its context, without an error, and when its wire goes.
	short, stop := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer stop()
	if _, err := hs[0].d.TapInside(short, web.ns.Path(), 96, func(driver.Frame) error { return nil }); err != nil {
		t.Error(err)
	}
	go func() {
		_, err := hs[0].d.Tap(ctx, 70001, other.four, 96, func(driver.Frame) error { return nil })
		ready <- err
	}()
	time.Sleep(50 * time.Millisecond)

	// db refuses echoes of all, so they go the other way; web lets everything in.
	r, err := hs[1].d.Reach(t.Context(), db.ns.Path(), driver.Probe{To: web.four, Echo: true, Port: 80})
	must(t, err)
	if r.Answered == 0 || r.RTT <= 0 || r.MTU == 0 || r.Largest != r.MTU || r.TCP != "connected" {
		t.Errorf("db to web: %+v", r)
	}
	if r, err = hs[1].d.Reach(t.Context(), db.ns.Path(), driver.Probe{To: web.six, Echo: true, Port: 81}); err != nil || r.Largest != r.MTU || r.TCP != "refused" {
		t.Errorf("db to web by IPv6: %+v %v", r, err)
	}
	if r, err = hs[0].d.Reach(t.Context(), other.ns.Path(), driver.Probe{To: db.four, Echo: true, Port: 80}); err != nil || r.Answered != 0 || r.TCP != "timeout" {
		t.Errorf("other to db: %+v %v", r, err)
	}
	// A way between the hosts that carries less than the network promises.
	if out, err := exec.Command("ip", "link", "set", "lan0", "mtu", "1300").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out, err := exec.Command("ip", "link", "set", "lan", "mtu", "1300").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if r, err = hs[1].d.Reach(t.Context(), db.ns.Path(), driver.Probe{To: web.four, Echo: true}); err != nil || r.Answered == 0 || r.Largest >= r.MTU || r.Largest < 1200 {
		t.Errorf("over a way of 1300 bytes: %+v %v", r, err)
	}
	hs[0].do(func(d *Driver) error { return d.Detach(t.Context(), "other") })
	if err := <-ready; errs.KindOf(err) != errs.Conflict {
		t.Errorf("the tap of a wire that went: %v", err)
	}
}
