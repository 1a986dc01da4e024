package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// quietFor is how long a start may take before the CLI asks what takes so long:
// a start that goes well costs one request and one stream.
const quietFor = 150 * time.Millisecond

var errAborted = errors.New("aborted before it ran")

// placing follows an instance from its creation until it runs.
type placing struct {
	c        *call
	in       *api.Instance
	patience time.Duration

	mu      sync.Mutex
	state   api.State // "" while unknown
	refused error
}

func (p *placing) setRefusal(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = err
}

func (p *placing) refusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// interrupted ends a run whose instance is known not to run yet.
func (p *placing) interrupted() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == api.StatePending || p.state == api.StateCreating {
		return errAborted
	}
	return nil
}

// watch looks on when a start takes long, until it runs or is refused.
func (p *placing) watch(ctx context.Context, heard <-chan struct{}) error {
	t := p.c.Clock.NewTimer(quietFor)
	defer t.Stop()
	select {
	case <-heard:
		return nil
	case <-ctx.Done():
		return nil
	case <-t.C:
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		select {
		case <-heard:
			cancel()
		case <-ctx.Done():
		}
	})
	err := p.started(ctx)
	if errs.KindOf(err) == errs.NoCapacity || errs.KindOf(err) == errs.Timeout {
		return err
	}
	return nil // everything else the stream itself tells, with the exit code
}

// started waits until the instance runs, or is known not to.
func (p *placing) started(ctx context.Context) error {
	var why *api.Assignment
	wait := func(ctx context.Context) error {
		as := exactly(api.RefOf(p.in))
		as.Kind = api.KindAssignment
		return p.c.follow(ctx, func(ev store.Event) (bool, error) {
			switch o := ev.Object.(type) {
			case *api.Assignment:
				if ev.Deleted || o.Spec.InstanceUID != p.in.UID {
					return false, nil
				}
				why = o
				if o.Spec.Node == "" && o.Spec.Decision != nil && p.patience <= 0 {
					return false, noRoom(p.in, o.Spec.Decision)
				}
				if o.Spec.Node != "" {
					why = nil
				}
			case *api.Instance:
				if ev.Deleted || o.UID != p.in.UID {
					return p.in.Spec.AutoRm, errGone(p.in)
				}
				p.mu.Lock()
				p.state = o.StateOf()
				p.mu.Unlock()
				return started(o, false)
			}
			return false, nil
		}, exactly(api.RefOf(p.in)), as)
	}
	if p.patience <= 0 {
		return wait(ctx)
	}
	err := p.c.within(ctx, p.patience, fmt.Sprintf("%s runs", api.RefOf(p.in)), wait)
	if errs.KindOf(err) == errs.Timeout && why != nil {
		return noRoom(p.in, why.Spec.Decision)
	}
	return err
}

// errGone is nil for an instance that removes itself when it has ended.
func errGone(in *api.Instance) error {
	if in.Spec.AutoRm {
		return nil
	}
	return errs.New(errs.Conflict, "%s was removed meanwhile", api.RefOf(in))
}

// failed leaves nothing behind when there was no room, and tells why.
func (p *placing) failed(ctx context.Context, err error) error {
	if k := errs.KindOf(err); k == errs.Unavailable && p.refusal() == nil && ctx.Err() == nil {
		// The stream may have broken because there is no node to stream from.
		if a, aerr := p.assignment(ctx); aerr == nil && a.Spec.Node == "" && a.Spec.Decision != nil && a.Spec.InstanceUID == p.in.UID {
			err = noRoom(p.in, a.Spec.Decision)
		}
	}
	if errs.KindOf(err) != errs.NoCapacity {
		return err
	}
	t := &told{err: err, end: "(exit 5: no capacity; nothing was created)"}
	var inner *told
	if errors.As(err, &inner) {
		t.details = inner.details
	}
	if derr := p.c.discard(p.in); derr != nil {
		t.end = fmt.Sprintf("(exit 5: no capacity; remove what is left: atoll delete %s)", shortRef(p.in))
	}
	return t
}

func (p *placing) assignment(ctx context.Context) (*api.Assignment, error) {
	cl, err := p.c.server()
	if err != nil {
		return nil, err
	}
	r := api.RefOf(p.in)
	r.Kind = api.KindAssignment
	return store.Get[*api.Assignment](ctx, cl, r)
}

// noRoom tells a decision for no node.
func noRoom(in *api.Instance, d *api.Decision) error {
	msg := "no node can run " + shortRef(in)
	if asked := askedFor(in.Spec.Requests); asked != "" {
		msg += ": " + asked + " requested"
	}
	e := errs.New(errs.NoCapacity, "%s", msg)
	if len(d.Hints) > 0 {
		_ = e.WithHint("%s", strings.Join(d.Hints, "; or "))
	}
	return &told{err: e, details: refusalLines(d)}
}

func refusalLines(d *api.Decision) []string {
	var out []string
	for _, r := range d.Refusals {
		line := fmt.Sprintf("%s: %s", plural(r.Nodes, "node"), r.Reason)
		if r.Best != "" {
			line += " (" + r.Best + ")"
		}
		out = append(out, line)
	}
	if len(out) == 0 && d.Of == 0 {
		out = append(out, "the pool has no node that is ready (atoll get nodes)")
	}
	return out
}

// discard removes an instance that was made a moment ago. It uses a context of
// its own, because the one of the call may have ended.
func (c *call) discard(in *api.Instance) error {
	cl, err := c.server()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = cl.Delete(ctx, api.RefOf(in), store.Any)
	if errs.KindOf(err) == errs.NotFound {
		return nil
	}
	return err
}
