// Package ipam hands out what an instance is on the networks of its tenant: addresses,
// hardware addresses and identities. A Book knows what the store says is taken, and what
// was given and is not in the store yet; it decides, and does no I/O. It is not safe
// for use by several goroutines at once.
package ipam

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

// Book is who has what on all networks of the pool.
type Book struct {
	nets map[api.Ref]*network
	ends map[string]*holding // by UID of the instance
}

// holding is what one instance has.
type holding struct {
	tenant     string
	labels     map[string]string
	interfaces []api.Interface
}

// New makes an empty book.
func New() *Book {
	return &Book{nets: map[api.Ref]*network{}, ends: map[string]*holding{}}
}

// network is one network's addresses and identities. It is kept for as long as it exists
// or somebody has something on it.
type network struct {
	object *api.Network // nil: it does not exist (any more)
	four   *pool
	six    *pool
	labels *identities
}

func refOf(tenant, name string) api.Ref {
	return api.Ref{Kind: api.KindNetwork, Tenant: tenant, Name: name}
}

func (b *Book) network(tenant, name string) *network {
	ref := refOf(tenant, name)
	n := b.nets[ref]
	if n == nil {
		n = &network{four: newPool(), six: newPool(), labels: newIdentities()}
		b.nets[ref] = n
	}
	return n
}

// SetNetwork notes a network as the store has it.
func (b *Book) SetNetwork(o *api.Network) {
	n := b.network(o.Tenant, o.Name)
	n.object = o
	n.four.prefix, n.six.prefix = netip.Prefix{}, netip.Prefix{}
	for _, p := range o.Spec.Prefixes() {
		if p.Addr().Is4() {
			n.four.prefix = p
		} else {
			n.six.prefix = p
		}
	}
}

// RemoveNetwork notes that a network is gone. What instances still have there stays theirs.
func (b *Book) RemoveNetwork(tenant, name string) {
	if n := b.nets[refOf(tenant, name)]; n != nil {
		n.object = nil
		b.drop(tenant, name)
	}
}

func (b *Book) drop(tenant, name string) {
	ref := refOf(tenant, name)
	if n := b.nets[ref]; n != nil && n.object == nil && n.users() == 0 {
		delete(b.nets, ref)
	}
}

func (n *network) users() int { return len(n.labels.of) }

// Users is how many instances are on a network.
func (b *Book) Users(tenant, name string) int {
	if n := b.nets[refOf(tenant, name)]; n != nil {
		return n.users()
	}
	return 0
}

// Take notes what the store says an instance has; it outranks what was given.
func (b *Book) Take(tenant, uid string, labels map[string]string, interfaces []api.Interface) {
	b.Free(uid)
	if len(interfaces) == 0 {
		return
	}
	b.ends[uid] = &holding{tenant: tenant, labels: labels, interfaces: slices.Clone(interfaces)}
	for _, i := range interfaces {
		n := b.network(tenant, i.Network)
		for p, a := range map[*pool]string{n.four: i.Address, n.six: i.Address6} {
			if x, err := netip.ParsePrefix(a); err == nil {
				p.take(x.Addr(), uid)
			}
		}
		n.labels.take(uid, i.Identity, labels)
	}
}

// Free gives back all an instance has.
func (b *Book) Free(uid string) {
	h := b.ends[uid]
	if h == nil {
		return
	}
	delete(b.ends, uid)
	for _, i := range h.interfaces {
		n := b.network(h.tenant, i.Network)
		n.four.free(uid)
		n.six.free(uid)
		n.labels.free(uid)
		b.drop(h.tenant, i.Network)
	}
}

// Has is what an instance has; nil when nothing.
func (b *Book) Has(uid string) []api.Interface {
	if h := b.ends[uid]; h != nil {
		return slices.Clone(h.interfaces)
	}
	return nil
}

// Labels are those by which an instance's identities were chosen.
func (b *Book) Labels(uid string) map[string]string {
	if h := b.ends[uid]; h != nil {
		return h.labels
	}
	return nil
}

