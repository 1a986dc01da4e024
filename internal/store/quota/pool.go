package quota

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"sort"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

const (
	// Host user IDs: a tenant has 65,536, as many as a container's own user table.
	// They start above what people and distributions use and end below 2^31, which
	// some tools read as negative.
	uidCount = 65536
	uidFirst = 1 << 20
	uidLast  = 1<<31 - 2*uidCount // the highest base
)

// follower is a store that tells what changed, such as store.Cache.
type follower interface {
	Follow(ctx context.Context, k api.Kind, from uint64, fn func(was, is api.Object)) (next uint64, err error)
}

// capacity is what all nodes have to give, kept by what changes: a pool has thousands
// of nodes and many admissions a second.
type capacity struct {
	place uint64 // how far the store was followed; 0: not yet
	nodes map[string]api.Resources
	total sums
}

// Reserve is what of the nodes' sum is given to nobody.
type Reserve struct {
	Buffer int // percent kept for what is not foreseen
	Spare  int // so many of the largest nodes may be lost, and what is promised still fits in sum
}

// DefaultReserve is a tenth, and no spare node.
func DefaultReserve() Reserve { return Reserve{Buffer: 10} }

// read brings the sum up to date.
func (c *capacity) read(ctx context.Context, s store.Store) error {
	f, ok := s.(follower)
	if !ok {
		return c.list(ctx, s)
	}
	add := func(was, is api.Object) {
		c.count(was, -1)
		c.count(is, 1)
	}
	next, err := uint64(0), error(nil)
	if c.place > 0 {
		next, err = f.Follow(ctx, api.KindNode, c.place, add)
	}
	if c.place == 0 || errors.Is(err, errs.Compacted) {
		c.nodes, c.total = map[string]api.Resources{}, sums{}
		next, err = f.Follow(ctx, api.KindNode, 0, add)
	}
	if c.place = next; err == nil {
		return nil
	}
	c.place = 0
	if errors.Is(err, errs.Unavailable) {
		return c.list(ctx, s)
	}
	return err
}

func (c *capacity) list(ctx context.Context, s store.Store) error {
	nodes, _, err := store.List[*api.Node](ctx, s, api.Selector{Kind: api.KindNode})
	if err != nil {
		return err
	}
	c.nodes, c.total = map[string]api.Resources{}, sums{}
	for _, n := range nodes {
		c.count(n, 1)
	}
	return nil
}

// count adds a node's part, or takes it away.
func (c *capacity) count(o api.Object, sign int) {
	n, ok := o.(*api.Node)
	if !ok {
		return
	}
	has := promisable(n)
	if delete(c.nodes, n.Name); sign > 0 {
		c.nodes[n.Name] = has
	}
	for r, v := range has {
		c.total[r] += int64(sign) * v
	}
}

// promisable is what a node may promise: where its operator allows it, more CPU than there is.
func promisable(n *api.Node) api.Resources {
	o := n.Spec.Overcommit
	times := int64(max(o.Burstable, o.Guaranteed, 100))
	cpu, ok := n.Status.Allocatable[api.CPU]
	if times == 100 || !ok {
		return n.Status.Allocatable
	}
	out := maps.Clone(n.Status.Allocatable)
	out[api.CPU] = cpu * times / 100
	return out
}

// give is the part of the nodes' sum that may be given away; empty without nodes.
func (c *capacity) give(keep Reserve) api.Resources {
	out := api.Resources{}
	if len(c.nodes) == 0 {
		return out
	}
	for r, v := range c.total {
		v -= c.largest(r, keep.Spare)
		parts := int64(100 - keep.Buffer)
		out[r] = v / 100 * parts
		if v < 1<<50 {
			out[r] = v * parts / 100
		}
	}
	return out
}

// largest sums up the n nodes that have most of a resource.
func (c *capacity) largest(r api.Resource, n int) int64 {
	if n <= 0 {
		return 0
	}
	var all []int64
	for _, has := range c.nodes {
		all = append(all, has[r])
	}
	slices.Sort(all)
	sum := int64(0)
	for _, v := range all[max(len(all)-n, 0):] {
		sum += v
	}
	return sum
}

