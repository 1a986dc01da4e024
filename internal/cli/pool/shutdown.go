package pool

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// bootFile has the boot the host is in; the node's agent publishes the same.
const bootFile = "/proc/sys/kernel/random/boot_id"

// selfOptions say which node this host is.
type selfOptions struct {
	self       bool
	node, boot string
	timeout    time.Duration
}

func (o *selfOptions) flags(fs *pflag.FlagSet, timeout time.Duration, what string) {
	fs.BoolVar(&o.self, "self", false, "the host this is called on")
	fs.StringVar(&o.node, "node", "", "instead: the node of this name")
	fs.StringVar(&o.boot, "boot", "", "the boot the host is in; default: what its kernel says")
	fs.DurationVar(&o.timeout, "timeout", timeout, what)
}

func (o *selfOptions) check() error {
	if o.self == (o.node != "") {
		return errs.New(errs.Invalid, "which host? give either --self or --node NAME").WithHint("a unit of the host's service manager gives --self")
	}
	if o.boot != "" {
		return nil
	}
	b, err := os.ReadFile(bootFile)
	if err != nil {
		return errs.New(errs.Unsupported, "find out which boot this is: %w", err).WithHint("give --boot")
	}
	o.boot = strings.TrimSpace(string(b))
	return nil
}

// find gives the node that is meant. A host is known by its boot, whatever its node is
// called; where several nodes share a kernel, by its host name, too.
func (o *selfOptions) find(nodes []*api.Node) (*api.Node, error) {
	var out []*api.Node
	for _, n := range nodes {
		if o.node != "" && n.Name == o.node || o.node == "" && n.Status.BootID == o.boot {
			out = append(out, n)
		}
	}
	if len(out) > 1 {
		name, err := os.Hostname()
		if err != nil {
			return nil, errs.New(errs.Internal, "read the host name: %w", err)
		}
		name, _, _ = strings.Cut(strings.ToLower(name), ".")
		out = slices.DeleteFunc(out, func(n *api.Node) bool { return n.Name != name })
	}
	if len(out) == 1 {
		return out[0], nil
	}
	return nil, errs.New(errs.NotFound, "no node of the pool is this host in this boot").WithHint("name it: --node NAME (atoll get nodes lists them)")
}

func shutdown() verb.Def {
	o := &selfOptions{}
	return verb.Def{Use: "shutdown --self", Short: "Empty this host because it is going down; it restores itself when it is up again",
		Long: `Shutdown is for the host's service manager. It drains the host within disruption
budgets for two thirds of the time, evacuates it for the rest, and ends. On a pool
in which no other host takes instances it does nothing. A host that is in maintenance
already is left as it is.`,
		Example: "  atoll shutdown --self --timeout 5m",
		Flags:   func(fs *pflag.FlagSet) { o.flags(fs, 5*time.Minute, "how long it may take in all") },
		Run:     o.shutdown}
}

func (o *selfOptions) shutdown(ctx context.Context, c *verb.Call) error {
	if err := o.check(); err != nil {
		return err
	}
	nodes, err := verb.List[*api.Node](ctx, c, api.Selector{Kind: api.KindNode})
	if err != nil {
		return err
	}
	self, err := o.find(nodes)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(nodes, func(n *api.Node) bool { return n.Name != self.Name && n.Ready() && n.Spec.Closed() == "" }) {
		c.Say("no other host takes instances: nothing to do")
		return nil
	}
	if self.Spec.Maintenance != nil {
		c.Say("node/%s is in maintenance already", self.Name)
		return nil
	}
	for i, mode := range []string{"drain", "evacuate"} {
		budget := o.timeout * time.Duration(2-i) / 3
		if self, err = o.goDown(ctx, c, self, mode); err != nil {
			return err
		}
		w := &watch{Call: c, nodes: []*api.Node{self}}
		if _, err = w.until(ctx, budget); !errors.Is(err, errs.Timeout) {
			return err
		}
	}
	return err
}

// goDown writes the wish, and whose it is.
func (o *selfOptions) goDown(ctx context.Context, c *verb.Call, n *api.Node, mode string) (*api.Node, error) {
	ref := api.RefOf(n)
	patience := api.Duration(o.timeout / 3)
	if _, err := verb.Update(ctx, c, n, func(n *api.Node) {
		m := api.Maintenance{Mode: mode, Why: "the host is shut down", Patience: &patience}
		if n.Spec.Maintenance != nil {
			m.Since = n.Spec.Maintenance.Since
		}
		// A host that may be alone for long must be able to start by itself what is its own.
		m.Leave = n.Spec.DisconnectAllowed != nil
		n.Spec.Maintenance = &m
		n.Annotations = verb.With(without(n.Annotations, api.AnnotationLeftAway), api.AnnotationShutdown, o.boot)
	}); err != nil {
		return nil, err
	}
	got, err := c.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	return got.(*api.Node), nil
}

func startup() verb.Def {
	o := &selfOptions{}
	return verb.Def{Use: "startup --self", Short: "Restore this host if it was its shutdown that emptied it",
		Long:    "Startup is for the host's service manager. It waits until the host is ready, and restores\nit if 'atoll node shutdown' emptied it; what an operator asked for stays.",
		Example: "  atoll startup --self",
		Flags:   func(fs *pflag.FlagSet) { o.flags(fs, 2*time.Minute, "how long to wait for the host to be ready") },
		Run:     o.startup}
}

// startupPause is how often is looked whether the host is ready.
const startupPause = 500 * time.Millisecond

func (o *selfOptions) startup(ctx context.Context, c *verb.Call) error {
	if err := o.check(); err != nil {
		return err
	}
	var self *api.Node
	err := c.Within(ctx, o.timeout, "for this host to be ready", func(ctx context.Context) error {
		for {
			nodes, err := verb.List[*api.Node](ctx, c, api.Selector{Kind: api.KindNode})
			if err == nil {
				self, err = o.find(nodes)
			}
			switch {
			case err == nil && self.Ready() && self.Status.BootID == o.boot:
				return nil
			case err != nil && errs.KindOf(err) != errs.NotFound && errs.KindOf(err) != errs.Unavailable && ctx.Err() == nil:
				return err
			}
			if err := c.Clock.Sleep(ctx, startupPause); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return err
	}
	if self.Annotations[api.AnnotationShutdown] == "" {
		c.Say("node/%s was not emptied by a shutdown: nothing to do", self.Name)
		return nil
	}
	if _, err := verb.Update(ctx, c, self, func(n *api.Node) {
		if n.Annotations[api.AnnotationShutdown] != "" { // nobody else was faster
			cordoned := n.Spec.Cordoned
			reopen(n, false)
			n.Spec.Cordoned = cordoned // a shutdown does not cordon
		}
	}); err != nil {
		return err
	}
	c.Say("node/%s is in use again", self.Name)
	return nil
}
