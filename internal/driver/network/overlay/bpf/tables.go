package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"

	"atoll/internal/driver"
	"atoll/internal/errs"
)

const (
	errStale    = syscall.ESTALE
	errNoDevice = syscall.ENODEV
	errUnknown  = syscall.EINVAL
)

// full gives an error that says which table has no room.
func full(m *ebpf.Map, what string, err error) error {
	if errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ENOSPC) {
		return errs.New(errs.NoCapacity, "the wall's table of %s is full at %d entries", what, m.MaxEntries()).
			WithHint("raise the size of the table in the node's configuration; it is made anew when the host starts")
	}
	return fmt.Errorf("table of %s: %w", what, err)
}

// put writes many entries in as few calls as the kernel allows. Killed in the middle, some are written.
func put[K comparable, V any](m *ebpf.Map, what string, ks []K, vs []V) error {
	if len(ks) == 0 {
		return nil
	}
	n, err := m.BatchUpdate(ks, vs, nil)
	if err == nil {
		return nil
	}
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return full(m, what, err)
	}
	for i := n; i < len(ks); i++ {
		if err := m.Put(ks[i], vs[i]); err != nil {
			return full(m, what, err)
		}
	}
	return nil
}

// drop deletes many entries; those that are not there are no error.
func drop[K comparable](m *ebpf.Map, what string, ks []K) error {
	for len(ks) > 0 {
		n, err := m.BatchDelete(ks, nil)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ebpf.ErrKeyNotExist):
			n = min(n+1, len(ks)) // it stops at one that is missing
		case errors.Is(err, ebpf.ErrNotSupported):
			for _, k := range ks {
				if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					return fmt.Errorf("table of %s: %w", what, err)
				}
			}
			return nil
		default:
			return fmt.Errorf("table of %s: %w", what, err)
		}
		ks = ks[n:]
	}
	return nil
}

// each walks a table that may change meanwhile. What is changed during the walk may come or not; no entry is lost by it.
func each[K comparable, V any](m *ebpf.Map, what string, fn func(K, V) bool) error {
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		if !fn(k, v) {
			return nil
		}
	}
	switch err := it.Err(); {
	case errors.Is(err, ebpf.ErrIterationAborted): // entries went away below the walk so often that it gave up
		return errs.New(errs.Unavailable, "the wall's table of %s changes too fast to be read", what).WithHint("ask again")
	case err != nil:
		return fmt.Errorf("table of %s: %w", what, err)
	}
	return nil
}

