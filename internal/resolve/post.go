package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/miekg/dns"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

// What instances may take of the host. They are hostile until proven otherwise.
const (
	netRate       = 2000 // questions a second from one network
	netFlights    = 64   // questions of one network that wait for an answer from outside
	tenantFlights = 128  // different ones of all networks of a tenant
	hostFlights   = 512  // and of all tenants
	netStreams    = 32   // TCP connections from one network
	perStream     = 128  // questions by one connection
	streamIdle    = 10 * time.Second
	readUDP       = 4096 // largest question, and largest answer from outside, by UDP
	openFirst     = 10 * time.Millisecond
	openMost      = time.Second
)

// Sockets are those of one network.
type Sockets struct {
	Packets []net.PacketConn
	Streams []net.Listener
}

// Close closes all of them.
func (s Sockets) Close() {
	for _, c := range s.Packets {
		c.Close()
	}
	for _, l := range s.Streams {
		l.Close()
	}
}

// post is where questions of one network come in on this host.
type post struct {
	r        *Resolver
	ref      api.Ref // of the network
	vni      uint32
	gateways []netip.Addr
	leave    context.CancelFunc
	rate     *bucket
	waiting  chan struct{}
	streams  chan struct{}
}

// newPost begins to listen; the goroutines are of r.work.
func (r *Resolver) newPost(ctx context.Context, ref api.Ref, vni uint32, gateways []netip.Addr) *post {
	ctx, cancel := context.WithCancel(ctx)
	p := &post{r: r, ref: ref, vni: vni, gateways: gateways, leave: cancel, rate: newBucket(r.Clock, r.rate()), waiting: make(chan struct{}, netFlights), streams: make(chan struct{}, netStreams)}
	r.outside.claim(gateways, 1)
	r.work.Go(func() { p.run(ctx) })
	return p
}

// close lets go of the sockets: while one is open, the network's namespace stays.
func (p *post) close() {
	p.leave()
	p.r.outside.claim(p.gateways, -1)
}

// run keeps the sockets open. The network may come to the host later than we hear of it, and whoever makes it
// anew closes what was opened in the old one.
func (p *post) run(ctx context.Context) {
	for pause := openFirst; ctx.Err() == nil; pause = min(2*pause, openMost) {
		s, err := p.r.Listen(ctx, p.vni, p.gateways)
		if err == nil {
			pause = openFirst
			err = p.serve(ctx, s)
		}
		if ctx.Err() != nil {
			return
		}
		if errs.KindOf(err) != errs.Unavailable && !errors.Is(err, net.ErrClosed) {
			p.r.Log.Warn("cannot listen for questions of a network; trying again", "network", p.ref.String(), "vni", p.vni, "error", err)
		}
		_ = p.r.Clock.Sleep(ctx, pause) // ends early only with ctx
	}
}

// serve answers until ctx ends or a socket fails.
func (p *post) serve(ctx context.Context, s Sockets) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	var wg sync.WaitGroup
	for _, c := range s.Packets {
		wg.Go(func() { cancel(p.packets(ctx, &wg, c)) })
	}
	for _, l := range s.Streams {
		wg.Go(func() { cancel(p.accept(ctx, &wg, l)) })
	}
	wg.Wait()
	return context.Cause(ctx)
}

// packets answers what comes by UDP: what is known at once, the rest in goroutines of wg.
func (p *post) packets(ctx context.Context, wg *sync.WaitGroup, c net.PacketConn) error {
	buf := make([]byte, readUDP)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if !p.rate.take() {
			p.r.Events.dropped(DropRate)
			continue
		}
		say := func(b []byte) { _, _ = c.WriteTo(b, from) } // who did not hear it asks again
		b, a := p.hear(buf[:n], false)
		if a == nil {
			if b != nil {
				say(b)
			}
			continue
		}
		if !enter(p.waiting) {
			p.r.Events.dropped(DropBusy)
			continue
		}
		wg.Go(func() {
			defer func() { <-p.waiting }()
			if b := p.fetch(ctx, a); b != nil {
				say(b)
			}
		})
	}
}

func enter(c chan struct{}) bool {
	select {
	case c <- struct{}{}:
		return true
	default:
		return false
	}
}

