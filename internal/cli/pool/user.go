package pool

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/object"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

type userOptions struct {
	fullName, hostUser string
	in                 string
	pool               bool
}

// User is the group of verbs about users.
func User() verb.Def {
	o, list, roles := &userOptions{}, &render.Output{}, &render.Output{}
	scope := func(fs *pflag.FlagSet) {
		fs.StringVar(&o.in, "in", "", "tenant in which it holds, with those nested in it (default: the chosen one)")
		fs.BoolVar(&o.pool, "pool", false, "in the whole pool")
	}
	suspend := func(use, short string, to bool) verb.Def {
		return verb.Def{Use: use, Min: 1, Max: 1, Short: short, Example: "  atoll user " + strings.Fields(use)[0] + " chen", Complete: verb.CompleteUsers,
			Run: func(ctx context.Context, c *verb.Call) error {
				u, err := c.Get(ctx, api.Ref{Kind: api.KindUser, Name: c.Args[0]})
				if err != nil {
					return err
				}
				if _, err := verb.Update(ctx, c, u.(*api.User), func(u *api.User) { u.Spec.Suspended = to }); err != nil {
					return err
				}
				c.Say("user/%s %s", c.Args[0], map[bool]string{true: "suspended", false: "may act again"}[to])
				return nil
			}}
	}
	return verb.Def{
		Use: "user", Group: verb.GroupPool, Aliases: []string{"users"}, Short: "Users: who may call, and with which roles",
		Example: "  atoll user create chen --full-name 'Chen Wei'\n  atoll user bind chen developer --in acme",
		Sub: []verb.Def{
			{Use: "create NAME", Min: 1, Max: 1, Short: "Make a user", Example: "  atoll user create chen --full-name 'Chen Wei' --host-user cwei", Run: o.create,
				Flags: func(fs *pflag.FlagSet) {
					fs.StringVar(&o.fullName, "full-name", "", "name for people")
					fs.StringVar(&o.hostUser, "host-user", "", "account on the host that is this user (default: the same name)")
				}},
			{Use: "list", Aliases: []string{"ls"}, Short: "List users", Example: "  atoll user list", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindUser, *list) }},
			{Use: "bind USER ROLE", Min: 2, Max: 2, Short: "Give a user a role in a tenant", Example: "  atoll user bind chen developer --in acme", Flags: scope, Run: o.bind, Complete: verb.CompleteUserRole},
			{Use: "unbind USER ROLE", Min: 2, Max: 2, Short: "Take a role away", Example: "  atoll user unbind chen developer --in acme", Flags: scope, Run: o.unbind, Complete: verb.CompleteUserRole},
			{Use: "roles USER", Min: 1, Max: 1, Short: "List the roles a user has, and where", Example: "  atoll user roles chen", Flags: roles.Flags, Complete: verb.CompleteUsers,
				Run: func(ctx context.Context, c *verb.Call) error { return userRoles(ctx, c, *roles) }},
			suspend("suspend USER", "Let a user do nothing until resumed", true),
			suspend("resume USER", "Take a suspension back", false),
			object.DeleteOf(api.KindUser, "Remove users"),
		},
	}
}

func (o *userOptions) create(ctx context.Context, c *verb.Call) error {
	u := &api.User{Head: api.Head{K: api.KindUser}}
	u.Name = c.Args[0]
	u.Spec = api.UserSpec{FullName: o.fullName, HostUser: o.hostUser}
	if err := createAndSay(ctx, c, u); err != nil {
		return err
	}
	c.Note("it may do nothing yet: atoll user bind %s ROLE --in TENANT (roles: atoll role list)", u.Name)
	return nil
}

func (o *userOptions) tenant(ctx context.Context, c *verb.Call) (string, error) {
	if o.pool {
		return "", nil
	}
	if o.in != "" {
		return strings.Trim(o.in, "/"), nil
	}
	return c.Tenant(ctx)
}

// bindingName is the same for the same role and tenant, so that all its users share one object.
func bindingName(role, tenant string) string {
	where := strings.ReplaceAll(cmp.Or(tenant, "pool"), "/", "-")
	name := role + "-in-" + where
	if tenant == "" {
		name = role + "-pool"
	}
	if strings.Contains(tenant, "/") || !api.ValidName(name) { // a/b and a-b must not meet
		sum := sha256.Sum256([]byte(role + "\x00" + tenant))
		name = name[:min(len(name), 50)] + "-" + hex.EncodeToString(sum[:])[:8]
	}
	return name
}

