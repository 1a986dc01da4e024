package resolve

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	mostPositive = 5 * time.Minute  // that an answer is kept
	mostNegative = 30 * time.Second // that it is kept that there is none
	keepFailure  = time.Second      // RFC 9520: so often is asked again what nobody could answer
	cacheBytes   = 16 << 20
	cacheEntry   = 300 // bytes, about, that an answer takes beside its records
	packedFactor = 6   // an answer takes so many times its packed length, about
)

// key is what an answer is kept under. It names the tenant: who finds an answer kept, or half of
// its time gone, would know what others ask.
type key struct {
	tenant string
	name   string // in lower case
	qtype  uint16
	do, cd bool
}

// cache keeps what resolvers outside said, as much as fits.
type cache struct {
	most int // bytes

	mu    sync.Mutex
	bytes int
	byKey map[key]*list.Element
	used  *list.List // of *kept, what was used last in front
}

type kept struct {
	key         key
	msg         *dns.Msg // never changed
	since, till time.Time
	bytes       int
}

func newCache(most int) *cache {
	return &cache{most: most, byKey: map[key]*list.Element{}, used: list.New()}
}

// get gives an answer and how old it is, in seconds; nil: there is none that holds.
func (c *cache) get(k key, now time.Time) (*dns.Msg, uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[k]
	if e == nil {
		return nil, 0
	}
	h := e.Value.(*kept)
	if !now.Before(h.till) {
		c.drop(e)
		return nil, 0
	}
	c.used.MoveToFront(e)
	return h.msg, uint32(max(now.Sub(h.since), 0) / time.Second)
}

func (c *cache) drop(e *list.Element) {
	h := e.Value.(*kept)
	c.used.Remove(e)
	delete(c.byKey, h.key)
	c.bytes -= h.bytes
}

// put keeps an answer as long as it holds.
func (c *cache) put(k key, m *dns.Msg, now time.Time) {
	holds := lifetime(m)
	if holds <= 0 {
		return
	}
	h := &kept{key: k, msg: m, since: now, till: now.Add(holds), bytes: cacheEntry + packedFactor*m.Len()}
	if h.bytes > c.most/16 {
		return // one answer must not drive out many
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[k]; e != nil {
		c.drop(e)
	}
	c.byKey[k] = c.used.PushFront(h)
	c.bytes += h.bytes
	for c.bytes > c.most {
		c.drop(c.used.Back())
	}
}

// lifetime is how long an answer may be given again.
func lifetime(m *dns.Msg) time.Duration {
	switch {
	case m.Truncated:
		return 0
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return keepFailure
	case m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 && answers(m):
		return min(least(mostPositive, m.Answer), mostPositive)
	}
	for _, rr := range m.Ns { // RFC 2308, section 5
		if s, ok := rr.(*dns.SOA); ok {
			holds := min(time.Duration(min(s.Hdr.Ttl, s.Minttl))*time.Second, mostNegative)
			return least(holds, m.Answer)
		}
	}
	return 0 // nobody says how long
}

// answers reports whether the records lead to some of the type that was asked for.
func answers(m *dns.Msg) bool {
	for _, rr := range m.Answer {
		if len(m.Question) == 1 && rr.Header().Rrtype == m.Question[0].Qtype {
			return true
		}
	}
	return false
}

func least(d time.Duration, rrs []dns.RR) time.Duration {
	for _, rr := range rrs {
		d = min(d, time.Duration(rr.Header().Ttl)*time.Second)
	}
	return d
}
