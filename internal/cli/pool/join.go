package pool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/object"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

type joinOptions struct {
	ttl                    time.Duration
	uses                   int
	role, node, zone, name string
	adopt                  string
	labels, grants         []string
	out                    string
}

func nodeToken() verb.Def {
	o := &joinOptions{}
	return verb.Def{Use: "token", Max: 0, Short: "Let a host join: print the line to paste on it",
		Long: `Token makes a join token and prints one line. Pasted on a host as root, it installs
Atoll from this pool and joins it; below it, how to join where atolld is installed
already. The token is in the line: who sees it can join a host as long as it is good.

With --adopt the host may bring along what it runs in a pool of its own: its tenants
become tenants inside the one named, with everything in them, and run on. You must be
allowed to create all of that there. What is dangerous in it (capabilities, paths of the
host, its network, ranks that preempt) must be allowed by --grant, out of your own rights.`,
		Example: "  atoll node token\n  atoll node token --uses 10 --ttl 4h --zone room-a --label disk=ssd\n  atoll node token --node isle2      a new machine in the place of isle2\n  atoll node token --adopt acme --grant hostpath:/srv      what it runs comes along",
		Run:     o.run,
		Flags: func(fs *pflag.FlagSet) {
			fs.DurationVar(&o.ttl, "ttl", time.Hour, "how long it is good; at most 720h")
			fs.IntVar(&o.uses, "uses", 1, "for so many hosts; 0: any number")
			fs.StringVar(&o.role, "role", string(api.RoleNode), "what the host becomes: node runs instances, server answers the API only, witness votes only")
			fs.StringVar(&o.node, "node", "", "only for the host of this name; one that has it now is replaced and turned away")
			fs.StringVar(&o.zone, "zone", "", "failure domain of its hosts")
			fs.StringArrayVarP(&o.labels, "label", "l", nil, "label of its hosts, KEY=VALUE; may be repeated")
			fs.StringVar(&o.adopt, "adopt", "", "tenant into which a host with a pool of its own may bring what it runs")
			fs.StringArrayVar(&o.grants, "grant", nil, "with --adopt: dangerous right that what comes may use, such as hostpath:/srv, capability:NET_ADMIN, network:host; may be repeated")
			fs.StringVar(&o.name, "name", "", "name of the token (default: invented)")
			fs.StringVarP(&o.out, "output", "o", "", "json: the parts, for programs")
		}}
}

func (o *joinOptions) token(c *verb.Call) (*api.JoinToken, error) {
	if o.ttl <= 0 {
		return nil, parse.BadFlag("ttl", o.ttl.String(), "must be more than nothing", "1h")
	}
	if o.out != "" && o.out != "json" {
		return nil, parse.BadFlag("output", o.out, "must be json, or left out", "json")
	}
	t := &api.JoinToken{Head: api.Head{K: api.KindJoinToken}}
	if t.Name = o.name; t.Name == "" {
		var b [4]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, errs.New(errs.Internal, "invent a name: %w", err)
		}
		t.Name = "join-" + hex.EncodeToString(b[:])
	}
	end := c.Clock.Now().Add(o.ttl).UTC().Truncate(time.Second)
	t.Spec = api.JoinTokenSpec{Role: api.JoinRole(o.role), ExpiresAt: &end, Uses: o.uses, Node: o.node, Zone: o.zone, Adopt: o.adopt, Grants: o.grants}
	for _, l := range o.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, parse.BadFlag("label", l, "must be KEY=VALUE", "disk=ssd")
		}
		t.Spec.Labels = verb.With(t.Spec.Labels, k, v)
	}
	return t, api.Check(t)
}

// joinLines is what -o json prints.
type joinLines struct {
	Name      string    `json:"name"`
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expiresAt"`
	Endpoints []string  `json:"endpoints"`
	Pin       string    `json:"pin"`
	Install   string    `json:"install"` // to paste where nothing is installed
	Join      string    `json:"join"`    // where atolld is there
}

