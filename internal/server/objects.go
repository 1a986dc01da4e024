package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
)

// EncodedLister is a store that keeps the JSON of its objects, such as store.Cache.
type EncodedLister interface {
	ListEncoded(ctx context.Context, sel api.Selector) ([]json.RawMessage, int64, error)
}

func etag(rev int64) string { return `"` + strconv.FormatInt(rev, 10) + `"` }

// ifMatch reads If-Match; 0 when there is none, or it is *.
func (c *call) ifMatch() (int64, error) {
	h := strings.TrimSpace(c.r.Header.Get("If-Match"))
	if h == "" || h == "*" {
		return 0, nil
	}
	rev, err := strconv.ParseInt(strings.Trim(h, `"`), 10, 64)
	if err != nil || rev <= 0 {
		return 0, errs.InvalidFields("request", []errs.Field{{Field: "If-Match", Value: clip(h), Rule: "must be the ETag of an earlier answer", Example: `"42"`}})
	}
	return rev, nil
}

// target is the object the URL names.
func (c *call) target() api.Ref {
	ref := api.Ref{Kind: c.route.Def.Kind, Name: c.r.PathValue("name")}
	if c.route.Def.Tenanted {
		ref.Tenant = c.r.URL.Query().Get("tenant")
	}
	c.ref = ref
	return ref
}

// checkRef turns away names that cannot exist, before they reach a store.
func checkRef(ref api.Ref) error {
	if !plainText(ref.Tenant) || !plainText(ref.Name) || ref.Kind != api.KindTenant && strings.Contains(ref.Name, "/") {
		return errs.InvalidFields("request", []errs.Field{{Field: "name", Value: clip(ref.Name), Rule: "name and tenant must be names", Example: "web"}})
	}
	return nil
}

// read gets an object the caller may do verb on. Nobody learns whether something
// exists that they have no right to.
func (c *call) read(ref api.Ref, verb api.Verb) (api.Object, error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	o, err := c.Store.Get(c.r.Context(), ref)
	if err != nil {
		if errs.KindOf(err) == errs.NotFound && ref.Tenant == "" && c.route.Def != nil && c.route.Def.Tenanted {
			return nil, errs.New(errs.NotFound, "%s does not exist", ref).WithHint("say which tenant it belongs to: ?tenant=NAME")
		}
		return nil, err
	}
	if err := c.Auth.Authorize(c.id, verb, ref.Kind, auth.ScopeOf(verb, o)); err != nil {
		return nil, err
	}
	if !c.visible(o) {
		return nil, errs.New(errs.NotFound, "%s does not exist", ref)
	}
	return o, nil
}

// visible hides other people's tokens from those who are not administrators.
func (c *call) visible(o api.Object) bool {
	t, ok := o.(*api.Token)
	return !ok || c.id.Admin || t.Spec.User == c.id.User || c.Auth.Allowed(c.id, api.VerbAny, auth.AnyKind, "")
}

// shown is an object as callers see it: without the hash of a token.
func shown(o api.Object) api.Object {
	switch t := o.(type) {
	case *api.Token:
		if t.Status.Hash != "" {
			t = api.Clone(t)
			t.Status.Hash = ""
			return t
		}
	case *api.JoinToken:
		if t.Status.Hash != "" {
			t = api.Clone(t)
			t.Status.Hash = ""
			return t
		}
	}
	return o
}

func (c *call) get() error {
	o, err := c.read(c.target(), api.VerbGet)
	if err != nil {
		return err
	}
	tag := etag(o.Metadata().Revision)
	if slices.Contains(strings.Split(strings.ReplaceAll(c.r.Header.Get("If-None-Match"), " ", ""), ","), tag) {
		c.w.Header().Set("ETag", tag)
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return c.answer(http.StatusOK, o)
}

// answer writes one object.
func (c *call) answer(status int, o api.Object) error {
	b, err := api.Encode(shown(o))
	if err != nil {
		return errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
	}
	c.w.Header().Set("ETag", etag(o.Metadata().Revision))
	return c.bytes(status, typeJSON, append(b, '\n'))
}

func (c *call) json(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return errs.New(errs.Internal, "encode answer: %w", err)
	}
	return c.bytes(status, typeJSON, append(b, '\n'))
}

