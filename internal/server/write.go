package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/server/name"
	"atoll/internal/server/once"
	"atoll/internal/server/patch"
	"atoll/internal/store"
)

// retries bounds how often a change that names no revision is repeated when
// somebody else writes the same object at the same time.
const retries = 16

// body reads the request's body, bounded.
func (c *call) body(types ...string) ([]byte, error) {
	if ct := c.r.Header.Get("Content-Type"); ct != "" {
		media, _, err := mime.ParseMediaType(ct)
		ok := err == nil && (media == typeJSON || media == "application/x-www-form-urlencoded") // the latter is curl's -d without more
		for _, t := range types {
			ok = ok || err == nil && media == t
		}
		if !ok {
			return nil, errs.InvalidFields("request", []errs.Field{{Field: "Content-Type", Value: clip(ct), Rule: "must be " + typeJSON, Example: typeJSON}})
		}
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, c.cfg.MaxBody))
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return nil, errs.New(errs.Invalid, "the body is larger than %d bytes", c.cfg.MaxBody)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "read the body: %w", err)
	}
	return b, nil
}

// decode reads the object in a body; the kind may be left out, and the tenant when
// the query says it.
func (c *call) decode(b []byte) (api.Object, error) {
	o, err := api.DecodeStrict(withKind(b, c.route.Def.Kind))
	if err != nil {
		return nil, err
	}
	if o.ObjectKind() != c.route.Def.Kind {
		return nil, errs.InvalidFields("object", []errs.Field{{Field: "kind", Value: string(o.ObjectKind()), Rule: "must be the kind this route is for", Example: string(c.route.Def.Kind)}})
	}
	m := o.Metadata()
	if tenant := c.r.URL.Query().Get("tenant"); c.route.Def.Tenanted && tenant != "" {
		if m.Tenant != "" && m.Tenant != tenant {
			return nil, errs.InvalidFields("object", []errs.Field{{Field: "metadata.tenant", Value: clip(m.Tenant), Rule: "must be the tenant in the URL, or left out", Example: clip(tenant)}})
		}
		m.Tenant = tenant
	}
	return o, nil
}

// withKind adds a kind to an object that has none.
func withKind(b []byte, k api.Kind) []byte {
	var head struct {
		K *json.RawMessage `json:"kind"`
	}
	t := bytes.TrimSpace(b)
	if len(t) < 2 || t[0] != '{' || json.Unmarshal(t, &head) != nil || head.K != nil {
		return b
	}
	out := append([]byte(`{"kind":"`+string(k)+`"`), ',')
	if rest := bytes.TrimSpace(t[1:]); rest[0] == '}' {
		out = out[:len(out)-1]
	}
	return append(out, t[1:]...)
}

func (c *call) create() error {
	b, err := c.body()
	if err != nil {
		return err
	}
	key, err := c.idempotencyKey()
	if err != nil {
		return err
	}
	if key == "" {
		o, err := c.createOnce(b, "", "")
		if err != nil {
			return err
		}
		return c.created(o)
	}
	scope := c.id.User + "\x00" + c.id.Node + "\x00" + c.r.URL.RequestURI() + "\x00" + key
	slot, err := c.keys.Take(c.r.Context(), scope, b)
	if err != nil {
		return err
	}
	if o := slot.Answer; o != nil {
		return c.created(o)
	}
	o, err := c.createOnce(b, once.Digest(scope), once.Digest(string(b)))
	if err != nil {
		c.keys.Give(slot, nil) // the next attempt is made anew
		return err
	}
	kept := api.Clone(o)
	takeSecret(kept)
	c.keys.Give(slot, kept)
	return c.created(o)
}

func (c *call) created(o api.Object) error {
	c.ref = api.RefOf(o)
	c.w.Header().Set("Location", location(c.route.Def, c.ref))
	return c.answer(http.StatusCreated, o)
}

