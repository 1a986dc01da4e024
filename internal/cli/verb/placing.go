package verb

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// QuietFor is how long a start may take before the CLI asks what takes so long:
// a start that goes well costs one request and one stream.
const QuietFor = 150 * time.Millisecond

var ErrAborted = errors.New("aborted before it ran")

// Placing follows an instance from its creation until it runs.
type Placing struct {
	Call     *Call
	Instance *api.Instance
	Patience time.Duration

	mu      sync.Mutex
	state   api.State // "" while unknown
	refused error
}

// SetRefusal keeps why the instance will not run.
func (p *Placing) SetRefusal(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = err
}

// Refusal is why the instance will not run; nil while that is not known.
func (p *Placing) Refusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// Interrupted ends a run whose instance is known not to run yet.
func (p *Placing) Interrupted() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == api.StatePending || p.state == api.StateCreating {
		return ErrAborted
	}
	return nil
}

// Watch looks on when a start takes long, until it runs or is refused.
func (p *Placing) Watch(ctx context.Context, heard <-chan struct{}) error {
	t := p.Call.Clock.NewTimer(QuietFor)
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
	err := p.Started(ctx)
	if errs.KindOf(err) == errs.NoCapacity || errs.KindOf(err) == errs.Timeout {
		return err
	}
	return nil // everything else the stream itself tells, with the exit code
}

// Started waits until the instance runs, or is known not to.
func (p *Placing) Started(ctx context.Context) error {
	var why *api.Assignment
	wait := func(ctx context.Context) error {
		as := Exactly(api.RefOf(p.Instance))
		as.Kind = api.KindAssignment
		return p.Call.follow(ctx, func(ev store.Event) (bool, error) {
			switch o := ev.Object.(type) {
			case *api.Assignment:
				if ev.Deleted || o.Spec.InstanceUID != p.Instance.UID {
					return false, nil
				}
				why = o
				if o.Spec.Node == "" && o.Spec.Decision != nil && p.Patience <= 0 && !OnTheMove(o.Spec.Decision) {
					return false, NoRoom(p.Instance, o.Spec.Decision)
				}
				if o.Spec.Node != "" {
					why = nil
				}
			case *api.Instance:
				if ev.Deleted || o.UID != p.Instance.UID {
					return p.Instance.Spec.AutoRm, errGone(p.Instance)
				}
				p.mu.Lock()
				p.state = o.StateOf()
				p.mu.Unlock()
				return Started(o, false)
			}
			return false, nil
		}, Exactly(api.RefOf(p.Instance)), as)
	}
	if p.Patience <= 0 {
		return wait(ctx)
	}
	err := p.Call.Within(ctx, p.Patience, fmt.Sprintf("%s runs", api.RefOf(p.Instance)), wait)
	if errs.KindOf(err) == errs.Timeout && why != nil {
		return NoRoom(p.Instance, why.Spec.Decision)
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

// Failed leaves nothing behind when there was no room, and tells why.
func (p *Placing) Failed(ctx context.Context, err error) error {
	if k := errs.KindOf(err); k == errs.Unavailable && p.Refusal() == nil && ctx.Err() == nil {
		// The stream may have broken because there is no node to stream from.
		if a, aerr := p.Assignment(ctx); aerr == nil && a.Spec.Node == "" && a.Spec.Decision != nil && a.Spec.InstanceUID == p.Instance.UID {
			err = NoRoom(p.Instance, a.Spec.Decision)
		}
	}
	if errs.KindOf(err) != errs.NoCapacity {
		return err
	}
	t := &render.Error{Err: err, End: "(exit 5: no capacity; nothing was created)"}
	var inner *render.Error
	if errors.As(err, &inner) {
		t.Details = inner.Details
	}
	if derr := p.Call.Discard(p.Instance); derr != nil {
		t.End = fmt.Sprintf("(exit 5: no capacity; remove what is left: atoll delete %s)", render.ShortRef(p.Instance))
	}
	return t
}

// Assignment reads what the scheduler decided.
func (p *Placing) Assignment(ctx context.Context) (*api.Assignment, error) {
	cl, err := p.Call.Server()
	if err != nil {
		return nil, err
	}
	r := api.RefOf(p.Instance)
	r.Kind = api.KindAssignment
	return store.Get[*api.Assignment](ctx, cl, r)
}

// OnTheMove reports whether a decision only says why an instance left its node, as when that was lost a
// moment after it was chosen: where it goes, or that it can go nowhere, is decided next.
func OnTheMove(d *api.Decision) bool {
	return d.Of == 0 && len(d.Refusals) == 1 && d.Refusals[0].Policy == "eviction"
}

// NoRoom tells a decision for no node.
func NoRoom(in *api.Instance, d *api.Decision) error {
	msg := "no node can run " + render.ShortRef(in)
	if asked := render.Amounts(in.Spec.Requests); asked != "" {
		msg += ": " + asked + " requested"
	}
	e := errs.New(errs.NoCapacity, "%s", msg)
	if len(d.Hints) > 0 {
		_ = e.WithHint("%s", strings.Join(d.Hints, "; or "))
	}
	return &render.Error{Err: e, Details: Refusals(d)}
}

// Refusals is a line for each reason nodes refused.
func Refusals(d *api.Decision) []string {
	var out []string
	for _, r := range d.Refusals {
		if OfAll(r) {
			out = append(out, r.Reason)
			continue
		}
		line := fmt.Sprintf("%s: %s", render.Plural(r.Nodes, "node"), r.Reason)
		if r.Best != "" {
			line += " (" + closest(r) + ")"
		}
		out = append(out, line)
	}
	if len(out) == 0 && d.Of == 0 {
		out = append(out, "the pool has no node that is ready (atoll get nodes)")
	}
	return out
}

// OfAll tells whether a reason is about the instance or the pool, not about nodes.
func OfAll(r api.Refusal) bool {
	switch r.Policy {
	case "pool", "gang", "preemption", "eviction", "addresses":
		return true
	}
	return false
}

// closest is the node that came nearest to admitting, and how near.
func closest(r api.Refusal) string {
	switch {
	case strings.Contains(r.Best, ": "):
		return "closest " + r.Best
	case r.Nodes == 1:
		return r.Best
	}
	return "such as " + r.Best // there is nothing to come near to, as with a taint
}

// Discard removes an instance that was made a moment ago. It uses a context of
// its own, because the one of the call may have ended.
func (c *Call) Discard(in *api.Instance) error {
	cl, err := c.Server()
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