// Give decides what an instance is on its networks: what it has as far as it can keep it,
// what it asks for, the next that is free. All or nothing: the error says, in the words of
// refusals, what is missing, and then the instance has what it had before. RemoveNetwork, SetNetwork and
// Free may make another answer of it.
func (b *Book) Give(in *api.Instance) ([]api.Interface, error) {
	had := b.ends[in.UID]
	var out []api.Interface
	for k, at := range in.Spec.Networks {
		n := b.nets[refOf(in.Tenant, at.Name)]
		if n == nil || n.object == nil {
			return nil, errs.New(errs.NotFound, "there is no network %s in tenant %s", at.Name, in.Tenant)
		}
		if !n.object.Ready() {
			return nil, errs.New(errs.Unavailable, "network %s/%s is not ready", in.Tenant, at.Name)
		}
		var old api.Interface
		if had != nil {
			if j := slices.IndexFunc(had.interfaces, func(i api.Interface) bool { return i.Network == at.Name }); j >= 0 {
				old = had.interfaces[j]
			}
		}
		i, err := n.give(in, at, old)
		if err != nil {
			return nil, fmt.Errorf("network %s/%s: %w", in.Tenant, at.Name, err)
		}
		i.Name = fmt.Sprintf("eth%d", k)
		out = append(out, i)
	}
	b.Take(in.Tenant, in.UID, in.Labels, out)
	return out, nil
}

// give chooses without noting anything.
func (n *network) give(in *api.Instance, at api.Attach, old api.Interface) (api.Interface, error) {
	i := api.Interface{Network: at.Name, VNI: n.object.Status.VNI}
	four, err := n.four.choose(in.UID, at.Address, old.Address, 0)
	if err != nil {
		return i, err
	}
	offset := n.four.offset(four)
	six, err := n.six.choose(in.UID, at.Address6, old.Address6, offset)
	if err != nil {
		return i, err
	}
	if four.IsValid() {
		i.Address = netip.PrefixFrom(four, n.four.prefix.Bits()).String()
	}
	if six.IsValid() {
		i.Address6 = netip.PrefixFrom(six, n.six.prefix.Bits()).String()
	}
	i.MAC = hardware(four, six).String()
	if i.Identity, err = n.labels.choose(in.Labels); err != nil {
		return i, err
	}
	return i, nil
}

// hardware derives an address from the IPv4 address, or the end of the IPv6 address, so
// that it is unique in the network and stays when the instance moves.
func hardware(four, six netip.Addr) net.HardwareAddr {
	if four.IsValid() {
		b := four.As4()
		return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
	}
	b := six.As16()
	return net.HardwareAddr{0x0a, 0x59, b[12], b[13], b[14], b[15]}
}

// pool is the addresses of one family.
type pool struct {
	prefix netip.Prefix // invalid: the network has none of this family
	next   uint64       // where the next search begins, as offset; goes round, so that none is used again right away
	byAddr map[netip.Addr]string
	byUID  map[string]netip.Addr
}

func newPool() *pool { return &pool{byAddr: map[netip.Addr]string{}, byUID: map[string]netip.Addr{}} }

func (p *pool) take(a netip.Addr, uid string) {
	p.free(uid)
	p.byUID[uid] = a
	if p.byAddr[a] == "" {
		p.byAddr[a] = uid
	}
	if o := p.offset(a); o >= p.next {
		p.next = o + 1
	}
}

func (p *pool) free(uid string) {
	a, ok := p.byUID[uid]
	if !ok {
		return
	}
	delete(p.byUID, uid)
	if p.byAddr[a] == uid {
		delete(p.byAddr, a)
	}
}

// room is how many offsets there are, at most 2^32: nobody needs more.
func (p *pool) room() uint64 {
	return 1 << min(p.prefix.Addr().BitLen()-p.prefix.Bits(), 32)
}

// choose finds an address: the one that is asked for, the one it has, the one of an
// offset that another family uses, the next free one. The zero Addr: this family is not there.
func (p *pool) choose(uid, fixed, old string, offset uint64) (netip.Addr, error) {
	if !p.prefix.IsValid() {
		if fixed != "" {
			return netip.Addr{}, errs.New(errs.Invalid, "it has no addresses of the family of %s", fixed)
		}
		return netip.Addr{}, nil
	}
	free := func(a netip.Addr) bool { return p.usable(a) && (p.byAddr[a] == "" || p.byAddr[a] == uid) }
	if fixed != "" {
		a, err := netip.ParseAddr(fixed)
		switch {
		case err != nil || !p.usable(a):
			return netip.Addr{}, errs.New(errs.Invalid, "address %s is not one for instances in %s", fixed, p.prefix)
		case !free(a):
			return netip.Addr{}, errs.New(errs.Conflict, "address %s is in use", fixed)
		}
		return a, nil
	}
	if x, err := netip.ParsePrefix(old); err == nil && free(x.Addr()) {
		return x.Addr(), nil
	}
	if a := p.at(offset); offset > 0 && offset < p.room() && free(a) {
		return a, nil
	}
	// Among one more than are in use, and the three that are nobody's, one is free, unless there are no more.
	for range min(p.room(), uint64(len(p.byAddr))+4) {
		if p.next >= p.room() {
			p.next = 0
		}
		a := p.at(p.next)
		p.next++
		if free(a) {
			return a, nil
		}
	}
	return netip.Addr{}, errs.New(errs.Unavailable, "no free address in %s", p.prefix)
}

