package resolve

import (
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/miekg/dns"

	"atoll/api"
	"atoll/internal/store"
)

// twoTenants have networks of the same names and addresses.
func twoTenants(t testing.TB, change func(*Deps)) *world {
	w := newWorld(t, change)
	w.network("acme", "main", 1, nil)
	w.network("acme", "lab", 2, func(s *api.NetworkSpec) {
		s.CIDR, s.CIDR6, s.Domain, s.Egress = "10.2.0.0/20", "", "lab.example", "none"
	})
	w.network("acme", "twin", 5, func(s *api.NetworkSpec) { s.Domain = "lab.example" })
	w.network("other", "main", 3, nil)
	w.network("other", "secret", 6, func(s *api.NetworkSpec) { s.CIDR, s.CIDR6 = "10.77.0.0/16", "" })
	w.network("acme/dev", "main", 4, func(s *api.NetworkSpec) { s.CIDR, s.CIDR6 = "198.51.100.0/24", "2001:db8:7::/64" })
	w.place("acme", "db", node, "main=10.1.0.5,fd00:1::5", "lab=10.2.0.5")
	w.place("acme", "web", "isle2", "main=10.1.0.6")
	w.place("acme", "idle", "", "main=10.1.0.7,fd00:1::7")
	w.place("acme", "pair", node, "twin=10.1.0.9", "lab=10.2.0.9")
	w.place("other", "db", node, "main=10.1.0.5,fd00:1::5")
	w.place("other", "vault", node, "secret=10.77.0.2")
	w.place("acme/dev", "db", node, "main=198.51.100.5")
	w.settled(api.Ref{Tenant: "acme/dev"}, func(t *tenant) bool { return t.nets["main"] != nil && len(t.nets["main"].on.byName) == 1 })
	return w
}

