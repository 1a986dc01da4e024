package store

import (
	"encoding/json"
	"sort"
	"sync/atomic"

	"atoll/api"
)

// entry is one object as stored. It never changes: a write makes a new one, so a
// reader may go on using what it found after the lock is given back.
type entry struct {
	key string // api.SortKey
	obj api.Object
	enc atomic.Pointer[json.RawMessage] // its JSON, made when first asked for
}

func newEntry(o api.Object) *entry { return &entry{key: api.SortKey(api.RefOf(o)), obj: o} }

func (e *entry) encoded() (json.RawMessage, error) {
	if p := e.enc.Load(); p != nil {
		return *p, nil
	}
	b, err := api.Encode(e.obj)
	if err != nil {
		return nil, err
	}
	raw := json.RawMessage(b)
	e.enc.Store(&raw)
	return raw, nil
}

// chunkSize bounds what an insert has to move; a power of two near what fits a few cache lines' worth of pointers.
const chunkSize = 512

// ordered keeps the entries of one kind by key, so that listing never sorts. As
// the key starts with the tenant, a tenant's objects are one range of it.
type ordered struct {
	chunks [][]*entry // none empty
	n      int
}

// seek finds the place of the first entry with a key >= key.
func (o *ordered) seek(key string) (chunk, i int) {
	// The last chunk that starts at or before key is the only one that can hold it.
	c := sort.Search(len(o.chunks), func(c int) bool { return o.chunks[c][0].key > key }) - 1
	if c < 0 {
		return 0, 0
	}
	list := o.chunks[c]
	i = sort.Search(len(list), func(i int) bool { return list[i].key >= key })
	if i == len(list) {
		return c + 1, 0
	}
	return c, i
}

func (o *ordered) get(key string) *entry {
	c, i := o.seek(key)
	if c < len(o.chunks) && o.chunks[c][i].key == key {
		return o.chunks[c][i]
	}
	return nil
}

// put adds e or replaces the entry of its key.
func (o *ordered) put(e *entry) {
	c, i := o.seek(e.key)
	if c < len(o.chunks) && o.chunks[c][i].key == e.key {
		o.chunks[c][i] = e
		return
	}
	o.n++
	if i == 0 && c > 0 { // at the seam of two chunks: append to the left one
		c, i = c-1, len(o.chunks[c-1])
	}
	if len(o.chunks) == 0 {
		o.chunks = append(o.chunks, make([]*entry, 0, 8))
	}
	list := append(o.chunks[c], nil)
	copy(list[i+1:], list[i:])
	list[i] = e
	o.chunks[c] = list
	if len(list) < chunkSize {
		return
	}
	// Split where the entry went in, so that names that only grow fill whole chunks.
	at := chunkSize / 2
	if i >= chunkSize-2 {
		at = i
	}
	right := append(make([]*entry, 0, chunkSize), list[at:]...)
	clear(list[at:])
	o.chunks[c] = list[:at]
	o.chunks = append(o.chunks, nil)
	copy(o.chunks[c+2:], o.chunks[c+1:])
	o.chunks[c+1] = right
}

func (o *ordered) remove(key string) {
	c, i := o.seek(key)
	if c >= len(o.chunks) || o.chunks[c][i].key != key {
		return
	}
	o.n--
	list := o.chunks[c]
	copy(list[i:], list[i+1:])
	list[len(list)-1] = nil
	o.chunks[c] = list[:len(list)-1]
	if len(o.chunks[c]) == 0 {
		o.chunks = append(o.chunks[:c], o.chunks[c+1:]...)
	}
}

// scan calls fn for the keys in [lo, hi) in order until it answers false; hi "" has no end.
func (o *ordered) scan(lo, hi string, fn func(*entry) bool) bool {
	c, i := o.seek(lo)
	for ; c < len(o.chunks); c, i = c+1, 0 {
		for _, e := range o.chunks[c][i:] {
			if hi != "" && e.key >= hi {
				return true
			}
			if !fn(e) {
				return false
			}
		}
	}
	return true
}

// table is a set of objects of all kinds.
type table struct {
	kinds map[api.Kind]*ordered
}

func newTable() *table { return &table{kinds: map[api.Kind]*ordered{}} }

func (t *table) get(r api.Ref) *entry {
	if o := t.kinds[r.Kind]; o != nil {
		return o.get(api.SortKey(r))
	}
	return nil
}

func (t *table) put(e *entry) {
	k := e.obj.ObjectKind()
	o := t.kinds[k]
	if o == nil {
		o = &ordered{}
		t.kinds[k] = o
	}
	o.put(e)
}

func (t *table) remove(r api.Ref) {
	if o := t.kinds[r.Kind]; o != nil {
		o.remove(api.SortKey(r))
	}
}

// list gathers what sel chooses, in order. A selector without kind chooses all
// kinds, by name of the kind; Limit and After do not apply then.
func (t *table) list(sel api.Selector) []*entry {
	if sel.Kind == "" {
		return t.listAll(sel)
	}
	o := t.kinds[sel.Kind]
	if o == nil {
		return nil
	}
	var out []*entry
	if plain(sel) {
		out = make([]*entry, 0, capHint(sel, o.n))
	}
	take := func(e *entry) bool {
		if sel.Matches(e.obj) {
			out = append(out, e)
		}
		return sel.Limit <= 0 || len(out) < sel.Limit
	}
	for _, r := range ranges(sel) {
		if sel.After != "" && r.lo <= sel.After {
			r.lo = sel.After + "\x00" // the smallest key beyond
		}
		if r.hi != "" && r.lo >= r.hi {
			continue
		}
		if !o.scan(r.lo, r.hi, take) {
			break
		}
	}
	return out
}

func (t *table) listAll(sel api.Selector) []*entry {
	kinds := make([]string, 0, len(t.kinds))
	for k := range t.kinds {
		kinds = append(kinds, string(k))
	}
	sort.Strings(kinds)
	sel.Limit, sel.After = 0, ""
	var out []*entry
	for _, k := range kinds {
		sel.Kind = api.Kind(k)
		out = append(out, t.list(sel)...)
	}
	return out
}

// plain reports whether sel chooses most of what it looks at, so that space is worth reserving.
func plain(sel api.Selector) bool {
	return sel.Tenant == "" && sel.Name == "" && len(sel.Labels) == 0 && len(sel.Fields) == 0
}

func capHint(sel api.Selector, n int) int {
	if sel.Limit > 0 {
		return min(sel.Limit, n)
	}
	return n
}

type keyRange struct{ lo, hi string }

// ranges are the parts of the order that can hold what sel chooses. The nested
// tenants of "a" start with "a/"; "a-b" lies between them and "a" itself.
func ranges(sel api.Selector) []keyRange {
	switch {
	case sel.Tenant == "":
		return []keyRange{{}}
	case sel.Name != "" && !sel.Nested:
		k := sel.Tenant + "\x00" + sel.Name
		return []keyRange{{k, k + "\x00"}}
	case !sel.Nested:
		return []keyRange{{sel.Tenant + "\x00", sel.Tenant + "\x01"}}
	}
	return []keyRange{{sel.Tenant + "\x00", sel.Tenant + "\x01"}, {sel.Tenant + "/", sel.Tenant + "0"}}
}

func objectsOf(list []*entry) []api.Object {
	out := make([]api.Object, len(list))
	for i, e := range list {
		out[i] = e.obj
	}
	return out
}
