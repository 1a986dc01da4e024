// Package etcdstore is the Store on etcd: embedded in this process, or external.
// It is the only package that knows etcd. A revision is etcd's own; a commit is
// one etcd transaction, on disk before it is acknowledged.
//
// Open starts everything, with two goroutines for housekeeping beside etcd's own;
// Close stops it and waits. The embedded member listens nowhere unless peers are
// configured. It must never turn fsync off.
package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/release"
	"atoll/internal/store"
)

// Store is a store.Store on etcd.
type Store struct {
	cfg  Config // but for the peers, which may change
	root string // prefix of all objects
	mark string // external etcd: key that every commit touches, see Sync

	gate   sync.RWMutex // held for reading by every call, for writing while the member is started again
	peers  Peers
	cl     *clientv3.Client
	member *member // nil: external

	slots   slots                      // of commits, see attempt.go
	grouped atomic.Bool                // there are, or may be, other members
	lost    atomic.Pointer[errs.Error] // what calls are told while there is no majority; nil: there is
	closed  atomic.Bool
	level   atomic.Int64 // of the pool: which formats are written
	closing context.CancelFunc
	kept    sync.WaitGroup // housekeeping
	once    sync.Once
}

// Open connects to etcd, or starts it, and returns when it serves. ctx bounds the opening only.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, peers: cfg.Peers, root: strings.TrimSuffix(cfg.Prefix, "/") + "/o/", mark: strings.TrimSuffix(cfg.Prefix, "/") + "/mark"}
	if cfg.DataDir != "" {
		s.member, s.cl, err = startMember(ctx, cfg)
	} else {
		s.cl, err = s.connect(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.grouped.Store(cfg.Peers.Listen != "")
	s.level.Store(release.First) // which every build reads, until somebody says more
	keepCtx, cancel := context.WithCancel(context.Background())
	s.closing = cancel
	if cfg.DataDir != "" {
		s.kept.Go(func() { s.followQuorum(keepCtx) })
	}
	if cfg.HistoryAge > 0 {
		s.kept.Go(func() { s.keep(keepCtx) })
	}
	return s, nil
}

func (s *Store) connect(ctx context.Context) (*clientv3.Client, error) {
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: s.cfg.Endpoints, TLS: s.cfg.TLS, Username: s.cfg.User, Password: s.cfg.Password,
		DialTimeout: s.cfg.Timeout, DialKeepAliveTime: s.cfg.Timeout, DialKeepAliveTimeout: s.cfg.Timeout,
		Logger: zap.New(zapCore{log: s.cfg.Log}),
	})
	if err != nil {
		return nil, s.explain(ctx, "connect to etcd at "+strings.Join(s.cfg.Endpoints, ", "), err)
	}
	call, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	if _, err := cl.Get(call, s.root, clientv3.WithCountOnly()); err != nil {
		_ = cl.Close() // it never worked
		return nil, s.explain(ctx, "connect to etcd at "+strings.Join(s.cfg.Endpoints, ", "), err)
	}
	return cl, nil
}

// SetLevel says which formats are written from now on: those of a pool of that level.
// Whatever was stored before is read as it is.
func (s *Store) SetLevel(level int) { s.level.Store(int64(release.Or(level))) }

// Close stops housekeeping, the client and the embedded member, and waits for them.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		s.closed.Store(true)
		s.closing()
		s.kept.Wait()
		s.gate.Lock()
		defer s.gate.Unlock()
		err = s.cl.Close()
		if s.member != nil {
			err = nil // the client inside the process has no connection to close
			s.member.stop()
		}
	})
	return err
}

// usable refuses what is asked after Close: the server inside the process would
// still answer reads from what it has in memory.
func (s *Store) usable(ctx context.Context) error {
	if s.closed.Load() {
		return errs.New(errs.Unavailable, "the store is closed")
	}
	return ctx.Err()
}

// alone reports whether every read of this process sees its own writes without
// asking other members: the only member applies a write before it acknowledges it.
// The caller has entered.
func (s *Store) alone() bool { return s.member != nil && s.peers.Listen == "" }

// readOpts makes reads linearizable, which is etcd's default, unless that is so anyway.
func (s *Store) readOpts(opts ...clientv3.OpOption) []clientv3.OpOption {
	if s.alone() {
		opts = append(opts, clientv3.WithSerializable())
	}
	return opts
}

