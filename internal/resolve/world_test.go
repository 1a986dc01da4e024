package resolve

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// world is a store and a resolver on a host, with sockets on the loopback that play those of the networks.
type world struct {
	t    testing.TB
	st   *store.Mem
	r    *Resolver
	stop func()

	mu    sync.Mutex
	at    map[uint32]string // where a network's questions are heard; by its number
	opens map[uint32]int
	away  map[uint32]bool // networks that are not on the host yet
}

const node = "isle1"

func newWorld(t testing.TB, change func(*Deps)) *world {
	t.Helper()
	w := &world{t: t, st: store.NewMem(), at: map[uint32]string{}, opens: map[uint32]int{}, away: map[uint32]bool{}}
	d := Deps{Node: node, Store: w.st, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler), Listen: w.listen}
	if change != nil {
		change(&d)
	}
	w.r = New(d)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.r.Run(ctx)
	}()
	w.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(w.stop)
	return w
}

func (w *world) listen(ctx context.Context, vni uint32, gateways []netip.Addr) (Sockets, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away[vni] {
		return Sockets{}, errs.New(errs.Unavailable, "network %d is not here yet", vni)
	}
	for range 20 { // until the port is free for both
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return Sockets{}, err
		}
		l, err := net.Listen("tcp", c.LocalAddr().String())
		if err != nil {
			c.Close()
			continue
		}
		w.at[vni] = c.LocalAddr().String()
		w.opens[vni]++
		return Sockets{Packets: []net.PacketConn{c}, Streams: []net.Listener{l}}, nil
	}
	return Sockets{}, errs.New(errs.Unavailable, "no port is free for UDP and TCP")
}

func (w *world) commit(ops ...store.Op) {
	w.t.Helper()
	if _, err := w.st.Commit(w.t.Context(), ops...); err != nil {
		w.t.Fatal(err)
	}
}

// network makes one; what is given as a pair "tenant/name".
func (w *world) network(tenant, name string, vni uint32, change func(*api.NetworkSpec)) {
	w.t.Helper()
	n := &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Tenant: tenant, Name: name}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/16", CIDR6: "fd00:1::/64"}, Status: api.NetworkStatus{VNI: vni}}
	if change != nil {
		change(&n.Spec)
	}
	if f := n.Validate(); len(f) > 0 {
		w.t.Fatal(f)
	}
	w.commit(store.Set(n))
}

// endpoint puts an instance on networks, "main=10.1.0.5" or "main=10.1.0.5,fd00:1::5".
func endpoint(tenant, name, on string, nets ...string) *api.Endpoint {
	e := &api.Endpoint{Head: api.Head{K: api.KindEndpoint, Meta: api.Meta{Tenant: tenant, Name: name, Labels: map[string]string{}}}, Spec: api.EndpointSpec{Node: on}}
	for _, n := range nets {
		net, addrs, _ := strings.Cut(n, "=")
		i := api.Interface{Network: net}
		for _, a := range strings.Split(addrs, ",") {
			if strings.Contains(a, ":") {
				i.Address6 = a + "/64"
			} else {
				i.Address = a + "/16"
			}
		}
		e.Spec.Interfaces = append(e.Spec.Interfaces, i)
		e.Labels[api.NetworkLabel(net)] = ""
	}
	return e
}

func (w *world) place(tenant, name, on string, nets ...string) {
	w.t.Helper()
	w.commit(store.Set(endpoint(tenant, name, on, nets...)))
}

// where waits until a network's questions are heard.
func (w *world) where(vni uint32) string {
	w.t.Helper()
	var at string
	w.eventually(func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		at = w.at[vni]
		return at != ""
	})
	return at
}

func (w *world) eventually(ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("it did not come to be")
		}
	}
}

// settled waits until what was committed before is known.
func (w *world) settled(ref api.Ref, ok func(t *tenant) bool) {
	w.t.Helper()
	w.eventually(func() bool {
		w.r.mu.RLock()
		defer w.r.mu.RUnlock()
		t := w.r.tenants[ref.Tenant]
		return t != nil && ok(t)
	})
}

// ask asks on a network.
func (w *world) ask(vni uint32, name string, qtype uint16) *dns.Msg {
	w.t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(4096, false)
	r, _, err := (&dns.Client{Timeout: 8 * time.Second}).Exchange(m, w.where(vni))
	if err != nil {
		w.t.Fatalf("ask %s: %v", name, err)
	}
	return r
}

// told writes an answer as a line: code, sorted values.
func told(m *dns.Msg) string {
	var vs []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			vs = append(vs, rr.A.String())
		case *dns.AAAA:
			vs = append(vs, rr.AAAA.String())
		case *dns.PTR:
			vs = append(vs, rr.Ptr)
		case *dns.NS:
			vs = append(vs, rr.Ns)
		case *dns.CNAME:
			vs = append(vs, rr.Target)
		case *dns.SOA:
			vs = append(vs, "SOA")
		case *dns.TXT:
			vs = append(vs, strings.Join(rr.Txt, ""))
		default:
			vs = append(vs, fmt.Sprint(rr))
		}
	}
	slices.Sort(vs)
	return strings.TrimSpace(dns.RcodeToString[m.Rcode] + " " + strings.Join(vs, " "))
}