func TestNames(t *testing.T) {
	w := twoTenants(t, nil)
	for _, c := range []struct {
		vni  uint32
		name string
		typ  uint16
		want string
	}{
		// what there is
		{1, "db.main.acme.atoll.internal", dns.TypeA, "NOERROR 10.1.0.5"},
		{1, "DB.Main.aCME.atoll.INTERNAL", dns.TypeA, "NOERROR 10.1.0.5"},
		{1, "db.main.acme.atoll.internal", dns.TypeAAAA, "NOERROR fd00:1::5"},
		{1, "web.main.acme.atoll.internal", dns.TypeA, "NOERROR 10.1.0.6"},
		{1, "web.main.acme.atoll.internal", dns.TypeAAAA, "NOERROR"},
		{1, "web.main.acme.atoll.internal", dns.TypeTXT, "NOERROR"},
		{1, "idle.main.acme.atoll.internal", dns.TypeA, "NOERROR"},
		{1, "nobody.main.acme.atoll.internal", dns.TypeA, "NXDOMAIN"},
		{1, "a.db.main.acme.atoll.internal", dns.TypeA, "NXDOMAIN"},
		{1, `d\098.main.acme.atoll.internal`, dns.TypeA, "NOERROR 10.1.0.5"}, // the same name, written otherwise
		{1, `db\.main.main.acme.atoll.internal`, dns.TypeA, "NXDOMAIN"},
		// another network of the tenant, by both of its domains
		{1, "db.lab.acme.atoll.internal", dns.TypeA, "NOERROR 10.2.0.5"},
		{1, "db.lab.example", dns.TypeA, "NOERROR 10.2.0.5"},
		{1, "pair.lab.example", dns.TypeA, "NOERROR 10.1.0.9 10.2.0.9"},
		{1, "pair.twin.acme.atoll.internal", dns.TypeA, "NOERROR 10.1.0.9"},
		{1, "none.lab.example", dns.TypeA, "NXDOMAIN"},
		// what is only above others, and apexes
		{1, "atoll.internal", dns.TypeA, "NOERROR"},
		{1, "atoll.internal", dns.TypeSOA, "NOERROR SOA"},
		{1, "acme.atoll.internal", dns.TypeA, "NOERROR"},
		{1, "main.acme.atoll.internal", dns.TypeA, "NOERROR"},
		{1, "main.acme.atoll.internal", dns.TypeSOA, "NOERROR SOA"},
		{1, "main.acme.atoll.internal", dns.TypeNS, "NOERROR ns.dns.main.acme.atoll.internal."},
		{1, "ns.dns.main.acme.atoll.internal", dns.TypeA, "NOERROR 10.1.0.1"},
		{1, "ns.dns.main.acme.atoll.internal", dns.TypeAAAA, "NOERROR fd00:1::1"},
		{1, "dns.main.acme.atoll.internal", dns.TypeA, "NOERROR"},
		{1, "db.main.acme.atoll.internal", dns.TypeNS, "NOERROR"},
		// other tenants: as if they were not
		{1, "db.main.other.atoll.internal", dns.TypeA, "NXDOMAIN"},
		{1, "main.other.atoll.internal", dns.TypeSOA, "NXDOMAIN"},
		{1, "other.atoll.internal", dns.TypeA, "NXDOMAIN"},
		{1, "no-such-tenant.atoll.internal", dns.TypeA, "NXDOMAIN"},
		{1, "vault.secret.other.atoll.internal", dns.TypeA, "NXDOMAIN"},
		{1, "main.dev.acme.atoll.internal", dns.TypeSOA, "NXDOMAIN"},
		{3, "db.main.other.atoll.internal", dns.TypeA, "NOERROR 10.1.0.5"},
		{3, "db.main.acme.atoll.internal", dns.TypeA, "NXDOMAIN"},
		{3, "db.lab.example", dns.TypeA, "SERVFAIL"}, // forwarded like any other, and there is no resolver
		{4, "db.main.dev.acme.atoll.internal", dns.TypeA, "NOERROR 198.51.100.5"},
		{4, "db.main.acme.atoll.internal", dns.TypeA, "NXDOMAIN"},
		{4, "acme.atoll.internal", dns.TypeA, "NOERROR"},
		// addresses
		{1, "5.0.1.10.in-addr.arpa", dns.TypePTR, "NOERROR db.main.acme.atoll.internal."},
		{3, "5.0.1.10.in-addr.arpa", dns.TypePTR, "NOERROR db.main.other.atoll.internal."},
		{5, "9.0.1.10.in-addr.arpa", dns.TypePTR, "NOERROR pair.lab.example."},
		{5, "6.0.1.10.in-addr.arpa", dns.TypePTR, "NOERROR web.main.acme.atoll.internal."}, // of the tenant's other network with these addresses
		{1, "1.0.1.10.in-addr.arpa", dns.TypePTR, "NOERROR ns.dns.main.acme.atoll.internal."},
		{1, "5.0.1.10.in-addr.arpa", dns.TypeA, "NOERROR"},
		{1, "7.0.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "99.0.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "1.10.in-addr.arpa", dns.TypePTR, "NOERROR"},
		{1, "10.in-addr.arpa", dns.TypeSOA, "NOERROR SOA"},
		{1, "9.5.0.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "x.0.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "05.0.1.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "5.0.2.10.in-addr.arpa", dns.TypePTR, "NOERROR db.lab.example."},
		{1, "2.0.77.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"}, // of another tenant
		{1, "77.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "1.1.168.192.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "1.1.31.172.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "1.1.32.172.in-addr.arpa", dns.TypePTR, "SERVFAIL"}, // somebody's in the Internet
		{1, "5.100.51.198.in-addr.arpa", dns.TypePTR, "SERVFAIL"},
		{4, "5.100.51.198.in-addr.arpa", dns.TypePTR, "NOERROR db.main.dev.acme.atoll.internal."},
		{4, "6.100.51.198.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{4, "100.51.198.in-addr.arpa", dns.TypeSOA, "NOERROR SOA"},
		{4, "51.198.in-addr.arpa", dns.TypeSOA, "SERVFAIL"},
		{1, "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", dns.TypePTR, "NOERROR db.main.acme.atoll.internal."},
		{1, "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa", dns.TypePTR, "NXDOMAIN"},
		{1, "1.0.0.0.0.0.d.f.ip6.arpa", dns.TypePTR, "NOERROR"},
		{1, "c.f.ip6.arpa", dns.TypeSOA, "NOERROR SOA"},
		{1, "8.e.f.ip6.arpa", dns.TypeSOA, "NOERROR SOA"},
		// a network without a way out
		{2, "db.main.acme.atoll.internal", dns.TypeA, "NOERROR 10.1.0.5"},
		{2, "example.org", dns.TypeA, "REFUSED"},
		{1, "example.org", dns.TypeA, "SERVFAIL"},
	} {
		r := w.ask(c.vni, c.name, c.typ)
		if got := told(r); got != c.want {
			t.Errorf("network %d, %s %s: %s, want %s", c.vni, c.name, dns.TypeToString[c.typ], got, c.want)
			continue
		}
		if r.Authoritative && len(r.Answer) == 0 {
			if len(r.Ns) != 1 || r.Ns[0].Header().Rrtype != dns.TypeSOA || r.Ns[0].Header().Ttl > 5 || !dns.IsSubDomain(r.Ns[0].Header().Name, dns.Fqdn(c.name)) {
				t.Errorf("%s: a negative answer with %v", c.name, r.Ns)
			}
		}
		for _, rr := range r.Answer {
			if rr.Header().Ttl != ttl || rr.Header().Class != dns.ClassINET {
				t.Errorf("%s: %v", c.name, rr)
			}
		}
	}
}

// Nobody finds out what another tenant has: the answers are the same, byte for byte but for the name.
func TestOthersAreNotToBeSeen(t *testing.T) {
	w := twoTenants(t, nil)
	for _, pair := range [][2]string{{"vault.secret.other.atoll.internal", "vault.secret.nobod.atoll.internal"}, {"db.main.other.atoll.internal", "db.main.nobod.atoll.internal"}, {"2.0.77.10.in-addr.arpa", "2.0.78.10.in-addr.arpa"}} {
		for _, typ := range []uint16{dns.TypeA, dns.TypePTR, dns.TypeSOA, dns.TypeTXT} {
			a, b := w.ask(1, pair[0], typ), w.ask(1, pair[1], typ)
			a.Question, b.Question, a.Id, b.Id = nil, nil, 0, 0
			if a.String() != b.String() {
				t.Errorf("%s %s\n%s\n%s", pair[0], dns.TypeToString[typ], a, b)
			}
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	w := twoTenants(t, nil)
	name := "db.main.acme.atoll.internal."
	q := func(change func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		change(m)
		return m
	}
	for what, c := range map[string]struct {
		m    *dns.Msg
		want int
	}{
		"ANY":           {q(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY }), dns.RcodeNotImplemented},
		"AXFR":          {q(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		"IXFR":          {q(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }), dns.RcodeRefused},
		"TSIG":          {q(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTSIG }), dns.RcodeFormatError},
		"CHAOS":         {q(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"class ANY":     {q(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
		"UPDATE":        {q(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"NOTIFY":        {q(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		"no question":   {q(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"two questions": {q(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"EDNS 1":        {q(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		"no recursion":  {q(func(m *dns.Msg) { m.Question[0].Name = "example.org."; m.RecursionDesired = false }), dns.RcodeRefused},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r, _, err := (&dns.Client{Net: network}).Exchange(c.m, w.where(1))
			if err != nil || r.Rcode != c.want || len(r.Answer) != 0 {
				t.Errorf("%s over %s: %v %v, want %s", what, network, err, r, dns.RcodeToString[c.want])
			}
		}
	}
}

// A host hears questions where instances are, and lets go of the sockets with the last one.
func TestSocketsComeAndGo(t *testing.T) {
	w := newWorld(t, nil)
	w.mu.Lock()
	w.away[1] = true
	w.mu.Unlock()
	w.network("acme", "main", 1, nil)
	w.place("acme", "far", "isle2", "main=10.1.0.2")
	w.place("acme", "db", node, "main=10.1.0.5")
	w.settled(api.Ref{Tenant: "acme"}, func(t *tenant) bool { return true })
	time.Sleep(50 * time.Millisecond) // it has tried more than once by now
	w.mu.Lock()
	w.away[1] = false
	w.mu.Unlock()
	at := w.where(1)
	if got := told(w.ask(1, "far.main.acme.atoll.internal", dns.TypeA)); got != "NOERROR 10.1.0.2" {
		t.Fatal(got)
	}
	open, err := dns.Dial("tcp", at) // a connection that is open does not hold the network either
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	w.place("acme", "db", "isle2", "main=10.1.0.5")
	w.eventually(func() bool {
		c, err := dns.Dial("tcp", at)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if err := open.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := open.ReadMsg(); err == nil || isTimeout(err) {
		t.Errorf("the connection is open yet: %v", err)
	}
	w.eventually(func() bool {
		w.r.mu.RLock()
		defer w.r.mu.RUnlock()
		return len(w.r.tenants) == 0
	})
	// It comes back; whoever made the network anew closed the sockets.
	w.mu.Lock()
	delete(w.at, 1)
	w.mu.Unlock()
	w.place("acme", "db", node, "main=10.1.0.5")
	w.where(1)
	w.network("acme", "main", 1, func(s *api.NetworkSpec) { s.CIDR6 = "fd00:9::/64" })
	w.eventually(func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.opens[1] == 3
	})
	w.commit(store.Remove(api.Ref{Kind: api.KindNetwork, Tenant: "acme", Name: "main"}, store.Any))
	w.eventually(func() bool { return told(w.ask(1, "db.main.acme.atoll.internal", dns.TypeA)) == "NXDOMAIN" })
}

func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

// What the store says is answered within 100 ms.
func TestAnswersFollowTheStore(t *testing.T) {
	w := newWorld(t, nil)
	w.network("acme", "main", 1, nil)
	w.place("acme", "db", node, "main=10.1.0.5")
	w.where(1)
	var took []time.Duration
	for i := range 100 {
		want := "10.1.0." + string(rune('0'+i%10)) + string(rune('0'+i/10%10))
		if i%10 == 0 {
			want = "10.1.1." + string(rune('1'+i/10%9))
		}
		start := time.Now()
		w.place("acme", "web", "isle2", "main="+want)
		for told(w.ask(1, "web.main.acme.atoll.internal", dns.TypeA)) != "NOERROR "+want {
			if time.Since(start) > 5*time.Second {
				t.Fatalf("change %d is never answered", i)
			}
		}
		took = append(took, time.Since(start))
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	t.Logf("from commit to answer: median %v, p99 %v, most %v", took[50], took[98], took[99])
	if took[98] > 100*time.Millisecond {
		t.Errorf("p99 is %v, more than 100ms", took[98])
	}
}

func TestLimits(t *testing.T) {
	var dropped = make(chan string, 10000)
	w := twoTenants(t, func(d *Deps) {
		d.Rate, d.Events.Dropped = 20, func(why string) { dropped <- why }
	})
	m := new(dns.Msg).SetQuestion("db.main.acme.atoll.internal.", dns.TypeA)
	lost := 0
	for range 60 {
		if _, _, err := (&dns.Client{Timeout: 20 * time.Millisecond}).Exchange(m, w.where(1)); err != nil {
			lost++
		}
	}
	if lost == 0 || len(dropped) == 0 || len(dropped) > lost || <-dropped != DropRate {
		t.Errorf("%d questions were not answered, %d told", lost, len(dropped))
	}
	if got := told(w.ask(3, "db.main.other.atoll.internal", dns.TypeA)); got != "NOERROR 10.1.0.5" {
		t.Errorf("another network pays for it: %s", got)
	}
	// More connections than there may be.
	var conns []*dns.Conn
	for range netStreams + 8 {
		c, err := dns.Dial("tcp", w.where(4))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	closed := 0
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.ReadMsg(); err != nil && !isTimeout(err) {
			closed++
		}
	}
	if closed != 8 {
		t.Errorf("%d of %d connections were closed at once", closed, len(conns))
	}
}

func TestLongAnswersAreCut(t *testing.T) {
	w := newWorld(t, nil)
	var nets []string
	for i := range 60 {
		name := "n" + string(rune('a'+i/26)) + string(rune('a'+i%26))
		w.network("acme", name, uint32(i+1), func(s *api.NetworkSpec) { s.Domain, s.CIDR6 = "all.example", "" })
		nets = append(nets, name+"=10.1.0."+string(rune('1'+i/10))+string(rune('0'+i%10)))
	}
	w.place("acme", "db", node, nets...)
	w.settled(api.Ref{Tenant: "acme"}, func(t *tenant) bool { return len(t.nets) == 60 })
	m := new(dns.Msg).SetQuestion("db.all.example.", dns.TypeA)
	w.eventually(func() bool {
		r, _, err := (&dns.Client{Net: "tcp"}).Exchange(m, w.where(1))
		return err == nil && len(r.Answer) == 60
	})
	r, _, err := (&dns.Client{}).Exchange(m, w.where(1))
	if r.Compress = true; err != nil || !r.Truncated || r.Len() > dns.MinMsgSize {
		t.Errorf("%v %d bytes, truncated %v", err, r.Len(), r.Truncated)
	}
	m.SetEdns0(65000, false)
	if r, _, err = (&dns.Client{UDPSize: 65000}).Exchange(m, w.where(1)); err != nil {
		t.Fatal(err)
	}
	if r.Compress = true; len(r.Answer) != 60 || r.Len() > sizeUDP {
		t.Errorf("%d answers in %d bytes", len(r.Answer), r.Len())
	}
	if i := slices.IndexFunc(r.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT }); i < 0 {
		t.Error("the answer says nothing of EDNS")
	}
}