// SetPort makes an interface a port, or changes it. A port of the same network, MAC and addresses keeps its
// flows; one whose sets changed judges them again.
func (w *Wall) SetPort(ifindex int, p Port) error {
	if err := p.check(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	v := p.value()
	var old portValue
	switch err := w.wallMaps.Ports.Lookup(uint32(ifindex), &old); {
	case err == nil && old.VNI == v.VNI && old.MAC == v.MAC && old.Addr4 == v.Addr4 && old.Addr6 == v.Addr6:
		v.Life, v.Epoch = old.Life, old.Epoch
		for d := range v.Set {
			if v.Set[d] != old.Set[d] {
				v.Epoch[d]++
			}
		}
	case err == nil || errors.Is(err, ebpf.ErrKeyNotExist):
		life, err := w.nextLife()
		if err != nil {
			return err
		}
		v.Life = life
	default:
		return fmt.Errorf("table of ports: %w", err)
	}
	if err := w.setLimits(ifindex, p.Limits); err != nil {
		return err
	}
	if err := w.makeTally(uint32(ifindex)); err != nil {
		return err
	}
	if err := w.setBehind(ifindex, p.Behind, old.Flags&flagHop != 0); err != nil {
		return err
	}
	if err := w.wallMaps.Ports.Put(uint32(ifindex), v); err != nil {
		return full(w.wallMaps.Ports, "ports", err)
	}
	return nil
}

// portNumber is what the prefixes behind a port are kept under: no network has such a number.
func portNumber(ifindex int) uint32 { return 1<<31 | uint32(ifindex) } //nolint:gosec // an index

// setBehind makes these the prefixes behind a port. had: there may be some.
func (w *Wall) setBehind(ifindex int, ps []netip.Prefix, had bool) error {
	if len(ps) == 0 && !had {
		return nil
	}
	at := portNumber(ifindex)
	have, err := w.Prefixes(at)
	if err != nil {
		return err
	}
	put := map[netip.Prefix]uint32{}
	for _, p := range ps {
		put[p] = driver.FirstPrefix // who it is, is asked of the network's own prefixes
		delete(have, p)
	}
	if err := w.DropPrefixes(at, slices.Collect(maps.Keys(have))); err != nil {
		return err
	}
	return w.PutPrefixes(at, put)
}

// SetPolicy points a port to other sets in one step and has its flows judged again.
func (w *Wall) SetPolicy(ifindex int, p driver.Policy) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	v, err := w.portValue(ifindex)
	if err != nil {
		return err
	}
	set := [2]uint32{p.Egress, p.Ingress}
	for d := range set {
		if set[d] != v.Set[d] {
			v.Epoch[d]++
		}
	}
	v.Set, v.Dry = set, [2]uint32{p.EgressDry, p.IngressDry}
	if err := w.wallMaps.Ports.Put(uint32(ifindex), v); err != nil {
		return full(w.wallMaps.Ports, "ports", err)
	}
	return nil
}

// Again has all flows of a port judged once more, although its sets are the same: after a
// change of what is in the tables that no set stands for, such as who has which address.
func (w *Wall) Again(ifindex int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	v, err := w.portValue(ifindex)
	if err != nil {
		return err
	}
	v.Epoch[dirFrom]++
	v.Epoch[dirTo]++
	if err := w.wallMaps.Ports.Put(uint32(ifindex), v); err != nil {
		return full(w.wallMaps.Ports, "ports", err)
	}
	return nil
}

func (w *Wall) portValue(ifindex int) (portValue, error) {
	var v portValue
	err := w.wallMaps.Ports.Lookup(uint32(ifindex), &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, errs.New(errs.NotFound, "interface %d is no port", ifindex)
	}
	if err != nil {
		return v, fmt.Errorf("table of ports: %w", err)
	}
	return v, nil
}

// nextLife is a number that no port had. It is kept in the kernel, as the flows are it is about.
func (w *Wall) nextLife() (uint32, error) {
	var s settings
	if err := w.wallMaps.Settings.Lookup(uint32(0), &s); err != nil {
		return 0, fmt.Errorf("read the wall's settings: %w", err)
	}
	s.Lives++
	if err := w.wallMaps.Settings.Put(uint32(0), &s); err != nil {
		return 0, fmt.Errorf("write the wall's settings: %w", err)
	}
	return s.Lives, nil
}

// DropPort makes an interface no port: all its packets are dropped. Nil when it is none.
func (w *Wall) DropPort(ifindex int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v, err := w.portValue(ifindex); err == nil {
		if err := w.setBehind(ifindex, nil, v.Flags&flagHop != 0); err != nil {
			return err
		}
	}
	for _, m := range []*ebpf.Map{w.wallMaps.Ports, w.wallMaps.Limits, w.wallMaps.Tallies} {
		if err := m.Delete(uint32(ifindex)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("drop port %d: %w", ifindex, err)
		}
	}
	return nil
}

// Ports are all there are, by interface, without their limits.
func (w *Wall) Ports() (map[int]Port, error) {
	out := map[int]Port{}
	err := each(w.wallMaps.Ports, "ports", func(i uint32, v portValue) bool { out[int(i)] = v.port(); return true })
	return out, err
}

