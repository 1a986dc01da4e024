package lease

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

// Verb is what a node opens its stream of heartbeats with.
const Verb = "lease"

// beatFrame is a heartbeat; epoch 0 takes the lease.
type beatFrame struct {
	Seq      uint64        `json:"seq"`
	Epoch    int64         `json:"epoch"`
	Duration time.Duration `json:"duration,omitempty"`
}

// ackFrame answers the heartbeat of the same number.
type ackFrame struct {
	Seq      uint64        `json:"seq"`
	Epoch    int64         `json:"epoch,omitempty"`
	Rev      int64         `json:"rev,omitempty"`
	Duration time.Duration `json:"duration,omitempty"`
	Kind     errs.Kind     `json:"kind,omitempty"`
	Error    string        `json:"error,omitempty"`
}

// Serve answers a node's heartbeats on one stream until it ends.
func Serve(ctx context.Context, node string, keeper func() *Keeper, s *tunnel.Stream) error {
	way := Local(node, keeper)
	for {
		_, p, err := s.Read()
		if err != nil {
			return nil //nolint:nilerr // the node went away; its lease tells
		}
		var b beatFrame
		if err := json.Unmarshal(p, &b); err != nil {
			return errs.New(errs.Invalid, "heartbeat of %s: %w", node, err)
		}
		a := ackFrame{Seq: b.Seq}
		g, err := way.Renew(ctx, Beat{Epoch: b.Epoch, Duration: b.Duration})
		if err != nil {
			a.Kind, a.Error = errs.KindOf(err), err.Error()
		} else {
			a.Epoch, a.Rev, a.Duration = g.Epoch, g.Rev, g.Duration // never alone: this node is not in this process
		}
		if err := s.WriteJSON(api.ChanMessage, a); err != nil {
			return nil //nolint:nilerr // as above
		}
	}
}

// Remote is the way to a Keeper over a stream that is opened when it is first needed,
// and anew after it broke.
type Remote struct {
	open func(ctx context.Context) (*tunnel.Stream, error)

	mu     sync.Mutex // one heartbeat at a time
	stream *tunnel.Stream
	seq    uint64
}

// NewRemote opens streams with open; their header's verb must be Verb.
func NewRemote(open func(ctx context.Context) (*tunnel.Stream, error)) *Remote {
	return &Remote{open: open}
}

// Renew sends one heartbeat and waits for its answer.
func (r *Remote) Renew(ctx context.Context, b Beat) (Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stream == nil {
		s, err := r.open(ctx)
		if err != nil {
			return Grant{}, err
		}
		r.stream = s
	}
	s := r.stream
	stop := context.AfterFunc(ctx, func() { s.Close() }) // the read below ends with it
	g, kind, err := r.exchange(s, b)
	if !stop() || err != nil && kind == "" {
		s.Close()
		r.stream = nil
	}
	if err != nil && ctx.Err() != nil && kind == "" {
		return Grant{}, errs.New(errs.Timeout, "no answer to a heartbeat: %w", ctx.Err())
	}
	return g, err
}

// exchange gives a kind when the server itself answered with an error.
func (r *Remote) exchange(s *tunnel.Stream, b Beat) (Grant, errs.Kind, error) {
	r.seq++
	if err := s.WriteJSON(api.ChanMessage, beatFrame{Seq: r.seq, Epoch: b.Epoch, Duration: b.Duration}); err != nil {
		return Grant{}, "", errs.New(errs.Unavailable, "send a heartbeat: %w", err)
	}
	for {
		ch, p, err := s.Read()
		if err != nil {
			return Grant{}, "", errs.New(errs.Unavailable, "wait for the answer to a heartbeat: %w", err)
		}
		if ch != api.ChanMessage {
			return Grant{}, "", errs.New(errs.Unavailable, "the server does not take heartbeats: %s", clip(p))
		}
		var a ackFrame
		if err := json.Unmarshal(p, &a); err != nil {
			return Grant{}, "", errs.New(errs.Unavailable, "the answer to a heartbeat cannot be read: %w", err)
		}
		if a.Seq != r.seq {
			continue // to one that was given up
		}
		if a.Error != "" {
			return Grant{}, a.Kind, errs.New(a.Kind, "%s", a.Error)
		}
		return Grant{Epoch: a.Epoch, Rev: a.Rev, Duration: a.Duration}, "", nil
	}
}

func clip(p []byte) string { return string(p[:min(len(p), 200)]) }
