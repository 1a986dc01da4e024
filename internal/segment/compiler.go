package segment

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"atoll/api"
	"atoll/internal/driver"
)

// Compiler makes the tables of one network on one host. It is told what there is and what
// is new in any order; what it is told takes effect with the next Table or Change, all
// at once. It keeps what it is given: do not change it afterwards.
type Compiler struct {
	ids   *IDs
	net   Network
	known map[Net]*Network // peered networks
	own   *group           // the network's own rules

	groups     map[GroupRef]*group
	identities map[uint32]*Identity
	names      map[Name]Resolved
	here       map[netip.Addr]uint32
	profiles   map[uint32]*profile // of identities that are here

	selectors map[string]*selector
	byLabel   map[string]map[*selector]struct{} // those that mean instances, by one of their labels
	byPrefix  map[netip.Prefix]map[*selector]struct{}
	outside   map[*selector]struct{}
	labelled  map[string]map[uint32]struct{} // identities by label; "": all
	choosing  map[string]map[*group]struct{} // groups by one of the labels they select

	prefixes prefixes
	sets     map[string]*set
	lists    lists
	rules    map[uint32]*Rule
	ports    map[netip.Addr]driver.Policy

	todo // what was said since the last change
	step // what is noted while a change is made
}

// profile is how instances of one identity are judged.
type profile struct {
	instances int
	groups    []*group
	sets      [4]*set // ingress, egress, and both with dry groups; nil: open, or none
}

type todo struct {
	groupsTo     map[GroupRef]*api.SecurityGroupSpec
	identitiesTo map[uint32]*Identity
	namesTo      map[Name]*Resolved
	hereTo       map[netip.Addr]uint32 // 0: not here
	netTo        *Network
	knownTo      []*Network
}

type step struct {
	dirty    map[*set]struct{}
	unused   map[*selector]struct{}
	fresh    []*selector // members are to be found
	again    map[uint32]struct{}
	stale    map[*group]struct{}
	cameID   map[uint32]struct{} // identities that were not there
	came     map[uint32]struct{} // numbers of prefixes
	went     map[uint32]struct{}
	moves    []move
	gone     []uint32 // rules
	departed []uint32 // rules of the last change, for whoever asks late
}

// New makes a compiler of a network without instances. Its numbers come from ids.
func New(ids *IDs, n Network) *Compiler {
	c := &Compiler{ids: ids, net: n,
		groups: map[GroupRef]*group{}, identities: map[uint32]*Identity{}, names: map[Name]Resolved{}, here: map[netip.Addr]uint32{}, profiles: map[uint32]*profile{},
		selectors: map[string]*selector{}, byLabel: map[string]map[*selector]struct{}{}, byPrefix: map[netip.Prefix]map[*selector]struct{}{},
		outside: map[*selector]struct{}{}, labelled: map[string]map[uint32]struct{}{}, choosing: map[string]map[*group]struct{}{},
		prefixes: prefixes{uses: map[netip.Prefix]int{}, touched: map[netip.Prefix]struct{}{}, number: map[netip.Prefix]uint32{}},
		sets:     map[string]*set{}, lists: lists{map[string]*list{}, map[uint32]*list{}, map[*list]struct{}{}}, rules: map[uint32]*Rule{}, ports: map[netip.Addr]driver.Policy{},
		step: step{dirty: map[*set]struct{}{}, unused: map[*selector]struct{}{}, again: map[uint32]struct{}{}, stale: map[*group]struct{}{},
			cameID: map[uint32]struct{}{}, came: map[uint32]struct{}{}, went: map[uint32]struct{}{}},
	}
	c.todo = newTodo()
	c.own = c.base()
	return c
}

func newTodo() todo {
	return todo{groupsTo: map[GroupRef]*api.SecurityGroupSpec{}, identitiesTo: map[uint32]*Identity{}, namesTo: map[Name]*Resolved{}, hereTo: map[netip.Addr]uint32{}}
}

// SetNetwork says how the network is, and what is known of those it is peered with.
func (c *Compiler) SetNetwork(n Network, peered []Network) {
	c.netTo, c.knownTo = &n, nil
	for _, p := range peered {
		c.knownTo = append(c.knownTo, &p)
	}
}

