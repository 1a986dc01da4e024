// Package live holds the verbs about running instances: run, create, exec, attach, cp,
// start, stop, restart.
//
// It starts goroutines only for the length of one verb and waits for them. It must
// never leave an instance behind that the user was told was not made.
package live

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/stream"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

type runOptions struct {
	parse.Instance
	detach     bool
	detachKeys string
	wait       bool
	timeout    time.Duration
}

// Run runs a command in a new instance.
func Run() verb.Def {
	o := &runOptions{}
	return verb.Def{
		Use: "run [flags] IMAGE [COMMAND [ARG…]]", Group: verb.GroupRun, Min: 1, Max: -1, Raw: true,
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
		Flags: o.flags, Run: o.run, Complete: verb.CompleteImages,
	}
}

func (o *runOptions) flags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.detach, "detach", "d", false, "do not connect; print the name")
	o.Instance.Flags(fs)
	fs.StringVar(&o.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave it running; none: there are none")
	fs.BoolVar(&o.wait, "wait", true, "with -d: wait until it runs")
	fs.DurationVar(&o.timeout, "timeout", 0, "wait so long for a node that has room (default: not at all)")
}

func (o *runOptions) run(ctx context.Context, c *verb.Call) error {
	keys, err := parse.DetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	if o.detach && o.Rm && o.Restart == "" || !o.detach && o.Restart == "" {
		o.Restart = "never"
	}
	in, err := o.Object(c.Getenv, c.Args[0], c.Args[1:])
	if err != nil {
		return err
	}
	if !o.detach {
		if in.Annotations == nil {
			in.Annotations = map[string]string{}
		}
		in.Annotations[api.AnnotationAttached] = "true"
	}
	if o.Rm && !o.detach {
		in.Annotations = verb.With(in.Annotations, api.AnnotationAttached, "true") // so that it stays until its output was read
	}
	if in, err = createInstance(ctx, c, in); err != nil {
		return err
	}
	p := &verb.Placing{Call: c, Instance: in, Patience: o.timeout}
	if o.detach {
		return o.detached(ctx, c, p)
	}
	return o.attached(ctx, c, p, keys)
}

func (o *runOptions) detached(ctx context.Context, c *verb.Call, p *verb.Placing) error {
	if o.wait {
		if err := p.Started(ctx); err != nil {
			return p.Failed(ctx, err)
		}
	}
	c.Say("%s", p.Instance.Name)
	return nil
}

func (o *runOptions) attached(ctx context.Context, c *verb.Call, p *verb.Placing, keys []byte) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	if !o.TTY {
		keys = nil // without a terminal the bytes are the program's
	}
	wire, err := cl.Stream(ctx, conn.StreamRequest{Verb: tunnel.VerbAttach, Instance: api.RefOf(p.Instance), Params: api.AttachRequest{
		Logs: api.LogRequest{Wait: true, Follow: true, Raw: true}, Stdin: o.Interactive, TTY: o.TTY, Size: c.Term.Size(),
	}})
	if err != nil {
		return p.Failed(ctx, err)
	}
	s := &stream.Session{IO: c.Streams, Stream: wire, Stdin: o.Interactive, TTY: o.TTY, Detach: keys, Signals: !o.TTY || !c.Term.InIs(),
		Interrupted: p.Interrupted, Progress: c.Progress(false), Heard: make(chan struct{})}
	watch, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Watch(watch, s.Heard); err != nil && watch.Err() == nil {
			p.SetRefusal(err)
			_ = wire.Close() // nothing will come
		}
	})
	code, err := s.Run(ctx)
	cancel(nil)
	wg.Wait()
	if refused := p.Refusal(); refused != nil {
		err = refused
	}
	switch {
	case errors.Is(err, stream.ErrForced) && o.Rm, errors.Is(err, verb.ErrAborted):
		_ = c.Discard(p.Instance) // the user wants out; the server removes it later if this fails
		return verb.ExitCode(130)
	case err != nil && s.Ended && o.Rm:
		_ = c.Discard(p.Instance) // it never ran, so it cannot remove itself by ending
	}
	if err != nil && !errors.Is(err, stream.ErrDetached) {
		return p.Failed(ctx, finish(c, code, err, api.RefOf(p.Instance)))
	}
	if err == nil && o.Rm {
		seeOff(ctx, c, p.Instance)
	}
	return finish(c, code, err, api.RefOf(p.Instance))
}

// createInstance makes it; without a name the server makes one up.
func createInstance(ctx context.Context, c *verb.Call, in *api.Instance) (*api.Instance, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	if in.Tenant, err = c.Tenant(ctx); err != nil {
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
		return nil, errs.New(errs.Internal, "the server answered with %s", render.Article(string(o.ObjectKind())))
	}
	return created, nil
}

// seeOff waits until an instance that removes itself is gone, so that its share and
// its name are free for the next command. It is no error when that takes longer.
func seeOff(ctx context.Context, c *verb.Call, in *api.Instance) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_ = c.WaitGone(ctx, api.RefOf(in), in.UID) // the server removes it all the same
}

type createOptions struct{ parse.Instance }

// Create makes an instance without starting it.
func Create() verb.Def {
	o := &createOptions{}
	return verb.Def{
		Use: "create [flags] IMAGE [COMMAND [ARG…]]", Group: verb.GroupRun, Min: 1, Max: -1, Raw: true,
		Short: "Make an instance without starting it",
		Long:  "Create makes a stopped instance; 'atoll start' starts it. The flags are those of 'atoll run'.",
		Example: `  atoll create --name job --memory 1Gi busybox sh -c 'sleep 60'
  atoll start job`,
		Flags: o.Flags, Run: o.run, Complete: verb.CompleteImages,
	}
}

func (o *createOptions) run(ctx context.Context, c *verb.Call) error {
	in, err := o.Object(c.Getenv, c.Args[0], c.Args[1:])
	if err != nil {
		return err
	}
	in.Spec.Stopped = true
	if in, err = createInstance(ctx, c, in); err != nil {
		return err
	}
	c.Say("%s", in.Name)
	return nil
}
