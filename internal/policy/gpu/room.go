package gpu

import (
	"math"
	"slices"
)

// room is a place for an item of several devices. Such places cannot be made again
// by later decisions, so they have a price when they run short.
type room struct {
	shape  Item
	left   int64   // how many there are
	part   float64 // rooms needed per item that comes
	urgent float64 // 0..1, in this epoch
	price  float64 // of one, in this epoch
}

// maxRooms bounds the shapes that rooms are kept for; those seen first are.
const maxRooms = 256

// room notes a shape that came.
func (m *Market) room(it *Item) {
	if _, known := m.roomAt[*it]; known || len(m.rooms) >= maxRooms {
		return
	}
	m.roomAt[*it] = len(m.rooms)
	r := room{shape: *it}
	for _, h := range m.hosts {
		r.left += h.free.times(it)
	}
	m.rooms = append(m.rooms, r)
	m.fresh = true
}

// priceRooms counts anew how many rooms each shape likely needs, and sets prices.
func (m *Market) priceRooms() {
	m.fresh = false
	m.rooms = slices.DeleteFunc(m.rooms, func(r room) bool { return m.tally.by[r.shape] == 0 })
	slices.SortFunc(m.rooms, func(a, b room) int { return compare(&a.shape, &b.shape) })
	clear(m.roomAt)
	for i := range m.rooms {
		m.roomAt[m.rooms[i].shape] = i
	}
	for i := range m.rooms {
		r := &m.rooms[i]
		r.part = m.part(&r.shape)
		r.urgent = m.urgency(r)
		r.price = m.conf.Reserve * r.urgent * float64(r.shape.Count)
	}
}

// part is how many rooms for a shape are taken per item that comes, by the shape
// itself and by those as large: one of eight devices takes two rooms for four.
// Shapes of other models count by the part of their choice they share.
func (m *Market) part(of *Item) float64 {
	sum := 0.0
	for i := range m.rooms {
		o := &m.rooms[i].shape
		if o.Count < of.Count {
			continue
		}
		common := 1.0
		if of.Models != 0 || o.Models != 0 {
			a, b := o.Models, of.Models
			if a == 0 {
				a = math.MaxUint64
			}
			if b == 0 {
				b = math.MaxUint64
			}
			if a&b == 0 {
				continue
			}
			common = float64(m.allowed(a&b)) / float64(max(m.allowed(a), 1))
		}
		sum += common * float64(m.tally.by[*o]) * float64(o.Count) / float64(of.Count)
	}
	return sum / float64(max(m.tally.n, 1))
}

// urgency is 0 when enough rooms are left for what likely comes until all devices
// are in use, 1 when there are just so many or fewer.
func (m *Market) urgency(r *room) float64 {
	if m.tally.demand == 0 {
		return 0
	}
	coming := float64(m.idle) * float64(m.tally.n) / float64(m.tally.demand)
	need := r.part * coming
	need += m.conf.Margin*math.Sqrt(need) + 1
	return max(0, min(1, (m.conf.Ramp-float64(r.left)/need)/(m.conf.Ramp-1)))
}

// roomCost is the price of the rooms a change of a node takes: of the dearest only,
// since rooms for several shapes are mostly the same devices.
func (m *Market) roomCost(before, after *Node) float64 {
	cost := 0.0
	for i := range m.rooms {
		r := &m.rooms[i]
		if r.price <= cost {
			continue
		}
		if k := before.times(&r.shape); k > 0 {
			cost = max(cost, r.price*float64(k-after.times(&r.shape)))
		}
	}
	return cost
}
