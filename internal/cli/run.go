package cli

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/errs"
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
	in, err := o.instance(c.Getenv, c.args[0], c.args[1:])
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

func (o *runOptions) attached(ctx context.Context, c *call, p *placing, keys []byte) error {
	cl, err := c.server()
	if err != nil {
		return err
	}
	if !o.tty {
		keys = nil // without a terminal the bytes are the program's
	}
	wire, err := cl.Stream(ctx, StreamRequest{Verb: tunnel.VerbAttach, Instance: api.RefOf(p.in), Params: api.AttachRequest{
		Logs: api.LogRequest{Wait: true, Follow: true, Raw: true}, Stdin: o.interactive, TTY: o.tty, Size: c.Term.Size(),
	}})
	if err != nil {
		return p.failed(ctx, err)
	}
	s := &session{io: c.Streams, stream: wire, stdin: o.interactive, tty: o.tty, detach: keys, signals: !o.tty || !c.Term.InIs(),
		interrupted: p.interrupted, progress: c.newProgress(false), heard: make(chan struct{})}
	watch, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.watch(watch, s.heard); err != nil && watch.Err() == nil {
			p.setRefusal(err)
			_ = wire.Close() // nothing will come
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
	probe.Name = cmp.Or(in.Name, "made-up")
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

// seeOff waits until an instance that removes itself is gone, so that its share and
// its name are free for the next command. It is no error when that takes longer.
func (c *call) seeOff(ctx context.Context, in *api.Instance) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_ = c.waitGone(ctx, api.RefOf(in), in.UID) // the server removes it all the same
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
	in, err := o.instance(c.Getenv, c.args[0], c.args[1:])
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