func (w *Wall) setLimits(ifindex int, l Limits) error {
	if l == (Limits{}) {
		if err := w.wallMaps.Limits.Delete(uint32(ifindex)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("limits of port %d: %w", ifindex, err)
		}
		return nil
	}
	v := limitValue{Conns: bucketOf(l.Connections), Packets: bucketOf(l.Packets)}
	var old limitValue
	if err := w.wallMaps.Limits.Lookup(uint32(ifindex), &old); err == nil {
		v.Conns.Due, v.Packets.Due = old.Conns.Due, old.Packets.Due
	}
	if err := w.wallMaps.Limits.Put(uint32(ifindex), &v); err != nil {
		return full(w.wallMaps.Limits, "limits", err)
	}
	return nil
}

// bucketOf lets a second's worth come at once.
func bucketOf(rate uint32) bucket {
	if rate == 0 {
		return bucket{}
	}
	cost := uint64(1e9) / uint64(rate)
	return bucket{Cost: max(cost, 1), Burst: 1e9 - cost}
}

func (w *Wall) makeTally(at uint32) error {
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	err = w.wallMaps.Tallies.Update(at, make([]tally, n), ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return full(w.wallMaps.Tallies, "tallies", err)
	}
	return nil
}

// SetDevice says which network a bridge is of, and what the gateway's addresses are in it.
func (w *Wall) SetDevice(ifindex int, d Device) error {
	v := deviceValue{VNI: d.VNI}
	var gateways []driver.Member
	for _, g := range d.Gateways {
		if g = g.Unmap(); g.Is4() {
			v.Gateway4 = g.As4()
		} else {
			v.Gateway6 = g.As16()
		}
		gateways = append(gateways, driver.Member{Addr: g, Identity: driver.IdentityHost})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.PutMembers(d.VNI, gateways); err != nil {
		return err
	}
	var old deviceValue
	err := w.wallMaps.Devices.Lookup(uint32(ifindex), &old)
	if err := w.wallMaps.Devices.Put(uint32(ifindex), &v); err != nil {
		return full(w.wallMaps.Devices, "bridges", err)
	}
	if err == nil {
		return w.dropGateways(old, v)
	}
	return nil
}

// dropGateways forgets those of old that v has not.
func (w *Wall) dropGateways(old, v deviceValue) error {
	var gone []netip.Addr
	if old.Gateway4 != [4]byte{} && (old.VNI != v.VNI || old.Gateway4 != v.Gateway4) {
		gone = append(gone, netip.AddrFrom4(old.Gateway4))
	}
	if old.Gateway6 != [16]byte{} && (old.VNI != v.VNI || old.Gateway6 != v.Gateway6) {
		gone = append(gone, netip.AddrFrom16(old.Gateway6))
	}
	return w.DropMembers(old.VNI, gone)
}

// DropDevice forgets a bridge and the gateway's addresses: what it sends has no identity any more, and reaches nobody.
func (w *Wall) DropDevice(ifindex int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var old deviceValue
	err := w.wallMaps.Devices.Lookup(uint32(ifindex), &old)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("table of bridges: %w", err)
	}
	if err := w.wallMaps.Devices.Delete(uint32(ifindex)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("table of bridges: %w", err)
	}
	return w.dropGateways(old, deviceValue{})
}

// PutMembers says who has which address in a network.
func (w *Wall) PutMembers(vni uint32, ms []driver.Member) error {
	ks, vs := make([]memberKey, 0, len(ms)), make([]uint32, 0, len(ms))
	var at []memberKey
	var stations []station
	for _, m := range ms {
		if !m.Addr.IsValid() || m.Identity == driver.IdentityNone {
			return errs.InvalidFields("member", []errs.Field{{Field: "addr, identity", Value: fmt.Sprintf("%s, %d", m.Addr, m.Identity), Rule: "must be an address and an identity that is not 0", Example: "10.1.0.5, 256"}})
		}
		ks = append(ks, memberKey{VNI: vni, Addr: wire(m.Addr)})
		vs = append(vs, m.Identity)
		if m.MAC != [6]byte{} {
			at, stations = append(at, memberKey{VNI: vni, Addr: wire(m.Addr)}), append(stations, station{MAC: m.MAC})
		}
	}
	if err := put(w.wallMaps.Members, "members", ks, vs); err != nil {
		return err
	}
	return put(w.wallMaps.Stations, "stations", at, stations)
}

