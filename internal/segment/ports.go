package segment

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"

	"atoll/api"
	"atoll/internal/driver"
)

// entry is one entry of a port list: the first len bits of a port, of a protocol.
type entry struct {
	proto, len uint8
	port       uint16
}

// cut makes the fewest prefixes that are exactly the range.
func cut(r api.PortRange, out []entry) []entry {
	for first, last := uint32(r.First), uint32(r.Last); first <= last; {
		// As many low bits as are 0 in first may vary, and no more than stay within last.
		free := min(bits.TrailingZeros32(first|1<<16), bits.Len32(last-first+1)-1)
		out = append(out, entry{r.Proto, uint8(16 - free), uint16(first)})
		first += 1 << free
	}
	return out
}

func compareEntry(a, b entry) int {
	return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.len, b.len), cmp.Compare(a.port, b.port))
}

// list is a list of ports that pairs share: what it holds is what it is known by.
type list struct {
	id        uint32
	key       string
	entries   []listed
	lens      uint32
	refs      int // pairs in sets
	published bool
}

type listed struct {
	entry
	rule uint32
}

// merge makes one list of rules, the first of which is named where several allow. What
// an earlier rule allows with fewer bits is left out of the later ones; so whoever looks
// up the longest entry finds the first rule.
func merge(rules []*rule) []listed {
	type place struct {
		rank int
		rule uint32
	}
	first := map[entry]place{}
	var lens uint32
	for rank, r := range rules {
		for _, e := range r.entries {
			lens |= 1 << e.len
			if _, ok := first[e]; !ok {
				first[e] = place{rank, r.id}
			}
		}
	}
	out := make([]listed, 0, len(first))
	for e, p := range first {
		if !hidden(e, lens, func(short entry) bool { s, ok := first[short]; return ok && s.rank <= p.rank }) {
			out = append(out, listed{e, p.rule})
		}
	}
	return out
}

// hidden reports whether a shorter entry says the same.
func hidden(e entry, lens uint32, is func(entry) bool) bool {
	for n := uint8(0); n < e.len; n++ {
		if lens&(1<<n) != 0 && is(entry{e.proto, n, head(e.port, n)}) {
			return true
		}
	}
	return false
}

// head is the first n bits of a port.
func head(port uint16, n uint8) uint16 { return uint16(uint32(port) >> (16 - n) << (16 - n)) }

// lists are the lists in use, by content and by number.
type lists struct {
	byKey   map[string]*list
	byID    map[uint32]*list
	touched map[*list]struct{}
}

// intern finds or makes the list of rules, none of which allows everything.
func (c *Compiler) intern(rules []*rule) *list {
	var content []listed
	if len(rules) == 1 {
		for _, e := range rules[0].entries {
			content = append(content, listed{e, rules[0].id})
		}
	} else {
		content = merge(rules)
		slices.SortFunc(content, func(a, b listed) int { return compareEntry(a.entry, b.entry) })
	}
	key := make([]byte, 0, 8*len(content))
	lens := uint32(0)
	for _, e := range content {
		key = binary.BigEndian.AppendUint32(append(key, e.proto, e.len, byte(e.port>>8), byte(e.port)), e.rule)
		lens |= 1 << e.len
	}
	if l, ok := c.lists.byKey[string(key)]; ok {
		return l
	}
	l := &list{id: c.ids.take(), key: string(key), entries: content, lens: lens}
	c.lists.byKey[l.key], c.lists.byID[l.id] = l, l
	c.lists.touched[l] = struct{}{}
	return l
}

func (c *Compiler) hold(p driver.Pair, by int) {
	if p.List == 0 {
		return
	}
	l := c.lists.byID[p.List]
	l.refs += by
	c.lists.touched[l] = struct{}{}
}

// settleLists tells of the lists that have come into use or out of it.
func (c *Compiler) settleLists(out *driver.Change) {
	for l := range c.lists.touched {
		switch {
		case l.refs > 0 && !l.published:
			l.published = true
			for _, e := range l.entries {
				out.Lists[driver.ListKey{List: l.id, Proto: e.proto, Len: e.len, Port: e.port}] = e.rule
			}
		case l.refs == 0:
			if l.published {
				for _, e := range l.entries {
					out.DropLists = append(out.DropLists, driver.ListKey{List: l.id, Proto: e.proto, Len: e.len, Port: e.port})
				}
			}
			delete(c.lists.byKey, l.key)
			delete(c.lists.byID, l.id)
			c.ids.free(l.id)
		}
	}
	clear(c.lists.touched)
}
