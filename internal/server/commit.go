package server

import (
	"encoding/json"
	"fmt"
	"net/http"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/server/name"
	"atoll/internal/store"
)

// CommitRequest is the body of POST /v1/commit.
type CommitRequest struct {
	// Full writes objects as they are, with status and server-set metadata: for
	// Atoll's own parts. Without it, ops mean what PUT, POST and DELETE mean.
	Full bool       `json:"full,omitempty"`
	Ops  []CommitOp `json:"ops"`
}

// CommitOp is a store.Op: verb put, delete or check; rev 0: must not exist, -1: whatever is there.
type CommitOp struct {
	Verb   string          `json:"verb"`
	Object json.RawMessage `json:"object,omitempty"`
	Ref    *api.Ref        `json:"ref,omitempty"`
	Rev    int64           `json:"rev"`
}

// Committed is the answer: what became of each op, in their order.
type Committed struct {
	Revision int64          `json:"revision"`
	Results  []CommitResult `json:"results,omitempty"`
}

// CommitResult says created, updated, unchanged, deleted, deleting or checked, and shows the object.
type CommitResult struct {
	Action string          `json:"action"`
	Object json.RawMessage `json:"object,omitempty"`
}

func (c *call) commit() error {
	b, err := c.body()
	if err != nil {
		return err
	}
	var req CommitRequest
	if err := strictJSON(b, &req); err != nil {
		return err
	}
	if len(req.Ops) > c.cfg.MaxOps {
		return errs.InvalidFields("commit", []errs.Field{{Field: "ops", Value: fmt.Sprint(len(req.Ops)), Rule: fmt.Sprintf("must be at most %d", c.cfg.MaxOps)}})
	}
	if req.Full {
		return c.commitFull(req)
	}
	return c.commitSpecs(req)
}

func strictJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return errs.New(errs.Invalid, "not valid JSON: %w", err)
	}
	return nil
}

func (c *call) commitFull(req CommitRequest) error {
	if !c.id.Trusted() {
		return errs.New(errs.Denied, "%s may not write whole objects", c.id).WithHint("leave out \"full\": spec, labels and annotations can be written")
	}
	ops := make([]store.Op, len(req.Ops))
	for i, in := range req.Ops {
		op, err := fullOp(in)
		if err == nil {
			err = c.trustedOp(&op)
		}
		if err != nil {
			return fmt.Errorf("ops[%d]: %w", i, err)
		}
		ops[i] = op
	}
	rev, err := c.Store.Commit(c.r.Context(), ops...)
	if err != nil {
		return err
	}
	for _, op := range ops {
		c.told(op, rev)
	}
	return c.json(http.StatusOK, Committed{Revision: rev})
}

// told tells package auth of an op that went through.
func (c *call) told(op store.Op, rev int64) {
	switch op.Verb {
	case store.Put:
		n := api.Clone(op.Object)
		n.Metadata().Revision = rev
		c.learn(store.Event{Rev: rev, Object: n})
	case store.Delete:
		c.Auth.Delete(op.Ref, rev)
	}
}

// fullOp is an op as a part of Atoll means it, checked only as far as names go.
func fullOp(in CommitOp) (store.Op, error) {
	op := store.Op{Rev: in.Rev}
	switch in.Verb {
	case "put":
		op.Verb = store.Put
		o, err := api.Decode(in.Object)
		if err != nil {
			return op, err
		}
		op.Object = o
	case "delete", "check":
		if op.Verb = store.Delete; in.Verb == "check" {
			op.Verb = store.Check
		}
		if in.Ref == nil {
			return op, errs.InvalidFields("commit", []errs.Field{{Field: "ref", Rule: "must name the object"}})
		}
		op.Ref = *in.Ref
	default:
		return op, errs.InvalidFields("commit", []errs.Field{{Field: "verb", Value: clip(in.Verb), Rule: "must be put, delete or check", Example: "put"}})
	}
	t := op.Target()
	if _, err := api.New(t.Kind); err != nil && t.Kind != "" {
		return op, err
	}
	return op, checkRef(t)
}