func (o *userOptions) bind(ctx context.Context, c *verb.Call) error {
	user, role := c.Args[0], c.Args[1]
	tenant, err := o.tenant(ctx, c)
	if err != nil {
		return err
	}
	for _, r := range []api.Ref{{Kind: api.KindUser, Name: user}, {Kind: api.KindRole, Name: role}} {
		if _, err := c.Get(ctx, r); err != nil {
			return err
		}
	}
	if tenant != "" {
		if _, err := c.Get(ctx, api.Ref{Kind: api.KindTenant, Name: tenant}); err != nil {
			return err
		}
	}
	b := &api.RoleBinding{Head: api.Head{K: api.KindRoleBinding}}
	b.Name = bindingName(role, tenant)
	b.Spec = api.RoleBindingSpec{Role: role, Users: []string{user}, Tenant: tenant}
	if err := api.Check(b); err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	_, err = cl.Create(ctx, b)
	if errs.KindOf(err) == errs.Exists {
		old, gerr := store.Get[*api.RoleBinding](ctx, cl, api.RefOf(b))
		if gerr != nil {
			return gerr
		}
		if old.Spec.Role != role || old.Spec.Tenant != tenant {
			return err
		}
		_, err = verb.Update(ctx, c, old, func(b *api.RoleBinding) {
			if !slices.Contains(b.Spec.Users, user) {
				b.Spec.Users = append(b.Spec.Users, user)
			}
		})
	}
	if err != nil {
		return err
	}
	c.Say("%s is %s in %s", user, role, cmp.Or(tenant, "the whole pool"))
	return nil
}

func (o *userOptions) unbind(ctx context.Context, c *verb.Call) error {
	user, role := c.Args[0], c.Args[1]
	tenant, err := o.tenant(ctx, c)
	if err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	list, _, err := store.List[*api.RoleBinding](ctx, cl, api.Selector{Kind: api.KindRoleBinding})
	if err != nil {
		return err
	}
	found := false
	for _, b := range list {
		if b.Spec.Role != role || b.Spec.Tenant != tenant || !slices.Contains(b.Spec.Users, user) {
			continue
		}
		found = true
		if len(b.Spec.Users) == 1 {
			err = cl.Delete(ctx, api.RefOf(b), b.Revision)
		} else {
			_, err = verb.Update(ctx, c, b, func(b *api.RoleBinding) {
				b.Spec.Users = slices.DeleteFunc(b.Spec.Users, func(u string) bool { return u == user })
			})
		}
		if err != nil {
			return err
		}
	}
	if !found {
		return errs.New(errs.NotFound, "%s is not %s in %s", user, role, cmp.Or(tenant, "the whole pool")).WithHint("atoll user roles %s", user)
	}
	c.Say("%s is no longer %s in %s", user, role, cmp.Or(tenant, "the whole pool"))
	return nil
}

func userRoles(ctx context.Context, c *verb.Call, o render.Output) error {
	if err := o.Check(); err != nil {
		return err
	}
	list, err := verb.List[*api.RoleBinding](ctx, c, api.Selector{Kind: api.KindRoleBinding})
	if err != nil {
		return err
	}
	var rows [][]string
	for _, b := range list {
		if slices.Contains(b.Spec.Users, c.Args[0]) {
			rows = append(rows, []string{b.Spec.Role, cmp.Or(b.Spec.Tenant, "(pool)"), b.Name})
		}
	}
	return o.Rows(c.Out, []string{"ROLE", "TENANT", "BINDING"}, rows)
}

// Role is the group of verbs about roles.
func Role() verb.Def {
	o := &render.Output{}
	return verb.Def{Use: "role", Group: verb.GroupPool, Aliases: []string{"roles"}, Short: "Roles: what users may be bound to", Example: "  atoll role list",
		Sub: []verb.Def{{Use: "list", Aliases: []string{"ls"}, Short: "List roles and what they allow", Example: "  atoll role list", Flags: o.Flags,
			Run: func(ctx context.Context, c *verb.Call) error { return roleList(ctx, c, *o) }}}}
}

func roleList(ctx context.Context, c *verb.Call, o render.Output) error {
	if err := o.Check(); err != nil {
		return err
	}
	if !o.Tabular() {
		return object.ListKind(ctx, c, api.KindRole, o)
	}
	list, err := verb.List[*api.Role](ctx, c, api.Selector{Kind: api.KindRole})
	if err != nil {
		return err
	}
	t := &render.Table{Head: []string{"ROLE", "MAY", "ON", "GRANTS"}}
	for _, r := range list {
		name := r.Name
		for _, rule := range r.Spec.Rules {
			var verbs []string
			for _, v := range rule.Verbs {
				verbs = append(verbs, string(v))
			}
			t.Row(name, strings.Join(verbs, ","), strings.Join(rule.Kinds, ","), render.Dash(strings.Join(rule.Grants, ",")))
			name = ""
		}
	}
	o.Table(c.Out, t)
	return nil
}