// DropMembers forgets addresses.
func (w *Wall) DropMembers(vni uint32, as []netip.Addr) error {
	ks := make([]memberKey, 0, len(as))
	for _, a := range as {
		ks = append(ks, memberKey{VNI: vni, Addr: wire(a)})
	}
	if err := drop(w.wallMaps.Stations, "stations", ks); err != nil {
		return err
	}
	return drop(w.wallMaps.Members, "members", ks)
}

// Members are the addresses of a network and whose they are, the gateway's included.
func (w *Wall) Members(vni uint32) (map[netip.Addr]uint32, error) {
	out := map[netip.Addr]uint32{}
	err := each(w.wallMaps.Members, "members", func(k memberKey, id uint32) bool {
		if k.VNI == vni {
			out[unmap(k.Addr)] = id
		}
		return true
	})
	return out, err
}

// PutPairs adds to sets.
func (w *Wall) PutPairs(ps map[driver.PairKey]driver.Pair) error {
	ks, vs := make([]pairKey, 0, len(ps)), make([]pairValue, 0, len(ps))
	for k, v := range ps {
		ks = append(ks, pairKey{Set: k.Set, Peer: k.Peer})
		vs = append(vs, pairValue{All: v.All, List: v.List, Lens: v.Lens})
	}
	return put(w.wallMaps.Pairs, "pairs", ks, vs)
}

// DropPairs takes from sets that no port has any more.
func (w *Wall) DropPairs(ps []driver.PairKey) error {
	ks := make([]pairKey, 0, len(ps))
	for _, k := range ps {
		ks = append(ks, pairKey{Set: k.Set, Peer: k.Peer})
	}
	return drop(w.wallMaps.Pairs, "pairs", ks)
}

// Pairs are those of all sets on this host.
func (w *Wall) Pairs() (map[driver.PairKey]driver.Pair, error) {
	out := map[driver.PairKey]driver.Pair{}
	err := each(w.wallMaps.Pairs, "pairs", func(k pairKey, v pairValue) bool {
		out[driver.PairKey{Set: k.Set, Peer: k.Peer}] = driver.Pair{All: v.All, List: v.List, Lens: v.Lens}
		return true
	})
	return out, err
}

func listKeyOf(k driver.ListKey) listKey {
	return listKey{List: k.List, Proto: k.Proto, Len: k.Len, Port: k.Port}
}

// PutLists adds to lists of ports.
func (w *Wall) PutLists(ls map[driver.ListKey]uint32) error {
	ks, vs := make([]listKey, 0, len(ls)), make([]uint32, 0, len(ls))
	for k, rule := range ls {
		if k.Len > 16 || k.Port&uint16(0xffff>>min(k.Len, 16)) != 0 || rule == 0 {
			return errs.InvalidFields("list", []errs.Field{{Field: "len, port, rule", Value: fmt.Sprintf("%d, %d, %d", k.Len, k.Port, rule),
				Rule: "must be a prefix of 0 to 16 bits, the other bits 0, and a rule that is not 0", Example: "16, 443, 7"}})
		}
		ks, vs = append(ks, listKeyOf(k)), append(vs, rule)
	}
	return put(w.wallMaps.Lists, "lists", ks, vs)
}

// DropLists takes from lists that no pair has any more.
func (w *Wall) DropLists(ls []driver.ListKey) error {
	ks := make([]listKey, 0, len(ls))
	for _, k := range ls {
		ks = append(ks, listKeyOf(k))
	}
	return drop(w.wallMaps.Lists, "lists", ks)
}