// trustedOp keeps an agent to its own objects, and of those to what it reports:
// the spec stays what the store has. Hashes of tokens are never seen over the API,
// so tokens are not written this way.
func (c *call) trustedOp(op *store.Op) error {
	ref := op.Target()
	if hasSecret(ref.Kind) && op.Verb == store.Put {
		return errs.New(errs.Unsupported, "tokens cannot be written whole").WithHint("create them: POST /v1/tokens, POST /v1/jointokens")
	}
	if c.id.Admin {
		return nil
	}
	if op.Verb == store.Check { // revisions are no secret among hosts that run instances
		return c.Auth.Authorize(c.id, api.VerbGet, api.KindNode, "")
	}
	verb := api.VerbUpdate
	if op.Verb == store.Delete {
		verb = api.VerbDelete
	}
	if err := c.Auth.Authorize(c.id, verb, ref.Kind, auth.ScopeOfRef(verb, ref)); err != nil {
		return err
	}
	old, err := c.Store.Get(c.r.Context(), ref)
	if errs.KindOf(err) == errs.NotFound && op.Verb == store.Put && ref.Kind != api.KindInstance {
		return c.nodeOwns(op.Object)
	}
	if err != nil {
		return err
	}
	if err := c.nodeOwns(old); err != nil {
		return err
	}
	if op.Verb == store.Put && ref.Kind == api.KindInstance {
		n := api.Clone(old)
		copyPart(n, op.Object, "Status")
		n.Metadata().Finalizers = op.Object.Metadata().Finalizers
		op.Object = n
		if op.Rev == store.Any {
			op.Rev = old.Metadata().Revision
		}
	}
	return nil
}

// commitSpecs means by ops what single requests mean, in one transaction. A change
// without a revision is repeated when somebody else was faster.
func (c *call) commitSpecs(req CommitRequest) error {
	dry := isTrue(c.r.URL.Query().Get("dryRun"))
	for try := 0; ; try++ {
		plan := specPlan{call: c}
		for i, in := range req.Ops {
			if err := plan.add(in); err != nil {
				return fmt.Errorf("ops[%d]: %w", i, err)
			}
		}
		if dry {
			return plan.reply(0)
		}
		rev := int64(0)
		if len(plan.ops) > 0 || len(req.Ops) == 0 {
			var err error
			rev, err = c.Store.Commit(c.r.Context(), plan.ops...)
			if plan.loose && c.again(err, try) {
				continue
			}
			if err != nil {
				return err
			}
		}
		for _, op := range plan.ops {
			c.told(op, rev)
		}
		return plan.reply(rev)
	}
}

// specPlan gathers what a commit of specs comes to.
type specPlan struct {
	*call
	ops     []store.Op
	results []planned
	loose   bool // some op named no revision
	written map[api.Ref]bool
}

type planned struct {
	action string
	object api.Object
	secret string
	put    bool
}

func (p *specPlan) add(in CommitOp) error {
	switch in.Verb {
	case "put":
		return p.put(in)
	case "delete":
		return p.delete(in)
	case "check":
		op, err := fullOp(in)
		if err != nil {
			return err
		}
		if err := p.Auth.Authorize(p.id, api.VerbGet, op.Ref.Kind, auth.ScopeOfRef(api.VerbGet, op.Ref)); err != nil {
			return err
		}
		p.ops = append(p.ops, op)
		p.results = append(p.results, planned{action: "checked"})
		return nil
	}
	_, err := fullOp(in)
	return err
}

func (p *specPlan) put(in CommitOp) error {
	next, err := api.DecodeStrict(in.Object)
	if err != nil {
		return err
	}
	ref := api.RefOf(next)
	if err := p.once(ref); ref.Name != "" && err != nil {
		return err
	}
	var old api.Object
	if in.Rev != 0 && ref.Name != "" {
		// The right comes first: nobody learns by an error whether something exists.
		if err := p.mayTouch(api.VerbUpdate, ref); err != nil && (in.Rev > 0 || p.mayTouch(api.VerbCreate, ref) != nil) {
			return err
		}
		old, err = p.Store.Get(p.r.Context(), ref)
		if err != nil && (errs.KindOf(err) != errs.NotFound || in.Rev != store.Any) {
			return err
		}
	}
	p.loose = p.loose || in.Rev == store.Any
	if old == nil {
		return p.putNew(next)
	}
	if err := p.Auth.Authorize(p.id, api.VerbUpdate, ref.Kind, auth.ScopeOf(api.VerbUpdate, old)); err != nil {
		return err
	}
	if in.Rev > 0 && in.Rev != old.Metadata().Revision {
		return stale(ref, old.Metadata().Revision, in.Rev)
	}
	n, changed, err := p.prepareUpdate(old, next)
	if err != nil {
		return err
	}
	if !changed {
		p.results = append(p.results, planned{action: "unchanged", object: old})
		p.ops = append(p.ops, store.Expect(ref, old.Metadata().Revision))
		return nil
	}
	p.ops = append(p.ops, store.Update(n))
	p.results = append(p.results, planned{action: "updated", object: n, put: true})
	return nil
}

