package etcdstore

import (
	"context"
	"errors"
	"slices"
	"sort"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"atoll/internal/errs"
	"atoll/internal/store"
)

const (
	// leadPoll is between looks whether etcd's leader is this member: etcd tells of a
	// new leader, but not that there is none any more.
	leadPoll = 50 * time.Millisecond
	// alonePoll is that of a member that nobody can take the lead from: only Regroup does.
	alonePoll = 500 * time.Millisecond
	// endedPoll is between looks whether etcd has ended.
	endedPoll = time.Second
	// sessionTTL is how long an external etcd waits for a leader that is not heard of, in seconds.
	sessionTTL = 2
)

// Regroup starts the embedded member again with other peers, in the same process and
// on the same data. Calls wait for that moment; watches break, as they do when etcd
// goes away. When it cannot start so, it goes on as it was.
func (s *Store) Regroup(ctx context.Context, p Peers) error {
	if s.cfg.DataDir == "" {
		return errs.New(errs.Unsupported, "regroup: etcd is not embedded")
	}
	next := s.cfg
	next.Peers = p
	if _, err := next.withDefaults(); err != nil {
		return err
	}
	if err := s.advertise(ctx, p.Advertise); err != nil {
		return err
	}
	s.grouped.Store(true) // from here on others may write
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.closed.Load() {
		return errs.New(errs.Unavailable, "the store is closed")
	}
	was := s.cfg
	was.Peers = s.peers
	takeLead := was.Peers.Listen == "" // it has no peers yet, so nobody else can lead
	err := s.again(ctx, next, takeLead)
	if err == nil {
		s.peers = p
		return nil
	}
	s.grouped.Store(was.Peers.Listen != "")
	if back := s.again(ctx, was, takeLead); back != nil {
		return errors.Join(err, back)
	}
	return err
}

// again closes the server and opens it with cfg. The gate is held.
func (s *Store) again(ctx context.Context, cfg Config, takeLead bool) error {
	_ = s.cl.Close() // the client inside the process has no connection to close
	if s.member.server != nil {
		s.member.server.Close()
		s.member.server = nil
	}
	ec, err := embedConfig(cfg)
	if err != nil {
		return err
	}
	if takeLead && hasSnapshot(ec.Dir) {
		err = s.member.run(ctx, ec, cfg.Clock)
	} else {
		err = s.member.run(ctx, ec, nil)
	}
	if s.member.server != nil {
		s.cl = v3client.New(s.member.server.Server)
	}
	return err
}

// advertise writes down where others reach this member, before it listens there.
func (s *Store) advertise(ctx context.Context, url string) error {
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer leave()
	id := uint64(s.member.server.Server.MemberID())
	for _, m := range s.member.server.Server.Cluster().Members() {
		if uint64(m.ID) == id && slices.Equal(m.PeerURLs, []string{url}) {
			return nil
		}
	}
	_, err = cl.MemberUpdate(call, id, []string{url})
	return s.explain(ctx, "tell where this member is reached", err)
}

// Peers lists the members, ordered by name.
func (s *Store) Peers(ctx context.Context) ([]store.Peer, error) {
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	resp, err := cl.MemberList(call)
	if err != nil {
		return nil, s.explain(ctx, "list members", err)
	}
	leader := uint64(0)
	if s.member != nil {
		leader = uint64(s.member.server.Server.Leader())
	}
	out := make([]store.Peer, 0, len(resp.Members))
	for _, m := range resp.Members {
		p := store.Peer{ID: m.ID, Name: m.Name, Learner: m.IsLearner, Leader: m.ID == leader}
		if len(m.PeerURLs) > 0 {
			p.URL = m.PeerURLs[0]
		}
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Name < out[j].Name || out[i].Name == out[j].Name && out[i].ID < out[j].ID
	})
	return out, nil
}

// Self is this member's number; 0 for an external etcd.
func (s *Store) Self() uint64 {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.member == nil || s.member.server == nil {
		return 0
	}
	return uint64(s.member.server.Server.MemberID())
}

