package server

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"reflect"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/server/name"
)

func (s *Server) now() time.Time { return s.Clock.Now().UTC().Round(time.Millisecond) }

// prepareCreate makes of what a caller sent what is stored: rights are checked, and
// what only the server says is set. Whatever the caller sent for that is ignored,
// so that an object that was read can be sent back.
func (c *call) prepareCreate(o api.Object, seed name.Seed) error {
	d, _ := api.Lookup(string(o.ObjectKind()))
	m := o.Metadata()
	if d.ReadOnly {
		return readOnly(d)
	}
	if d.Tenanted && m.Tenant == "" {
		return errs.InvalidFields(d.Singular()+" "+m.Name, []errs.Field{{Field: "metadata.tenant", Rule: "must name the tenant it belongs to (or ?tenant= in the URL)", Example: "acme"}})
	}
	if i, ok := o.(*api.Instance); ok && m.Name == "" {
		i.Name = name.Invent(c.Rand, seed, i.Tenant)
	}
	if err := c.Auth.Authorize(c.id, api.VerbCreate, d.Kind, auth.ScopeOf(api.VerbCreate, o)); err != nil {
		return err
	}
	if err := api.Check(o); err != nil {
		return err
	}
	var uid [16]byte
	if _, err := io.ReadFull(c.Rand, uid[:]); err != nil {
		return errs.New(errs.Internal, "make uid: %w", err)
	}
	now := c.now()
	*m = api.Meta{Name: m.Name, Tenant: m.Tenant, Labels: m.Labels, Annotations: m.Annotations,
		UID: hex.EncodeToString(uid[:]), Generation: 1, CreatedAt: &now, Finalizers: append([]string(nil), d.Finalizers...)}
	delete(m.Annotations, keyAnnotation)
	clearPart(o, "Status")
	c.noteMaintenance(nil, o)
	return c.grantCreate(o)
}

// noteMaintenance notes since when, where the caller does not say; a change of how is the same maintenance.
func (c *call) noteMaintenance(old, o api.Object) {
	if n, ok := o.(*api.Node); ok && n.Spec.Maintenance != nil && n.Spec.Maintenance.Since.IsZero() {
		n.Spec.Maintenance.Since = c.now()
		if was, ok := old.(*api.Node); ok && was.Spec.Maintenance != nil {
			n.Spec.Maintenance.Since = was.Spec.Maintenance.Since
		}
	}
}

func readOnly(d *api.Definition) error {
	return errs.New(errs.Denied, "a %s is written by Atoll itself only", d.Singular()).WithHint("atoll explain %s tells what it is for", d.Singular())
}

// grantCreate checks the rights that a kind needs beyond verb and kind.
func (c *call) grantCreate(o api.Object) error {
	switch o := o.(type) {
	case *api.Instance:
		if err := c.mayRank(o); err != nil {
			return err
		}
		return c.Auth.Grants(c.id, o.Tenant, o.Spec.Grants())
	case *api.SecurityGroup, *api.Address, *api.Peering, *api.Route:
		return c.tenantIsThere(o.Metadata().Tenant)
	case *api.Network:
		if err := c.tenantIsThere(o.Tenant); err != nil {
			return err
		}
		return c.Auth.Grants(c.id, o.Tenant, o.Spec.Grants())
	case *api.BGPPeer:
		return c.Auth.Grants(c.id, "", o.Spec.Grants())
	case *api.Deployment, *api.Job, *api.CronJob:
		return c.grantWorkload(o)
	case *api.DisruptionBudget:
		return c.roomForBudget(o)
	case *api.Image:
		return c.mayShare(o.Spec.Shared)
	case *api.User:
		return c.mayMake(o)
	case *api.Role:
		return c.Auth.Covers(c.id, o, "")
	case *api.RoleBinding:
		return c.mayBind(o)
	case *api.Token:
		return c.mintToken(o)
	case *api.JoinToken:
		return c.desk.Mint(c.r.Context(), c.id, o)
	}
	return nil
}

func (c *call) mayShare(shared bool) error {
	if !shared {
		return nil
	}
	if err := c.Auth.Authorize(c.id, api.VerbCreate, api.KindImage, ""); err != nil {
		return errs.New(errs.Denied, "share an image with every tenant: %w", err).WithHint("only who may create images in the whole pool can share them")
	}
	return nil
}

func (c *call) tenantIsThere(name string) error {
	_, err := c.Store.Get(c.r.Context(), api.Ref{Kind: api.KindTenant, Name: name})
	return err
}

func (c *call) roomForBudget(b *api.DisruptionBudget) error {
	if err := c.tenantIsThere(b.Tenant); err != nil {
		return err
	}
	list, _, err := c.Store.List(c.r.Context(), api.Selector{Kind: api.KindDisruptionBudget, Tenant: b.Tenant, Limit: api.MaxBudgets})
	if err != nil {
		return err
	}
	if len(list) >= api.MaxBudgets {
		return errs.New(errs.Quota, "tenant %s has %d disruption budgets, the most there may be", b.Tenant, api.MaxBudgets).WithHint("one budget may name many instances by their labels; remove those that are not needed")
	}
	return nil
}

