package store

import (
	"maps"
	"slices"

	"atoll/api"
)

// index finds who waits for a change by a value in the object: a host waits for what is
// assigned to it, and in a pool of a thousand hosts all but one of a thousand watches
// have nothing to do with an assignment. Who is not found is not woken.
type index struct {
	kinds map[api.Kind][]*shelf
}

// shelf is who waits for objects of one kind by one of its fields.
type shelf struct {
	kind  api.Kind
	field string // "": the name
	value func(api.Object) string
	seats map[string]*seat // by value, the first of a list
}

// seat is where a watch waits that has read everything there is. All but the channel
// is guarded by the feed's lock.
type seat struct {
	shelf      *shelf
	value      string
	ready      chan struct{} // gets a word when the watch shall read on
	from       uint64        // then: the number of the first change that may concern it
	taken      bool
	prev, next *seat
}

// seat gives a watch its place; nil when only every change of all kinds, or of one,
// can tell it what concerns it.
func (x *index) seat(sel api.Selector) *seat {
	field, value := "", sel.Name
	if value == "" {
		for f := range sel.Fields { // any of them will do: all must be equal
			if field == "" || f < field {
				field = f
			}
		}
		value = sel.Fields[field]
	}
	if sel.Kind == "" || field == "" && sel.Name == "" {
		return nil
	}
	for _, s := range x.kinds[sel.Kind] {
		if s.field == field {
			return &seat{shelf: s, value: value, ready: make(chan struct{}, 1)}
		}
	}
	s := &shelf{kind: sel.Kind, field: field, seats: map[string]*seat{}, value: func(o api.Object) string { return o.Metadata().Name }}
	if field != "" {
		d, ok := api.Lookup(string(sel.Kind))
		if !ok || d.Fields[field] == nil {
			return nil // chooses nothing, and may do so without our help
		}
		s.value = d.Fields[field]
	}
	if x.kinds == nil {
		x.kinds = map[api.Kind][]*shelf{}
	}
	x.kinds[sel.Kind] = append(x.kinds[sel.Kind], s)
	return &seat{shelf: s, value: value, ready: make(chan struct{}, 1)}
}

// sit begins to wait.
func (x *index) sit(s *seat) {
	s.taken, s.prev, s.next = true, nil, s.shelf.seats[s.value]
	if s.next != nil {
		s.next.prev = s
	}
	s.shelf.seats[s.value] = s
}

// rise ends the wait of one that was not woken.
func (x *index) rise(s *seat) {
	if !s.taken {
		return
	}
	s.taken = false
	if s.next != nil {
		s.next.prev = s.prev
	}
	switch {
	case s.prev != nil:
		s.prev.next = s.next
	case s.next != nil:
		s.shelf.seats[s.value] = s.next
	default:
		delete(s.shelf.seats, s.value)
	}
	s.prev, s.next = nil, nil
}

// changed wakes whom the change of number n concerns: whoever chose what was or what is.
func (x *index) changed(n uint64, c *change) {
	for _, o := range []api.Object{c.was, c.is} {
		if o == nil {
			continue
		}
		for _, s := range x.kinds[o.ObjectKind()] {
			s.call(s.value(o), n)
		}
	}
}

// call wakes who waits for a value.
func (s *shelf) call(value string, n uint64) {
	first := s.seats[value]
	if first == nil {
		return
	}
	delete(s.seats, value)
	for at := first; at != nil; {
		next := at.next
		at.taken, at.prev, at.next, at.from = false, nil, nil, n
		at.ready <- struct{}{} // has room: who sits has taken the last word
		at = next
	}
}

// all wakes everybody, to find that their place is gone.
func (x *index) all() {
	for _, list := range x.kinds {
		for _, s := range list {
			for _, v := range slices.Collect(maps.Keys(s.seats)) {
				s.call(v, 0)
			}
		}
	}
}