// AddLearner makes room for a member at url.
func (s *Store) AddLearner(ctx context.Context, url string) (store.Peer, error) {
	peers, err := s.Peers(ctx)
	if err != nil {
		return store.Peer{}, err
	}
	for _, p := range peers {
		if p.URL == url {
			return p, nil
		}
	}
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return store.Peer{}, err
	}
	defer leave()
	resp, err := cl.MemberAddAsLearner(call, []string{url})
	switch err := rpctypes.Error(err); {
	case errors.Is(err, rpctypes.ErrTooManyLearners):
		return store.Peer{}, errs.New(errs.Conflict, "add a member: another one is on its way in").WithHint("one after the other; it is tried again")
	case errors.Is(err, rpctypes.ErrUnhealthy):
		return store.Peer{}, errs.New(errs.Unavailable, "add a member: %w", err).WithHint("all members must have been up for a few seconds: atoll get members")
	case err != nil:
		return store.Peer{}, s.explain(ctx, "add a member", err)
	}
	return store.Peer{ID: resp.Member.ID, URL: url, Learner: true}, nil
}

// Promote gives a learner a vote.
func (s *Store) Promote(ctx context.Context, id uint64) error {
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer leave()
	_, err = cl.MemberPromote(call, id)
	switch err := rpctypes.Error(err); {
	case err == nil, errors.Is(err, rpctypes.ErrMemberNotLearner):
		return nil
	case errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
		return errs.New(errs.Conflict, "member %x has not caught up yet", id)
	case errors.Is(err, rpctypes.ErrMemberNotFound):
		return errs.New(errs.NotFound, "there is no member %x", id)
	}
	return s.explain(ctx, "promote a member", err)
}

// RemovePeer takes a member out.
func (s *Store) RemovePeer(ctx context.Context, id uint64) error {
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer leave()
	_, err = cl.MemberRemove(call, id)
	switch err := rpctypes.Error(err); {
	case err == nil, errors.Is(err, rpctypes.ErrMemberNotFound):
		return nil
	case errors.Is(err, rpctypes.ErrMemberNotEnoughStarted), errors.Is(err, rpctypes.ErrUnhealthy):
		return errs.New(errs.Conflict, "remove member %x: the rest would have no majority: %w", id, err).WithHint("bring another member back first: atoll get members")
	case s.member != nil && s.member.stopped() && s.member.server.Server.Cluster().Member(types.ID(id)) == nil:
		return nil // it was this one, and it ended before it could answer itself
	}
	return s.explain(ctx, "remove a member", err)
}

// Sync gives a revision that whoever reads now must have seen, so that nothing
// acknowledged before the call is missed, by whichever server. It writes nothing.
func (s *Store) Sync(ctx context.Context) (int64, error) {
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	if s.member == nil {
		resp, err := cl.Get(call, s.mark)
		if err != nil {
			return 0, s.explain(ctx, "read the revision", err)
		}
		if len(resp.Kvs) == 0 {
			return 0, nil
		}
		return resp.Kvs[0].ModRevision, nil
	}
	srv := s.member.server.Server
	if s.alone() {
		return srv.KV().Rev(), nil
	}
	out, err := s.until(call, func(ctx context.Context) (outcome, error) {
		err := srv.LinearizableReadNotify(ctx)
		return outcome{rev: srv.KV().Rev()}, err
	})
	return out.rev, s.explain(ctx, "read the revision", err)
}

// Sole reports whether this process is the only one that writes.
func (s *Store) Sole() bool { return s.cfg.DataDir != "" && !s.grouped.Load() }

// Lead runs fn whenever this process leads, with a context that ends when it does not
// any more, until ctx ends. Embedded, that is while this member leads the group: a
// majority stood behind it a moment ago. External, while it is elected there. Either
// way two may believe to lead for a moment; the leader's lease is the fence. When fn
// returns by itself it is run again after a short pause.
func (s *Store) Lead(ctx context.Context, id string, fn func(ctx context.Context) error) error {
	for ctx.Err() == nil {
		var err error
		switch {
		case s.cfg.DataDir == "":
			err = s.campaign(ctx, id, fn)
		case s.leads():
			err = s.reign(ctx, fn)
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("leading", "error", err)
		}
		_ = s.cfg.Clock.Sleep(ctx, leadPoll) // ends early only with ctx
	}
	return ctx.Err()
}

func (s *Store) leads() bool {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.member == nil || s.member.server == nil || s.member.stopped() {
		return false
	}
	srv := s.member.server.Server
	return srv.Leader() == srv.MemberID()
}