// accept answers what comes by TCP, each connection in a goroutine of wg.
func (p *post) accept(ctx context.Context, wg *sync.WaitGroup, l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if !enter(p.streams) {
			p.r.Events.dropped(DropBusy)
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-p.streams }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			p.stream(ctx, c)
		})
	}
}

// stream answers one question after the other, until the asker has enough or we have.
func (p *post) stream(ctx context.Context, c net.Conn) {
	buf := make([]byte, dns.MinMsgSize) // most questions are small
	for range perStream {
		if c.SetDeadline(p.r.Clock.Now().Add(streamIdle)) != nil {
			return
		}
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n > readUDP {
			return // no question is that long
		}
		if n > len(buf) {
			buf = make([]byte, readUDP)
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		if !p.rate.take() {
			p.r.Events.dropped(DropRate)
			return
		}
		b, a := p.hear(buf[:n], true)
		if a != nil {
			if !enter(p.waiting) {
				p.r.Events.dropped(DropBusy)
				return
			}
			b = p.fetch(ctx, a)
			<-p.waiting
		}
		if b == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			return
		}
	}
}

// hear gives the answer to a message, or the question that has to be asked outside. Neither: nothing is said.
func (p *post) hear(b []byte, tcp bool) (answer []byte, later *asked) {
	defer func() { // no bytes that somebody sends may end the daemon, on which all tenants of the host depend
		if x := recover(); x != nil {
			p.r.Log.Error("a question could not be handled", "network", p.ref.String(), "panic", fmt.Sprintf("%T", x), "stack", string(debug.Stack()))
			p.r.Events.dropped(DropBad)
			answer, later = nil, nil
		}
	}()
	a, r := read(b, tcp)
	if a == nil && r == nil {
		p.r.Events.dropped(DropBad)
		return nil, nil
	}
	size := dns.MinMsgSize
	if a != nil {
		size = a.size
		if r = p.known(a); r == nil {
			return nil, a
		}
	}
	return p.speak(r, size), nil
}

// known is what can be said at once; nil: others have to be asked.
func (p *post) known(a *asked) *dns.Msg {
	f, outside := p.r.look(p.ref, a.name)
	if r := own(a, f); r != nil {
		r.RecursionAvailable = outside
		return r
	}
	switch {
	case !outside, !a.msg.RecursionDesired:
		// Not that there is no such name: it may exist, and the asker may have others to ask.
		return a.reply(dns.RcodeRefused)
	case len(p.r.outside.all) == 0:
		return a.reply(dns.RcodeServerFailure)
	}
	if m, age := p.r.outside.kept(p.key(a)); m != nil {
		p.r.Events.cached()
		return passOn(a, m, age)
	}
	return nil
}

func (p *post) key(a *asked) key {
	return key{tenant: p.ref.Tenant, name: a.name, qtype: a.q.Qtype, do: a.do, cd: a.msg.CheckingDisabled}
}

// fetch asks outside.
func (p *post) fetch(ctx context.Context, a *asked) []byte {
	m := p.r.outside.ask(ctx, p.key(a), a.q)
	if ctx.Err() != nil {
		return nil
	}
	if m == nil {
		return p.speak(a.reply(dns.RcodeServerFailure), a.size)
	}
	return p.speak(passOn(a, m, 0), a.size)
}

func (p *post) speak(r *dns.Msg, size int) []byte {
	b, err := pack(r, size)
	if err != nil { // what came from outside does not fit into a message
		r.Answer, r.Ns, r.Extra, r.Rcode = nil, nil, nil, dns.RcodeServerFailure
		if b, err = r.Pack(); err != nil {
			p.r.Events.dropped(DropBad)
			return nil
		}
	}
	p.r.Events.answered(r.Rcode)
	return b
}

// bucket holds what may be asked now.
type bucket struct {
	clock clock.Clock
	rate  float64

	mu   sync.Mutex
	have float64
	at   time.Time
}

func newBucket(c clock.Clock, rate int) *bucket {
	return &bucket{clock: c, rate: float64(rate), have: float64(rate), at: c.Now()}
}

func (b *bucket) take() bool {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.have = min(b.rate, b.have+b.rate*max(now.Sub(b.at).Seconds(), 0))
	b.at = now
	if b.have < 1 {
		return false
	}
	b.have--
	return true
}
