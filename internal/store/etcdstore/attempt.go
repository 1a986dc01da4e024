package etcdstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/raft/v3"
	"google.golang.org/grpc/status"
)

// A write that was under way to a leader that dies is lost without a word, or is not: etcd
// waits for it until its time is over, and then nobody knows. So every commit of a group
// also writes a number of its own to a slot, on the condition that the slot is as it was.
// When the lead changes the commit is sent again: whichever of the attempts is carried out
// first makes the other impossible, and the slot tells afterwards that it was ours.
//
// Slots lie outside of the objects. A process has as many as it has commits under way.

const (
	// afterChange is how long an attempt is waited for once another leads.
	afterChange = 150 * time.Millisecond
	// attemptPoll is between looks at who leads, attemptPause before another attempt.
	attemptPoll, attemptPause = 25 * time.Millisecond, 20 * time.Millisecond
)

// slot is a key only one commit at a time writes.
type slot struct {
	key string
	rev int64 // as last written; 0: not yet
}

// slots are those nobody uses now.
type slots struct {
	mu    sync.Mutex
	base  string
	free  []*slot
	count int
	stale []string // of others: the next commit removes them
}

// maxStale bounds what one commit removes beside what it is for.
const maxStale = 64

func (s *Store) slotRoot() string { return strings.TrimSuffix(s.cfg.Prefix, "/") + "/s/" }

// sweep gives the removals that the next commit makes on its way.
func (s *slots) sweep(but string) []clientv3.Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []clientv3.Op
	for _, k := range s.stale {
		if k != but {
			out = append(out, clientv3.OpDelete(k))
		}
	}
	s.stale = nil
	return out
}

func (s *slots) take(root string) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		x := s.free[n-1]
		s.free = s.free[:n-1]
		return x
	}
	if s.base == "" {
		s.base = root + nonce() + "/"
	}
	s.count++
	return &slot{key: fmt.Sprint(s.base, s.count)}
}

func (s *slots) give(x *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, x)
}

func nonce() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// txn is a transaction as Commit builds it.
type txn struct {
	conds         []clientv3.Cmp
	writes, reads []clientv3.Op
}

// outcome of a transaction: carried out at rev, or what was there instead.
type outcome struct {
	ok    bool
	rev   int64
	found []*clientv3.GetResponse // one for each of reads
}

// run carries a transaction out, once. The caller has entered.
func (s *Store) run(ctx context.Context, cl *clientv3.Client, t txn) (outcome, error) {
	if s.member == nil || s.alone() {
		resp, err := cl.Txn(ctx).If(t.conds...).Then(t.writes...).Else(t.reads...).Commit()
		if err != nil {
			return outcome{}, err
		}
		return outcomeOf(resp), nil
	}
	if len(t.writes) == 0 {
		return s.until(ctx, func(ctx context.Context) (outcome, error) {
			resp, err := cl.Txn(ctx).If(t.conds...).Else(t.reads...).Commit()
			if err != nil {
				return outcome{}, err
			}
			return outcomeOf(resp), nil
		})
	}
	x, mine := s.slots.take(s.slotRoot()), nonce()
	t.writes = append(t.writes[:len(t.writes):len(t.writes)], s.slots.sweep(x.key)...)
	for {
		out, err := s.until(ctx, func(ctx context.Context) (outcome, error) {
			resp, err := cl.Txn(ctx).
				If(append(t.conds[:len(t.conds):len(t.conds)], clientv3.Compare(clientv3.ModRevision(x.key), "=", x.rev))...).
				Then(append(t.writes[:len(t.writes):len(t.writes)], clientv3.OpPut(x.key, mine))...).
				Else(append(t.reads[:len(t.reads):len(t.reads)], clientv3.OpGet(x.key))...).Commit()
			if err != nil {
				return outcome{}, err
			}
			return outcomeOf(resp), nil
		})
		if err != nil {
			return outcome{}, err // what became of it is not known, so the slot is left alone
		}
		if out.ok {
			x.rev = out.rev
			s.slots.give(x)
			return out, nil
		}
		last := len(out.found) - 1
		at, value := int64(0), ""
		if kvs := out.found[last].Kvs; len(kvs) > 0 {
			at, value = kvs[0].ModRevision, string(kvs[0].Value)
		}
		out.found = out.found[:last]
		moved := at != x.rev
		x.rev = at
		switch {
		case value == mine: // an earlier attempt was carried out after all
			s.slots.give(x)
			return outcome{ok: true, rev: at}, nil
		case moved: // housekeeping removed the slot: it says nothing about the rest
			continue
		}
		s.slots.give(x)
		return out, nil
	}
}

func outcomeOf(resp *clientv3.TxnResponse) outcome {
	out := outcome{ok: resp.Succeeded, rev: resp.Header.Revision}
	if resp.Succeeded {
		return out
	}
	for _, r := range resp.Responses {
		out.found = append(out.found, (*clientv3.GetResponse)(r.GetResponseRange()))
	}
	return out
}

// until repeats fn as long as the group has no leader, or another than the one that fn was
// begun under. fn must be harmless to repeat.
func (s *Store) until(ctx context.Context, fn func(context.Context) (outcome, error)) (outcome, error) {
	for {
		out, err := s.attempt(ctx, fn)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return out, err
		}
		if s.cfg.Clock.Sleep(ctx, attemptPause) != nil {
			return out, err
		}
	}
}

// errAbandoned is an attempt that was begun under a leader who is no more.
var errAbandoned = errors.New("the leader changed")

func (s *Store) attempt(ctx context.Context, fn func(context.Context) (outcome, error)) (outcome, error) {
	srv := s.member.server.Server
	under := srv.Leader()
	actx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		out outcome
		err error
	}
	done := make(chan result, 1)
	go func() { // ends with actx, and is always waited for
		out, err := fn(actx)
		done <- result{out, err}
	}()
	var since time.Time
	for {
		t := s.cfg.Clock.NewTimer(attemptPoll)
		select {
		case r := <-done:
			t.Stop()
			return r.out, r.err
		case <-t.C:
		}
		now := srv.Leader()
		switch {
		case now == under || now == 0:
			since = time.Time{}
			if under == 0 {
				under = now
			}
		case since.IsZero():
			since = s.cfg.Clock.Now()
		case s.cfg.Clock.Now().Sub(since) >= afterChange:
			cancel()
			if r := <-done; r.err == nil {
				return r.out, nil
			}
			return outcome{}, errAbandoned
		}
	}
}

// passing reports whether an error says no more than that the lead is changing.
func passing(err error) bool {
	if errors.Is(err, errAbandoned) {
		return true
	}
	err = rpctypes.Error(err)
	for _, e := range []error{rpctypes.ErrNoLeader, rpctypes.ErrNotLeader, rpctypes.ErrLeaderChanged} {
		if errors.Is(err, e) {
			return true
		}
	}
	msg := err.Error()
	if st, ok := status.FromError(err); ok {
		msg = st.Message()
	}
	return strings.Contains(msg, raft.ErrProposalDropped.Error())
}

// get reads, also while the lead changes. The caller has entered.
func (s *Store) get(ctx context.Context, cl *clientv3.Client, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if s.member == nil || s.alone() {
		return cl.Get(ctx, key, s.readOpts(opts...)...)
	}
	out, err := s.until(ctx, func(ctx context.Context) (outcome, error) {
		resp, err := cl.Get(ctx, key, opts...)
		return outcome{found: []*clientv3.GetResponse{resp}}, err
	})
	if err != nil {
		return nil, err
	}
	return out.found[0], nil
}