// key is <prefix>o/<Kind>/<tenant, with . for />/<name>.
func (s *Store) key(r api.Ref) string {
	return s.root + string(r.Kind) + "/" + strings.ReplaceAll(r.Tenant, "/", ".") + "/" + r.Name
}

// refOf reads a key back. The name may hold slashes: a tenant's is its path.
func (s *Store) refOf(key string) (api.Ref, bool) {
	parts := strings.SplitN(strings.TrimPrefix(key, s.root), "/", 3)
	if len(parts) != 3 {
		return api.Ref{}, false
	}
	return api.Ref{Kind: api.Kind(parts[0]), Tenant: strings.ReplaceAll(parts[1], ".", "/"), Name: parts[2]}, true
}

// span is the range of keys that can hold what sel chooses; end "" is a single key.
func (s *Store) span(sel api.Selector) (key, end string) {
	switch {
	case sel.Kind == "":
		key = s.root
	case sel.Tenant == "" || sel.Nested:
		key = s.root + string(sel.Kind) + "/"
	case sel.Name != "":
		return s.key(api.Ref{Kind: sel.Kind, Tenant: sel.Tenant, Name: sel.Name}), ""
	default:
		key = s.root + string(sel.Kind) + "/" + strings.ReplaceAll(sel.Tenant, "/", ".") + "/"
	}
	return key, clientv3.GetPrefixRangeEnd(key)
}

func (s *Store) decode(key string, value []byte, rev int64) (api.Object, error) {
	ref, ok := s.refOf(key)
	if !ok {
		return nil, errs.New(errs.Internal, "etcd holds a key that names no object: %q", key)
	}
	o, err := api.DecodeStored(ref.Kind, value)
	if errors.Is(err, errs.Unsupported) {
		return nil, fmt.Errorf("read %s: %w", ref, err) // a newer build wrote it, and it says which
	}
	if err != nil {
		return nil, errs.New(errs.Internal, "etcd holds %s in a form that cannot be read: %w", ref, err)
	}
	o.Metadata().Revision = rev
	return o, nil
}

// Get reads one object.
func (s *Store) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	cl, call, leave, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	key := s.key(ref)
	resp, err := s.get(call, cl, key)
	if err != nil {
		return nil, s.explain(ctx, "get "+ref.String(), err)
	}
	if len(resp.Kvs) == 0 {
		return nil, errs.New(errs.NotFound, "%s does not exist", ref)
	}
	return s.decode(key, resp.Kvs[0].Value, resp.Kvs[0].ModRevision)
}

// List reads the chosen objects. Keys are read as a whole range and brought into
// the contract's order here: etcd's differs where one tenant's name starts with
// another's. Lists that must be fast are served by store.Cache.
func (s *Store) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	found, rev, err := s.scan(ctx, sel)
	for err == nil && rev < sel.MinRev {
		if err = s.cfg.Clock.Sleep(ctx, minRevPause); err == nil {
			found, rev, err = s.scan(ctx, sel)
		}
	}
	if err != nil {
		return nil, 0, s.explain(ctx, "list "+string(sel.Kind), err)
	}
	all := sel.Kind == ""
	sort.Slice(found, func(i, j int) bool {
		if found[i].ref.Kind != found[j].ref.Kind {
			return found[i].ref.Kind < found[j].ref.Kind
		}
		return found[i].sort < found[j].sort
	})
	out := make([]api.Object, 0, len(found))
	for _, f := range found {
		if !all && sel.After != "" && f.sort <= sel.After || !wanted(sel, f.ref) {
			continue // told by its name: need not be decoded
		}
		o, err := s.decode(f.key, f.value, f.rev)
		if err != nil {
			return nil, 0, err
		}
		if store.Chosen(sel, o) {
			out = append(out, o)
		}
		if !all && sel.Limit > 0 && len(out) == sel.Limit {
			break
		}
	}
	return out, rev, nil
}

// wanted is the part of Selector.Matches that the name alone answers.
func wanted(sel api.Selector, r api.Ref) bool {
	if sel.Name != "" && r.Name != sel.Name {
		return false
	}
	return sel.Tenant == "" || r.Tenant == sel.Tenant || sel.Nested && api.WithinTenant(r.Tenant, sel.Tenant)
}
