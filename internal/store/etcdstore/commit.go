package etcdstore

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Commit is one etcd transaction: all conditions, then all writes. When a
// condition fails, the same transaction reads what is there, so that the answer
// names the op that was too late.
func (s *Store) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	cl, leave, err := s.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	var conds []clientv3.Cmp
	var writes, reads []clientv3.Op
	var judged []store.Op
	for _, op := range ops {
		key := s.key(op.Target())
		switch cmp := clientv3.ModRevision(key); {
		case op.Rev != store.Any:
			conds = append(conds, clientv3.Compare(cmp, "=", op.Rev))
		case op.Verb == store.Delete:
			conds = append(conds, clientv3.Compare(cmp, ">", 0))
		}
		if op.Rev != store.Any || op.Verb == store.Delete {
			reads = append(reads, clientv3.OpGet(key, clientv3.WithKeysOnly()))
			judged = append(judged, op)
		}
		switch op.Verb {
		case store.Put:
			data, err := api.EncodeStored(op.Object, int(s.level.Load()))
			if err != nil {
				return 0, errs.New(errs.Invalid, "encode %s: %w", op.Target(), err)
			}
			writes = append(writes, clientv3.OpPut(key, string(data)))
		case store.Delete:
			writes = append(writes, clientv3.OpDelete(key))
		}
	}
	if s.member == nil && len(writes) > 0 {
		writes = append(writes, clientv3.OpPut(s.mark, ""))
	}
	call, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	out, err := s.run(call, cl, txn{conds, writes, reads})
	if err != nil {
		return 0, s.explain(ctx, fmt.Sprintf("commit %s", summary(ops)), err)
	}
	if out.ok {
		return out.rev, nil
	}
	for i, op := range judged {
		have := int64(0)
		if kvs := out.found[i].Kvs; len(kvs) > 0 {
			have = kvs[0].ModRevision
		}
		if err := store.Judge(op, have); err != nil {
			return 0, err
		}
	}
	return 0, errs.New(errs.Internal, "etcd refused to commit %s although every condition holds", summary(ops))
}

func summary(ops []store.Op) string {
	switch len(ops) {
	case 0:
		return "nothing"
	case 1:
		return ops[0].Target().String()
	}
	return fmt.Sprintf("%s and %d more", ops[0].Target(), len(ops)-1)
}
