package wire

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"atoll/internal/clock"
)

// hasty is a clock whose sleeps are over at once, and are told of.
type hasty struct {
	clock.Real
	slept chan time.Duration
}

func (h hasty) Sleep(ctx context.Context, d time.Duration) error {
	select {
	case h.slept <- d:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A server whose host says that nobody listens there is about to begin: it is tried often
// enough that who asks it for this node does not wait in vain.
func TestServersThatBeginAreTriedOften(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	clk := hasty{slept: make(chan time.Duration)}
	link := NewLink(LinkConfig{TLS: &tls.Config{MinVersion: tls.VersionTLS13}, Clock: clk, Rand: rand.New(rand.NewPCG(1, 2))})
	link.Set([]string{"https://" + addr})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- link.Run(ctx) }()
	var longest time.Duration
	for range 30 {
		longest = max(longest, <-clk.slept)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if longest > 1500*time.Millisecond || longest < 800*time.Millisecond {
		t.Errorf("a pause of %s", longest)
	}
}
