package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

func (s *settings) set(t Telling) {
	s.Sample, s.EventCost, s.EventBurst = t.Sample, 0, 0
	if t.Rate > 0 {
		s.EventCost = max(1, 1e9/uint64(t.Rate))
		s.EventBurst = s.EventCost * uint64(max(t.Burst, 1)-1)
	}
}

// SetTelling changes which events are told, from the next packet on.
func (w *Wall) SetTelling(t Telling) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var s settings
	if err := w.wallMaps.Settings.Lookup(uint32(0), &s); err != nil {
		return fmt.Errorf("read the wall's settings: %w", err)
	}
	s.set(t)
	if err := w.wallMaps.Settings.Put(uint32(0), &s); err != nil {
		return fmt.Errorf("write the wall's settings: %w", err)
	}
	return nil
}

// Events calls fn for each event until ctx ends, which is no error. One caller at a time gets
// them all; two would get some each. What nobody fetches is lost and counted.
func (w *Wall) Events(ctx context.Context, fn func(Event)) error {
	r, err := ringbuf.NewReader(w.wallMaps.Events)
	if err != nil {
		return fmt.Errorf("read events of the wall: %w", err)
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() }) // wakes the reader
	defer stop()
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if ctx.Err() != nil && errors.Is(err, os.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read events of the wall: %w", err)
		}
		if e, ok := decodeEvent(rec.RawSample); ok {
			fn(e)
		}
	}
}

// Lost counts events that were not told, since the wall was made.
func (w *Wall) Lost() (uint64, error) {
	var gs []gauge
	if err := w.wallMaps.Gauges.Lookup(uint32(0), &gs); err != nil {
		return 0, fmt.Errorf("read the wall's gauges: %w", err)
	}
	n := uint64(0)
	for _, g := range gs {
		n += g.Lost
	}
	return n, nil
}

// Drops counts dropped packets of each port, by reason, since SetPort; 0 is what belonged to no port.
func (w *Wall) Drops() (map[int]map[Reason]uint64, error) {
	out := map[int]map[Reason]uint64{}
	err := each(w.wallMaps.Tallies, "tallies", func(i uint32, ts []tally) bool {
		sums := map[Reason]uint64{}
		for _, t := range ts {
			for r, n := range t.Drops {
				if n > 0 {
					sums[Reason(r)] += n
				}
			}
		}
		out[int(i)] = sums
		return true
	})
	return out, err
}

// RuleHits counts the flows that each rule has allowed. Rules that allowed none are left out.
func (w *Wall) RuleHits() (map[uint32]uint64, error) {
	out := map[uint32]uint64{}
	err := each(w.wallMaps.Rules, "rules", func(r uint32, v ruleValue) bool {
		if v.Flows > 0 {
			out[r] = v.Flows
		}
		return true
	})
	return out, err
}

// DryHits are what sets would have done to new flows that are asked and not obeyed.
type DryHits struct{ Allowed, Denied uint64 }

// DryHits counts by dry set.
func (w *Wall) DryHits() (map[uint32]DryHits, error) {
	out := map[uint32]DryHits{}
	err := each(w.wallMaps.Dries, "dry sets", func(s uint32, v dryValue) bool { out[s] = DryHits{v.Allowed, v.Denied}; return true })
	return out, err
}

// Log tells each new flow that a rule allows, or not any more. Hits in the very moment may go uncounted.
func (w *Wall) Log(rule uint32, on bool) error {
	var v ruleValue
	if err := w.wallMaps.Rules.Lookup(rule, &v); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("table of rules: %w", err)
	}
	v.Logged = 0
	if on {
		v.Logged = 1
	}
	if err := w.wallMaps.Rules.Put(rule, &v); err != nil {
		return full(w.wallMaps.Rules, "rules", err)
	}
	return nil
}

// ForgetRules and ForgetDry drop the counts of what there is no more.
func (w *Wall) ForgetRules(rules []uint32) error { return drop(w.wallMaps.Rules, "rules", rules) }

// ForgetDry drops the counts of dry sets.
func (w *Wall) ForgetDry(sets []uint32) error { return drop(w.wallMaps.Dries, "dry sets", sets) }

// Flows calls fn for each flow that is known, until it returns false. now is the time since the host started, as
// events have it. Traffic goes on meanwhile: a flow that comes or goes may be missed.
func (w *Wall) Flows(now time.Duration, fn func(Flow) bool) error {
	ports := map[uint32]portValue{}
	if err := each(w.wallMaps.Ports, "ports", func(i uint32, v portValue) bool { ports[i] = v; return true }); err != nil {
		return err
	}
	more := true
	err := each(w.wallMaps.Flows4, "flows", func(k key4, v flowValue) bool {
		f := v.flow(now, uint8(k.Proto))
		f.Ifindex, f.LocalPort, f.RemotePort = int(k.Ifindex), k.Lport, k.Rport
		f.Local, f.Remote = netip.AddrFrom4(k.Local), netip.AddrFrom4(k.Remote)
		if p, ok := ports[k.Ifindex]; ok && p.Life == v.Life {
			f.Stale = v.Epoch != p.Epoch[v.Dir&1]
			more = fn(f)
		}
		return more
	})
	if err != nil || !more {
		return err
	}
	return each(w.wallMaps.Flows6, "flows", func(k key6, v flowValue) bool {
		f := v.flow(now, uint8(k.Proto))
		f.Ifindex, f.LocalPort, f.RemotePort = int(k.Ifindex), k.Lport, k.Rport
		f.Local, f.Remote = netip.AddrFrom16(k.Local), netip.AddrFrom16(k.Remote)
		if p, ok := ports[k.Ifindex]; ok && p.Life == v.Life {
			f.Stale = v.Epoch != p.Epoch[v.Dir&1]
			return fn(f)
		}
		return true
	})
}

// Bits of a flow's state, as in maps.h.
const (
	stateEstablished = 1
	stateFin         = 2 | 4
	stateReset       = 8
	protoTCP         = 6
)

func (v flowValue) flow(now time.Duration, proto uint8) Flow {
	f := Flow{Proto: proto, Began: Direction(v.Dir & 1), Rule: v.Rule, Peer: v.Peer,
		Age: max(0, now-time.Duration(v.Began)), Idle: max(0, now-time.Duration(v.Seen)),
		Sent: Amount{v.Packets[dirFrom], v.Bytes[dirFrom]}, Received: Amount{v.Packets[dirTo], v.Bytes[dirTo]}}
	if proto == protoTCP {
		switch {
		case v.State&stateReset != 0 || v.State&stateFin == stateFin:
			f.State = "closing"
		case v.State&stateEstablished != 0 && v.Packets[0] > 0 && v.Packets[1] > 0:
			f.State = "established"
		default:
			f.State = "half-open"
		}
	}
	return f
}