// createOnce decodes, authorizes, checks and commits one new object. keyHash and
// bodyHash mark the object so that the same key finds it after a restart, too.
func (c *call) createOnce(b []byte, keyHash, bodyHash string) (api.Object, error) {
	o, err := c.decode(b)
	if err != nil {
		return nil, err
	}
	named := o.Metadata().Name != ""
	for try := 0; ; try++ {
		n := o
		if !named {
			n = api.Clone(o) // for another name, should this one be taken
		}
		if err := c.prepareCreate(n, name.Seed{Key: keyHash, Try: try}); err != nil {
			return nil, err
		}
		if keyHash != "" {
			annotate(n, keyHash+":"+bodyHash)
		}
		c.ref = api.RefOf(n)
		secret := takeSecret(n)
		rev, err := c.Store.Commit(c.r.Context(), store.Create(n))
		switch {
		case err == nil:
			n.Metadata().Revision = rev
			c.learned(n, rev)
			return giveSecret(n, secret), nil
		case errors.Is(err, errs.Exists) && keyHash != "":
			if old := c.repeated(c.ref, keyHash, bodyHash); old != nil {
				return old, nil
			}
		}
		if named || !errors.Is(err, errs.Exists) || try >= retries {
			return nil, err
		}
	}
}

// repeated finds what an earlier attempt with the same key made.
func (c *call) repeated(ref api.Ref, keyHash, bodyHash string) api.Object {
	old, err := c.Store.Get(c.r.Context(), ref)
	if err != nil || old.Metadata().Annotations[keyAnnotation] != keyHash+":"+bodyHash {
		return nil
	}
	return old
}

// learned tells package auth at once what the watch will tell it a moment later,
// so that a caller who made a binding or removed a token sees the effect.
func (c *call) learned(o api.Object, rev int64) {
	if slices.Contains(authKinds(), o.ObjectKind()) {
		c.learn(store.Event{Rev: rev, Object: api.Clone(o)})
	}
}

func (c *call) replace() error {
	ref := c.target()
	b, err := c.body()
	if err != nil {
		return err
	}
	next, err := c.decode(b)
	if err != nil {
		return err
	}
	if m := next.Metadata(); m.Name == "" {
		m.Name = ref.Name
	}
	rev, err := c.ifMatch()
	if err != nil {
		return err
	}
	if rev == 0 {
		rev = next.Metadata().Revision // what a caller read, changed and sends back
	}
	return c.update(ref, rev, func(api.Object) (api.Object, error) { return next, nil })
}

func (c *call) patch() error {
	ref := c.target()
	b, err := c.body(typePatch)
	if err != nil {
		return err
	}
	asked, err := patch.Parse(b)
	if err != nil {
		return err
	}
	rev, err := c.ifMatch()
	if err != nil {
		return err
	}
	return c.update(ref, rev, func(old api.Object) (api.Object, error) {
		merged, err := patch.Apply(shown(old), asked)
		if err != nil {
			return nil, err
		}
		return api.DecodeStrict(merged)
	})
}

// update reads, lets change make the wanted state, and commits; without a revision
// it repeats when somebody else was faster.
func (c *call) update(ref api.Ref, rev int64, change func(old api.Object) (api.Object, error)) error {
	for try := 0; ; try++ {
		old, err := c.read(ref, api.VerbUpdate)
		if err != nil {
			return err
		}
		if rev != 0 && rev != old.Metadata().Revision {
			return stale(ref, old.Metadata().Revision, rev)
		}
		next, err := change(old)
		if err != nil {
			return err
		}
		n, changed, err := c.prepareUpdate(old, next)
		if err != nil {
			return err
		}
		if !changed {
			return c.answer(http.StatusOK, old)
		}
		at, err := c.Store.Commit(c.r.Context(), store.Update(n))
		if rev == 0 && c.again(err, try) {
			continue
		}
		if err != nil {
			return err
		}
		n.Metadata().Revision = at
		c.learned(n, at)
		return c.answer(http.StatusOK, n)
	}
}

// again tells whether a write that named no revision is to be decided anew. It waits a
// little longer each time: what is read may be a moment behind what refused the write.
func (c *call) again(err error, try int) bool {
	if !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.Exists) || try >= retries {
		return false
	}
	return c.Clock.Sleep(c.r.Context(), time.Millisecond<<min(try, 6)) == nil
}

