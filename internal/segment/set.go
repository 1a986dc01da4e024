package segment

import (
	"cmp"
	"maps"
	"slices"

	"atoll/internal/driver"
)

// set is what some groups together say about one direction. Its number stands for what it
// holds: when that changes, it gets another number, and ports are pointed to it.
//
// What may still be added in place is a pair of a peer whose number is new in this very
// change. Nothing was said about that number, so nothing that was said becomes untrue. And no
// verdict is overtaken: nobody had an identity's number before it was there, so
// no flow of it was judged. An address that gets a prefix's new number was judged before,
// by the prefix around it (or as outside): so a new prefix may be added in place only
// where that said no, and a flow that is not there need not be judged again, or said the
// same. The same holds the other way for numbers that are gone: of an identity nobody is
// left, and an address whose prefix goes falls back to the prefix around it.
type set struct {
	key    string
	dir    int
	groups []*group // in the order in which their rules are named; the network's own last
	users  int      // policies of identities
	id     uint32   // 0: not told of yet
	pairs  map[uint32]driver.Pair
	all    bool                // look at all peers again
	peers  map[uint32]struct{} // look at these
}

func (st *set) look(c *Compiler, peer uint32) {
	if st.all {
		return
	}
	if st.peers == nil {
		st.peers = map[uint32]struct{}{}
	}
	st.peers[peer] = struct{}{}
	c.dirty[st] = struct{}{}
}

func (st *set) lookAll(c *Compiler) {
	st.all, st.peers = true, nil
	c.dirty[st] = struct{}{}
}

// setOf finds or makes the set of some groups, which are sorted.
func (c *Compiler) setOf(dir int, groups []*group) *set {
	key := []byte{byte('0' + dir)}
	for _, g := range groups {
		key = append(append(key, '|'), g.ref.String()...)
	}
	if st, ok := c.sets[string(key)]; ok {
		return st
	}
	st := &set{key: string(key), dir: dir, groups: append(slices.Clip(groups), c.own)}
	c.sets[st.key] = st
	for _, g := range st.groups {
		g.sets[st] = struct{}{}
	}
	st.lookAll(c)
	return st
}

// settleSets brings all sets that have to be looked at up to date.
func (c *Compiler) settleSets(out *driver.Change) {
	dirty := slices.SortedFunc(maps.Keys(c.dirty), func(a, b *set) int { return cmp.Compare(a.key, b.key) })
	for _, st := range dirty {
		if st.users == 0 {
			c.replace(st, nil, out)
			delete(c.sets, st.key)
			for _, g := range st.groups {
				delete(g.sets, st)
			}
		} else {
			c.settleSet(st, out)
		}
		st.all, st.peers = false, nil
	}
	clear(c.dirty)
}

func (c *Compiler) settleSet(st *set, out *driver.Change) {
	var put map[uint32]driver.Pair // what differs from st.pairs
	var drop []uint32
	if st.all || st.id == 0 {
		now := c.pairsOf(st)
		if st.id == 0 {
			c.replace(st, now, out)
			return
		}
		put = map[uint32]driver.Pair{}
		for n, p := range now {
			if old, ok := st.pairs[n]; !ok || old != p {
				put[n] = p
			}
		}
		for n := range st.pairs {
			if _, ok := now[n]; !ok {
				drop = append(drop, n)
			}
		}
	} else {
		put, drop = c.lookAgain(st)
	}
	if len(put)+len(drop) == 0 && len(c.moves) == 0 {
		return
	}
	if !c.inPlace(st, put, drop) {
		now := maps.Clone(st.pairs)
		maps.Copy(now, put)
		for _, n := range drop {
			delete(now, n)
		}
		c.replace(st, now, out)
		return
	}
	for n, p := range put {
		c.hold(p, 1)
		st.pairs[n] = p
		out.Pairs[driver.PairKey{Set: st.id, Peer: n}] = p
	}
	for _, n := range drop {
		c.hold(st.pairs[n], -1)
		delete(st.pairs, n)
		out.DropPairs = append(out.DropPairs, driver.PairKey{Set: st.id, Peer: n})
	}
}

// inPlace reports whether a set may be changed and keep its number, as explained at set.
func (c *Compiler) inPlace(st *set, put map[uint32]driver.Pair, drop []uint32) bool {
	for n := range put {
		if !c.isNew(n) {
			return false
		}
	}
	for _, n := range drop {
		if !c.isGone(n) {
			return false
		}
	}
	for _, m := range c.moves {
		was, said := st.pairs[m.from]
		now, says := put[m.to]
		if !says {
			if now, says = st.pairs[m.to]; says && slices.Contains(drop, m.to) {
				says = false
			}
		}
		if said && (!says || was != now) {
			return false
		}
	}
	return true
}

