package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/object"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

type encryptionOptions struct {
	rotate time.Duration
	port   int
	wait   verb.Waiting
}

func (o *encryptionOptions) flags(fs *pflag.FlagSet) {
	fs.DurationVar(&o.rotate, "rotate", api.DefaultRotation, "how often every host takes a new key; 0s: never")
	fs.IntVar(&o.port, "port", api.DefaultWireguardPort, "UDP port of WireGuard on every host")
	o.wait.Flags(fs, "every host encrypts", true)
}

// Encryption is the group of verbs about encryption between hosts.
func Encryption() verb.Def {
	on, off := &encryptionOptions{}, &encryptionOptions{}
	return verb.Def{
		Use: "encryption", Group: verb.GroupPool, Short: "Encryption of what networks of tenants send between hosts",
		Example: "  atoll encryption on\n  atoll encryption status",
		Sub: []verb.Def{
			{Use: "on", Short: "Have all hosts encrypt, with WireGuard",
				Long:    "Instances stay. What they send to other hosts is lost for a moment while the hosts change over together, and\nlarge packets get smaller by what WireGuard adds. When this returns, nothing is sent in the clear any more.",
				Example: "  atoll encryption on\n  atoll encryption on --rotate 12h --port 4799", Flags: on.flags,
				Run: func(ctx context.Context, c *verb.Call) error { return on.set(ctx, c, api.EncryptionWireguard) }},
			{Use: "off", Short: "Have no host encrypt any more", Example: "  atoll encryption off",
				Flags: func(fs *pflag.FlagSet) { off.wait.Flags(fs, "no host encrypts any more", true) },
				Run:   func(ctx context.Context, c *verb.Call) error { return off.set(ctx, c, api.EncryptionNone) }},
			{Use: "status", Short: "Show how far the hosts are", Example: "  atoll encryption status", Run: encryptionStatus},
		},
	}
}

// set writes the wish, and waits until it is true.
func (o *encryptionOptions) set(ctx context.Context, c *verb.Call, mode string) error {
	change := func(e *api.Encryption) {
		e.Spec.Mode = mode
		if mode == api.EncryptionNone {
			return
		}
		if c.Flags.Changed("rotate") || e.Spec.Rotate == nil {
			d := api.Duration(o.rotate)
			e.Spec.Rotate = &d
		}
		if c.Flags.Changed("port") || e.Spec.Port == 0 {
			e.Spec.Port = o.port
		}
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	ref := api.EncryptionRef()
	old, err := cl.Get(ctx, ref)
	switch {
	case errors.Is(err, errs.NotFound) && mode == api.EncryptionNone:
		c.Say("no host encrypts")
		return nil
	case errors.Is(err, errs.NotFound):
		e := &api.Encryption{Head: api.Head{K: api.KindEncryption, Meta: api.Meta{Name: api.PoolName}}}
		change(e)
		if err := api.Check(e); err != nil {
			return err
		}
		if _, err := cl.Create(ctx, e); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if _, err := verb.Update(ctx, c, old.(*api.Encryption), change); err != nil {
			return err
		}
	}
	if !o.wait.Wait {
		c.Say("encryption: %s is wanted; atoll encryption status shows how far the hosts are", mode)
		return nil
	}
	last := ""
	err = c.Within(ctx, o.wait.Timeout, "every host does what is wanted", func(ctx context.Context) error {
		return c.WaitFor(ctx, ref, func(obj api.Object, gone bool) (bool, error) {
			e, ok := obj.(*api.Encryption)
			if gone || !ok {
				return false, errs.New(errs.NotFound, "%s was removed meanwhile", ref)
			}
			done, why := complete(e)
			last = why
			return done && e.Status.Mode == mode, nil
		})
	})
	if err != nil {
		if last != "" {
			return fmt.Errorf("%w: %s", err, last)
		}
		return err
	}
	if mode == api.EncryptionNone {
		c.Say("no host encrypts any more")
		return nil
	}
	c.Say("all hosts encrypt what networks of tenants send between them%s", map[bool]string{true: "; " + last}[last != ""])
	return nil
}

// complete reports whether all hosts do what is wanted, and what there is to say of it.
func complete(e *api.Encryption) (bool, string) {
	i := slices.IndexFunc(e.Status.Conditions, func(c api.Condition) bool { return c.Type == api.ConditionComplete })
	if i < 0 {
		return false, ""
	}
	return e.Status.Conditions[i].Status, e.Status.Conditions[i].Message
}

func encryptionStatus(ctx context.Context, c *verb.Call) error {
	e, err := c.Get(ctx, api.EncryptionRef())
	if errors.Is(err, errs.NotFound) {
		c.Say("no host encrypts; atoll encryption on")
		return nil
	}
	if err != nil {
		return err
	}
	if err := object.ListKind(ctx, c, api.KindEncryption, render.Output{Format: "table"}); err != nil {
		return err
	}
	if _, why := complete(e.(*api.Encryption)); why != "" {
		c.Say("%s", why)
	}
	nodes, err := verb.List[*api.Node](ctx, c, api.Selector{Kind: api.KindNode})
	if err != nil {
		return err
	}
	slices.SortFunc(nodes, func(a, b *api.Node) int { return strings.Compare(a.Name, b.Name) })
	def, _ := api.Lookup(string(api.KindNode))
	column := def.Columns[slices.IndexFunc(def.Columns, func(c api.Column) bool { return c.Name == "ENCRYPTION" })]
	t := &render.Table{Head: []string{"HOST", "ENCRYPTION", "MESSAGE"}}
	for _, n := range nodes {
		var why []string
		for _, typ := range []string{api.ConditionEncryption, api.ConditionEncryptedPath} {
			if cond := n.Condition(typ); cond != nil && !cond.Status {
				why = append(why, cond.Message)
			}
		}
		t.Row(n.Name, column.Value(n, c.Clock.Now()), render.Dash(strings.Join(why, "; ")))
	}
	fmt.Fprint(c.Out, t.Text(true))
	return nil
}