func (o *joinOptions) run(ctx context.Context, c *verb.Call) error {
	t, err := o.token(c)
	if err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	info, err := cl.JoinInfo(ctx) // before there is a secret that nobody could use
	if err != nil {
		return err
	}
	made, err := cl.Create(ctx, t)
	if err != nil {
		return err
	}
	tok, ok := made.(*api.JoinToken)
	if !ok || tok.Status.Secret == "" || len(info.Endpoints) == 0 {
		return errs.New(errs.Internal, "the server did not answer with a secret and an address").WithHint("atoll delete jointoken/%s", t.Name)
	}
	url := info.Endpoints[0]
	named := ""
	if o.node != "" {
		named = " --node " + o.node
	}
	if o.adopt != "" {
		named += " --adopt " + o.adopt
	}
	l := joinLines{Name: t.Name, Token: tok.Status.Secret, ExpiresAt: *t.Spec.ExpiresAt, Endpoints: info.Endpoints, Pin: info.Pin,
		Install: "curl -fsSk --pinnedpubkey '" + info.Pin + "' " + url + "/install | ATOLLD_TOKEN=" + tok.Status.Secret + " sh -s -- " + url + named,
		Join:    "atolld join " + url + " --token " + tok.Status.Secret + named}
	if o.out == "json" {
		b, err := json.MarshalIndent(l, "", "  ")
		if err != nil {
			return errs.New(errs.Internal, "write answer: %w", err)
		}
		c.Say("%s", b)
		return nil
	}
	uses := render.Plural(o.uses, "host")
	if o.uses == 0 {
		uses = "any number of hosts"
	}
	if o.adopt != "" { // atolld is there
		c.Note("jointoken/%s, for %s, until %s. On the host, as root: systemctl stop atolld (instances run on), then this; --dry-run shows what would become of everything:", t.Name, uses, l.ExpiresAt.Local().Format(time.DateTime))
		c.Say("%s", l.Join)
		return nil
	}
	c.Note("jointoken/%s, for %s, until %s. Paste this on the host, as root:", t.Name, uses, l.ExpiresAt.Local().Format(time.DateTime))
	c.Say("%s", l.Install)
	c.Say("# where atolld is installed already: %s", l.Join)
	return nil
}

func nodeTokens() verb.Def {
	o := &render.Output{}
	return verb.Def{Use: "tokens", Short: "List join tokens; never their secrets", Example: "  atoll node tokens", Flags: o.Flags,
		Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindJoinToken, *o) }}
}

func nodeRemove() verb.Def {
	var force, off bool
	return verb.Def{Use: "remove NODE", Aliases: []string{"leave", "rm"}, Min: 1, Max: 1, Short: "Take a host out of the pool; it is turned away from then on",
		Long: `Remove takes a host out: the node, the key by which it is known and its lease go in one
step. A host to which instances are assigned is refused; empty it first with atoll
drain.

--force is for a host that is lost. Its instances are given up there and started
elsewhere; data they had on that host is not. If it still runs, it goes on running
them until it notices: exclusive instances (also those with a named volume or a fixed
address) might then run twice, so they are refused unless the host's lease has ended
and it is one that stops them itself before (its condition SelfFences), its management
controller has switched it off, or --off says that it is switched off for certain.`,
		Example: "  atoll drain isle2 && atoll node remove isle2\n  atoll node remove isle3 --force --off", Complete: verb.CompleteNodes,
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&force, "force", false, "although instances are assigned to it: give them up there; for a host that is lost")
			fs.BoolVar(&off, "off", false, "with --force: I have made sure that it is switched off")
		},
		Run: func(ctx context.Context, c *verb.Call) error {
			if off && !force {
				return parse.BadFlag("off", "true", "goes with --force only", "--force --off")
			}
			cl, err := c.Server()
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(c.Args[0], "node/")
			if err := cl.RemoveNode(ctx, name, force, off); err != nil {
				return err
			}
			c.Say("node/%s removed", name)
			if force && !off {
				c.Note("if %s still runs, what it ran may run twice until it is switched off", name)
			}
			return nil
		}}
}

func nodeRevoke() verb.Def {
	var why string
	return verb.Def{Use: "revoke NODE", Min: 1, Max: 1, Short: "Turn a host's key away at once; its instances are placed anew when its lease ends",
		Example: "  atoll node revoke isle2 --why 'the disk was stolen'", Complete: verb.CompleteNodes,
		Flags: func(fs *pflag.FlagSet) { fs.StringVar(&why, "why", "", "for people") },
		Run: func(ctx context.Context, c *verb.Call) error {
			cl, err := c.Server()
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(c.Args[0], "node/")
			if err := cl.RevokeNode(ctx, name, why); err != nil {
				return err
			}
			c.Say("node/%s revoked", name)
			c.Note("to let it in again: atoll node token --node %s, and on the host: atolld join", name)
			return nil
		}}
}
