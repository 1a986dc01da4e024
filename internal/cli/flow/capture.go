package flow

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/render"
	"atoll/internal/cli/stream"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

type captureOptions struct {
	req   api.CaptureRequest
	file  string
	force bool
}

func capture() verb.Def {
	o := &captureOptions{}
	return verb.Def{
		Use: "capture INSTANCE", Min: 1, Max: 1,
		Short: "Copy the packets on an instance's wire, as pcap",
		Long: `Capture copies packets at the host's end of the wire: from the instance also those that the wall refuses,
to it only those that the wall lets pass. Ctrl-C ends it; what came until then is kept. It needs a right of
its own, capture on instances.`,
		Example: "  atoll net capture web -w web.pcap\n  atoll net capture web --port 80 --count 100 -w - | tcpdump -nr -\n  atoll net capture acme/db --duration 10s --host 10.1.0.5 -w db.pcap",
		Flags:   o.flags, Run: o.run, Complete: verb.CompleteInstances(1),
	}
}

func (o *captureOptions) flags(fs *pflag.FlagSet) {
	fs.StringVarP(&o.file, "write", "w", "", "file to write; -: standard output")
	fs.BoolVar(&o.force, "force", false, "replace a file that is there")
	fs.IntVar(&o.req.Count, "count", api.CaptureCount, "end after so many packets")
	fs.DurationVar(&o.req.For, "duration", api.CaptureFor, "end after that time")
	fs.IntVar(&o.req.Snaplen, "snaplen", api.CaptureSnaplen, "bytes to keep of each packet")
	fs.StringVar(&o.req.Host, "host", "", "only from or to this address")
	fs.Uint16Var(&o.req.Port, "port", 0, "only from or to this port")
	fs.StringVar(&o.req.Proto, "proto", "", "only tcp, udp, icmp or arp")
	fs.StringVar(&o.req.Network, "network", "", "which of the instance's networks (default the first)")
}

func (o *captureOptions) run(ctx context.Context, c *verb.Call) error {
	if err := errs.InvalidFields("capture", o.req.Validate()); err != nil {
		return err
	}
	if o.file == "" && c.Term.OutIs() {
		return errs.New(errs.Invalid, "packets are nothing for a terminal").WithHint("-w FILE, or: atoll net capture %s | tcpdump -nr -", c.Args[0])
	}
	ref, err := c.Instance(ctx, c.Args[0])
	if err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	s, err := cl.Stream(ctx, conn.StreamRequest{Verb: tunnel.VerbCapture, Instance: ref, Params: o.req})
	if err != nil {
		if errs.KindOf(err) == errs.NotFound {
			return c.NotFound(ctx, cl, ref)
		}
		return err
	}
	defer s.Close()
	out, done, err := o.open(c)
	if err != nil {
		return err
	}
	_, stop := onInterrupt(c, func() { _ = s.Write(api.ChanSignal, []byte("INT")) }) // a stream that broke ends by itself
	defer stop()
	return errors.Join(o.receive(c, s, out), done())
}

// open makes the file. What is in it stays, whatever ends the capture.
func (o *captureOptions) open(c *verb.Call) (io.Writer, func() error, error) {
	if o.file == "" || o.file == "-" {
		return c.Out, func() error { return nil }, nil
	}
	how := os.O_CREATE | os.O_WRONLY | os.O_EXCL
	if o.force {
		how = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	}
	f, err := os.OpenFile(o.file, how, 0o600)
	if os.IsExist(err) {
		return nil, nil, errs.New(errs.Exists, "%s exists already", o.file).WithHint("choose another name, or --force")
	}
	if err != nil {
		return nil, nil, errs.New(errs.Invalid, "%w", err)
	}
	return f, f.Close, nil
}

func (o *captureOptions) receive(c *verb.Call, s conn.Stream, out io.Writer) error {
	bar := c.Bar(false)
	defer bar.End()
	var seen, lost int64
	begin := c.Clock.Now()
	for {
		ch, b, err := s.Read()
		if err != nil {
			return errs.New(errs.Unavailable, "the connection broke: %w", err).WithHint("what came until then is in the file")
		}
		switch ch {
		case api.ChanStdout:
			if _, err := out.Write(b); err != nil {
				return err
			}
		case api.ChanMessage:
			var p api.Progress
			if json.Unmarshal(b, &p) != nil {
				continue
			}
			if p.Phase == "lost" {
				lost = p.Current
				continue
			}
			seen = p.Current
			bar.Show(int(seen), o.req.Count, c.Clock.Now().Sub(begin).Round(time.Second).String()+", Ctrl-C ends")
		case api.ChanExit:
			bar.End()
			var x api.StreamExit
			if err := json.Unmarshal(b, &x); err != nil {
				return errs.New(errs.Internal, "exit of the stream: %w", err)
			}
			if err := stream.ExitError(x); err != nil {
				return err
			}
			c.Note("captured %s", render.Plural(int(seen), "packet"))
			if lost > 0 {
				c.Note("%s came too fast and are missing; --snaplen 128, --host or --port make less", render.Plural(int(lost), "packet"))
			}
			return nil
		}
	}
}