// mayRank: the class must exist; one that takes the place of others needs a right.
func (c *call) mayRank(in *api.Instance) error {
	preempts, err := c.rank(in.Tenant, "instance "+in.Name, "spec", in.Spec.Priority)
	if preempts {
		in.Spec.Queue = true // a full pool is no reason to refuse it: it makes room
	}
	return err
}

// mayMake: who says which host account a user is could become that user, so they
// must have what the user has.
func (c *call) mayMake(u *api.User) error {
	for _, b := range c.Auth.Bindings(u.Name) {
		if role, ok := c.Auth.Role(b.Spec.Role); ok {
			if err := c.Auth.Covers(c.id, role, b.Spec.Tenant); err != nil {
				return err
			}
		}
	}
	return nil
}

// mayBind keeps callers from giving what they do not have themselves.
func (c *call) mayBind(b *api.RoleBinding) error {
	role, ok := c.Auth.Role(b.Spec.Role)
	if !ok {
		return errs.InvalidFields("rolebinding "+b.Name, []errs.Field{{Field: "spec.role", Value: b.Spec.Role, Rule: "must name a role that exists", Example: "developer"}})
	}
	return c.Auth.Covers(c.id, role, b.Spec.Tenant)
}

// maxTokenLife bounds forgotten tokens.
const maxTokenLife = 5 * 365 * 24 * time.Hour

// mintToken checks whom the token speaks for and puts its secret and hash in the status.
func (c *call) mintToken(t *api.Token) error {
	if err := c.mayHold(t); err != nil {
		return err
	}
	now := c.now()
	if t.Spec.ExpiresAt == nil {
		e := now.Add(auth.TokenLife)
		t.Spec.ExpiresAt = &e
	}
	if err := c.expiry(t, now); err != nil {
		return err
	}
	secret, hash, err := auth.Mint(t.Name, c.Rand)
	if err != nil {
		return err
	}
	t.Status = api.TokenStatus{Hash: hash, Secret: secret}
	return nil
}

func (c *call) expiry(t *api.Token, now time.Time) error {
	e := *t.Spec.ExpiresAt
	if !e.After(now) || e.After(now.Add(maxTokenLife)) {
		return errs.InvalidFields("token "+t.Name, []errs.Field{{Field: "spec.expiresAt", Value: e.Format(time.RFC3339), Rule: "must be in the future, at most 5 years away", Example: now.Add(auth.TokenLife).Format(time.RFC3339)}})
	}
	if mine := c.id.Token; mine != nil && mine.Spec.ExpiresAt != nil && e.After(*mine.Spec.ExpiresAt) {
		return errs.New(errs.Denied, "a token made by a token cannot live longer than it: until %s", mine.Spec.ExpiresAt.Format(time.RFC3339)).
			WithHint("make it without a token, over the unix socket")
	}
	return nil
}

// mayHold: a token is for oneself, except that administrators make them for others;
// what is made by a token reaches no further than that.
func (c *call) mayHold(t *api.Token) error {
	if c.id.Admin {
		return nil
	}
	if t.Spec.User != c.id.User {
		if err := c.Auth.Authorize(c.id, api.VerbAny, auth.AnyKind, ""); err != nil {
			return errs.New(errs.Denied, "%s may make tokens for itself only, not for %s", c.id, clip(t.Spec.User)).WithHint("an administrator makes it")
		}
	}
	if mine := c.id.Token; mine != nil && len(mine.Spec.Verbs) > 0 {
		verbs := t.Spec.Verbs
		if len(verbs) == 0 {
			verbs = []api.Verb{api.VerbAny}
		}
		for _, v := range verbs {
			if err := c.Auth.Authorize(c.id, v, api.KindToken, t.Spec.Tenant); err != nil {
				return errs.New(errs.Denied, "a token made by a token reaches no further than it: %w", err).WithHint("name verbs the first one allows")
			}
		}
	}
	return nil
}

