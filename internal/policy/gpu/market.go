package gpu

import (
	"cmp"
	"math"
	"slices"
)

// Config is how a Market judges. Amounts are thousandths of a device.
type Config struct {
	Streams int     // default 24: imagined streams per hardware type; the noise of a value falls with their root
	Horizon float64 // default 3: length of a stream, as a multiple of the GPUs of a node; shorter ones forget that rare fits come
	Growth  float64 // default 0.2: streams are drawn anew when this part of what is placed is new
	Plain   float64 // default 0.3: worth of what asks no GPU, of its dominant share of the pool as if it were GPU; keeps cores for it
	Scarce  float64 // default 0.75: the same, where cores or memory run out before the devices do
	Break   float64 // default 40: price of breaking an untouched node, so that load gathers
	Rarity  float64 // default 3: how much dearer that is per e-fold fewer untouched nodes that can do as much
	Model   float64 // default 1: price of a thousandth of a model, times the part of it that only such items may use
	Reserve float64 // default 300: price per device of a room for several devices that is likely needed
	Ramp    float64 // default 1.5: rooms have a price when fewer than this times those likely needed are left; full at 1
	Margin  float64 // default 3: rooms likely needed are the mean and so many standard deviations
}

// Defaults are those that hold on all lists of bench/openb; none was set for one list.
func Defaults() Config {
	return Config{Streams: 24, Horizon: 3, Growth: 0.2, Plain: 0.3, Scarce: 0.75, Break: 40, Rarity: 3, Model: 1, Reserve: 300, Ramp: 1.5, Margin: 3}
}

// Market is what the pool's nodes with devices are worth, learned from what is
// placed on them now; nothing of the future, and no history, is known to it.
//
// Prices hold for an epoch. Set keeps the counts exact; Epoch starts a new epoch
// when they have moved so far that prices must follow.
type Market struct {
	conf    Config
	epoch   uint64
	classes []class
	classOf map[capacity]int16
	hosts   map[int]*host
	tally   tally     // over all classes
	models  [64]int64 // devices there are of each
	cpu     int64     // capacity of all nodes
	memory  int64
	devices int64
	idle    int64 // thousandths free

	rooms  []room // by shape, in order
	roomAt map[Item]int

	// what holds for this epoch
	sampled bool
	added   int  // items that came since streams were drawn
	fresh   bool // a room is new
	price   [64]float64
	values  map[Node]float64 // of the present streams
}

// class is a hardware type.
type class struct {
	size      Node // what its first node has when empty
	untouched int
	tally     tally
	streams   []stream
	rare      float64 // price of breaking one, in this epoch
}

// capacity tells hardware types apart, to about a tenth.
type capacity struct {
	cpu, memory    int16
	devices, model int8
}

// host is what Set said of a node.
type host struct {
	class int16
	size  Node // as it was given
	free  Node
	items []Item
}

// NewMarket is empty.
func NewMarket(c Config) *Market {
	return &Market{conf: c, epoch: 1, classOf: map[capacity]int16{}, hosts: map[int]*host{}, tally: newTally(), roomAt: map[Item]int{}, values: map[Node]float64{}}
}

// Set tells what a node has when empty, what is free and what is placed there.
// It replaces what was said of the id before, and answers the node's class.
func (m *Market) Set(id int, size, free Node, items []Item) int16 {
	c := m.class(size)
	h := m.hosts[id]
	if h == nil {
		h = &host{class: -1}
		m.hosts[id] = h
	}
	if h.class != c || h.size != size {
		m.forget(h)
		h.class, h.size = c, size
		m.grow(size, 1)
		m.idle += size.Idle()
		h.free = size
		h.free.Class, h.free.Touched = c, false
		m.classes[c].untouched++
		for i := range m.rooms {
			m.rooms[i].left += h.free.times(&m.rooms[i].shape)
		}
	}
	free.Class = c
	m.count(h, items)
	m.replace(h, free)
	return c
}

// Remove forgets a node.
func (m *Market) Remove(id int) {
	if h := m.hosts[id]; h != nil {
		m.forget(h)
		delete(m.hosts, id)
	}
}

func (m *Market) forget(h *host) {
	if h.class < 0 {
		return
	}
	m.count(h, nil)
	m.replace(h, Node{Class: h.class, Touched: true})
	m.grow(h.size, -1)
	h.class = -1
}

func (m *Market) grow(size Node, sign int64) {
	m.cpu += sign * size.CPU
	m.memory += sign * size.Memory
	m.devices += sign * int64(size.Devices)
	m.models[size.Model] += sign * int64(size.Devices)
}

// replace brings the sums over nodes from what was free to what is.
func (m *Market) replace(h *host, free Node) {
	m.idle += free.Idle() - h.free.Idle()
	if h.free.Touched != free.Touched {
		if free.Touched {
			m.classes[h.class].untouched--
		} else {
			m.classes[h.class].untouched++
		}
	}
	for i := range m.rooms {
		r := &m.rooms[i]
		r.left += free.times(&r.shape) - h.free.times(&r.shape)
	}
	h.free = free
}

// count brings the tallies from the items a node had to those it has.
func (m *Market) count(h *host, items []Item) {
	c := &m.classes[h.class]
	for i := range h.items {
		c.tally.add(&h.items[i], -1)
		m.tally.add(&h.items[i], -1)
	}
	m.added += max(len(items)-len(h.items), 0)
	h.items = append(h.items[:0], items...)
	for i := range h.items {
		it := &h.items[i]
		c.tally.add(it, 1)
		m.tally.add(it, 1)
		if it.Multi() {
			m.room(it)
		}
	}
}

