package enroll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/join/adopt"
	"atoll/internal/store"
)

// mayAdopt refuses a token by which more could come into the pool than whoever makes it
// could make themselves.
func (d *Desk) mayAdopt(ctx context.Context, who auth.Identity, t *api.JoinToken) error {
	into := t.Spec.Adopt
	if into == "" {
		return nil
	}
	for _, k := range adopt.Kinds() {
		if def, ok := api.Lookup(string(k)); ok && def.ReadOnly {
			continue // follows from the others
		}
		if err := d.Auth.Authorize(who, api.VerbCreate, k, into); err != nil {
			return errs.New(errs.Denied, "let a host bring what it runs into %s: %w", into, err).WithHint("who may create everything in that tenant can make such a token")
		}
	}
	if err := d.Auth.Grants(who, into, t.Spec.Grants); err != nil {
		return err
	}
	_, err := store.Get[*api.Tenant](ctx, d.Store, api.Ref{Kind: api.KindTenant, Name: into})
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.NotFound, "tenant %s does not exist", into).WithHint("create it first: atoll tenant create %s", into)
	}
	return err
}

// adoption is a host at the desk that brings along what it runs.
type adoption struct {
	arrival
	old    adopt.Old
	tenant string
	dry    bool
	status api.NodeStatus // what it can hold, as its own pool knew it
}

// Adopt takes a host in with the instances of the pool that it has had for itself, or says
// what is in the way. bearer is the header Authorization; nothing is read of the body
// before the token in it is known. Who is in already, by the same key, gets the same answer.
func (d *Desk) Adopt(ctx context.Context, bearer string, body io.Reader, from string) (*api.AdoptAnswer, error) {
	word, ok := strings.CutPrefix(bearer, "Bearer ")
	if !ok {
		return nil, d.Auth.Failed(from, errs.New(errs.Unauthenticated, "a join token is needed").WithHint("send the header Authorization: Bearer atoll-join_…"))
	}
	text, err := d.shown(ctx, strings.TrimSpace(word), from)
	if err != nil {
		return nil, err
	}
	a, err := readAdoption(body)
	if err != nil {
		return nil, err
	}
	key, err := auth.ParseRequest([]byte(a.req.CSR))
	if err != nil {
		return nil, err
	}
	if err := checkRequest(a.req); err != nil {
		return nil, err
	}
	if err := d.fits(ctx, a.req); err != nil {
		return nil, err
	}
	a.text, a.key, a.from = text, key.KeyHash, from
	for try := 0; ; try++ {
		ans, err := d.adoptOnce(ctx, a)
		if d.again(ctx, err, try) {
			continue
		}
		return ans, err
	}
}

// readAdoption reads what a host sends. What it cannot make sense of becomes part of the plan.
func readAdoption(body io.Reader) (*adoption, error) {
	b, err := io.ReadAll(io.LimitReader(body, api.MaxAdoption+1))
	if err != nil {
		return nil, errs.New(errs.Invalid, "read the body: %w", err)
	}
	if len(b) > api.MaxAdoption {
		return nil, errs.New(errs.Invalid, "the old pool is larger than %d MiB, and it must come in one commit", api.MaxAdoption>>20).WithHint("remove from it what has ended: atoll get instances, jobs, images")
	}
	var req api.AdoptRequest
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return nil, errs.New(errs.Invalid, "not valid JSON: %w", err)
	}
	f := api.NodeNameFields("was", req.Was)
	if !api.ValidTenantPath(req.Tenant) {
		f = append(f, errs.Field{Field: "tenant", Value: clip(req.Tenant), Rule: "must be a tenant: one to four names joined by /", Example: "acme"})
	}
	if err := errs.InvalidFields("adopt", f); err != nil {
		return nil, err
	}
	a := &adoption{tenant: req.Tenant, dry: req.DryRun, old: adopt.Old{Node: req.Was, As: req.Node, Subnet: req.Subnet}}
	a.req = api.JoinRequest{CSR: req.CSR, Node: req.Node, Address: req.Address, Version: req.Version, Release: req.Release, Arch: req.Arch}
	seen := map[api.Ref]bool{}
	for i, raw := range req.Objects {
		o, err := api.DecodeStrict(raw)
		if err != nil {
			a.old.Unread = append(a.old.Unread, unread(i, raw, err))
			continue
		}
		if ref := api.RefOf(o); seen[ref] {
			return nil, errs.New(errs.Invalid, "%s comes twice", ref)
		} else {
			seen[ref] = true
		}
		if n, ok := o.(*api.Node); ok && n.Name == req.Was {
			a.status = n.Status
		}
		a.old.Objects = append(a.old.Objects, o)
	}
	return a, nil
}

