package cli

import (
	"context"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

type execOptions struct {
	interactive, tty bool
	env              []string
	workdir, user    string
	detachKeys       string
}

func execVerb() Verb {
	o := &execOptions{}
	return Verb{
		Use: "exec [flags] INSTANCE [--] COMMAND [ARG…]", Group: groupRun, Min: 2, Max: -1, Raw: true,
		Short: "Run a command in a running instance",
		Long:  "Exec runs a command beside the first process and ends with the command's exit code.",
		Example: `  atoll exec web -- ls -l /
  atoll exec -it web sh
  pg_dump … | atoll exec -i db psql`,
		Flags: o.flags, Run: o.run, Complete: completeInstances(1),
	}
}

func (o *execOptions) flags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on")
	fs.BoolVarP(&o.tty, "tty", "t", false, "give it a terminal")
	fs.StringArrayVarP(&o.env, "env", "e", nil, "NAME=value, or NAME to pass your own on")
	fs.StringVarP(&o.workdir, "workdir", "w", "", "directory it starts in")
	fs.StringVarP(&o.user, "user", "u", "", "user inside, with an optional :group")
	fs.StringVar(&o.detachKeys, "detach-keys", "none", "keys that leave the command running")
}

func (o *execOptions) run(ctx context.Context, c *call) error {
	argv := c.args[1:]
	if argv[0] == "--" { // after the name nothing is parsed, so the marker comes through
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return errs.New(errs.Invalid, "exec: no command").WithHint("atoll exec %s -- COMMAND", c.args[0])
	}
	keys, err := parseDetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	req := api.ExecRequest{Argv: argv, Workdir: o.workdir, User: o.user, TTY: o.tty, Stdin: o.interactive, Size: c.Term.Size()}
	for _, e := range o.env {
		v, set, err := parseEnv(e, c.Getenv)
		if err != nil {
			return err
		}
		if set {
			req.Env = append(req.Env, v.Name+"="+v.Value)
		}
	}
	if !o.tty {
		keys = nil
	}
	return c.connect(ctx, c.args[0], &session{stdin: o.interactive, tty: o.tty, detach: keys, signals: !o.tty || !c.Term.InIs()}, tunnel.VerbExec, req)
}

// connect opens a stream to an instance, lives through it, and ends as it ends.
func (c *call) connect(ctx context.Context, name string, s *session, what string, params any) error {
	ref, err := c.instance(ctx, name)
	if err != nil {
		return err
	}
	cl, err := c.server()
	if err != nil {
		return err
	}
	s.io, s.progress = c.Streams, c.newProgress(false)
	if s.stream, err = cl.Stream(ctx, StreamRequest{Verb: what, Instance: ref, Params: params}); err != nil {
		if errs.KindOf(err) == errs.NotFound {
			return c.notFound(ctx, cl, ref)
		}
		return err
	}
	code, err := s.run(ctx)
	return c.finish(code, err, ref)
}

type attachOptions struct {
	noStdin    bool
	detachKeys string
}

func attachVerb() Verb {
	o := &attachOptions{}
	return Verb{
		Use: "attach INSTANCE", Group: groupRun, Min: 1, Max: 1,
		Short: "Connect to the first process of an instance",
		Long: `Attach shows what the first process prints from now on and, when the instance was
made with -i, gives it what you type. It ends with the process's exit code.`,
		Example: `  atoll attach shell
  atoll attach --no-stdin web`,
		Flags: o.flags, Run: o.run, Complete: completeInstances(1),
	}
}

func (o *attachOptions) flags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.noStdin, "no-stdin", false, "only look on")
	fs.StringVar(&o.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave it running; none: there are none")
}

func (o *attachOptions) run(ctx context.Context, c *call) error {
	keys, err := parseDetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	list, err := c.instances(ctx, c.args, "")
	if err != nil {
		return err
	}
	in := list[0]
	if st := in.StateOf(); st == api.StateStopped || st == api.StateFailed {
		return errs.New(errs.Conflict, "%s is %s", shortRef(in), st).WithHint("atoll start %s, or atoll logs %s", in.Name, in.Name)
	}
	stdin := in.Spec.Stdin && !o.noStdin
	if !in.Spec.TTY {
		keys = nil
	}
	return c.connect(ctx, shortRef(in), &session{stdin: stdin, tty: in.Spec.TTY, detach: keys, signals: !in.Spec.TTY || !c.Term.InIs()},
		tunnel.VerbAttach, api.AttachRequest{Logs: api.LogRequest{Follow: true, Raw: true, Tail: -1, Wait: true}, Stdin: stdin, TTY: in.Spec.TTY, Size: c.Term.Size()})
}