// usable leaves out the network's own address, the gateway's, and the last one, which is IPv4's broadcast.
func (p *pool) usable(a netip.Addr) bool {
	if !p.prefix.Contains(a) || a == p.prefix.Addr() || a == api.Gateway(p.prefix) {
		return false
	}
	return !a.Is4() || p.prefix.Contains(a.Next())
}

// at is the address at an offset from the prefix.
func (p *pool) at(offset uint64) netip.Addr {
	if p.prefix.Addr().Is4() {
		b := p.prefix.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(offset)) //nolint:gosec // below room
		return netip.AddrFrom4(b)
	}
	b := p.prefix.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+offset)
	return netip.AddrFrom16(b)
}

// offset is the other way round; 0 for what is not in the prefix, or further in than anybody looks.
func (p *pool) offset(a netip.Addr) uint64 {
	if !p.prefix.IsValid() || !p.prefix.Contains(a) {
		return 0
	}
	var o uint64
	if a.Is4() {
		x, y := a.As4(), p.prefix.Addr().As4()
		o = uint64(binary.BigEndian.Uint32(x[:]) - binary.BigEndian.Uint32(y[:]))
	} else {
		x, y := a.As16(), p.prefix.Addr().As16()
		if binary.BigEndian.Uint64(x[:8]) != binary.BigEndian.Uint64(y[:8]) {
			return 0 // of a prefix shorter than /64
		}
		o = binary.BigEndian.Uint64(x[8:]) - binary.BigEndian.Uint64(y[8:])
	}
	if o >= p.room() {
		return 0
	}
	return o
}

// identities are the numbers of sets of labels in one network. They go round, too: rules of
// a host may be a moment behind.
type identities struct {
	next uint16
	of   map[string]uint16          // UID -> number
	sets map[uint16]string          // number -> labels as one text
	by   map[string]uint16          // the other way round
	uses map[uint16]map[string]bool // UIDs
}

// Identities begin here: smaller numbers have a meaning in every network.
const firstIdentity = 256

func newIdentities() *identities {
	return &identities{next: firstIdentity, of: map[string]uint16{}, sets: map[uint16]string{}, by: map[string]uint16{}, uses: map[uint16]map[string]bool{}}
}

func (s *identities) take(uid string, number uint16, labels map[string]string) {
	s.free(uid)
	s.of[uid] = number
	if s.uses[number] == nil {
		s.uses[number] = map[string]bool{}
	}
	s.uses[number][uid] = true
	if _, ok := s.sets[number]; !ok {
		text := flat(labels)
		s.sets[number] = text
		if _, ok := s.by[text]; !ok {
			s.by[text] = number
		}
	}
	if number >= s.next {
		s.next = number + 1 // 0 after the last: see choose
	}
}

func (s *identities) free(uid string) {
	number, ok := s.of[uid]
	if !ok {
		return
	}
	delete(s.of, uid)
	delete(s.uses[number], uid)
	if len(s.uses[number]) == 0 {
		if s.by[s.sets[number]] == number {
			delete(s.by, s.sets[number])
		}
		delete(s.sets, number)
		delete(s.uses, number)
	}
}

func (s *identities) choose(labels map[string]string) (uint16, error) {
	if n, ok := s.by[flat(labels)]; ok {
		return n, nil
	}
	for range 1 << 16 {
		if s.next < firstIdentity {
			s.next = firstIdentity
		}
		n := s.next
		s.next++
		if _, ok := s.sets[n]; !ok {
			return n, nil
		}
	}
	return 0, errs.New(errs.Unavailable, "all %d identities are in use: too many different sets of labels", 1<<16-firstIdentity)
}

// flat is a set of labels as one text; no label holds a zero byte.
func flat(labels map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(k + "\x00" + labels[k] + "\x00")
	}
	return b.String()
}