// Lists are those of all lists on this host.
func (w *Wall) Lists() (map[driver.ListKey]uint32, error) {
	out := map[driver.ListKey]uint32{}
	err := each(w.wallMaps.Lists, "lists", func(k listKey, rule uint32) bool {
		out[driver.ListKey{List: k.List, Proto: k.Proto, Len: k.Len, Port: k.Port}] = rule
		return true
	})
	return out, err
}

func prefixKeyOf(vni uint32, p netip.Prefix) prefixKey {
	bits := 32 + p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return prefixKey{Bits: uint32(bits), VNI: vni, Addr: wire(p.Masked().Addr())}
}

// PutPrefixes numbers prefixes of what is outside a network.
func (w *Wall) PutPrefixes(vni uint32, ps map[netip.Prefix]uint32) error {
	ks, vs := make([]prefixKey, 0, len(ps)), make([]uint32, 0, len(ps))
	for p, n := range ps {
		if !p.IsValid() || n < driver.FirstPrefix {
			return errs.InvalidFields("prefix", []errs.Field{{Field: "prefix, number", Value: fmt.Sprintf("%s, %d", p, n), Rule: fmt.Sprintf("must be a prefix and a number of %d or more", driver.FirstPrefix), Example: "192.0.2.0/24, 65536"}})
		}
		ks, vs = append(ks, prefixKeyOf(vni, p)), append(vs, n)
	}
	return put(w.wallMaps.Prefixes, "prefixes", ks, vs)
}

// DropPrefixes forgets prefixes.
func (w *Wall) DropPrefixes(vni uint32, ps []netip.Prefix) error {
	ks := make([]prefixKey, 0, len(ps))
	for _, p := range ps {
		ks = append(ks, prefixKeyOf(vni, p))
	}
	return drop(w.wallMaps.Prefixes, "prefixes", ks)
}

// Prefixes are those of a network.
func (w *Wall) Prefixes(vni uint32) (map[netip.Prefix]uint32, error) {
	out := map[netip.Prefix]uint32{}
	err := each(w.wallMaps.Prefixes, "prefixes", func(k prefixKey, n uint32) bool {
		if k.VNI == vni {
			a, bits := unmap(k.Addr), int(k.Bits)-32
			if a.Is4() && bits >= 96 {
				bits -= 96
			} else {
				a = netip.AddrFrom16(k.Addr)
			}
			out[netip.PrefixFrom(a, bits)] = n
		}
		return true
	})
	return out, err
}

// Apply brings the tables up to date. ports says which interface an address is at; a policy of an
// address that it does not know is left out, for SetPort brings it. At every moment, a packet is judged by
// what was or by what is: sets are complete before a port has them, and go when none has.
func (w *Wall) Apply(vni uint32, c driver.Change, ports map[netip.Addr]int) error {
	for _, step := range []func() error{
		// What is looked up last is there first, and goes last: no step refuses who is allowed before and after.
		func() error { return w.PutLists(c.Lists) },
		func() error { return w.PutPairs(c.Pairs) },
		func() error { return w.PutPrefixes(vni, c.Prefixes) },
		func() error { return w.PutMembers(vni, c.Put) },
		func() error {
			for _, a := range slices.SortedFunc(maps.Keys(c.Ports), netip.Addr.Compare) {
				if i, ok := ports[a]; ok {
					if err := w.SetPolicy(i, c.Ports[a]); err != nil {
						return err
					}
				}
			}
			return nil
		},
		func() error {
			for _, a := range c.DropPorts {
				if i, ok := ports[a]; ok {
					if err := w.DropPort(i); err != nil {
						return err
					}
				}
			}
			return nil
		},
		func() error { return w.DropMembers(vni, c.Drop) },
		func() error { return w.DropPrefixes(vni, c.DropPrefixes) },
		func() error { return w.DropPairs(c.DropPairs) },
		func() error { return w.DropLists(c.DropLists) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("network %d: %w", vni, err)
		}
	}
	return nil
}