func unread(i int, raw []byte, err error) errs.Field {
	var head struct {
		Kind     string
		Metadata struct{ Tenant, Name string }
	}
	at := fmt.Sprintf("objects[%d]", i)
	if json.Unmarshal(raw, &head) == nil && head.Kind != "" {
		at = clip(strings.ToLower(head.Kind) + " " + strings.TrimPrefix(head.Metadata.Tenant+"/"+head.Metadata.Name, "/"))
	}
	return errs.Field{Field: at, Rule: "must be of a kind and version that this pool knows: bring both to the same version first (" + clip(err.Error()) + ")", Example: "atoll version"}
}

// adoptOnce plans on what there is now, and commits against it.
func (d *Desk) adoptOnce(ctx context.Context, a *adoption) (*api.AdoptAnswer, error) {
	p, err := d.look(ctx, a.arrival)
	if err != nil {
		return nil, err
	}
	switch into := p.token.Spec.Adopt; {
	case into == "":
		return nil, errs.New(errs.Denied, "join token %s lets a host in, but not what it runs", p.token.Name).WithHint("make one that does, on a host of the pool: atoll node token --adopt %s", a.tenant)
	case into != a.tenant:
		return nil, errs.New(errs.Denied, "join token %s is for adopting into %s, not into %s", p.token.Name, into, a.tenant).WithHint("join with --adopt %s, or make another token: atoll node token --adopt %s", into, a.tenant)
	}
	if a.isIn(p) {
		return d.inAlready(ctx, a, p)
	}
	v, err := d.view(ctx, a, p)
	if err != nil {
		return nil, err
	}
	plan := adopt.Make(a.tenant, a.old, v)
	ops, err := d.bring(a, p.token, plan)
	if err != nil {
		return nil, err
	}
	if len(plan.Clashes) == 0 {
		if plan.Clashes, err = d.wouldAdmit(ctx, ops); err != nil {
			return nil, err
		}
	}
	if len(plan.Clashes) > 0 { // with itself, perhaps: an earlier call, whose answer was lost, may have let it in since
		if now, err := d.look(ctx, a.arrival); err == nil && a.isIn(now) {
			return d.inAlready(ctx, a, now)
		}
	}
	if a.dry || len(plan.Clashes) > 0 {
		return &api.AdoptAnswer{Plan: plan.AdoptPlan}, nil
	}
	in := a.arrival
	in.with = ops
	id, err := d.admit(ctx, in)
	if err != nil {
		return nil, err
	}
	return d.adopted(ctx, plan, id, a)
}

// isIn reports whether the host is in already, by the same key and into the same tenant.
func (a *adoption) isIn(p present) bool {
	return p.id != nil && p.id.Spec.Revoked == "" && p.id.Spec.KeyHash == a.key && p.id.Spec.Adopted == a.tenant
}

// inAlready answers a host that is in: only the names are asked for.
func (d *Desk) inAlready(ctx context.Context, a *adoption, p present) (*api.AdoptAnswer, error) {
	plan := adopt.Make(a.tenant, a.old, adopt.View{})
	plan.Clashes = nil
	return d.adopted(ctx, plan, p.id, a)
}

func (d *Desk) adopted(ctx context.Context, plan adopt.Plan, id *api.NodeIdentity, a *adoption) (*api.AdoptAnswer, error) {
	ans := &api.AdoptAnswer{Plan: plan.AdoptPlan}
	if a.dry {
		return ans, nil
	}
	var err error
	ans.Join, err = d.answer(ctx, id, a.req.CSR)
	return ans, err
}