func (c *call) bytes(status int, media string, b []byte) error {
	h := c.w.Header()
	h["Content-Type"] = []string{media}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	c.w.WriteHeader(status)
	_, err := c.w.Write(b)
	return err
}

func page(after string) string { return base64.RawURLEncoding.EncodeToString([]byte(after)) }

// selector reads the query of a list or watch.
func (c *call) selector() (api.Selector, error) {
	q := c.r.URL.Query()
	var sel api.Selector
	d := c.route.Def
	if d != nil {
		sel.Kind = d.Kind
	}
	var bad []errs.Field
	number := func(name string) int64 {
		s := q.Get(name)
		if s == "" {
			return 0
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			bad = append(bad, errs.Field{Field: name, Value: clip(s), Rule: "must be a number that is not negative", Example: "100"})
		}
		return n
	}
	for name := range q {
		if !c.knows(name) {
			bad = append(bad, errs.Field{Field: clip(name), Rule: "is not a parameter of this request", Example: "labels=app=db"})
		}
	}
	if d == nil || d.Tenanted {
		sel.Tenant = q.Get("tenant")
		if sel.Tenant != "" && !plainText(sel.Tenant) {
			bad = append(bad, errs.Field{Field: "tenant", Value: clip(sel.Tenant), Rule: "must be a tenant", Example: "acme/research"})
		}
	}
	sel.Nested = isTrue(q.Get("nested"))
	sel.Name = q.Get("name")
	sel.Limit = int(min(number("limit"), 1<<20))
	sel.MinRev = number("minRevision")
	if a := q.Get("after"); a != "" {
		key, err := base64.RawURLEncoding.DecodeString(a)
		if err != nil {
			bad = append(bad, errs.Field{Field: "after", Value: clip(a), Rule: "must be the \"after\" of an earlier answer"})
		}
		sel.After = string(key)
	}
	if err := errs.InvalidFields("request", bad); err != nil {
		return sel, err
	}
	var err error
	if sel.Labels, err = labelTerms(q.Get("labels")); err != nil {
		return sel, err
	}
	if f := q.Get("fields"); f != "" && d != nil {
		if sel.Fields, err = api.ParseFields(d, f); err != nil {
			return sel, err
		}
	}
	return sel, nil
}

func labelTerms(s string) ([]api.LabelTerm, error) {
	if s == "" {
		return nil, nil
	}
	return api.ParseLabels(s)
}

