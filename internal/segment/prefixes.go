package segment

import (
	"cmp"
	"net/netip"
	"slices"

	"atoll/internal/driver"
)

// prefixes are those that rules name, with their numbers. Numbers are as they were
// told last; uses run ahead of them until settle.
type prefixes struct {
	uses    map[netip.Prefix]int
	touched map[netip.Prefix]struct{}
	number  map[netip.Prefix]uint32
	sorted  []netip.Prefix // the keys of number, so that what is inside of one follows it
	lens    [2][129]int    // how many there are of each length, by family
}

func (x *prefixes) use(p netip.Prefix, by int) {
	if x.uses[p] += by; x.uses[p] == 0 {
		delete(x.uses, p)
	}
	x.touched[p] = struct{}{}
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// around is the number of the longest prefix around p, other than p itself.
func (x *prefixes) around(p netip.Prefix) uint32 {
	for n := p.Bits() - 1; n >= 0; n-- {
		if x.lens[family(p)][n] == 0 {
			continue
		}
		if around, err := p.Addr().Prefix(n); err == nil {
			if num, ok := x.number[around]; ok {
				return num
			}
		}
	}
	return driver.IdentityOutside
}

// within lists p, if it has a number, and all inside of it.
func (x *prefixes) within(p netip.Prefix) []netip.Prefix {
	from, _ := slices.BinarySearchFunc(x.sorted, p, comparePrefix)
	to := from
	for to < len(x.sorted) && within(x.sorted[to], p) {
		to++
	}
	return x.sorted[from:to]
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// move says that addresses that had one number now have another: because there is
// a new prefix, which has the number to, or because one is gone, which had from.
type move struct {
	from, to uint32
	gone     bool
}

// settlePrefixes numbers what has come into use and forgets what has gone out of it, with
// all selectors. Between two prefixes of which one is inside the other, addresses move.
func (c *Compiler) settlePrefixes(out *driver.Change) {
	x := &c.prefixes
	var added, gone []netip.Prefix
	for p := range x.touched {
		_, had := x.number[p]
		if _, used := x.uses[p]; used && !had {
			added = append(added, p)
		} else if !used && had {
			gone = append(gone, p)
		}
	}
	clear(x.touched)
	if len(added)+len(gone) == 0 {
		return
	}
	slices.SortFunc(added, comparePrefix)
	around := make([]uint32, len(added))
	for i, p := range added {
		around[i] = x.around(p)
	}
	for _, p := range gone {
		n := x.number[p]
		c.eachSelector(p, func(s *selector) { c.put(s, n, false) })
		for s := range c.outside {
			c.put(s, n, false)
		}
		delete(x.number, p)
		x.lens[family(p)][p.Bits()]--
		c.went[n] = struct{}{}
		c.ids.free(n - driver.FirstPrefix)
		out.DropPrefixes = append(out.DropPrefixes, p)
		c.moves = append(c.moves, move{from: n, gone: true})
	}
	if len(gone) > 0 {
		x.sorted = slices.DeleteFunc(x.sorted, func(p netip.Prefix) bool { _, ok := x.number[p]; return !ok })
	}
	for i, p := range added {
		n := driver.FirstPrefix + c.ids.take()
		x.number[p] = n
		x.lens[family(p)][p.Bits()]++
		c.came[n] = struct{}{}
		out.Prefixes[p] = n
		c.moves = append(c.moves, move{from: around[i], to: n})
	}
	x.sorted = mergeSorted(x.sorted, added)
	for i, p := range gone {
		c.moves[i].to = x.around(p)
	}
	for _, p := range added {
		n := x.number[p]
		c.eachSelector(p, func(s *selector) { c.put(s, n, s.prefix(p)) })
		for s := range c.outside {
			c.put(s, n, true)
		}
	}
}

// eachSelector visits the selectors with a CIDR around p, or p itself.
func (c *Compiler) eachSelector(p netip.Prefix, fn func(*selector)) {
	for n := p.Bits(); n >= 0; n-- {
		if around, err := p.Addr().Prefix(n); err == nil {
			for s := range c.byPrefix[around] {
				fn(s)
			}
		}
	}
}

func mergeSorted(a, b []netip.Prefix) []netip.Prefix {
	if len(b) == 0 {
		return a
	}
	out := make([]netip.Prefix, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if comparePrefix(a[0], b[0]) < 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}