// view reads what the plan is made on.
func (d *Desk) view(ctx context.Context, a *adoption, p present) (adopt.View, error) {
	v := adopt.View{Tenants: map[string]*api.Tenant{}, Ledgers: map[string]*api.Ledger{}, Classes: map[string]*api.PriorityClass{}, Fixed: map[string]string{},
		UIDs: map[string]string{}, Subnet: d.Pool.Subnet, Grants: p.token.Spec.Grants}
	tenants, _, err := store.List[*api.Tenant](ctx, d.Store, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return v, fmt.Errorf("list tenants: %w", err)
	}
	for _, t := range tenants {
		v.Tenants[t.Name] = t
	}
	for _, path := range api.TenantChain(a.tenant) {
		l, err := maybe[*api.Ledger](ctx, d.Store, api.Ref{Kind: api.KindLedger, Tenant: path, Name: api.LedgerName})
		if err != nil {
			return v, err
		}
		if l != nil {
			v.Ledgers[path] = l
		}
	}
	classes, _, err := store.List[*api.PriorityClass](ctx, d.Store, api.Selector{Kind: api.KindPriorityClass})
	if err != nil {
		return v, fmt.Errorf("list priority classes: %w", err)
	}
	for _, c := range classes {
		v.Classes[c.Name] = c
	}
	instances, _, err := store.List[*api.Instance](ctx, d.Store, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return v, fmt.Errorf("list instances: %w", err)
	}
	for _, in := range instances {
		v.UIDs[adopt.Known(in.UID)] = in.Tenant + "/" + in.Name
		for _, n := range in.Spec.Networks {
			if n.Address != "" && n.Name == api.NetworkDefault {
				v.Fixed[n.Address] = in.Tenant + "/" + in.Name
			}
		}
	}
	switch err := d.mayTake(a.arrival, p); {
	case err != nil && errs.KindOf(err) == errs.Denied: // the token, not the name
		return v, err
	case err != nil:
		v.Taken = err.Error()
	case p.node != nil || p.id != nil:
		v.Taken = "there is a host of this name, and one that brings instances along cannot take its place"
	}
	return v, nil
}

// bring are the ops that make everything that comes, the node among it: not ready until
// its agent says that it is, so that nothing else is placed there meanwhile.
func (d *Desk) bring(a *adoption, tok *api.JoinToken, plan adopt.Plan) ([]store.Op, error) {
	uid, err := d.uid()
	if err != nil {
		return nil, err
	}
	now := d.now()
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: a.req.Node, UID: uid, CreatedAt: &now, Generation: 1, Labels: tok.Spec.Labels}}, Spec: api.NodeSpec{Zone: tok.Spec.Zone}}
	n.Status = api.NodeStatus{Capacity: a.status.Capacity, Allocatable: a.status.Allocatable,
		Conditions: []api.Condition{{Type: api.ConditionReady, Reason: "Joins", Message: "it comes with what it runs; its agent has not begun here yet", Since: now}}}
	ops := make([]store.Op, 0, len(plan.Objects)+1)
	ops = append(ops, store.Create(n))
	for _, o := range plan.Objects {
		ops = append(ops, store.Create(o))
	}
	return ops, nil
}

// never is an object that no store has: its name is none.
var never = api.Ref{Kind: api.KindJoinToken, Name: "."}

// wouldAdmit asks admission about ops that cannot be committed, as they expect what is
// never there: it judges before the store looks.
func (d *Desk) wouldAdmit(ctx context.Context, ops []store.Op) ([]errs.Field, error) {
	_, err := d.Store.Commit(ctx, append(ops[:len(ops):len(ops)], store.Expect(never, 1))...)
	var r *store.Refused
	if errors.As(err, &r) && r.Ref == never {
		return nil, nil
	}
	switch errs.KindOf(err) {
	case errs.Quota, errs.NoCapacity, errs.Denied, errs.NotFound, errs.Exists, errs.Conflict, errs.Invalid:
		rule := err.Error()
		if h := errs.HintOf(err); h != "" {
			rule += "; " + h
		}
		return []errs.Field{{Field: "admission", Rule: rule}}, nil
	}
	if err == nil {
		err = errs.New(errs.Internal, "a trial was committed")
	}
	return nil, err
}
