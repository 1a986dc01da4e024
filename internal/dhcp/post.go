package dhcp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

const (
	portRate  = 5    // questions a second of one interface
	portBurst = 20   // and at once
	readMost  = 2048 // of a frame; no question is longer
	openFirst = 10 * time.Millisecond
	openMost  = time.Second
)

// post is where questions of one network come in on this host.
type post struct {
	s     *Server
	ref   api.Ref // of the network
	vni   uint32
	leave context.CancelFunc

	mu     sync.Mutex
	leases map[[6]byte]lease
	rates  map[[6]byte]*rate
}

// newPost begins to listen; the goroutines are of s.work.
func (s *Server) newPost(ctx context.Context, ref api.Ref, vni uint32, leases map[[6]byte]lease) *post {
	ctx, cancel := context.WithCancel(ctx)
	p := &post{s: s, ref: ref, vni: vni, leave: cancel, rates: map[[6]byte]*rate{}}
	p.set(leases)
	s.work.Go(func() { p.run(ctx, false) })
	s.work.Go(func() { p.run(ctx, true) })
	return p
}

// set says who is there now.
func (p *post) set(leases map[[6]byte]lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leases = leases
	for mac := range p.rates {
		if _, ok := leases[mac]; !ok {
			delete(p.rates, mac)
		}
	}
}

// run keeps one family's socket open. The network may come to the host later than we hear of it, and whoever makes it
// anew closes what was opened in the old one.
func (p *post) run(ctx context.Context, six bool) {
	for pause := openFirst; ctx.Err() == nil; pause = min(2*pause, openMost) {
		q, err := p.s.Questions(p.vni, six)
		if err == nil {
			pause = openFirst
			err = p.serve(ctx, q, six)
		}
		if ctx.Err() != nil || errs.KindOf(err) == errs.Unsupported {
			return
		}
		if errs.KindOf(err) != errs.Unavailable && !errors.Is(err, os.ErrClosed) {
			p.s.Log.Warn("cannot hear who asks for its address on a network; trying again", "network", p.ref.String(), "vni", p.vni, "error", err)
		}
		_ = p.s.Clock.Sleep(ctx, pause) // ends early only with ctx
	}
}

// serve answers until ctx ends or the socket fails.
func (p *post) serve(ctx context.Context, q driver.Questions, six bool) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer q.Close()
	defer cancel()
	defer context.AfterFunc(ctx, func() { q.Close() })()
	if six {
		wg.Go(func() { p.advertise(ctx, q) })
	}
	buf := make([]byte, readMost)
	for {
		n, err := q.Read(buf)
		if err != nil {
			return fmt.Errorf("hear questions: %w", err)
		}
		if b := p.hear(buf[:n], q, six); b != nil {
			p.s.Events.answered()
			_, _ = q.Write(b) // who did not hear it asks again
		}
	}
}

// advertise tells everybody of the gateway, now and then, each by its own port: nothing is flooded.
func (p *post) advertise(ctx context.Context, q driver.Questions) {
	for ctx.Err() == nil {
		var all [][]byte
		mtu := q.MTU()
		p.mu.Lock()
		for _, l := range p.leases {
			l.mtu = mtu
			if b := l.advert(q.MAC()); b != nil {
				all = append(all, b)
			}
		}
		p.mu.Unlock()
		for _, b := range all {
			_, _ = q.Write(b) // who did not hear it hears the next
		}
		_ = p.s.Clock.Sleep(ctx, p.s.Advertise) // ends early only with ctx
	}
}

// hear gives the answer to a frame; nil: nothing is said.
func (p *post) hear(b []byte, q driver.Questions, six bool) (answer []byte) {
	defer func() { // no bytes that somebody sends may end the daemon, on which all tenants of the host depend
		if x := recover(); x != nil {
			p.s.Log.Error("a question could not be handled", "network", p.ref.String(), "panic", fmt.Sprintf("%T", x), "stack", string(debug.Stack()))
			p.s.Events.dropped(DropBad)
			answer = nil
		}
	}()
	a, ok := readFrame(b)
	if !ok {
		p.s.Events.dropped(DropBad)
		return nil
	}
	l, why := p.who(a.mac)
	if why != "" {
		p.s.Events.dropped(why)
		return nil
	}
	l.mtu = q.MTU()
	if six {
		answer = l.answer6(a, q.MAC())
	} else {
		answer = l.answer4(a, q.MAC())
	}
	if answer == nil {
		p.s.Events.dropped(DropBad)
	}
	return answer
}

// who asks, by the port's hardware address; or why it is not looked into.
func (p *post) who(mac [6]byte) (lease, string) {
	now := p.s.Clock.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.leases[mac]
	if !ok {
		return l, DropNobody
	}
	r := p.rates[mac]
	if r == nil {
		r = &rate{have: portBurst, at: now}
		p.rates[mac] = r
	}
	if !r.take(now) {
		return l, DropRate
	}
	return l, ""
}

// rate is how much one interface may ask yet.
type rate struct {
	have float64
	at   time.Time
}

func (r *rate) take(now time.Time) bool {
	r.have = min(portBurst, r.have+portRate*max(now.Sub(r.at).Seconds(), 0))
	r.at = now
	if r.have < 1 {
		return false
	}
	r.have--
	return true
}