// capacity sums the nodes, once for all plans.
func (b *books) capacity(ctx context.Context) (api.Resources, error) {
	if b.given == nil {
		if err := b.q.nodes.read(ctx, b.q.Store); err != nil {
			return nil, err
		}
		b.given = b.q.nodes.give(b.q.Reserve)
	}
	return b.given, nil
}

// withNodes is the capacity with that of nodes made in the same commit: a host that comes
// with what it runs brings the room for it along.
func (p *plan) withNodes(ctx context.Context) (api.Resources, error) {
	given, err := p.capacity(ctx)
	if err != nil {
		return nil, err
	}
	var with *capacity
	for _, op := range p.ops {
		n, ok := op.Object.(*api.Node)
		if !ok || op.Verb != store.Put || op.Rev != 0 || p.q.nodes.nodes[n.Name] != nil {
			continue
		}
		if with == nil {
			with = &capacity{nodes: maps.Clone(p.q.nodes.nodes), total: maps.Clone(p.q.nodes.total)}
		}
		with.count(n, 1)
	}
	if with == nil {
		return given, nil
	}
	return with.give(p.q.Reserve), nil
}

// pool books what the top tenants take from the pool and refuses what it has not got.
func (p *plan) pool(ctx context.Context, pool *account) error {
	given, err := p.withNodes(ctx)
	if err != nil {
		return err
	}
	if err := p.guarantees(given); err != nil {
		return err
	}
	before := pool.spec.Reserved
	for _, path := range ordered(p.accounts) {
		if path == "" || api.ParentTenant(path) != "" {
			continue
		}
		o, err := p.ownerOf(ctx, path)
		if err != nil {
			return err
		}
		a := p.accounts[path]
		pool.spec.Reserved = plus(pool.spec.Reserved, difference(reserve(guarantee(o.was), firm(a.had)), reserve(guarantee(o.is), firm(a.spec))))
	}
	if len(given) > 0 { // with no nodes yet everything waits, and nothing is promised
		for _, r := range shared {
			if is := pool.spec.Reserved[r]; is > before[r] && is > given[r] {
				return errs.New(errs.NoCapacity, "the pool has no room: %s %s more is needed beyond guarantees, %s of %s is free",
					api.HumanQuantity(r, is-before[r]), word(r), api.HumanQuantity(r, max(given[r]-before[r], 0)), api.HumanQuantity(r, given[r])).
					WithHint("ask for less, stop something, lower a guarantee, or add a node; 'atoll top tenants' shows who has what")
			}
		}
	}
	return p.hostIDs(ctx, pool)
}

// guarantees refuses promises to top tenants that the nodes cannot keep.
func (p *plan) guarantees(given api.Resources) error {
	for _, path := range p.changed() {
		o := p.owners[path]
		if api.ParentTenant(path) != "" {
			continue
		}
		d := difference(guarantee(o.was), guarantee(o.is))
		for _, r := range api.ResourceNames() {
			promised := p.accounts[""].spec.Promised[r]
			if d[r] <= 0 || counted(r) || promised <= given[r] {
				continue
			}
			if len(given) == 0 {
				return errs.New(errs.NoCapacity, "tenant %s: nothing can be guaranteed: the pool has no nodes yet", path).
					WithHint("start an agent on a host first, or create the tenant without a guarantee")
			}
			return errs.New(errs.NoCapacity, "tenant %s: %s: the pool can guarantee %s in all, %s would be guaranteed", path, r,
				api.FormatQuantity(r, given[r]), api.FormatQuantity(r, promised)).
				WithHint("guarantee at most %s here, lower another guarantee, or add a node", api.FormatQuantity(r, max(given[r]-promised+o.is.Spec.Guarantee[r], 0)))
		}
	}
	return nil
}

