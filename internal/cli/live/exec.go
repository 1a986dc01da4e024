package live

import (
	"context"
	"errors"

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

type execOptions struct {
	interactive, tty bool
	env              []string
	workdir, user    string
	detachKeys       string
}

// Exec runs a command in a running instance.
func Exec() verb.Def {
	o := &execOptions{}
	return verb.Def{
		Use: "exec [flags] INSTANCE [--] COMMAND [ARG…]", Group: verb.GroupRun, Min: 2, Max: -1, Raw: true,
		Short: "Run a command in a running instance",
		Long:  "Exec runs a command beside the first process and ends with the command's exit code.",
		Example: `  atoll exec web -- ls -l /
  atoll exec -it web sh
  pg_dump … | atoll exec -i db psql`,
		Flags: o.flags, Run: o.run, Complete: verb.CompleteInstances(1),
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

func (o *execOptions) run(ctx context.Context, c *verb.Call) error {
	argv := c.Args[1:]
	if argv[0] == "--" { // after the name nothing is parsed, so the marker comes through
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return errs.New(errs.Invalid, "exec: no command").WithHint("atoll exec %s -- COMMAND", c.Args[0])
	}
	keys, err := parse.DetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	req := api.ExecRequest{Argv: argv, Workdir: o.workdir, User: o.user, TTY: o.tty, Stdin: o.interactive, Size: c.Term.Size()}
	for _, e := range o.env {
		v, set, err := parse.Env(e, c.Getenv)
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
	return connect(ctx, c, c.Args[0], &stream.Session{Stdin: o.interactive, TTY: o.tty, Detach: keys, Signals: !o.tty || !c.Term.InIs()}, tunnel.VerbExec, req)
}

// connect opens a stream to an instance, lives through it, and ends as it ends.
func connect(ctx context.Context, c *verb.Call, name string, s *stream.Session, what string, params any) error {
	ref, err := c.Instance(ctx, name)
	if err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	s.IO, s.Progress = c.Streams, c.Progress(false)
	if s.Stream, err = cl.Stream(ctx, conn.StreamRequest{Verb: what, Instance: ref, Params: params}); err != nil {
		if errs.KindOf(err) == errs.NotFound {
			return c.NotFound(ctx, cl, ref)
		}
		return err
	}
	code, err := s.Run(ctx)
	return finish(c, code, err, ref)
}

type attachOptions struct {
	noStdin    bool
	detachKeys string
}

// Attach connects to the first process of an instance.
func Attach() verb.Def {
	o := &attachOptions{}
	return verb.Def{
		Use: "attach INSTANCE", Group: verb.GroupRun, Min: 1, Max: 1,
		Short: "Connect to the first process of an instance",
		Long: `Attach shows what the first process prints from now on and, when the instance was
made with -i, gives it what you type. It ends with the process's exit code.`,
		Example: `  atoll attach shell
  atoll attach --no-stdin web`,
		Flags: o.flags, Run: o.run, Complete: verb.CompleteInstances(1),
	}
}

func (o *attachOptions) flags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.noStdin, "no-stdin", false, "only look on")
	fs.StringVar(&o.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave it running; none: there are none")
}

func (o *attachOptions) run(ctx context.Context, c *verb.Call) error {
	keys, err := parse.DetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	list, err := c.Instances(ctx, c.Args, "")
	if err != nil {
		return err
	}
	in := list[0]
	if st := in.StateOf(); st == api.StateStopped || st == api.StateFailed {
		return errs.New(errs.Conflict, "%s is %s", render.ShortRef(in), st).WithHint("atoll start %s, or atoll logs %s", in.Name, in.Name)
	}
	stdin := in.Spec.Stdin && !o.noStdin
	if !in.Spec.TTY {
		keys = nil
	}
	return connect(ctx, c, render.ShortRef(in), &stream.Session{Stdin: stdin, TTY: in.Spec.TTY, Detach: keys, Signals: !in.Spec.TTY || !c.Term.InIs()},
		tunnel.VerbAttach, api.AttachRequest{Logs: api.LogRequest{Follow: true, Raw: true, Tail: -1, Wait: true}, Stdin: stdin, TTY: in.Spec.TTY, Size: c.Term.Size()})
}

// finish turns the end of a session into the end of the program.
func finish(c *verb.Call, code int, err error, ref api.Ref) error {
	switch {
	case errors.Is(err, stream.ErrDetached):
		c.Note("\r\ndetached; %s runs on (back: atoll attach %s)", ref, ref.Name)
		return nil
	case errors.Is(err, stream.ErrForced):
		return verb.ExitCode(130)
	case err != nil && code >= 125 && code <= 127:
		return &verb.StartFailed{Err: err, Code: code}
	case err != nil:
		return err
	case code != 0:
		return verb.ExitCode(code)
	}
	return nil
}