// replace gives a set other content and another number; nil: it is not needed any more.
//
// While a change is applied, new prefixes are known before ports leave the old set, and
// old ones still are when ports ask the new set. For that moment the old set says of
// a new prefix what it said of its addresses before, and the new set of an old one what
// it says of them after. Without these pairs, which the same change drops, flows that
// are allowed before and after would be refused in between.
func (c *Compiler) replace(st *set, now map[uint32]driver.Pair, out *driver.Change) {
	for _, m := range c.moves {
		if p, said := st.pairs[m.from]; said && !m.gone {
			k := driver.PairKey{Set: st.id, Peer: m.to}
			out.Pairs[k], out.DropPairs = p, append(out.DropPairs, k)
		}
	}
	for _, p := range now {
		c.hold(p, 1)
	}
	for n, p := range st.pairs {
		c.hold(p, -1)
		out.DropPairs = append(out.DropPairs, driver.PairKey{Set: st.id, Peer: n})
	}
	if st.id != 0 {
		c.ids.free(st.id)
	}
	if st.pairs = now; now == nil {
		return
	}
	st.id = c.ids.take()
	for n, p := range now {
		out.Pairs[driver.PairKey{Set: st.id, Peer: n}] = p
	}
	for _, m := range c.moves {
		if p, says := now[m.to]; says && m.gone {
			k := driver.PairKey{Set: st.id, Peer: m.from}
			out.Pairs[k], out.DropPairs = p, append(out.DropPairs, k)
		}
	}
}

// located is a block of a set, with the place of its group.
type located struct {
	*block
	group int
}

func (st *set) located() []located {
	var out []located
	for g, gr := range st.groups {
		side := &gr.sides[st.dir]
		for i := range side.blocks {
			out = append(out, located{&side.blocks[i], g})
		}
	}
	return out
}

// pairsOf makes all pairs of a set.
func (c *Compiler) pairsOf(st *set) map[uint32]driver.Pair {
	blocks := st.located()
	var met []uint64 // peer and block
	for i, b := range blocks {
		for n := range b.sel.members {
			met = append(met, uint64(n)<<32|uint64(i))
		}
	}
	slices.Sort(met)
	out := map[uint32]driver.Pair{}
	m := memo{one: make([]driver.Pair, len(blocks)), more: map[string]driver.Pair{}}
	var of []int
	for i := 0; i < len(met); {
		peer := uint32(met[i] >> 32)
		of = of[:0]
		for ; i < len(met) && uint32(met[i]>>32) == peer; i++ {
			of = append(of, int(uint32(met[i])))
		}
		if p := c.pairOf(blocks, of, &m); p != (driver.Pair{}) {
			out[peer] = p
		}
	}
	return out
}

// lookAgain finds what is to be put and dropped for the peers that changed.
func (c *Compiler) lookAgain(st *set) (map[uint32]driver.Pair, []uint32) {
	blocks := st.located()
	put := map[uint32]driver.Pair{}
	var drop []uint32
	m := memo{one: make([]driver.Pair, len(blocks)), more: map[string]driver.Pair{}}
	for peer := range st.peers {
		var of []int
		for i := range blocks {
			if _, ok := blocks[i].sel.members[peer]; ok {
				of = append(of, i)
			}
		}
		old, had := st.pairs[peer]
		now := driver.Pair{}
		if len(of) > 0 {
			now = c.pairOf(blocks, of, &m)
		}
		switch {
		case now == driver.Pair{} && had:
			drop = append(drop, peer)
		case now != driver.Pair{} && now != old:
			put[peer] = now
		}
	}
	return put, drop
}

// memo keeps pairs of one set by the blocks they are of.
type memo struct {
	one  []driver.Pair
	more map[string]driver.Pair
}

func (c *Compiler) pairOf(blocks []located, of []int, m *memo) driver.Pair {
	var key []byte
	if len(of) == 1 {
		if p := m.one[of[0]]; p != (driver.Pair{}) {
			return p
		}
	} else {
		for _, i := range of {
			key = append(key, byte(i), byte(i>>8), byte(i>>16))
		}
		if p, ok := m.more[string(key)]; ok {
			return p
		}
	}
	p := c.judge(blocks, of)
	if len(of) == 1 {
		m.one[of[0]] = p
	} else {
		m.more[string(key)] = p
	}
	return p
}

// judge makes the pair of a peer that some blocks mean.
func (c *Compiler) judge(blocks []located, of []int) driver.Pair {
	var rules []*rule
	for i := 0; i < len(of); {
		from, g := len(rules), blocks[of[i]].group
		for ; i < len(of) && blocks[of[i]].group == g; i++ {
			rules = append(rules, blocks[of[i]].rules...)
		}
		slices.SortFunc(rules[from:], func(a, b *rule) int { return cmp.Compare(a.index, b.index) })
	}
	rules = slices.Compact(rules)
	for _, r := range rules {
		if r.all {
			return driver.Pair{All: r.id}
		}
	}
	if len(rules) == 0 {
		return driver.Pair{}
	}
	l := c.intern(rules)
	return driver.Pair{List: l.id, Lens: l.lens}
}