// hostIDs gives each new tenant a range of its own.
func (p *plan) hostIDs(ctx context.Context, pool *account) error {
	var fresh []string
	for _, path := range p.changed() {
		if o := p.owners[path]; o.was == nil && o.is != nil {
			fresh = append(fresh, path)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	tenants, _, err := store.List[*api.Tenant](ctx, p.s, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return err
	}
	var taken []uint32
	for _, t := range tenants {
		if t.Status.UIDCount > 0 {
			taken = append(taken, t.Status.UIDBase)
		}
	}
	sort.Slice(taken, func(i, j int) bool { return taken[i] < taken[j] })
	for _, path := range fresh {
		if kept := p.owners[path].is.Status; kept.UIDCount > 0 { // it comes from another pool, with files
			if err := p.keepIDs(path, kept, tenants); err != nil {
				return err
			}
			tenants = append(tenants, p.owners[path].is)
			taken = insert(taken, kept.UIDBase)
			continue
		}
		base, ok := freeBase(cmp.Or(pool.spec.NextUID, p.q.FirstUID), taken)
		if !ok {
			return errs.New(errs.NoCapacity, "tenant %s: all ranges of host user IDs are taken", path).WithHint("remove a tenant that is not used")
		}
		o := p.owners[path]
		t := api.Clone(o.is)
		t.Status.UIDBase, t.Status.UIDCount = base, uidCount
		o.is, p.ops[o.opAt].Object = t, t
		pool.spec.NextUID = base + uidCount
		taken = insert(taken, base)
	}
	return nil
}

// insert keeps a list of bases sorted.
func insert(taken []uint32, base uint32) []uint32 {
	i, _ := slices.BinarySearch(taken, base)
	return slices.Insert(taken, i, base)
}

// keepIDs checks the range of a tenant that is made with one. Callers of the API cannot
// ask for a range: what they send as a status is not looked at.
func (p *plan) keepIDs(path string, kept api.TenantStatus, all []*api.Tenant) error {
	if kept.UIDBase < uidFirst || kept.UIDBase > uidLast || kept.UIDCount != uidCount {
		return errs.New(errs.Invalid, "tenant %s: %d host user IDs from %d on: must be %d between %d and %d", path, kept.UIDCount, kept.UIDBase, uidCount, uidFirst, uidLast+uidCount-1)
	}
	for _, t := range all {
		if s := t.Status; s.UIDCount > 0 && t.Name != path && uint64(kept.UIDBase) < uint64(s.UIDBase)+uint64(s.UIDCount) && s.UIDBase < kept.UIDBase+kept.UIDCount {
			return errs.New(errs.Conflict, "tenant %s: host user IDs from %d on are those of tenant %s", path, kept.UIDBase, t.Name)
		}
	}
	return nil
}

// UIDStart draws where a new pool's ranges of host user IDs begin, so that the ranges of two
// pools seldom overlap: then the hosts of one can come into the other with what they run.
func UIDStart(rand io.Reader) (uint32, error) {
	var b [4]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return 0, errs.New(errs.Internal, "draw a range of user IDs: %w", err)
	}
	return uidFirst + binary.LittleEndian.Uint32(b[:])%((uidLast-uidFirst)/uidCount+1)*uidCount, nil
}

// freeBase finds a range that overlaps none of taken (sorted bases), looking from
// next on and then from the start. Ranges are never handed out again while new ones
// are left, so that files left behind by a removed tenant are not another's soon.
func freeBase(next uint32, taken []uint32) (uint32, bool) {
	if next < uidFirst || next > uidLast {
		next = uidFirst
	}
	for _, from := range []uint32{next, uidFirst} {
		base := uint64(from)
		// The range before may reach into this one.
		i := sort.Search(len(taken), func(i int) bool { return uint64(taken[i])+uidCount > base })
		for ; i < len(taken) && uint64(taken[i]) < base+uidCount; i++ {
			base = uint64(taken[i]) + uidCount
		}
		if base <= uidLast {
			return uint32(base), true
		}
	}
	return 0, false
}

// word is a dimension as people write it.
func word(r api.Resource) string {
	if r == api.CPU {
		return "CPU"
	}
	return string(r)
}
