package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"atoll/internal/sys/proc"
)

// Slow delays what the host and another send each other over connections that the host opens from now on to the other's API:
// every piece arrives so much later, each way. What is under way is not affected. It ends with the lab.
func (h *Host) Slow(other *Host, delay time.Duration) error {
	var l net.Listener
	err := proc.InNetNS(h.space.Path(), func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return fmt.Errorf("slow %s to %s: %w", h.Name, other.Name, err)
	}
	_, at, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	p := &proxy{l: l, delay: delay, open: map[net.Conn]bool{}, dial: func() (net.Conn, error) { return dialPast(h.space.Path(), other) }}
	p.wg.Go(p.serve)
	h.lab.atEnd(p.close)
	return run(h.space, `sysctl -qw net.ipv4.conf.all.route_localnet=1
nft add table ip labslow
nft add chain ip labslow out '{ type nat hook output priority -100; }'
nft add rule ip labslow out tcp sport `+strconv.Itoa(pastFrom)+`-65535 accept
nft add rule ip labslow out ip daddr `+other.Address+` tcp dport `+port+` dnat to 127.0.0.1:`+at)
}

// pastFrom begins the source ports that are not redirected: the kernel gives none of them to anybody by itself.
const pastFrom = 61000

// dialPast is how the proxy itself calls, from the host's own address.
func dialPast(namespace string, other *Host) (net.Conn, error) {
	var c net.Conn
	err := proc.InNetNS(namespace, func() (err error) {
		for range 20 {
			d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{Port: pastFrom + rand.IntN(65536-pastFrom)}}
			if c, err = d.Dial("tcp", net.JoinHostPort(other.Address, port)); !errors.Is(err, syscall.EADDRINUSE) {
				return err
			}
		}
		return err
	})
	return c, err
}

// proxy passes on what it reads after a delay, in order.
type proxy struct {
	l     net.Listener
	delay time.Duration
	dial  func() (net.Conn, error)

	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]bool
	over bool
}

func (p *proxy) serve() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return // closed
		}
		p.wg.Go(func() { p.pass(c) })
	}
}

// track has close end the connection; false when that is past.
func (p *proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		c.Close()
		return false
	}
	p.open[c] = true
	return true
}

func (p *proxy) pass(near net.Conn) {
	defer near.Close()
	time.Sleep(p.delay) // as long as the first packet would take
	far, err := p.dial()
	if err != nil || !p.track(near) || !p.track(far) {
		return
	}
	defer far.Close()
	var wg sync.WaitGroup
	wg.Go(func() { p.copy(far, near) })
	wg.Go(func() { p.copy(near, far) })
	wg.Wait()
	p.mu.Lock()
	delete(p.open, near)
	delete(p.open, far)
	p.mu.Unlock()
}

type piece struct {
	due time.Time
	b   []byte
}

// copy ends both ways when one has ended.
func (p *proxy) copy(to, from net.Conn) {
	queue := make(chan piece, 1024)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer to.Close()
		for x := range queue {
			time.Sleep(time.Until(x.due))
			if _, err := to.Write(x.b); err != nil {
				from.Close()
				break
			}
		}
		for range queue { // the reader must not wait for nobody
		}
	})
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		if n > 0 {
			queue <- piece{time.Now().Add(p.delay), b[:n]}
		}
		if err != nil {
			break
		}
	}
	close(queue)
	wg.Wait()
}

func (p *proxy) close() {
	p.l.Close()
	p.mu.Lock()
	p.over = true
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}
