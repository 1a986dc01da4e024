package etcdstore

import (
	"context"
	"errors"
	"log/slog"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// defragFrom is the size below which free space in the file is not worth a pause.
const defragFrom = 32 << 20

// mark remembers which revision was the newest at a time.
type mark struct {
	at  time.Time
	rev int64
}

// keeper is what housekeeping remembers.
type keeper struct {
	marks []mark
	tried int64 // revision at which a full database was last defragmented
}

// keep bounds history and file size until ctx ends. What fails is tried again at
// the next look; the alarm of a full database reaches users by their commits.
func (s *Store) keep(ctx context.Context) {
	var k keeper
	for s.cfg.Clock.Sleep(ctx, s.cfg.KeepEvery) == nil {
		if err := s.keepOnce(ctx, &k); err != nil && ctx.Err() == nil {
			s.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "etcd housekeeping", slog.Any("error", err))
		}
	}
}

func (s *Store) keepOnce(ctx context.Context, k *keeper) error {
	rev, err := s.revision(ctx)
	if err != nil {
		return s.explain(ctx, "read the revision", err)
	}
	now := mark{at: s.cfg.Clock.Now(), rev: rev}
	var upTo int64
	k.marks, upTo = horizon(append(k.marks, now), s.cfg.HistoryAge, s.cfg.HistoryRevisions)
	if upTo > 0 {
		if err := s.Compact(ctx, upTo); err != nil {
			return err
		}
		if err := s.staleSlots(ctx, upTo); err != nil {
			return s.explain(ctx, "look for old slots", err)
		}
	}
	return s.shrink(ctx, k, now.rev)
}

// staleSlots finds slots that nobody wrote for as long as history is kept: of processes
// that ended. They go with a commit that is made anyway: a revision of their own would
// change no object, and readers would wait for it in vain.
func (s *Store) staleSlots(ctx context.Context, upTo int64) error {
	cl, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if s.member == nil || s.alone() {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	resp, err := cl.Get(call, s.slotRoot(), clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithMaxModRev(upTo), clientv3.WithLimit(maxStale), clientv3.WithSerializable())
	if err != nil {
		return err
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	s.slots.stale = s.slots.stale[:0]
	for _, kv := range resp.Kvs {
		s.slots.stale = append(s.slots.stale, string(kv.Key))
	}
	return nil
}

func (s *Store) revision(ctx context.Context) (int64, error) {
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	resp, err := cl.Get(call, s.root, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return resp.Header.Revision, nil
}

// horizon decides what of the history may go: what was old news at the newest mark
// that is older than age, and more when there are more than most revisions. It
// gives back the marks still needed and 0 when nothing may go.
func horizon(marks []mark, age time.Duration, most int64) ([]mark, int64) {
	now := marks[len(marks)-1]
	upTo, first := now.rev-most, 0
	for i, m := range marks {
		if now.at.Sub(m.at) >= age {
			upTo, first = max(upTo, m.rev), i+1
		}
	}
	return marks[first:], max(upTo, 0)
}

// Compact forgets the history up to rev; what is there stays. It returns when the
// space is free in the database file.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	cl, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	call, cancel := context.WithTimeout(ctx, max(s.cfg.Timeout, s.cfg.KeepEvery))
	defer cancel()
	_, err = cl.Compact(call, rev, clientv3.WithCompactPhysical())
	if errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted) {
		return nil // somebody did already
	}
	return s.explain(ctx, "compact", err)
}

// shrink gives free space of the embedded database back to the file system when
// it is most of the file, or when the database is full, and lifts the alarm of a
// full database once there is room again.
func (s *Store) shrink(ctx context.Context, k *keeper, rev int64) error {
	if s.cfg.DataDir == "" {
		return nil // the operator's
	}
	full, err := s.alarms(ctx)
	if err != nil {
		return s.explain(ctx, "read alarms", err)
	}
	again := len(full) > 0 && k.tried != rev // something was deleted since
	if again {
		if err := s.Compact(ctx, rev); err != nil { // history is what a full database can do without
			return err
		}
	}
	cl, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	be := s.member.server.Server.Backend()
	size, used := be.Size(), be.SizeInUse()
	// A full database accepts no writes, and so does not even learn which pages are
	// free: look for itself, once after each time something was deleted.
	if size >= defragFrom && used < size/3 || again {
		k.tried = rev
		if err := be.Defrag(); err != nil {
			return s.explain(ctx, "defragment", err)
		}
	}
	if len(full) == 0 || be.Size() > s.cfg.QuotaBytes/10*9 {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	for _, id := range full {
		if _, err := cl.AlarmDisarm(call, &clientv3.AlarmMember{MemberID: id, Alarm: pb.AlarmType_NOSPACE}); err != nil {
			return s.explain(ctx, "lift the alarm", err)
		}
	}
	return nil
}

// alarms lists the members whose database is full.
func (s *Store) alarms(ctx context.Context) (full []uint64, err error) {
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	resp, err := cl.AlarmList(call)
	if err != nil {
		return nil, err
	}
	for _, a := range resp.Alarms {
		if a.Alarm == pb.AlarmType_NOSPACE {
			full = append(full, a.MemberID)
		}
	}
	return full, nil
}