// SetGroup says what a group says; nil: it is gone.
func (c *Compiler) SetGroup(ref GroupRef, spec *api.SecurityGroupSpec) { c.groupsTo[ref] = spec }

// SetIdentity says who has a number; nil: nobody. Those on peered networks have numbers that IDs.Peer gave.
func (c *Compiler) SetIdentity(number uint32, i *Identity) { c.identitiesTo[number] = i }

// SetName says who answers to a name; nil: it does not resolve.
func (c *Compiler) SetName(n Name, r *Resolved) { c.namesTo[n] = r }

// SetInstance says that an address is of an instance here, with that identity; 0: no more.
func (c *Compiler) SetInstance(a netip.Addr, identity uint32) { c.hereTo[a] = identity }

// Groups lists the groups that select an instance that is here.
func (c *Compiler) Groups() []GroupRef {
	var out []GroupRef
	for ref, g := range c.groups {
		if len(g.here) > 0 {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, GroupRef.compare)
	return out
}

// Table is everything, with what was said until now. Changes continue from it.
func (c *Compiler) Table() driver.Table {
	c.Change()
	pairs, entries := 0, 0
	for _, st := range c.sets {
		pairs += len(st.pairs)
	}
	for _, l := range c.lists.byID {
		entries += len(l.entries)
	}
	t := driver.Table{Ports: maps.Clone(c.ports), Pairs: make(map[driver.PairKey]driver.Pair, pairs), Lists: make(map[driver.ListKey]uint32, entries), Prefixes: maps.Clone(c.prefixes.number)}
	for _, st := range c.sets {
		for n, p := range st.pairs {
			t.Pairs[driver.PairKey{Set: st.id, Peer: n}] = p
		}
	}
	for _, l := range c.lists.byID {
		for _, e := range l.entries {
			t.Lists[driver.ListKey{List: l.id, Proto: e.proto, Len: e.len, Port: e.port}] = e.rule
		}
	}
	return t
}

// Change is what is new in the tables since the last Table or Change, by all that was
// said since. Whoever applies it puts lists, then pairs, then prefixes, then ports, and
// drops in the opposite order.
func (c *Compiler) Change() driver.Change {
	out := driver.Change{Ports: map[netip.Addr]driver.Policy{}, Pairs: map[driver.PairKey]driver.Pair{}, Lists: map[driver.ListKey]uint32{}, Prefixes: map[netip.Prefix]uint32{}}
	for _, id := range c.departed {
		delete(c.rules, id)
		c.ids.free(id)
	}
	c.departed = nil
	c.takeNetwork()
	c.takeIdentities()
	c.takeGroups()
	c.takeNames()
	c.takeInstances()
	c.todo = newTodo()
	c.settleProfiles()
	c.settleGroups()
	for s := range c.unused {
		c.index(s, -1)
		delete(c.selectors, s.key)
	}
	c.settlePrefixes(&out)
	for _, s := range c.fresh {
		if _, dead := c.unused[s]; !dead {
			c.fill(s)
		}
	}
	c.settleSets(&out)
	c.settleLists(&out)
	c.settlePorts(&out)
	c.departed = c.gone
	clear(c.unused)
	clear(c.cameID)
	clear(c.came)
	clear(c.went)
	c.fresh, c.moves, c.gone = nil, nil, nil
	return out
}

// Close gives back all numbers when the network is gone from the host. The compiler is
// not to be used again.
func (c *Compiler) Close() {
	for _, st := range c.sets {
		c.ids.free(st.id)
	}
	for id := range c.lists.byID {
		c.ids.free(id)
	}
	for id := range c.rules {
		c.ids.free(id)
	}
	for _, n := range c.prefixes.number {
		c.ids.free(n - driver.FirstPrefix)
	}
}

// Empty reports whether a change changes nothing.
func Empty(c driver.Change) bool {
	return c.Net == nil && len(c.Put)+len(c.Drop)+len(c.Ports)+len(c.DropPorts)+len(c.Pairs)+len(c.DropPairs)+
		len(c.Lists)+len(c.DropLists)+len(c.Prefixes)+len(c.DropPrefixes) == 0
}

// isNew reports whether a number was nobody's before this change.
func (c *Compiler) isNew(n uint32) bool {
	if prefixed(n) {
		_, ok := c.came[n]
		return ok
	}
	_, ok := c.cameID[n]
	return ok
}

// prefixed reports whether a number is that of a prefix.
func prefixed(n uint32) bool { return n >= driver.FirstPrefix && n < driver.FirstPeer }

// isGone reports whether a number is nobody's any more.
func (c *Compiler) isGone(n uint32) bool {
	if prefixed(n) {
		_, ok := c.went[n]
		return ok
	}
	return n >= driver.FirstIdentity && c.identities[n] == nil
}

// networks are this one and those it is peered with, as far as they are known.
func (c *Compiler) networks() []*Network {
	out := []*Network{&c.net}
	for _, n := range c.net.Peers {
		if p := c.known[n]; p != nil {
			out = append(out, p)
		}
	}
	return out
}

func (c *Compiler) takeNetwork() {
	if c.netTo == nil {
		return
	}
	known := map[Net]*Network{}
	for _, n := range c.knownTo {
		known[n.Net] = n
	}
	if reflect.DeepEqual(c.net, *c.netTo) && reflect.DeepEqual(c.known, known) {
		return
	}
	c.net, c.known = *c.netTo, known
	for _, s := range c.selectors {
		c.fresh = append(c.fresh, s)
	}
	for _, g := range c.groups {
		g.stale = true
	}
	for n := range c.profiles {
		c.again[n] = struct{}{}
	}
}

func (c *Compiler) takeIdentities() {
	for n, now := range c.identitiesTo {
		was := c.identities[n]
		if n < driver.FirstIdentity || was == now || was != nil && now != nil && was.equal(*now) {
			continue
		}
		c.again[n] = struct{}{}
		if was == nil {
			c.cameID[n] = struct{}{}
		} else {
			c.relabel(n, was, leave)
			delete(c.identities, n)
		}
		if now != nil {
			c.identities[n] = now
			c.relabel(n, now, enter)
		}
		c.offer(n, was)
		c.offer(n, now)
	}
}

func (c *Compiler) relabel(n uint32, i *Identity, do func(map[string]map[uint32]struct{}, string, uint32)) {
	do(c.labelled, "", n)
	for k, v := range i.Labels {
		do(c.labelled, k+"="+v, n)
	}
}

// offer asks all selectors that mean i, or may, whether they mean who has its number now.
func (c *Compiler) offer(n uint32, i *Identity) {
	if i == nil {
		return
	}
	now := c.identities[n]
	ask := func(label string) {
		for s := range c.byLabel[label] {
			c.put(s, n, now != nil && c.net.peers(now.Network) && s.identity(now))
		}
	}
	ask("")
	for k, v := range i.Labels {
		ask(k + "=" + v)
	}
}

func (c *Compiler) takeGroups() {
	var changed []GroupRef
	for ref, spec := range c.groupsTo {
		g := c.groups[ref]
		if g == nil && spec == nil || g != nil && spec != nil && reflect.DeepEqual(g.spec, spec) {
			continue
		}
		changed = append(changed, ref)
		if g == nil {
			g = &group{ref: ref, here: map[uint32]struct{}{}, sets: map[*set]struct{}{}}
			c.groups[ref] = g
		} else {
			leave(c.choosing, firstLabel(g.spec.Select), g)
		}
		for n := range g.here {
			c.again[n] = struct{}{}
		}
		if spec == nil {
			delete(c.groups, ref)
			continue
		}
		g.spec, g.stale = spec, true
		c.stale[g] = struct{}{}
		enter(c.choosing, firstLabel(spec.Select), g)
		for n := range c.candidates(spec.Select) {
			if c.profiles[n] != nil && g.selects(c.identities[n]) {
				c.again[n] = struct{}{}
			}
		}
	}
	for _, ref := range changed {
		c.redefine("g|" + ref.String())
	}
}

func (c *Compiler) takeNames() {
	for n, r := range c.namesTo {
		if r == nil {
			delete(c.names, n)
		} else {
			c.names[n] = *r
		}
		c.redefine(n.key())
	}
}

func (c *Compiler) takeInstances() {
	count := func(n uint32, by int) {
		p := c.profiles[n]
		if p == nil {
			p = &profile{}
			c.profiles[n] = p
			c.again[n] = struct{}{}
		}
		if p.instances += by; p.instances == 0 {
			c.again[n] = struct{}{}
		}
	}
	for a, n := range c.hereTo {
		was, is := c.here[a]
		if is {
			count(was, -1)
			delete(c.here, a)
		}
		if n != 0 {
			count(n, 1)
			c.here[a] = n
		}
	}
}

// settleProfiles finds the groups and sets of identities that have to be looked at.
func (c *Compiler) settleProfiles() {
	for _, n := range slices.Sorted(maps.Keys(c.again)) {
		p := c.profiles[n]
		if p == nil {
			continue
		}
		id := c.identities[n]
		groups := c.groupsOf(id)
		if p.instances == 0 {
			groups = nil
		}
		for _, g := range p.groups {
			delete(g.here, n)
			c.stale[g] = struct{}{}
		}
		for _, g := range groups {
			g.here[n] = struct{}{}
			c.stale[g] = struct{}{}
		}
		var sets [4]*set
		if p.instances > 0 {
			// Of whom nothing is known yet nothing is allowed.
			sets = c.setsOf(groups, c.net.Closed || id == nil || id.Network != c.net.Net)
		}
		for _, st := range sets {
			if st != nil {
				st.users++
			}
		}
		for _, st := range p.sets {
			if st == nil {
				continue
			}
			if st.users--; st.users == 0 {
				c.dirty[st] = struct{}{}
			}
		}
		p.groups, p.sets = groups, sets
		if p.instances == 0 {
			delete(c.profiles, n)
		}
	}
	clear(c.again)
}

func (c *Compiler) groupsOf(i *Identity) []*group {
	if i == nil || i.Network != c.net.Net {
		return nil
	}
	var out []*group
	ask := func(label string) {
		for g := range c.choosing[label] {
			if g.selects(i) {
				out = append(out, g)
			}
		}
	}
	ask("")
	for k, v := range i.Labels {
		ask(k + "=" + v)
	}
	slices.SortFunc(out, func(a, b *group) int { return a.ref.compare(b.ref) })
	return out
}

// setsOf are the sets of an instance that these groups select.
func (c *Compiler) setsOf(groups []*group, closed bool) (out [4]*set) {
	for dir := range 2 {
		var enforced, both []*group
		for _, g := range groups {
			if _, says := g.list(dir); says {
				if both = append(both, g); !g.spec.DryRun {
					enforced = append(enforced, g)
				}
			}
		}
		if closed || len(enforced) > 0 {
			out[dir] = c.setOf(dir, enforced)
		}
		if len(both) > len(enforced) {
			out[2+dir] = c.setOf(dir, both)
		}
	}
	return out
}

// settleGroups compiles the groups that are needed here, and forgets those that are not.
func (c *Compiler) settleGroups() {
	stale := slices.SortedFunc(maps.Keys(c.stale), func(a, b *group) int { return a.ref.compare(b.ref) })
	for _, g := range stale {
		if len(g.here) > 0 && (g.stale || !g.compiled) {
			c.compile(g)
		}
	}
	for _, g := range stale {
		if len(g.here) == 0 && g.compiled {
			c.release(g)
		}
	}
	clear(c.stale)
}

func (c *Compiler) settlePorts(out *driver.Change) {
	id := func(st *set) uint32 {
		if st == nil {
			return 0
		}
		return st.id
	}
	for a, n := range c.here {
		s := c.profiles[n].sets
		p := driver.Policy{Ingress: id(s[0]), Egress: id(s[1]), IngressDry: id(s[2]), EgressDry: id(s[3])}
		if was, is := c.ports[a]; !is || was != p {
			c.ports[a] = p
			out.Ports[a] = p
		}
	}
	for a := range c.ports {
		if _, is := c.here[a]; !is {
			delete(c.ports, a)
			out.DropPorts = append(out.DropPorts, a)
		}
	}
}
