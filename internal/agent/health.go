package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
)

// checks runs the health checks of this node, one goroutine each, and waits for them.
type checks struct {
	clock  clock.Clock
	report func(id string, healthy, failed bool)

	mu      sync.Mutex
	running map[string]check
	closed  bool
	wg      sync.WaitGroup
}

type check struct {
	cancel context.CancelFunc
	key    string // what is checked and when it started; another key needs another goroutine
}

func newChecks(c clock.Clock, report func(id string, healthy, failed bool)) *checks {
	return &checks{clock: c, report: report, running: map[string]check{}}
}

const (
	healthEvery    = 10 * time.Second
	healthTimeout  = 3 * time.Second
	healthFailures = 3
)

// ensure starts the check of a running instance unless it runs already.
func (c *checks) ensure(ctx context.Context, id string, in *api.Instance, a *instances) {
	l, ok := a.look(id)
	if !ok || l.runtime == nil {
		return
	}
	key := fmt.Sprintf("%d/%d", l.launches, in.Generation)
	c.mu.Lock()
	defer c.mu.Unlock()
	old, running := c.running[id]
	if c.closed || running && old.key == key {
		return
	}
	if running {
		old.cancel()
	}
	// The check outlives the call that starts it; forget and stop end it.
	cctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.running[id] = check{cancel: cancel, key: key}
	h := in.Spec.Health
	c.wg.Go(func() {
		c.loop(cctx, id, h, func(ctx context.Context) error { return once(ctx, l.runtime, id, &in.Spec) })
	})
}

// forget ends a check; the next start of the instance begins anew.
func (c *checks) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.running[id]; ok {
		r.cancel()
		delete(c.running, id)
	}
}

// stop ends all checks and waits.
func (c *checks) stop() {
	c.mu.Lock()
	c.closed = true
	for _, r := range c.running {
		r.cancel()
	}
	c.mu.Unlock()
	c.wg.Wait()
}

func (c *checks) loop(ctx context.Context, id string, h *api.Health, probe func(context.Context) error) {
	every, timeout, most := healthEvery, healthTimeout, healthFailures
	if h.Every != nil {
		every = h.Every.D()
	}
	if h.Timeout != nil {
		timeout = h.Timeout.D()
	}
	if h.Failures > 0 {
		most = h.Failures
	}
	grace := time.Duration(0)
	if h.StartPeriod != nil {
		grace = h.StartPeriod.D()
	}
	began, fails := c.clock.Now(), 0
	// The first look comes soon, so that a healthy instance is known as one.
	for wait := min(every, 500*time.Millisecond); c.clock.Sleep(ctx, wait) == nil; wait = every {
		pctx, cancel := context.WithTimeout(ctx, timeout)
		err := probe(pctx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			fails = 0
			c.report(id, true, false)
		case c.clock.Now().Sub(began) >= grace:
			fails++
			c.report(id, false, fails >= most)
		}
	}
}

// once looks one time.
func once(ctx context.Context, rt driver.Runtime, id string, s *api.InstanceSpec) error {
	h := s.Health
	if len(h.Exec) > 0 {
		ex, ok := rt.(driver.Execer)
		if !ok {
			return fmt.Errorf("this isolation cannot run commands")
		}
		code, err := ex.Exec(ctx, id, api.ExecRequest{Argv: h.Exec}, driver.Stream{Out: io.Discard, Err: io.Discard})
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		return err
	}
	target := h.TCP
	if h.HTTP != "" {
		target = h.HTTP
	}
	port, path, err := s.HealthPort(target)
	if err != nil {
		return err
	}
	d, ok := rt.(driver.Dialer)
	if !ok {
		return fmt.Errorf("this isolation cannot be connected to")
	}
	conn, err := d.Dial(ctx, id, "tcp", fmt.Sprint(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if h.HTTP == "" {
		return nil
	}
	return getOver(ctx, conn, path)
}

// getOver asks for path over an open connection; 200 to 399 is well.
func getOver(ctx context.Context, conn io.ReadWriter, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return err
	}
	req.Close = true
	if d, ok := ctx.Deadline(); ok {
		if c, ok := conn.(interface{ SetDeadline(time.Time) error }); ok {
			if err := c.SetDeadline(d); err != nil {
				return err
			}
		}
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := readResponse(conn, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}
