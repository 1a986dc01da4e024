package fabric

import (
	"context"
	"encoding/json"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/segment"
)

// lookEvery is how often it is looked whether there is anything to listen to, and whether
// rules that are to be recorded have come or gone.
const lookEvery = time.Second

// listen takes what the driver tells until ctx ends.
func (f *Fabric) listen(ctx context.Context) {
	i, err := f.inspector()
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		if f.busy() {
			err := i.Sample(f.sampling())
			if err == nil {
				err = i.Events(ctx, f.heard)
			}
			if err != nil && errs.KindOf(err) != errs.Unavailable {
				f.Log.Warn("cannot hear of the traffic on networks of tenants; trying again", "error", err)
			}
		}
		_ = f.Clock.Sleep(ctx, lookEvery) // ends early only with ctx
	}
}

// note keeps the driver told of the rules that are to be recorded, until ctx ends.
func (f *Fabric) note(ctx context.Context) {
	i, err := f.inspector()
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		if f.busy() {
			if err := f.tellLogged(i); err != nil {
				f.Log.Warn("cannot have flows recorded; trying again", "error", err)
			}
		}
		_ = f.Clock.Sleep(ctx, lookEvery) // as above
	}
}

// busy reports whether there is a network here.
func (f *Fabric) busy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.nets) > 0
}

func (f *Fabric) tellLogged(i driver.Inspector) error {
	want := map[uint32]bool{}
	f.mu.Lock()
	for _, n := range f.nets {
		for _, id := range n.compiler.Logged() {
			want[id] = true
		}
	}
	f.mu.Unlock()
	f.sight.mu.Lock()
	defer f.sight.mu.Unlock()
	for id := range want {
		if !f.sight.logged[id] {
			if err := i.Log(id, true); err != nil {
				return err
			}
			f.sight.logged[id] = true
		}
	}
	for id := range f.sight.logged {
		if !want[id] {
			if err := i.Log(id, false); err != nil {
				return err
			}
			delete(f.sight.logged, id)
		}
	}
	return nil
}

// sampling is one of how many new flows are told: all while somebody looks on, and else none.
func (f *Fabric) sampling() uint32 {
	f.sight.mu.Lock()
	defer f.sight.mu.Unlock()
	if len(f.sight.followers) > 0 {
		return 1
	}
	return 0
}

// heard takes one event.
func (f *Fabric) heard(e driver.FlowEvent) {
	fl := api.NetFlow{At: f.Clock.Now().UTC(), Node: f.Node, Seen: direction(e.Ingress), From: f.end(e.VNI, e.Src), To: f.end(e.VNI, e.Dst), Protocol: api.ProtocolWord(e.Proto),
		SourcePort: e.SrcPort, Port: e.DstPort, Packets: 1, Bytes: uint64(e.Length), Refused: e.Refused, Dry: e.Dry}
	if fl.Protocol == "icmp" {
		fl.SourcePort, fl.Port = 0, 0
	}
	if !e.Src.IsValid() || e.Src.IsUnspecified() {
		fl.From = api.NetEnd{} // ARP and the like: there is nobody to name
	}
	local, dir := e.Src, segment.Egress
	if e.Ingress {
		local, dir = e.Dst, segment.Ingress
	}
	rule, ruled := f.rule(e.VNI, e.Rule)
	if ruled {
		fl.Rule = rule.String()
	}
	record := ruled && rule.Log
	var tried []segment.GroupRef
	if e.Judged || e.Dry {
		f.mu.Lock()
		if n := f.on(e.VNI); n != nil {
			for _, j := range n.compiler.Judges(local, dir) {
				record = record || j.Log && (e.Judged && !j.DryRun || e.Dry && j.DryRun)
				if j.DryRun {
					tried = append(tried, j.Group)
				}
			}
		}
		f.mu.Unlock()
	}
	s := f.sight
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Refused != "" || e.Dry {
		s.keep(refusal{e.VNI, e.Src, e.Dst, e.Proto, fl.Port, e.Ingress, e.Refused == ""}, fl, tried)
	}
	for x := range s.followers {
		if chosen(x.ask, &fl) {
			select {
			case x.next <- fl:
			default:
				x.lost++
			}
		}
	}
	if record && s.log != nil {
		if err := s.log.add(&fl); err != nil {
			f.Log.Warn("a flow was not recorded", "error", err)
		}
	}
}

// keep counts what was refused. What is oldest among a few makes room.
func (s *sight) keep(k refusal, fl api.NetFlow, tried []segment.GroupRef) {
	r := s.refused[k]
	if r == nil {
		if len(s.refused) >= keptRefusals {
			var oldest refusal
			seen := 0
			for o, x := range s.refused {
				if seen == 0 || x.flow.At.Before(s.refused[oldest].flow.At) {
					oldest = o
				}
				if seen++; seen == 8 {
					break
				}
			}
			delete(s.refused, oldest)
		}
		r = &refusals{}
		s.refused[k] = r
	}
	r.flow, r.groups = fl, tried
	r.packets++
	r.bytes += fl.Bytes
}

// follow tells of new and refused flows as they are heard of, until the caller leaves.
func (f *Fabric) follow(ctx context.Context, ask api.NetAsk, enc *json.Encoder) error {
	i, err := f.inspector()
	if err != nil {
		return err
	}
	x := &follower{ask: ask, next: make(chan api.NetFlow, followerRoom)}
	s := f.sight
	s.mu.Lock()
	if len(s.followers) >= maxFollowers {
		s.mu.Unlock()
		return errs.New(errs.Unavailable, "%d look on at the flows of node %s already", maxFollowers, f.Node).WithHint("end some: atoll net flows --follow")
	}
	s.followers[x] = true
	s.mu.Unlock()
	f.resample(i)
	defer func() {
		s.mu.Lock()
		delete(s.followers, x)
		s.mu.Unlock()
		f.resample(i)
	}()
	before, _ := i.Counts() // without it, what was lost earlier counts, too
	told := uint64(0)
	look := f.Clock.NewTimer(lookEvery)
	defer func() { look.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case fl := <-x.next:
			if err := enc.Encode(fl); err != nil {
				return err
			}
		case <-look.C:
			look = f.Clock.NewTimer(lookEvery)
			c, err := i.Counts()
			if err != nil {
				return err
			}
			s.mu.Lock()
			lost := x.lost + c.Lost - min(before.Lost, c.Lost)
			s.mu.Unlock()
			if lost > told {
				told = lost
				if err := enc.Encode(api.NetFlow{Node: f.Node, Seen: api.SeenLost, Packets: lost}); err != nil {
					return err
				}
			}
		}
	}
}

// resample has the driver tell as much as is listened to. Where there is no network yet, listen does it.
func (f *Fabric) resample(i driver.Inspector) {
	if err := i.Sample(f.sampling()); err != nil && errs.KindOf(err) != errs.Unavailable {
		f.Log.Warn("cannot change which flows are told", "error", err)
	}
}
