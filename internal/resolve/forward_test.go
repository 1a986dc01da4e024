package resolve

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"atoll/api"
	"atoll/internal/clock"
)

// upstream is a resolver on the loopback that says what a test wants.
type upstream struct {
	addr  string
	asked atomic.Int64
	ports sync.Map // it was asked from
}

// newUpstream answers by say; nil says nothing.
func newUpstream(t testing.TB, say func(network string, q *dns.Msg) []*dns.Msg) *upstream {
	t.Helper()
	u := &upstream{}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", c.LocalAddr().String())
	if err != nil {
		t.Skip("the port is taken for TCP")
	}
	u.addr = c.LocalAddr().String()
	for _, s := range []*dns.Server{{PacketConn: c}, {Listener: l}} {
		network := "tcp"
		if s.PacketConn != nil {
			network = "udp"
		}
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			u.asked.Add(1)
			u.ports.Store(w.RemoteAddr().String(), true)
			for _, m := range say(network, q) {
				_ = w.WriteMsg(m)
			}
		})
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return u
}

func says(q *dns.Msg, records ...string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			panic(err)
		}
		if rr.Header().Rrtype == dns.TypeSOA {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}

// internet is what the fake upstream knows.
func internet(network string, q *dns.Msg) []*dns.Msg {
	soa := "example. 900 IN SOA ns.example. h.example. 1 2 3 4 600"
	one := func(m *dns.Msg) []*dns.Msg { return []*dns.Msg{m} }
	switch name := strings.ToLower(q.Question[0].Name); name {
	case "www.example.":
		return one(says(q, "www.example. 100 IN A 192.0.2.1"))
	case "chain.example.":
		return one(says(q, "chain.example. 100 IN CNAME b.example.", "b.example. 7 IN CNAME www.example.", "www.example. 100 IN A 192.0.2.1"))
	case "dangling.example.":
		m := says(q, "dangling.example. 100 IN CNAME gone.example.", soa)
		m.Rcode = dns.RcodeNameError
		return one(m)
	case "big.example.":
		var rs []string
		for i := range 100 {
			rs = append(rs, fmt.Sprintf("big.example. 100 IN TXT %q", fmt.Sprintf("%03d-%s", i, strings.Repeat("x", 30))))
		}
		m := says(q, rs...)
		if network == "udp" {
			m.Answer, m.Truncated = m.Answer[:3], true
		}
		return one(m)
	case "liar.example.": // the right answer comes last
		id, question, echo := says(q, "liar.example. 100 IN A 192.0.2.66"), says(q, "liar.example. 100 IN A 192.0.2.67"), q.Copy()
		id.Id++
		question.Question = []dns.Question{{Name: "other.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
		return []*dns.Msg{id, question, echo, says(q, "liar.example. 100 IN A 192.0.2.1")}
	case "empty.example.":
		return one(says(q, soa))
	case "fail.example.":
		return one(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	case "never.example.":
		return nil
	case "silent.example.":
		return one(says(q))
	}
	m := says(q, soa)
	m.Rcode = dns.RcodeNameError
	return one(m)
}

func TestOthersAreAsked(t *testing.T) {
	up := newUpstream(t, internet)
	w := twoTenants(t, func(d *Deps) { d.Upstream = []string{up.addr} })
	big := strings.Repeat("x", 30)
	for _, c := range []struct {
		name  string
		typ   uint16
		want  string
		calls int64 // of the upstream, when it is asked twice
	}{
		{"www.example", dns.TypeA, "NOERROR 192.0.2.1", 1},
		{"WWW.example", dns.TypeA, "NOERROR 192.0.2.1", 0}, // known from the line above
		{"chain.example", dns.TypeA, "NOERROR 192.0.2.1 b.example. www.example.", 1},
		{"dangling.example", dns.TypeA, "NXDOMAIN gone.example.", 1},
		{"liar.example", dns.TypeA, "NOERROR 192.0.2.1", 1},
		{"empty.example", dns.TypeA, "NOERROR", 1},
		{"nobody.example", dns.TypeA, "NXDOMAIN", 1},
		{"fail.example", dns.TypeA, "SERVFAIL", 1},
		{"silent.example", dns.TypeA, "NOERROR", 2}, // nobody says how long that holds
		{"nobody.acme.atoll.internal", dns.TypeA, "NXDOMAIN", 0},
		{"nobody.atoll.internal", dns.TypeDS, "NXDOMAIN", 0},
		{"9.9.9.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN", 0},
		{"1.0.0.0.0.0.c.f.ip6.arpa", dns.TypePTR, "NXDOMAIN", 0},
		{"x.y.254.169.in-addr.arpa", dns.TypePTR, "NXDOMAIN", 0},
	} {
		before := up.asked.Load()
		for range 2 {
			r := w.ask(1, c.name, c.typ)
			if got := told(r); got != c.want {
				t.Errorf("%s: %s, want %s", c.name, got, c.want)
			}
			if !r.RecursionAvailable || r.AuthenticatedData {
				t.Errorf("%s: %v", c.name, r.MsgHdr)
			}
		}
		if n := up.asked.Load() - before; n != c.calls {
			t.Errorf("%s was asked %d times outside, want %d", c.name, n, c.calls)
		}
	}
	// Cut by UDP, whole by TCP; between us and the upstream always whole.
	r := w.ask(1, "big.example", dns.TypeTXT)
	if r.Compress = true; !r.Truncated || r.Len() > sizeUDP {
		t.Errorf("%d bytes by UDP, truncated %v", r.Len(), r.Truncated)
	}
	m := new(dns.Msg).SetQuestion("big.example.", dns.TypeTXT)
	r, _, err := (&dns.Client{Net: "tcp"}).Exchange(m, w.where(1))
	if err != nil || r.Truncated || len(r.Answer) != 100 || !strings.Contains(told(r), "099-"+big) {
		t.Errorf("by TCP: %v, %d answers", err, len(r.Answer))
	}
	// Who asks on another tenant's network learns nothing from what is kept.
	before := up.asked.Load()
	if r := w.ask(3, "www.example", dns.TypeA); told(r) != "NOERROR 192.0.2.1" || r.Answer[0].Header().Ttl != 100 || up.asked.Load() != before+1 {
		t.Errorf("another tenant: %v", r)
	}
	// A network without a way out has none for questions either.
	if got := told(w.ask(2, "www.example", dns.TypeA)); got != "REFUSED" {
		t.Error(got)
	}
	// Each question came from a port of its own.
	ports := 0
	up.ports.Range(func(any, any) bool { ports++; return true })
	if ports < 8 {
		t.Errorf("only %d ports", ports)
	}
}

func TestTheNextResolverIsAsked(t *testing.T) {
	dead := newUpstream(t, func(string, *dns.Msg) []*dns.Msg { return nil })
	broken := newUpstream(t, func(_ string, q *dns.Msg) []*dns.Msg { return []*dns.Msg{new(dns.Msg).SetRcode(q, dns.RcodeRefused)} })
	closed := "127.0.0.1:1"
	up := newUpstream(t, internet)
	w := twoTenants(t, func(d *Deps) { d.Upstream = []string{closed, broken.addr, dead.addr, up.addr, "not an address"} })
	start := time.Now()
	if got := told(w.ask(1, "www.example", dns.TypeA)); got != "NOERROR 192.0.2.1" || time.Since(start) < attemptFor {
		t.Fatalf("%s after %v", got, time.Since(start))
	}
	start = time.Now()
	if got := told(w.ask(1, "chain.example", dns.TypeA)); !strings.HasPrefix(got, "NOERROR") || time.Since(start) > attemptFor/2 {
		t.Fatalf("the one that works is not asked first: %s after %v", got, time.Since(start))
	}
	if dead.asked.Load() != 1 || broken.asked.Load() != 1 {
		t.Errorf("asked %d and %d", dead.asked.Load(), broken.asked.Load())
	}
}

// Many who ask the same at the same time are one question outside; more than there may be get none.
func TestTheSameIsAskedOnce(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, func(n string, q *dns.Msg) []*dns.Msg {
		<-release
		return internet(n, q)
	})
	var busy atomic.Int64
	w := twoTenants(t, func(d *Deps) {
		d.Upstream, d.Events.Dropped = []string{up.addr}, func(string) { busy.Add(1) }
	})
	at := w.where(1)
	const askers = netFlights + 16
	answers := make(chan string, askers)
	for range askers {
		go func() {
			m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
			r, _, err := (&dns.Client{Timeout: 2 * time.Second}).Exchange(m, at)
			if err != nil {
				answers <- "none"
				return
			}
			answers <- told(r)
		}()
	}
	w.eventually(func() bool { return busy.Load() == 16 })
	if got := told(w.ask(1, "db.main.acme.atoll.internal", dns.TypeA)); got != "NOERROR 10.1.0.5" {
		t.Errorf("its own names wait for others: %s", got)
	}
	close(release)
	count := map[string]int{}
	for range askers {
		count[<-answers]++
	}
	if count["NOERROR 192.0.2.1"] != netFlights || count["none"] != 16 || up.asked.Load() != 1 {
		t.Errorf("%v, asked %d times", count, up.asked.Load())
	}
}

// One tenant, however many networks it has, does not take all places.
func TestPlacesAreShared(t *testing.T) {
	up := newUpstream(t, func(n string, q *dns.Msg) []*dns.Msg {
		if q.Question[0].Name == "www.example." {
			return internet(n, q)
		}
		return nil
	})
	var busy atomic.Int64
	f := newForwarder([]string{up.addr}, clock.Real{}, Events{Dropped: func(string) { busy.Add(1) }})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range hostFlights {
		wg.Go(func() {
			q := dns.Question{Name: fmt.Sprintf("n%d.example.", i), Qtype: dns.TypeA, Qclass: dns.ClassINET}
			f.ask(ctx, key{tenant: "acme", name: q.Name, qtype: q.Qtype}, q)
		})
	}
	for end := time.Now().Add(5 * time.Second); busy.Load() < hostFlights-tenantFlights && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	q := dns.Question{Name: "www.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}
	m := f.ask(ctx, key{tenant: "other", name: q.Name, qtype: q.Qtype}, q)
	cancel()
	wg.Wait()
	if busy.Load() != hostFlights-tenantFlights || m == nil || told(m) != "NOERROR 192.0.2.1" {
		t.Errorf("%d found no place; another tenant gets %v", busy.Load(), m)
	}
	if len(f.flights) != 0 || len(f.flying) != 0 {
		t.Errorf("left: %v %v", f.flights, f.flying)
	}
}

// A resolver that is one of our own gateways is not asked: the question would come back.
func TestWeDoNotAskOurselves(t *testing.T) {
	w := twoTenants(t, func(d *Deps) { d.Upstream = []string{"10.1.0.1"} })
	w.where(1)
	start := time.Now()
	if got := told(w.ask(1, "www.example", dns.TypeA)); got != "SERVFAIL" || time.Since(start) > time.Second {
		t.Errorf("%s after %v", got, time.Since(start))
	}
	for _, tenant := range []string{"acme", "other", "acme/dev"} {
		w.place(tenant, "db", "")
	}
	w.place("acme", "pair", "")
	w.place("other", "vault", "")
	w.eventually(func() bool {
		return len(w.r.outside.targets()) == 1
	})
}

func TestACircleEnds(t *testing.T) {
	// The host's resolver is an instance that asks its gateway.
	var at atomic.Value
	up := newUpstream(t, func(_ string, q *dns.Msg) []*dns.Msg {
		r, _, err := (&dns.Client{Timeout: 4 * time.Second}).Exchange(q, at.Load().(string))
		if err != nil {
			return nil
		}
		return []*dns.Msg{r}
	})
	w := twoTenants(t, func(d *Deps) { d.Upstream = []string{up.addr} })
	at.Store(w.where(1))
	if got := told(w.ask(1, "www.example", dns.TypeA)); got != "SERVFAIL" || up.asked.Load() != 1 {
		t.Errorf("%s, asked %d times", got, up.asked.Load())
	}
}

func TestCache(t *testing.T) {
	now := time.Unix(1e9, 0)
	q := func(name string, typ uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, typ) }
	soa := "example. 900 IN SOA ns.example. h.example. 1 2 3 4 20"
	nx := says(q("no.example.", dns.TypeA), soa)
	nx.Rcode = dns.RcodeNameError
	long := says(q("no.example.", dns.TypeA), strings.Replace(soa, " 20", " 3600", 1))
	cut := says(q("a.example.", dns.TypeA), "a.example. 60 IN A 192.0.2.1")
	cut.Truncated = true
	for what, c := range map[string]struct {
		m    *dns.Msg
		want time.Duration
	}{
		"positive":           {says(q("a.example.", dns.TypeA), "a.example. 60 IN A 192.0.2.1"), time.Minute},
		"the least of all":   {says(q("a.example.", dns.TypeA), "a.example. 9 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"), 9 * time.Second},
		"a day":              {says(q("a.example.", dns.TypeA), "a.example. 86400 IN A 192.0.2.1"), mostPositive},
		"none":               {says(q("a.example.", dns.TypeA), "a.example. 0 IN A 192.0.2.1"), 0},
		"no such name":       {nx, 20 * time.Second},
		"no such type, long": {long, mostNegative},
		"CNAME to nothing":   {says(q("a.example.", dns.TypeA), "a.example. 5 IN CNAME b.example.", soa), 5 * time.Second},
		"no SOA":             {says(q("a.example.", dns.TypeA)), 0},
		"failed":             {new(dns.Msg).SetRcode(q("a.example.", dns.TypeA), dns.RcodeServerFailure), keepFailure},
		"cut":                {cut, 0},
	} {
		if got := lifetime(c.m); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
		h := newCache(1 << 20)
		h.put(key{name: what}, c.m, now)
		if m, _ := h.get(key{name: what}, now.Add(c.want-1)); (m != nil) != (c.want > 0) {
			t.Errorf("%s: %v just before its end", what, m)
		}
		if m, _ := h.get(key{name: what}, now.Add(c.want)); m != nil || h.bytes != 0 || h.used.Len() != 0 {
			t.Errorf("%s: it is there after its end", what)
		}
	}
	h := newCache(1 << 16)
	first := key{name: "n0"}
	for i := range 1000 {
		h.put(key{name: fmt.Sprintf("n%d", i)}, says(q("a.example.", dns.TypeA), "a.example. 60 IN A 192.0.2.1"), now)
		h.get(first, now) // it is in use
	}
	if h.bytes > 1<<16 || h.used.Len() != len(h.byKey) || h.used.Len() < 50 {
		t.Errorf("%d bytes in %d entries", h.bytes, h.used.Len())
	}
	if m, _ := h.get(first, now); m == nil {
		t.Error("what is in use was dropped")
	}
	if _, age := h.get(first, now.Add(7*time.Second)); age != 7 {
		t.Errorf("age %d", age)
	}
	var huge []string
	for i := range 200 {
		huge = append(huge, fmt.Sprintf("a.example. 60 IN A 192.0.2.%d", i))
	}
	n := h.used.Len()
	if h.put(key{name: "huge"}, says(q("a.example.", dns.TypeA), huge...), now); h.used.Len() != n {
		t.Error("one answer took the place of many")
	}
}

func TestAnswersGrowOld(t *testing.T) {
	said := says(new(dns.Msg).SetQuestion("a.example.", dns.TypeA), "a.example. 60 IN A 192.0.2.1")
	a, _ := read(mustPack(t, new(dns.Msg).SetQuestion("A.example.", dns.TypeA)), false)
	if r := passOn(a, said, 20); r.Answer[0].Header().Ttl != 40 || said.Answer[0].Header().Ttl != 60 || r.Question[0].Name != "A.example." {
		t.Errorf("%v", r)
	}
	if r := passOn(a, said, 99); r.Answer[0].Header().Ttl != 0 {
		t.Errorf("%v", r)
	}
}

func mustPack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What somebody sends is answered, or not, but never breaks anything, and is never answered at length.
func FuzzHear(f *testing.F) {
	for _, name := range []string{"db.main.acme.atoll.internal.", "5.0.1.10.in-addr.arpa.", "d.f.ip6.arpa.", "example.org.", "."} {
		for _, typ := range []uint16{dns.TypeA, dns.TypePTR, dns.TypeANY, dns.TypeAXFR} {
			m := new(dns.Msg).SetQuestion(name, typ)
			f.Add(mustPack(f, m))
			m.SetEdns0(1232, true)
			f.Add(mustPack(f, m))
		}
	}
	f.Add([]byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	w := twoTenants(f, func(d *Deps) {
		d.Upstream = []string{"192.0.2.1"}
		d.Events.Dropped = func(why string) {}
	})
	p := &post{r: w.r, ref: api.Ref{Kind: api.KindNetwork, Tenant: "acme", Name: "main"}}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, tcp := range []bool{false, true} {
			out, later := p.hear(b, tcp)
			if out == nil {
				if later == nil && len(b) >= 12 && b[2]&0x80 == 0 {
					t.Fatalf("neither answered nor asked: %x", b)
				}
				continue
			}
			r := new(dns.Msg)
			if err := r.Unpack(out); err != nil {
				t.Fatalf("%x is answered by %x: %v", b, out, err)
			}
			if !r.Response || r.Id != uint16(b[0])<<8|uint16(b[1]) || !tcp && len(out) > sizeUDP {
				t.Fatalf("%x is answered by %s", b, r)
			}
		}
	})
}

func TestReverse(t *testing.T) {
	for name, want := range map[string]string{
		"5.0.1.10.in-addr.arpa.": "10.1.0.5/32 true", "10.in-addr.arpa.": "10.0.0.0/8 true", "x.10.in-addr.arpa.": "10.0.0.0/8 false",
		"256.10.in-addr.arpa.": "10.0.0.0/8 false", "01.10.in-addr.arpa.": "10.0.0.0/8 false", "9.5.0.1.10.in-addr.arpa.": "10.1.0.5/32 false",
		"c.f.ip6.arpa.": "fc00::/8 true", "1.0.0.0.d.f.ip6.arpa.": "fd00:100::/24 true", "10.f.ip6.arpa.": "f000::/4 false", "+.f.ip6.arpa.": "f000::/4 false",
	} {
		p, exact, ok := reverse(name)
		if got := fmt.Sprintf("%v %v", p.Masked(), exact); !ok || got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for _, a := range []string{"10.1.2.3", "fd00:1::a01:5", "::", "255.255.255.255"} {
		name, err := dns.ReverseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if p, exact, ok := reverse(name); !ok || !exact || p.Addr() != netip.MustParseAddr(a) || !p.IsSingleIP() {
			t.Errorf("%s: %v %v", name, p, exact)
		}
	}
	if _, _, ok := reverse("in-addr.arpa."); ok {
		t.Error("in-addr.arpa itself")
	}
}

// A flood of questions for one name, by as many askers as there are processors.
func BenchmarkOwnNames(b *testing.B) {
	w := twoTenants(b, func(d *Deps) { d.Rate = 1 << 30 })
	at := w.where(1)
	q := mustPack(b, new(dns.Msg).SetQuestion("db.main.acme.atoll.internal.", dns.TypeA))
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("udp", at)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		buf := make([]byte, 512)
		for pb.Next() {
			if _, err := c.Write(q); err != nil {
				b.Error(err)
				return
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "questions/s")
}

// The work for one question without the sockets.
func BenchmarkHear(b *testing.B) {
	w := twoTenants(b, nil)
	p := &post{r: w.r, ref: api.Ref{Kind: api.KindNetwork, Tenant: "acme", Name: "main"}}
	q := mustPack(b, new(dns.Msg).SetQuestion("db.main.acme.atoll.internal.", dns.TypeA))
	b.ReportAllocs()
	for b.Loop() {
		p.hear(q, false)
	}
}
