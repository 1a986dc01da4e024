package pool

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/term"
	"atoll/internal/cli/verb"
	"atoll/internal/store"
)

// watch follows the drains of nodes until all is done, and shows how far it is.
type watch struct {
	*verb.Call
	nodes []*api.Node // as they are with the wish in them, or were before it was taken back
	back  bool        // they are being restored
	quiet bool

	bar    *term.Bar
	drains map[string]*api.Drain
	told   map[string]bool // reasons
	last   string
}

// until ends when all is done, when the time is up, or with Ctrl-C: the work goes on then.
func (w *watch) until(ctx context.Context, timeout time.Duration) ([]*api.Drain, error) {
	w.bar, w.drains, w.told = w.Bar(w.quiet), map[string]*api.Drain{}, map[string]bool{}
	defer w.bar.End()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sig, stop := w.Signals(os.Interrupt)
	defer stop()
	var interrupted atomic.Bool
	ended, quit := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-sig:
			interrupted.Store(true)
			cancel()
		case <-quit:
		}
	}()
	err := w.Within(ctx, timeout, w.what(), func(ctx context.Context) error {
		return w.Follow(ctx, w.see, api.Selector{Kind: api.KindDrain})
	})
	close(quit)
	<-ended
	w.bar.End()
	if interrupted.Load() {
		w.goesOn()
		return w.list(), verb.ExitCode(130)
	}
	if err == nil && !w.quiet {
		for _, n := range w.nodes {
			w.Say("%s", w.summary(n.Name))
		}
	}
	return w.list(), err
}

func (w *watch) what() string {
	if w.back {
		return "to restore " + w.names()
	}
	return "to empty " + w.names()
}

func (w *watch) names() string {
	var out []string
	for _, n := range w.nodes {
		out = append(out, n.Name)
	}
	return strings.Join(out, " ")
}

func (w *watch) goesOn() {
	if w.back {
		w.Note("the restoring of %s goes on; atoll get drains shows how far it is", w.names())
		return
	}
	w.Note("it goes on without you: atoll get drains shows how far it is, atoll restore %s takes it back", w.names())
}

// list gives the drains in the order of the nodes.
func (w *watch) list() (out []*api.Drain) {
	for _, n := range w.nodes {
		if d := w.drains[n.Name]; d != nil {
			out = append(out, d)
		}
	}
	return out
}

// see takes one drain in; done when all are.
func (w *watch) see(ev store.Event) (done bool, err error) {
	d, ok := ev.Object.(*api.Drain)
	if !ok {
		return false, nil
	}
	for _, n := range w.nodes {
		if n.Name != d.Name {
			continue
		}
		if old := w.drains[d.Name]; ev.Deleted && w.back {
			d = api.Clone(d)
			d.Spec.State = api.DrainRestored // told long enough
		} else if !w.mine(n, d) {
			return false, nil
		} else if old != nil {
			w.tell(old, d)
		} else {
			w.reasons(d)
		}
		w.drains[d.Name] = d
	}
	if w.bar.Moving() {
		w.show()
	}
	for _, n := range w.nodes {
		if d := w.drains[n.Name]; d == nil || !d.Over() {
			return false, nil
		}
	}
	return true, nil
}

// mine reports whether a drain is about the wish that is watched: what was told of an
// earlier one may still be there.
func (w *watch) mine(n *api.Node, d *api.Drain) bool {
	restoring := d.Spec.State == api.DrainReturning || d.Spec.State == api.DrainRestored
	since := time.Time{}
	if n.Spec.Maintenance != nil {
		since = n.Spec.Maintenance.Since
	}
	return restoring == w.back && d.Spec.Since.Equal(since)
}

// tell says what is new.
func (w *watch) tell(old, d *api.Drain) {
	was := map[string]api.DrainMove{}
	for _, m := range old.Spec.Moves {
		was[m.UID] = m
	}
	for _, m := range d.Spec.Moves {
		before, known := was[m.UID]
		if known && before.State == m.State {
			continue
		}
		name, took := m.Instance.Tenant+"/"+m.Instance.Name, ""
		if t := m.At.Sub(before.At); known && t > 0 && t < time.Hour {
			took = fmt.Sprintf("  %.1f s", t.Seconds())
		}
		switch m.State {
		case api.DrainMoveMoved:
			w.line("%s %s -> %s%s", name, m.From, m.To, took)
		case api.DrainMoveReturned:
			w.line("%s %s -> %s%s", name, m.To, m.From, took)
		case api.DrainMoveStays:
			w.line("%s stays on %s: %s", name, m.To, m.Note)
		}
	}
	w.reasons(d)
}

// line is said in the bar where there is one.
func (w *watch) line(format string, args ...any) {
	if w.last = fmt.Sprintf(format, args...); !w.bar.Moving() {
		w.bar.Line("%s", w.last)
	}
}

// reasons says once what is waited for.
func (w *watch) reasons(d *api.Drain) {
	for _, r := range d.Spec.Waiting {
		var names []string
		for _, i := range r.Instances[:min(len(r.Instances), 5)] {
			names = append(names, i.Tenant+"/"+i.Name)
		}
		if more := r.Count - len(names); more > 0 {
			names = append(names, fmt.Sprintf("and %d more", more))
		}
		key := d.Name + r.Reason
		if w.told[key] {
			continue
		}
		w.told[key] = true
		w.bar.Line("waiting: %s: %s", strings.Join(names, ", "), r.Reason)
	}
}

func (w *watch) show() {
	done, total := 0, 0
	for _, d := range w.drains {
		s := &d.Spec
		if !w.back {
			done, total = done+s.Moved+s.Stopped+s.Kept, total+s.Total
			continue
		}
		for _, m := range s.Moves {
			if total++; m.State == api.DrainMoveReturned || m.State == api.DrainMoveStays {
				done++
			}
		}
	}
	w.bar.Show(done, total, w.last)
}

// summary is what came of it.
func (w *watch) summary(node string) string {
	s := &w.drains[node].Spec
	if w.back {
		out := fmt.Sprintf("%s is restored: %s came back", node, render.Plural(s.Returned, "instance"))
		if s.Moved > 0 {
			out += fmt.Sprintf(", %d stay where they are", s.Moved)
		}
		return out
	}
	out := fmt.Sprintf("%s is empty: %s elsewhere", node, render.Plural(s.Moved, "instance"))
	if s.Kept > 0 {
		out = fmt.Sprintf("%s is done: %s elsewhere, %d stay and run on", node, render.Plural(s.Moved, "instance"), s.Kept)
	}
	if s.Stopped > 0 {
		out += fmt.Sprintf(", %d stopped there until: atoll restore %s", s.Stopped, node)
	}
	return out
}
