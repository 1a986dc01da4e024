package dhcp

import (
	"context"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// line is a socket of a network that is not there.
type line struct {
	heard chan []byte
	said  chan []byte
	once  sync.Once
	over  chan struct{}
}

func (l *line) Read(b []byte) (int, error) {
	select {
	case f := <-l.heard:
		return copy(b, f), nil
	case <-l.over:
		return 0, os.ErrClosed
	}
}

func (l *line) Write(b []byte) (int, error) {
	l.said <- b
	return len(b), nil
}

func (l *line) Close() error {
	l.once.Do(func() { close(l.over) })
	return nil
}

func (l *line) MAC() [6]byte { return gwMAC }
func (l *line) MTU() int     { return 1450 }

type world struct {
	t     *testing.T
	st    *store.Mem
	clk   *clock.Manual
	lines chan *line // of IPv4, as they are opened
	drops chan string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, st: store.NewMem(), clk: clock.NewManual(time.Unix(1e9, 0)), lines: make(chan *line, 10), drops: make(chan string, 1000)}
	s := New(Deps{Node: "isle1", Store: w.st, Clock: w.clk, Log: slog.New(slog.DiscardHandler), Events: Events{Dropped: func(why string) { w.drops <- why }},
		Questions: func(vni uint32, six bool) (driver.Questions, error) {
			if six {
				return nil, errs.New(errs.Unsupported, "IPv4 is enough here")
			}
			l := &line{heard: make(chan []byte), said: make(chan []byte, 100), over: make(chan struct{})}
			w.lines <- l
			return l, nil
		}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *world) set(o api.Object) {
	w.t.Helper()
	_, err := w.st.Commit(w.t.Context(), store.Set(o))
	must(w.t, err)
}

func (w *world) network(vni uint32, domain string) {
	w.set(&api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: "main", Tenant: "red"}}, Spec: api.NetworkSpec{CIDR: "10.1.0.0/16", Domain: domain}, Status: api.NetworkStatus{VNI: vni}})
}

func (w *world) endpoint(name, node, address string) {
	w.set(&api.Endpoint{Head: api.Head{K: api.KindEndpoint, Meta: api.Meta{Name: name, Tenant: "red"}}, Spec: api.EndpointSpec{Node: node, Interfaces: []api.Interface{
		{Network: "main", Name: "eth0", MAC: net.HardwareAddr(myMAC[:]).String(), Address: address + "/16"}}}})
}

func (w *world) open() *line {
	w.t.Helper()
	select {
	case l := <-w.lines:
		return l
	case <-time.After(5 * time.Second):
		w.t.Fatal("nobody listens")
		return nil
	}
}

// ask gives a discovery to a line; the address that is offered, or why there is none.
func (w *world) ask(l *line, mac [6]byte) (string, string) {
	w.t.Helper()
	q, err := dhcpv4.NewDiscovery(mac[:])
	must(w.t, err)
	f := way{from: mac, to: [6]byte{255, 255, 255, 255, 255, 255}, src: zero4, dst: everybody, sport: 68, dport: 67}.frame(q.ToBytes())
	select {
	case l.heard <- f:
	case <-l.over:
		return "", "closed"
	}
	select {
	case b := <-l.said:
		r, err := dhcpv4.FromBytes(checked(w.t, b).body)
		must(w.t, err)
		return r.YourIPAddr.String(), r.DomainName()
	case why := <-w.drops:
		return "", why
	case <-time.After(5 * time.Second):
		return "", "nothing"
	}
}

// eventually asks until the answer is as wanted; asking has a price, so time goes on.
func (w *world) eventually(l *line, wantAddr, want string) {
	w.t.Helper()
	var a, why string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if a, why = w.ask(l, myMAC); a == wantAddr && why == want {
			return
		}
		w.clk.Advance(time.Second)
	}
	w.t.Fatalf("%s %s, want %s %s", a, why, wantAddr, want)
}

func TestFollowsThePool(t *testing.T) {
	w := newWorld(t)
	w.endpoint("web", "isle1", "10.1.0.5") // before its network is known
	w.network(71001, "")
	l := w.open()
	w.eventually(l, "10.1.0.5", "main.red.atoll.internal")
	w.network(71001, "corp.example")
	w.eventually(l, "10.1.0.5", "corp.example")
	w.endpoint("web", "isle1", "10.1.0.9")
	w.eventually(l, "10.1.0.9", "corp.example")
	if a, why := w.ask(l, gwMAC); a != "" || why != DropNobody {
		t.Errorf("whom nobody knows: %s %s", a, why)
	}
	w.endpoint("web", "isle2", "10.1.0.9")
	select {
	case <-l.over:
	case <-time.After(5 * time.Second):
		t.Fatal("it listens where nobody is")
	}
	w.endpoint("web", "isle1", "10.1.0.9")
	l = w.open()
	w.eventually(l, "10.1.0.9", "corp.example")
	w.network(71002, "corp.example") // made anew under its name
	l = w.open()
	w.eventually(l, "10.1.0.9", "corp.example")
	l.Close() // by the driver, when the network leaves
	for end := time.Now().Add(5 * time.Second); len(w.lines) == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		w.clk.Advance(openMost)
	}
	w.eventually(w.open(), "10.1.0.9", "corp.example")
}

func TestWhoAsksTooMuchIsNotHeard(t *testing.T) {
	w := newWorld(t)
	w.network(71001, "")
	w.endpoint("web", "isle1", "10.1.0.5")
	l := w.open()
	for i := range portBurst {
		if a, why := w.ask(l, myMAC); a == "" {
			t.Fatalf("question %d: %s", i, why)
		}
	}
	if a, why := w.ask(l, myMAC); a != "" || why != DropRate {
		t.Errorf("one too many: %s %s", a, why)
	}
	w.clk.Advance(time.Second / portRate)
	if a, why := w.ask(l, myMAC); a == "" {
		t.Errorf("later: %s", why)
	}
	if a, why := w.ask(l, myMAC); a != "" || why != DropRate {
		t.Errorf("and again: %s %s", a, why)
	}
}
