package etcdstore

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Watch follows the changes after rev.
func (s *Store) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	cl, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	alone := s.alone()
	leave()                                  // it ends with its client
	inner, cancel := context.WithCancel(ctx) // ends etcd's side when fn fails
	defer cancel()
	if !alone {
		inner = clientv3.WithRequireLeader(inner) // a member cut off from the others must not keep us waiting
	}
	key, end := s.span(sel)
	opts := []clientv3.OpOption{clientv3.WithRev(rev + 1), clientv3.WithPrevKV(), clientv3.WithProgressNotify()}
	if end != "" {
		opts = append(opts, clientv3.WithRange(end))
	}
	for resp := range cl.Watch(inner, key, opts...) {
		if err := resp.Err(); err != nil {
			if resp.CompactRevision != 0 {
				return errs.New(errs.Compacted, "the history after revision %d is gone; it starts after %d", rev, resp.CompactRevision).
					WithHint("list again and watch from the revision of the answer")
			}
			return s.explain(ctx, "watch", err)
		}
		// etcd never splits the changes of a revision over two responses.
		evs, err := s.events(sel, resp.Events)
		if err != nil {
			return err
		}
		for _, ev := range evs {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(ev); err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errs.New(errs.Unavailable, "watch: etcd ended it").WithHint("%s", s.hint())
}

func (s *Store) events(sel api.Selector, list []*clientv3.Event) ([]store.Event, error) {
	out := make([]store.Event, 0, len(list))
	for _, e := range list {
		ev, ok, err := s.event(sel, e)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, ev)
		}
	}
	store.MarkMore(out)
	return out, nil
}

// event decodes what was only when it matters.
func (s *Store) event(sel api.Selector, e *clientv3.Event) (ev store.Event, ok bool, err error) {
	key, rev := string(e.Kv.Key), e.Kv.ModRevision
	ref, named := s.refOf(key)
	if !named || !wanted(sel, ref) {
		return store.Event{}, false, nil
	}
	if e.Type == mvccpb.PUT {
		is, err := s.decode(key, e.Kv.Value, rev)
		if err != nil {
			return store.Event{}, false, err
		}
		if store.Chosen(sel, is) {
			return store.Event{Rev: rev, Object: is}, true, nil
		}
	}
	if e.PrevKv == nil {
		if e.IsCreate() {
			return store.Event{}, false, nil
		}
		// What was there has been compacted away: it may have been chosen, so say that it is gone.
		o, err := api.New(ref.Kind)
		if err != nil {
			return store.Event{}, false, err
		}
		m := o.Metadata()
		m.Tenant, m.Name = ref.Tenant, ref.Name
		return store.Event{Rev: rev, Deleted: true, Object: o}, true, nil
	}
	was, err := s.decode(key, e.PrevKv.Value, e.PrevKv.ModRevision)
	if err != nil {
		return store.Event{}, false, err
	}
	ev, ok = store.Seen(sel, rev, was, nil)
	return ev, ok, nil
}