func (m *Market) class(size Node) int16 {
	log := func(x int64) int16 { return int16(math.Round(math.Log(float64(max(x, 1))) / math.Log(1.1))) }
	key := capacity{log(size.CPU), log(size.Memory), size.Devices, size.Model}
	c, ok := m.classOf[key]
	if !ok {
		c = int16(len(m.classes))
		m.classOf[key] = c
		size.Class, size.Touched = c, false
		m.classes = append(m.classes, class{size: size, tally: newTally()})
		m.sampled = false
	}
	return c
}

// Epoch numbers the prices that hold. It changes when they must follow what was Set.
func (m *Market) Epoch() uint64 {
	drawn := m.tally.n > 0 && (!m.sampled || m.added > 0 && float64(m.added) >= m.conf.Growth*float64(m.tally.n))
	if !drawn && !m.moved() {
		return m.epoch
	}
	m.epoch++
	if drawn {
		m.sampled, m.added = true, 0
		m.drawStreams()
		m.priceModels()
	}
	m.priceRooms()
	m.priceClasses()
	return m.epoch
}

// moved tells whether a price is far from what it should be.
func (m *Market) moved() bool {
	if m.fresh {
		return true
	}
	for i := range m.rooms {
		if r := &m.rooms[i]; math.Abs(m.urgency(r)-r.urgent) > 0.03 {
			return true
		}
	}
	for c := range m.classes {
		if math.Abs(m.rarity(c)-m.classes[c].rare) > 0.3*m.conf.Break {
			return true
		}
	}
	return false
}

// priceClasses says what breaking an untouched node costs: the more untouched nodes
// can do what it can, the less. It protects hardware nobody has asked for yet, and
// fades where what comes is small: below one of several devices in two hundred.
func (m *Market) priceClasses() {
	for c := range m.classes {
		m.classes[c].rare = m.rarity(c)
	}
}

func (m *Market) rarity(c int) float64 {
	all, able := 0, 0
	size := &m.classes[c].size
	for i := range m.classes {
		o := &m.classes[i]
		all += o.untouched
		if o.size.CPU >= size.CPU && o.size.Memory >= size.Memory && o.size.Devices >= size.Devices {
			able += o.untouched
		}
	}
	large := min(1, 200*float64(m.tally.multi+1)/float64(m.tally.n+2))
	return m.conf.Break * (1 + m.conf.Rarity*large*math.Log(float64(max(all, 1))/float64(max(able, 1))))
}

// priceModels charges a model for the demand that only some models may serve, spread
// over those by their number, against the number there is of it.
func (m *Market) priceModels() {
	m.price = [64]float64{}
	if m.tally.demand == 0 || m.devices == 0 {
		return
	}
	for _, s := range m.tally.sorted() {
		if s.it.Models == 0 {
			continue
		}
		if have := m.allowed(s.it.Models); have > 0 {
			for i := range m.models {
				if s.it.Allows(int8(i)) && m.models[i] > 0 {
					m.price[i] += float64(s.n*s.it.Demand()) / float64(have)
				}
			}
		}
	}
	mean := float64(m.tally.demand) / float64(m.devices)
	for i := range m.price {
		m.price[i] *= m.conf.Model / mean
	}
}

// allowed counts the devices of some models; 0 stands for all.
func (m *Market) allowed(models uint64) int64 {
	if models == 0 {
		return m.devices
	}
	n := int64(0)
	for i := range m.models {
		if models>>i&1 == 1 {
			n += m.models[i]
		}
	}
	return n
}

// Cost is what placing an item that fits takes from the pool, in thousandths of a
// device, and the devices to take, of those allowed. Besides the node, the item and
// the set it depends on the epoch only. The least is best.
func (m *Market) Cost(n *Node, it *Item, allowed Set) (float64, Set) {
	before := m.value(n)
	best, set := math.Inf(1), Set(0)
	n.options(it, allowed, func(s Set) {
		after := *n
		after.Take(it, s)
		if c := before - m.value(&after) + m.roomCost(n, &after); c < best {
			best, set = c, s
		}
	})
	if !n.Touched {
		best += m.classes[n.Class].rare
	}
	return best + m.price[n.Model]*float64(it.Demand()), set
}

// tally counts placed items by shape.
type tally struct {
	by     map[Item]int64
	n      int64
	demand int64
	cpu    int64
	memory int64
	multi  int64 // items of several devices
}

type shape struct {
	it Item
	n  int64
}

func newTally() tally { return tally{by: map[Item]int64{}} }

func (t *tally) add(it *Item, sign int64) {
	t.n += sign
	t.demand += sign * it.Demand()
	t.cpu += sign * it.CPU
	t.memory += sign * it.Memory
	if it.Multi() {
		t.multi += sign
	}
	if c := t.by[*it] + sign; c != 0 {
		t.by[*it] = c
	} else {
		delete(t.by, *it)
	}
}

// sorted lists the shapes in an order that depends on them only.
func (t *tally) sorted() []shape {
	out := make([]shape, 0, len(t.by))
	for it, n := range t.by {
		out = append(out, shape{it, n})
	}
	slices.SortFunc(out, func(a, b shape) int { return compare(&a.it, &b.it) })
	return out
}

func compare(a, b *Item) int {
	return cmp.Or(cmp.Compare(a.Count, b.Count), cmp.Compare(a.Milli, b.Milli), cmp.Compare(a.CPU, b.CPU),
		cmp.Compare(a.Memory, b.Memory), cmp.Compare(a.Models, b.Models))
}
