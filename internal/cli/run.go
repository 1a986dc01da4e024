package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

type runOptions struct {
	specOptions
	detach     bool
	detachKeys string
	wait       bool
	timeout    time.Duration
}

func runVerb() Verb {
	o := &runOptions{}
	return Verb{
		Use: "run [flags] IMAGE [COMMAND [ARG…]]", Group: groupRun, Min: 1, Max: -1, Raw: true,
		Short: "Run a command in a new instance",
		Long: `Run makes an instance of an image and, unless -d is given, connects you to it:
what it prints you see, what you type it reads (-i), and atoll ends with its exit
code. Ctrl-C goes to the process; the third one ends atoll without it. With -it the
detach keys (Ctrl-P Ctrl-Q) leave it running.

When no node can run it, nothing is left behind and you are told why, node by node,
and what would help. --timeout lets it wait for room instead.`,
		Example: `  atoll run --rm busybox echo hi
  atoll run --rm -it busybox sh
  atoll run -d --name web -p 127.0.0.1:8080:80 --cpu 250m --memory 64Mi busybox httpd -f
  atoll run -d --name db -v data:/var/lib/db --memory-limit 1Gi --health-tcp 5432 postgres:16
  tar c src | atoll run --rm -i busybox tar x -C /tmp`,
		Flags: o.flags, Run: o.run, Complete: completeImages,
	}
}

func (o *runOptions) flags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.detach, "detach", "d", false, "do not connect; print the name")
	o.specOptions.flags(fs)
	fs.StringVar(&o.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave it running; none: there are none")
	fs.BoolVar(&o.wait, "wait", true, "with -d: wait until it runs")
	fs.DurationVar(&o.timeout, "timeout", 0, "wait so long for a node that has room (default: not at all)")
}

func (o *runOptions) run(ctx context.Context, c *call) error {
	keys, err := parseDetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	if o.detach && o.rm && o.restart == "" || !o.detach && o.restart == "" {
		o.restart = "never"
	}
	in, err := o.instance(c, c.args[0], c.args[1:])
	if err != nil {
		return err
	}
	if !o.detach {
		if in.Annotations == nil {
			in.Annotations = map[string]string{}
		}
		in.Annotations[api.AnnotationAttached] = "true"
	}
	if o.rm && !o.detach {
		in.Annotations = with(in.Annotations, api.AnnotationAttached, "true") // so that it stays until its output was read
	}
	if in, err = c.createInstance(ctx, in); err != nil {
		return err
	}
	p := &placing{c: c, in: in, patience: o.timeout}
	if o.detach {
		return o.detached(ctx, c, p)
	}
	return o.attached(ctx, c, p, keys)
}

func (o *runOptions) detached(ctx context.Context, c *call, p *placing) error {
	if o.wait {
		if err := p.started(ctx); err != nil {
			return p.failed(ctx, err)
		}
	}
	c.say("%s", p.in.Name)
	return nil
}

// quietFor is how long a start may take before the CLI asks what takes so long:
// a start that goes well costs one request and one stream.
const quietFor = 150 * time.Millisecond

func (o *runOptions) attached(ctx context.Context, c *call, p *placing, keys []byte) error {
	cl, err := c.server()
	if err != nil {
		return err
	}
	if !o.tty {
		keys = nil // without a terminal the bytes are the program's
	}
	stream, err := cl.Stream(ctx, StreamRequest{Verb: tunnel.VerbAttach, Instance: api.RefOf(p.in), Params: api.AttachRequest{
		Logs: api.LogRequest{Wait: true, Follow: true, Raw: true}, Stdin: o.interactive, TTY: o.tty, Size: c.Term.Size(),
	}})
	if err != nil {
		return p.failed(ctx, err)
	}
	s := &session{c: c, stream: stream, stdin: o.interactive, tty: o.tty, detach: keys, signals: !o.tty || !c.Term.InIs(),
		interrupted: p.interrupted, progress: c.newProgress(false), heard: make(chan struct{})}
	watch, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.watch(watch, s.heard); err != nil && watch.Err() == nil {
			p.setRefusal(err)
			_ = stream.Close() // nothing will come
		}
	})
	code, err := s.run(ctx)
	cancel(nil)
	wg.Wait()
	if refused := p.refusal(); refused != nil {
		err = refused
	}
	switch {
	case errors.Is(err, errForced) && o.rm, errors.Is(err, errAborted):
		_ = c.discard(p.in) // the user wants out; the server removes it later if this fails
		return exitCode(130)
	case err != nil && s.ended && o.rm:
		_ = c.discard(p.in) // it never ran, so it cannot remove itself by ending
	}
	if err != nil && !errors.Is(err, errDetached) {
		return p.failed(ctx, c.finish(code, err, api.RefOf(p.in)))
	}
	if err == nil && o.rm {
		c.seeOff(ctx, p.in)
	}
	return c.finish(code, err, api.RefOf(p.in))
}

// createInstance makes it; without a name the server makes one up.
func (c *call) createInstance(ctx context.Context, in *api.Instance) (*api.Instance, error) {
	cl, err := c.server()
	if err != nil {
		return nil, err
	}
	if in.Tenant, err = c.tenant(ctx); err != nil {
		return nil, err
	}
	probe := *in
	probe.Name = first(in.Name, "made-up")
	if err := api.Check(&probe); err != nil {
		return nil, err // before anything is sent
	}
	o, err := cl.Create(ctx, in)
	if err != nil {
		return nil, err
	}
	created, ok := o.(*api.Instance)
	if !ok {
		return nil, errs.New(errs.Internal, "the server answered with %s", article(string(o.ObjectKind())))
	}
	return created, nil
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

// seeOff waits until an instance that removes itself is gone, so that its share and
// its name are free for the next command. It is no error when that takes longer.
func (c *call) seeOff(ctx context.Context, in *api.Instance) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_ = c.waitGone(ctx, api.RefOf(in), in.UID) // the server removes it all the same
}

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

// askedFor puts requests into words: "64 CPU, 512Mi memory".
func askedFor(r api.Resources) string {
	var out []string
	for _, name := range api.ResourceNames() {
		if v, ok := r[name]; ok {
			out = append(out, amount(name, v))
		}
	}
	return strings.Join(out, ", ")
}

// amount is an amount with its unit: "64 CPU", "500m CPU", "512Mi memory".
func amount(r api.Resource, v int64) string {
	name := string(r)
	if r == api.CPU {
		name = "CPU"
	}
	return api.HumanQuantity(r, v) + " " + name
}

type createOptions struct{ specOptions }

func createVerb() Verb {
	o := &createOptions{}
	return Verb{
		Use: "create [flags] IMAGE [COMMAND [ARG…]]", Group: groupRun, Min: 1, Max: -1, Raw: true,
		Short: "Make an instance without starting it",
		Long:  "Create makes a stopped instance; 'atoll start' starts it. The flags are those of 'atoll run'.",
		Example: `  atoll create --name job --memory 1Gi busybox sh -c 'sleep 60'
  atoll start job`,
		Flags: o.flags, Run: o.run, Complete: completeImages,
	}
}

func (o *createOptions) run(ctx context.Context, c *call) error {
	in, err := o.instance(c, c.args[0], c.args[1:])
	if err != nil {
		return err
	}
	in.Spec.Stopped = true
	if in, err = c.createInstance(ctx, in); err != nil {
		return err
	}
	c.say("%s", in.Name)
	return nil
}
