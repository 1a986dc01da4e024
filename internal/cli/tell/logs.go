package tell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/stream"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

type logsOptions struct {
	follow, timestamps, prefix bool
	since, labels              string
	tail                       int
}

// Logs shows what instances printed.
func Logs() verb.Def {
	o := &logsOptions{}
	return verb.Def{
		Use: "logs [flags] INSTANCE…", Group: verb.GroupTell, Aliases: []string{"log"}, Min: 0, Max: -1,
		Short: "Show what instances printed",
		Example: `  atoll logs web
  atoll logs -f --since 10m web
  atoll logs --tail 20 -l app=web`,
		Flags: o.flags, Run: o.run, Complete: verb.CompleteInstances(-1),
	}
}

func (o *logsOptions) flags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.follow, "follow", "f", false, "go on with what is printed from now on")
	fs.StringVar(&o.since, "since", "", "only from then on: 10m, or a time")
	fs.IntVar(&o.tail, "tail", -1, "only the last so many lines (default: all)")
	fs.BoolVar(&o.timestamps, "timestamps", false, "with the time of each line")
	fs.BoolVar(&o.prefix, "prefix", false, "with the instance's name before each line, also for a single one")
	fs.StringVarP(&o.labels, "selector", "l", "", "instances with these labels")
	fs.Lookup("tail").DefValue = "all"
}

func (o *logsOptions) run(ctx context.Context, c *verb.Call) error {
	since, err := parse.Since(o.since, c.Clock.Now())
	if err != nil {
		return err
	}
	if len(c.Args) == 0 && o.labels == "" {
		return errs.New(errs.Invalid, "logs: no instance named").WithHint("atoll logs NAME, or -l app=web")
	}
	req := api.LogRequest{Follow: o.follow, Since: since, Timestamps: o.timestamps, Tail: max(o.tail, 0)}
	if o.tail == 0 {
		req.Tail = -1 // on the wire 0 is everything and less than 0 is nothing of the past
	}
	var refs []api.Ref
	if o.labels != "" {
		list, err := c.Instances(ctx, c.Args, o.labels)
		if err != nil {
			return err
		}
		for _, in := range list {
			refs = append(refs, api.RefOf(in))
		}
	}
	for _, a := range c.Args {
		r, err := c.Instance(ctx, a)
		if err != nil {
			return err
		}
		refs = append(refs, r)
	}
	var mu sync.Mutex
	if len(refs) == 1 && !o.prefix {
		return o.one(ctx, c, refs[0], req, c.Out, c.Err)
	}
	if !o.follow { // one after the other, so that the answer is in order
		for _, r := range refs {
			if err := o.one(ctx, c, r, req, &prefixed{w: c.Out, mu: &mu, name: r.Name}, &prefixed{w: c.Err, mu: &mu, name: r.Name}); err != nil {
				return err
			}
		}
		return nil
	}
	found := make([]error, len(refs))
	var wg sync.WaitGroup
	for i, r := range refs {
		wg.Go(func() {
			found[i] = o.one(ctx, c, r, req, &prefixed{w: c.Out, mu: &mu, name: r.Name}, &prefixed{w: c.Err, mu: &mu, name: r.Name})
		})
	}
	wg.Wait()
	return errors.Join(found...)
}

func (o *logsOptions) one(ctx context.Context, c *verb.Call, r api.Ref, req api.LogRequest, out, errw io.Writer) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	s, err := cl.Stream(ctx, conn.StreamRequest{Verb: tunnel.VerbLogs, Instance: r, Params: req})
	if errs.KindOf(err) == errs.NotFound {
		return c.NotFound(ctx, cl, r)
	}
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		ch, p, err := s.Read()
		if err != nil {
			return errs.New(errs.Unavailable, "logs of %s broke off: %w", r, err)
		}
		switch ch {
		case api.ChanStdout:
			_, err = out.Write(p)
		case api.ChanStderr:
			_, err = errw.Write(p)
		case api.ChanExit:
			var e api.StreamExit
			if err := json.Unmarshal(p, &e); err != nil {
				return errs.New(errs.Internal, "exit of the stream: %w", err)
			}
			for _, w := range []io.Writer{out, errw} {
				if l, ok := w.(*prefixed); ok {
					l.end()
				}
			}
			return stream.ExitError(e)
		}
		if err != nil {
			return err
		}
	}
}

// prefixed writes whole lines with a name before each; mu keeps lines of several writers whole.
type prefixed struct {
	w    io.Writer
	mu   *sync.Mutex
	name string
	part []byte
}

const maxPart = 64 << 10 // a longer line is cut, so that an endless one cannot fill memory

func (p *prefixed) Write(b []byte) (int, error) {
	p.part = append(p.part, b...)
	for {
		i := bytes.IndexByte(p.part, '\n')
		if i < 0 && len(p.part) < maxPart {
			return len(b), nil
		}
		line := p.part[:max(i, 0)]
		if i < 0 {
			line, i = p.part, len(p.part)-1
		}
		if err := p.line(line); err != nil {
			return 0, err
		}
		p.part = append([]byte(nil), p.part[i+1:]...)
	}
}

func (p *prefixed) line(l []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.w.Write([]byte(p.name + "  " + string(l) + "\n"))
	return err
}

func (p *prefixed) end() {
	if len(p.part) > 0 {
		_ = p.line(p.part) // the last words; a reader that went away does not want them
		p.part = nil
	}
}