// prepareUpdate puts spec, labels and annotations of next on old. changed is false
// when that makes no difference.
func (c *call) prepareUpdate(old, next api.Object) (n api.Object, changed bool, err error) {
	d, _ := api.Lookup(string(old.ObjectKind()))
	if d.ReadOnly {
		return nil, false, readOnly(d)
	}
	om, nm := old.Metadata(), next.Metadata()
	if nm.Tenant == "" && d.Tenanted {
		nm.Tenant = om.Tenant
	}
	if nm.Name != om.Name || nm.Tenant != om.Tenant || next.ObjectKind() != old.ObjectKind() {
		return nil, false, errs.InvalidFields("object", []errs.Field{{Field: "metadata.name", Value: clip(api.RefOf(next).String()), Rule: "kind, tenant and name cannot change", Example: api.RefOf(old).String()}})
	}
	if nm.UID != "" && nm.UID != om.UID {
		return nil, false, errs.New(errs.Conflict, "%s is another object than the one you read: it was removed and made again", api.RefOf(old)).WithHint("read it again")
	}
	n = api.Clone(old)
	m := n.Metadata()
	kept, has := m.Annotations[keyAnnotation]
	m.Labels, m.Annotations = nm.Labels, nm.Annotations
	if has || m.Annotations[keyAnnotation] != "" {
		annotate(n, kept)
	}
	copyPart(n, next, "Spec")
	c.noteMaintenance(old, n)
	if err := c.rollBack(n); err != nil {
		return nil, false, err
	}
	if err := api.Check(n); err != nil {
		return nil, false, err
	}
	specChanged := !samePart(old, n, "Spec")
	if specChanged {
		if om.DeletedAt != nil {
			return nil, false, errs.New(errs.Conflict, "%s is being removed", api.RefOf(old)).WithHint("wait until it is gone, then make it anew")
		}
		m.Generation++
		if f, ok := n.(api.Fixer); ok {
			if err := errs.InvalidFields(d.Singular()+" "+m.Name, f.Fixed(old)); err != nil {
				return nil, false, err
			}
		}
		if err := c.grantUpdate(old, n); err != nil {
			return nil, false, err
		}
	}
	return n, specChanged || !maps.Equal(om.Labels, m.Labels) || !maps.Equal(om.Annotations, m.Annotations), nil
}

// grantUpdate is grantCreate for a changed spec.
func (c *call) grantUpdate(old, n api.Object) error {
	if err := c.Auth.Authorize(c.id, api.VerbUpdate, n.ObjectKind(), auth.ScopeOf(api.VerbUpdate, n)); err != nil {
		return err
	}
	switch n := n.(type) {
	case *api.Instance:
		if was := old.(*api.Instance).Spec; !(n.Spec.Stopped && !was.Stopped) && !reflect.DeepEqual(was, n.Spec) {
			if err := c.mayRank(n); err != nil { // whoever makes it another one makes others go for theirs
				return err
			}
		}
		// Who changes the program of an instance uses its dangerous rights; who stops
		// it, starts it or gives it more memory does not.
		if api.SameUse(&old.(*api.Instance).Spec, &n.Spec) {
			return nil
		}
		return c.Auth.Grants(c.id, n.Tenant, n.Spec.Grants())
	case *api.JoinToken:
		return c.desk.Change(c.r.Context(), c.id, old.(*api.JoinToken), n)
	case *api.Deployment, *api.Job, *api.CronJob:
		return c.updateWorkload(old, n)
	case *api.Token:
		o := old.(*api.Token)
		if n.Spec.User != o.Spec.User {
			return errs.InvalidFields("token "+n.Name, []errs.Field{{Field: "spec.user", Value: clip(n.Spec.User), Rule: "cannot change; make another token", Example: o.Spec.User}})
		}
		if n.Spec.ExpiresAt == nil {
			n.Spec.ExpiresAt = o.Spec.ExpiresAt
		}
		if err := c.expiry(n, c.now()); err != nil {
			return err
		}
		return c.mayHold(n)
	}
	return c.grantCreate(n)
}

// part is the Spec or Status of an object.
func part(o api.Object, name string) reflect.Value {
	return reflect.ValueOf(o).Elem().FieldByName(name)
}

func clearPart(o api.Object, name string) {
	if v := part(o, name); v.IsValid() {
		v.SetZero()
	}
}

// copyPart copies without sharing; false when the kind has no such part.
func copyPart(to, from api.Object, name string) bool {
	v := part(to, name)
	if !v.IsValid() {
		return false
	}
	v.Set(part(api.Clone(from), name))
	return true
}

// samePart compares as JSON: an empty list and a missing one are the same.
func samePart(a, b api.Object, name string) bool {
	x, err1 := json.Marshal(part(a, name).Interface())
	y, err2 := json.Marshal(part(b, name).Interface())
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func annotate(o api.Object, value string) {
	m := o.Metadata()
	a := make(map[string]string, len(m.Annotations)+1)
	for k, v := range m.Annotations {
		a[k] = v
	}
	if a[keyAnnotation] = value; value == "" {
		delete(a, keyAnnotation)
	}
	m.Annotations = a
}

// secretOf is where an object that is shown once has its secret; nil: it is none.
func secretOf(o api.Object) *string {
	switch o := o.(type) {
	case *api.Token:
		return &o.Status.Secret
	case *api.JoinToken:
		return &o.Status.Secret
	}
	return nil
}

// hasSecret reports whether objects of a kind have parts that callers never see.
func hasSecret(k api.Kind) bool { return k == api.KindToken || k == api.KindJoinToken }

// takeSecret removes what must not be stored; giveSecret puts it into the answer.
func takeSecret(o api.Object) (s string) {
	if p := secretOf(o); p != nil {
		s, *p = *p, ""
	}
	return s
}

func giveSecret(o api.Object, secret string) api.Object {
	if secret == "" {
		return o
	}
	n := api.Clone(o)
	*secretOf(n) = secret
	return n
}
