package agent

import (
	"context"
	"io"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
)

// Traffic answers what is asked about networks of tenants on this host.
type Traffic interface {
	// Answer writes JSON, one value a line. netns is that of the instance a path is tried from.
	Answer(ctx context.Context, ask api.NetAsk, netns string, out io.Writer) error
	// Capture writes the packets of an instance's wire as pcap.
	Capture(ctx context.Context, instance api.Ref, netns string, req api.CaptureRequest, out io.Writer, progress func(api.Progress)) error
}

var errNoTraffic = errs.New(errs.Unsupported, "this node takes no part in networks of tenants").WithHint("atoll doctor says what is missing")

func (a *Agent) net(ctx context.Context, c *call, ask api.NetAsk) error {
	if a.Traffic == nil {
		return errNoTraffic
	}
	netns := ""
	if ask.What == api.NetPath {
		_, l, err := a.running(ctx, c.h.Instance)
		if err != nil {
			return err
		}
		netns = l.obs.NetNS
	}
	if err := a.Traffic.Answer(ctx, ask, netns, c.s.Writer(api.ChanStdout)); err != nil {
		return err
	}
	return c.exit(0)
}

func (a *Agent) capture(ctx context.Context, c *call, req api.CaptureRequest) error {
	if a.Traffic == nil {
		return errNoTraffic
	}
	_, l, err := a.running(ctx, c.h.Instance)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before the wait
	wg.Go(func() { // the caller's Ctrl-C ends it cleanly
		select {
		case <-c.signal:
			cancel()
		case <-ctx.Done():
		}
	})
	err = a.Traffic.Capture(ctx, c.h.Instance, l.obs.NetNS, req, c.s.Writer(api.ChanStdout), func(p api.Progress) {
		_ = c.s.WriteJSON(api.ChanMessage, p) // a peer that went away ends ctx
	})
	if err != nil {
		return err
	}
	return c.exit(0)
}
