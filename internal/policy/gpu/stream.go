package gpu

import (
	"math/rand/v2"
	"sort"
)

// stream is an imagined sequence of arrivals at an empty node.
type stream struct {
	offers []offer
	least  int64 // CPU of the smallest
}

// offer is an item of a stream.
type offer struct {
	cpu    int64
	memory int64
	worth  float64
	milli  int16
	count  int8
}

const (
	// enough items of its own make a hardware type known; with fewer, what fits it
	// of the items on other types is mixed in.
	enough = 200
	// longest is the most items of a stream.
	longest = 200
	// maxValues bounds the memory of values.
	maxValues = 1 << 16
)

// drawStreams imagines streams for each hardware type from what is placed on it
// now: so a type gets more of what suited it. The draw is fixed by the counts.
func (m *Market) drawStreams() {
	clear(m.values)
	all := m.tally.sorted()
	for c := range m.classes {
		k := &m.classes[c]
		own := k.tally.sorted()
		var others []shape
		if k.tally.n < enough {
			for _, s := range all {
				if k.size.Fits(&s.it) {
					others = append(others, s)
				}
			}
		}
		k.streams = k.streams[:0]
		from := newLot(own, others, k.tally.n)
		if from.total == 0 || k.size.Devices == 0 {
			continue
		}
		rng := rand.New(rand.NewPCG(uint64(c), 0))
		for range m.conf.Streams {
			k.streams = append(k.streams, m.stream(from, rng, m.conf.Horizon*float64(k.size.Devices)*Whole))
		}
	}
}

func (m *Market) stream(from lot, rng *rand.Rand, length float64) stream {
	var s stream
	for sum := 0.0; len(s.offers) < longest && sum < length; {
		it := from.draw(rng)
		o := offer{cpu: it.CPU, memory: it.Memory, milli: it.Milli, count: it.Count, worth: float64(it.Demand())}
		if it.Count == 0 {
			o.worth = m.plain(it)
		}
		if len(s.offers) == 0 || it.CPU < s.least {
			s.least = it.CPU
		}
		s.offers = append(s.offers, o)
		sum += float64(it.Demand())
	}
	return s
}

// plain is the worth of an item without devices: its dominant share of the pool, as
// if it were devices, times a weight that grows when the mix that is placed would use
// up all cores or all memory before all devices.
func (m *Market) plain(it *Item) float64 {
	cpu, memory := float64(max(m.cpu, 1)), float64(max(m.memory, 1))
	share := max(float64(it.CPU)/cpu, float64(it.Memory)/memory) * float64(m.devices) * Whole
	need := 2.0
	if m.tally.demand > 0 {
		need = max(float64(m.tally.cpu)/cpu, float64(m.tally.memory)/memory) * float64(m.devices) * Whole / float64(m.tally.demand)
	}
	scarce := max(0, min(1, (need-0.9)/0.2))
	return share * (m.conf.Plain + (m.conf.Scarce-m.conf.Plain)*scarce)
}

// lot is what streams are drawn from: shapes and the running sums of their weights.
type lot struct {
	shapes []shape
	sums   []float64
	total  float64
}

// newLot gives a type's own items their number, others what is missing to enough.
func newLot(own, others []shape, n int64) lot {
	var l lot
	add := func(list []shape, weight float64) {
		for _, s := range list {
			l.total += weight * float64(s.n)
			l.shapes = append(l.shapes, s)
			l.sums = append(l.sums, l.total)
		}
	}
	add(own, 1)
	sum := int64(0)
	for _, s := range others {
		sum += s.n
	}
	if sum > 0 {
		add(others, float64(enough-n)/float64(sum))
	}
	return l
}

func (l *lot) draw(rng *rand.Rand) *Item {
	x := rng.Float64() * l.total
	return &l.shapes[min(sort.SearchFloat64s(l.sums, x), len(l.shapes)-1)].it
}

// value is what the streams of the node's type could still place on it, in the mean.
func (m *Market) value(n *Node) float64 {
	if v, ok := m.values[*n]; ok {
		return v
	}
	c := &m.classes[n.Class]
	if len(c.streams) == 0 {
		return 0
	}
	b := trialOf(n)
	sum := 0.0
	for i := range c.streams {
		x := b
		sum += x.offer(&c.streams[i])
	}
	v := sum / float64(len(c.streams))
	if len(m.values) >= maxValues {
		clear(m.values)
	}
	m.values[*n] = v
	return v
}

// trial is a node while streams are offered to it: whole devices are counted, only
// those in part use are told apart.
type trial struct {
	cpu, memory int64
	whole       int
	n           int
	parts       [MaxDevices]int16
}

func trialOf(n *Node) trial {
	b := trial{cpu: n.CPU, memory: n.Memory}
	for _, f := range n.Free[:n.Devices] {
		switch {
		case f == Whole:
			b.whole++
		case f > 0:
			b.parts[b.n] = f
			b.n++
		}
	}
	return b
}

// offer places what fits of a stream, in order, and answers its worth.
func (b *trial) offer(s *stream) float64 {
	sum := 0.0
	for i := range s.offers {
		o := &s.offers[i]
		if b.cpu < o.cpu || b.memory < o.memory {
			if b.cpu < s.least {
				break
			}
			continue
		}
		if o.count > 0 && !b.devices(o) {
			continue
		}
		b.cpu -= o.cpu
		b.memory -= o.memory
		sum += o.worth
	}
	return sum
}

// devices takes what an offer asks, a share from the device with the least that has it.
func (b *trial) devices(o *offer) bool {
	if o.milli == Whole {
		if b.whole < int(o.count) {
			return false
		}
		b.whole -= int(o.count)
		return true
	}
	best := -1
	for i, f := range b.parts[:b.n] {
		if f >= o.milli && (best < 0 || f < b.parts[best]) {
			best = i
		}
	}
	switch {
	case best >= 0:
		b.parts[best] -= o.milli
	case b.whole > 0:
		b.whole--
		b.parts[b.n] = Whole - o.milli
		b.n++
	default:
		return false
	}
	return true
}
