package etcdstore

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"atoll/api"
)

const (
	// pageKeys bounds what one range request reads, so that a large list does not hold up writes.
	pageKeys = 2000
	// minRevPause is between looks whether another member's write has arrived here.
	minRevPause = 5 * time.Millisecond
)

// found is one object before it is decoded.
type found struct {
	ref   api.Ref
	sort  string
	key   string
	value []byte
	rev   int64
}

// scan reads a range in pages, all at the revision of the first.
func (s *Store) scan(ctx context.Context, sel api.Selector) ([]found, int64, error) {
	key, end := s.span(sel)
	var out []found
	rev := int64(0)
	for {
		opts := []clientv3.OpOption{clientv3.WithLimit(pageKeys)}
		if end != "" {
			opts = append(opts, clientv3.WithRange(end))
		}
		if rev > 0 {
			opts = append(opts, clientv3.WithRev(rev))
		}
		resp, err := s.page(ctx, key, opts)
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			if ref, ok := s.refOf(string(kv.Key)); ok {
				out = append(out, found{ref: ref, sort: api.SortKey(ref), key: string(kv.Key), value: kv.Value, rev: kv.ModRevision})
			}
		}
		if !resp.More {
			return out, rev, nil
		}
		key = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

func (s *Store) page(ctx context.Context, key string, opts []clientv3.OpOption) (*clientv3.GetResponse, error) {
	cl, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	call, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.get(call, cl, key, opts...)
}