type tokenOptions struct {
	user, scope, out string
	verbs            []string
	expires          time.Duration
}

// Token is the group of verbs about tokens.
func Token() verb.Def {
	o, list := &tokenOptions{}, &render.Output{}
	return verb.Def{
		Use: "token", Group: verb.GroupPool, Aliases: []string{"tokens"}, Short: "Tokens: how programs and remote users show who they are",
		Example: "  atoll token create ci --user ci --in acme --verbs get,list --expires 720h",
		Sub: []verb.Def{
			{Use: "create NAME", Min: 1, Max: 1, Short: "Make a token; its secret is shown this once",
				Example: "  atoll token create ci --user ci --in acme --expires 720h --out ci.token", Run: o.create,
				Flags: func(fs *pflag.FlagSet) {
					fs.StringVar(&o.user, "user", "", "user it speaks for (default: you)")
					fs.StringVar(&o.scope, "in", "", "reaches only this tenant and those nested in it")
					fs.StringSliceVar(&o.verbs, "verbs", nil, "allows only these, such as get,list")
					fs.DurationVar(&o.expires, "expires", 30*24*time.Hour, "how long it is valid")
					fs.StringVar(&o.out, "out", "", "write the secret to this file (mode 0600) instead of showing it")
				}},
			{Use: "list", Aliases: []string{"ls"}, Short: "List tokens; never their secrets", Example: "  atoll token list", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindToken, *list) }},
			{Use: "revoke NAME…", Aliases: []string{"delete", "rm"}, Min: 1, Max: -1, Short: "Make tokens useless, at once", Example: "  atoll token revoke ci",
				Run: revokeTokens, Complete: func(ctx context.Context, c *verb.Call, _ string) []string {
					d, _ := api.Lookup(string(api.KindToken))
					return c.Names(ctx, d)
				}},
		},
	}
}

func (o *tokenOptions) create(ctx context.Context, c *verb.Call) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	if o.user == "" {
		id, err := cl.WhoAmI(ctx)
		if err != nil {
			return err
		}
		o.user = id.User
	}
	t := &api.Token{Head: api.Head{K: api.KindToken}}
	t.Name = c.Args[0]
	t.Spec = api.TokenSpec{User: o.user, Tenant: o.scope}
	for _, v := range o.verbs {
		t.Spec.Verbs = append(t.Spec.Verbs, api.Verb(v))
	}
	if o.expires <= 0 {
		return parse.BadFlag("expires", o.expires.String(), "must be more than nothing", "720h")
	}
	end := c.Clock.Now().Add(o.expires).UTC().Truncate(time.Second)
	t.Spec.ExpiresAt = &end
	if err := api.Check(t); err != nil {
		return err
	}
	if o.out != "" { // before the secret exists, so that it is not lost
		f, err := os.OpenFile(o.out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return errs.New(errs.Invalid, "--out: %w", err)
		}
		defer f.Close()
		secret, err := o.make(ctx, cl, t)
		if err != nil {
			_ = os.Remove(o.out)
			return err
		}
		if _, err := f.WriteString(secret + "\n"); err != nil {
			return errs.New(errs.Internal, "write %s: %w", o.out, err).WithHint("atoll token revoke %s, and make another", t.Name)
		}
		c.Say("token/%s created; its secret is in %s", t.Name, o.out)
		return nil
	}
	secret, err := o.make(ctx, cl, t)
	if err != nil {
		return err
	}
	c.Note("token/%s for %s, valid until %s. This is the only time its secret is shown:", t.Name, t.Spec.User, end.Local().Format(time.DateTime))
	c.Say("%s", secret)
	return nil
}

func (o *tokenOptions) make(ctx context.Context, cl conn.Client, t *api.Token) (string, error) {
	made, err := cl.Create(ctx, t)
	if err != nil {
		return "", err
	}
	tok, ok := made.(*api.Token)
	if !ok || tok.Status.Secret == "" {
		return "", errs.New(errs.Internal, "the server did not answer with a secret").WithHint("atoll token revoke %s", t.Name)
	}
	return tok.Status.Secret, nil
}

func revokeTokens(ctx context.Context, c *verb.Call) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	for _, n := range c.Args {
		if err := cl.Delete(ctx, api.Ref{Kind: api.KindToken, Name: n}, store.Any); err != nil {
			return err
		}
		c.Say("token/%s revoked", n)
	}
	return nil
}