// Yield gives the lead to another member whenever this one has it, until ctx ends: for
// one that keeps the state but cannot lead, such as a witness. may says to which.
func (s *Store) Yield(ctx context.Context, may func(ctx context.Context, p store.Peer) bool) error {
	for s.cfg.Clock.Sleep(ctx, leadPoll) == nil {
		if !s.leads() {
			continue
		}
		peers, err := s.Peers(ctx)
		if err != nil {
			continue // nobody to give it to; calls say so
		}
		for _, p := range peers {
			if p.Learner || p.ID == s.Self() || !s.leads() || !may(ctx, p) {
				continue
			}
			if err := s.handOver(ctx, p.ID); err == nil {
				break
			}
		}
	}
	return ctx.Err()
}

// handOverWait bounds waiting for one member to take the lead; another may be up.
const handOverWait = 500 * time.Millisecond

func (s *Store) handOver(ctx context.Context, to uint64) error {
	_, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, handOverWait)
	defer cancel()
	srv := s.member.server.Server
	return srv.MoveLeader(ctx, uint64(srv.MemberID()), to)
}

// reign runs fn until this member leads no more.
func (s *Store) reign(ctx context.Context, fn func(context.Context) error) error {
	rctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for s.leads() && s.cfg.Clock.Sleep(rctx, s.leadPause()) == nil {
		}
		cancel()
	})
	err := fn(rctx)
	cancel()
	wg.Wait()
	return err
}

// campaign waits to be elected by an external etcd, and runs fn while it is.
func (s *Store) campaign(ctx context.Context, id string, fn func(context.Context) error) error {
	cl, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	leave() // an external client is never replaced
	session, err := concurrency.NewSession(cl, concurrency.WithTTL(sessionTTL), concurrency.WithContext(ctx))
	if err != nil {
		return s.explain(ctx, "open a session", err)
	}
	defer session.Close()
	e := concurrency.NewElection(session, s.cfg.Prefix+"lead")
	if err := e.Campaign(ctx, id); err != nil {
		return s.explain(ctx, "campaign", err)
	}
	rctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-session.Done():
		case <-rctx.Done():
		}
		cancel()
	})
	err = fn(rctx)
	cancel()
	wg.Wait()
	resign, done := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
	defer done()
	return errors.Join(err, e.Resign(resign))
}

func (s *Store) leadPause() time.Duration {
	if s.Sole() {
		return alonePoll
	}
	return leadPoll
}

// Ended returns when the embedded etcd has ended without being asked to: it was taken
// out of the group, or cannot go on. With ctx it returns nil.
func (s *Store) Ended(ctx context.Context) error {
	for s.cfg.Clock.Sleep(ctx, endedPoll) == nil {
		if s.cfg.DataDir == "" || s.closed.Load() {
			continue
		}
		s.gate.RLock()
		gone := s.member.server != nil && s.member.stopped()
		s.gate.RUnlock()
		if gone && !s.closed.Load() {
			return errs.New(errs.Unavailable, "etcd on this host has ended: it was taken out of the group, or its disk failed")
		}
	}
	return nil
}

// begin is enter for a call that may take no longer than any call may: call is its context.
func (s *Store) begin(ctx context.Context) (cl *clientv3.Client, call context.Context, leave func(), err error) {
	cl, out, err := s.enter(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	call, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	return cl, call, func() { cancel(); out() }, nil
}

// enter gives the client for one call; whoever starts the member again waits for leave.
// A caller must leave before it calls another method of the Store.
func (s *Store) enter(ctx context.Context) (cl *clientv3.Client, leave func(), err error) {
	s.gate.RLock()
	if err := s.usable(ctx); err != nil {
		s.gate.RUnlock()
		return nil, nil, err
	}
	if e := s.lost.Load(); e != nil {
		s.gate.RUnlock()
		return nil, nil, e
	}
	if s.member != nil && s.member.server == nil {
		s.gate.RUnlock()
		return nil, nil, errs.New(errs.Unavailable, "etcd on this host could not be started again").WithHint("see the log of atolld, then restart it; instances run on")
	}
	return s.cl, s.gate.RUnlock, nil
}

// HandOver gives the lead to another member, where this one has it and there is one that
// can take it: before this process ends, so that nobody has to find out that it did.
func (s *Store) HandOver(ctx context.Context) error {
	if s.cfg.DataDir == "" || !s.leads() {
		return nil // an external etcd is told when leading ends
	}
	_, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := s.member.server.Server.TryTransferLeadershipOnShutdown(); err != nil {
		return s.explain(ctx, "hand the lead over", err)
	}
	return nil
}