// plainText keeps control characters out of names that reach stores and messages.
func plainText(s string) bool {
	return len(s) <= 512 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func isTrue(s string) bool { return s == "true" || s == "1" || s == "yes" }

func (c *call) knows(param string) bool {
	return slices.ContainsFunc(c.route.Query, func(p Param) bool { return p.Name == param })
}

func (c *call) list() error {
	sel, err := c.selector()
	if err != nil {
		return err
	}
	c.ref = api.Ref{Kind: sel.Kind, Tenant: sel.Tenant}
	q := c.r.URL.Query()
	if isTrue(q.Get("watch")) {
		return c.watch(sel, q)
	}
	view, err := c.view(&sel, api.VerbList)
	if err != nil {
		return err
	}
	if sel.MinRev > 0 { // a revision that never comes must not hold a request for ever
		ctx, cancel := context.WithTimeout(c.r.Context(), c.cfg.WriteTimeout)
		defer cancel()
		c.r = c.r.WithContext(ctx)
	}
	if c.Lists != nil && view == nil && sel.Kind != "" && !hasSecret(sel.Kind) {
		raw, rev, err := c.Lists.ListEncoded(c.r.Context(), sel)
		if err != nil {
			return err
		}
		return c.writeList(sel, raw, rev)
	}
	objs, rev, err := c.listVisible(sel, view)
	if err != nil {
		return err
	}
	raw := make([]json.RawMessage, len(objs))
	for i, o := range objs {
		if raw[i], err = api.Encode(shown(o)); err != nil {
			return errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
		}
	}
	return c.writeList(sel, raw, rev)
}

// view narrows sel to what the caller may see; where that cannot be said in a
// selector, the func judges each object. nil: all that sel chooses may be seen.
func (c *call) view(sel *api.Selector, verb api.Verb) (func(api.Object) bool, error) {
	if c.route.Def == nil { // every kind: the gate asked for rights over all of them
		return nil, nil
	}
	d := c.route.Def
	if d.Tenanted && sel.Tenant != "" && c.Auth.Allowed(c.id, verb, d.Kind, sel.Tenant) {
		return nil, nil
	}
	everywhere, roots := c.Auth.Roots(c.id, verb, d.Kind)
	switch {
	case everywhere && d.Kind == api.KindToken:
		return c.visible, nil
	case everywhere:
		return nil, nil
	case len(roots) == 0 || poolWide(d):
		return nil, c.Auth.Authorize(c.id, verb, d.Kind, sel.Tenant)
	case len(roots) == 1 && d.Tenanted && sel.Tenant == "":
		sel.Tenant, sel.Nested = roots[0], true
		return nil, nil
	}
	return func(o api.Object) bool {
		scope := auth.ScopeOf(verb, o)
		return slices.ContainsFunc(roots, func(root string) bool { return scope != "" && api.WithinTenant(scope, root) }) && c.visible(o)
	}, nil
}

// listVisible lists what view lets through, filling pages to their limit.
func (c *call) listVisible(sel api.Selector, view func(api.Object) bool) ([]api.Object, int64, error) {
	if view == nil {
		return c.Store.List(c.r.Context(), sel)
	}
	var out []api.Object
	first := int64(0)
	for {
		objs, rev, err := c.Store.List(c.r.Context(), sel)
		if err != nil {
			return nil, 0, err
		}
		if first == 0 {
			first = rev
		}
		for _, o := range objs {
			if view(o) {
				if out = append(out, o); sel.Limit > 0 && len(out) == sel.Limit {
					return out, first, nil
				}
			}
		}
		if sel.Limit == 0 || len(objs) < sel.Limit {
			return out, first, nil
		}
		sel.After = api.SortKey(api.RefOf(objs[len(objs)-1]))
	}
}

// writeList writes {"kind":…,"revision":…,"items":[…],"after":…} from encoded objects.
func (c *call) writeList(sel api.Selector, items []json.RawMessage, rev int64) error {
	b, _ := c.buffers.Get().(*bytes.Buffer)
	if b == nil {
		b = new(bytes.Buffer)
	}
	b.Reset()
	defer c.buffers.Put(b)
	kind := string(sel.Kind)
	fmt.Fprintf(b, `{"kind":"%sList","revision":%d,"items":[`, kind, rev)
	for i, it := range items {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(it)
	}
	b.WriteByte(']')
	if sel.Limit > 0 && sel.Kind != "" && len(items) == sel.Limit {
		after, err := afterOf(sel.Kind, items[len(items)-1])
		if err != nil {
			return err
		}
		fmt.Fprintf(b, `,"after":%q`, page(after))
	}
	b.WriteString("}\n")
	return c.bytes(http.StatusOK, typeJSON, b.Bytes())
}

func afterOf(kind api.Kind, item json.RawMessage) (string, error) {
	var head api.Head
	if err := json.Unmarshal(item, &head); err != nil {
		return "", errs.New(errs.Internal, "read %s: %w", kind, err)
	}
	return api.SortKey(api.Ref{Kind: kind, Tenant: head.Tenant, Name: head.Name}), nil
}

// location is where an object can be read.
func location(d *api.Definition, r api.Ref) string {
	u := "/v1/" + d.Plural + "/" + url.PathEscape(r.Name)
	if d.Tenanted {
		u += "?" + url.Values{"tenant": {r.Tenant}}.Encode()
	}
	return u
}