// once refuses to write one object twice.
func (p *specPlan) once(ref api.Ref) error {
	if p.written[ref] {
		return errs.New(errs.Invalid, "%s is written twice", ref).WithHint("a commit changes each object once")
	}
	if p.written == nil {
		p.written = map[api.Ref]bool{}
	}
	p.written[ref] = true
	return nil
}

// mayTouch checks a right before an object is looked at. Where a binding or token
// belongs only the object says: there, a right anywhere lets the caller look.
func (p *specPlan) mayTouch(verb api.Verb, ref api.Ref) error {
	if ref.Kind == api.KindRoleBinding || ref.Kind == api.KindToken {
		if everywhere, roots := p.Auth.Roots(p.id, verb, ref.Kind); everywhere || len(roots) > 0 {
			return nil
		}
	}
	return p.Auth.Authorize(p.id, verb, ref.Kind, auth.ScopeOfRef(verb, ref))
}

func (p *specPlan) putNew(next api.Object) error {
	if err := p.prepareCreate(next, name.Seed{}); err != nil {
		return err
	}
	secret := takeSecret(next)
	p.ops = append(p.ops, store.Create(next))
	p.results = append(p.results, planned{action: "created", object: next, secret: secret, put: true})
	return nil
}

func (p *specPlan) delete(in CommitOp) error {
	op, err := fullOp(in)
	if err != nil {
		return err
	}
	d, ok := api.Lookup(string(op.Ref.Kind))
	if !ok || op.Ref.Name == "" {
		return errs.InvalidFields("commit", []errs.Field{{Field: "ref", Rule: "must name the object: kind, tenant and name"}})
	}
	if d.ReadOnly {
		return readOnly(d)
	}
	if err := p.once(op.Ref); err != nil {
		return err
	}
	if err := p.mayTouch(api.VerbDelete, op.Ref); err != nil {
		return err
	}
	old, err := p.Store.Get(p.r.Context(), op.Ref)
	if err != nil {
		return err
	}
	if err := p.Auth.Authorize(p.id, api.VerbDelete, d.Kind, auth.ScopeOf(api.VerbDelete, old)); err != nil {
		return err
	}
	if !p.visible(old) {
		return errs.New(errs.NotFound, "%s does not exist", op.Ref)
	}
	if in.Rev > 0 && in.Rev != old.Metadata().Revision {
		return stale(op.Ref, old.Metadata().Revision, in.Rev)
	}
	p.loose = p.loose || in.Rev == store.Any
	gone, n, status := p.removal(old)
	action := "deleting"
	if status == http.StatusOK {
		action = "deleted"
	}
	if gone != nil {
		p.ops = append(p.ops, *gone)
	}
	if d.Kind == api.KindNode {
		more, err := p.desk.Gone(p.r.Context(), op.Ref.Name)
		if err != nil {
			return err
		}
		p.ops = append(p.ops, more...)
	}
	p.results = append(p.results, planned{action: action, object: n, put: gone != nil && status != http.StatusOK})
	return nil
}

func (p *specPlan) reply(rev int64) error {
	out := Committed{Revision: rev, Results: make([]CommitResult, len(p.results))}
	for i, r := range p.results {
		out.Results[i].Action = r.action
		if r.object == nil {
			continue
		}
		o := r.object
		if r.put && rev != 0 {
			o = api.Clone(o)
			o.Metadata().Revision = rev
		}
		b, err := api.Encode(giveSecret(shown(o), r.secret))
		if err != nil {
			return errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
		}
		out.Results[i].Object = b
	}
	return p.json(http.StatusOK, out)
}