func stale(ref api.Ref, have, want int64) error {
	return errs.New(errs.Conflict, "%s was changed meanwhile: it is at revision %d, not %d", ref, have, want).
		WithHint("read it again and repeat the change")
}

func (c *call) remove() error {
	ref := c.target()
	if ref.Kind == api.KindNode {
		return c.removeNode(ref)
	}
	rev, err := c.ifMatch()
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		old, err := c.read(ref, api.VerbDelete)
		if err != nil {
			return err
		}
		if rev != 0 && rev != old.Metadata().Revision {
			return stale(ref, old.Metadata().Revision, rev)
		}
		op, n, status := c.removal(old)
		if op == nil {
			return c.answer(status, old)
		}
		at, err := c.Store.Commit(c.r.Context(), *op)
		if rev == 0 && c.again(err, try) {
			continue
		}
		if err != nil {
			return err
		}
		if status == http.StatusOK {
			c.learn(store.Event{Rev: at, Deleted: true, Object: old})
			return c.answer(status, old)
		}
		n.Metadata().Revision = at
		c.learned(n, at)
		return c.answer(status, n)
	}
}

// removal is the op that removes an object: at once, or by a mark when others have
// to clean up first. nil: it is marked already.
func (c *call) removal(old api.Object) (*store.Op, api.Object, int) {
	m := old.Metadata()
	if len(m.Finalizers) == 0 {
		op := store.Remove(api.RefOf(old), m.Revision)
		return &op, old, http.StatusOK
	}
	if m.DeletedAt != nil {
		return nil, old, http.StatusAccepted
	}
	n := api.Clone(old)
	now := c.now()
	n.Metadata().DeletedAt = &now
	op := store.Update(n)
	return &op, n, http.StatusAccepted
}

// status takes a report of the state from a part of Atoll.
func (c *call) status() error {
	ref := c.target()
	if !c.id.Trusted() {
		return errs.New(errs.Denied, "%s may not report the status of %s", c.id, ref).WithHint("only agents and administrators do; change the spec instead")
	}
	b, err := c.body()
	if err != nil {
		return err
	}
	o, err := api.DecodeAs(ref.Kind, withKind(b, ref.Kind))
	if err != nil {
		return err
	}
	rev, err := c.ifMatch()
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		old, err := c.read(ref, api.VerbUpdate)
		if err != nil {
			return err
		}
		if rev != 0 && rev != old.Metadata().Revision {
			return stale(ref, old.Metadata().Revision, rev)
		}
		if err := c.nodeOwns(old); err != nil {
			return err
		}
		n := api.Clone(old)
		if !copyPart(n, o, "Status") {
			return errs.New(errs.Unsupported, "a %s has no status", ref.Kind)
		}
		at, err := c.Store.Commit(c.r.Context(), store.Update(n))
		if rev == 0 && c.again(err, try) {
			continue
		}
		if err != nil {
			return err
		}
		n.Metadata().Revision = at
		c.learned(n, at)
		return c.answer(http.StatusOK, n)
	}
}

// nodeOwns keeps an agent to what is its own.
func (c *call) nodeOwns(o api.Object) error {
	if c.id.Node == "" {
		return nil
	}
	switch o := o.(type) {
	case *api.Node:
		if o.Name == c.id.Node {
			return nil
		}
	case *api.Instance:
		if o.Status.Node == c.id.Node {
			return nil
		}
		a, err := store.Get[*api.Assignment](c.r.Context(), c.Store, api.Ref{Kind: api.KindAssignment, Tenant: o.Tenant, Name: o.Name})
		if err == nil && a.Spec.Node == c.id.Node {
			return nil
		}
	case *api.Event, *api.Image:
		return nil
	}
	return errs.New(errs.Denied, "%s may not change %s: it is not its own", c.id, api.RefOf(o))
}

func authKinds() []api.Kind { return auth.Kinds() }
