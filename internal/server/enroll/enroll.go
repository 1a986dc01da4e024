// Package enroll takes hosts into the pool and out of it: join tokens, joining,
// renewing, revoking, replacing and removing. The server's routes call it after they
// have checked who asks; joining and renewing check that here, by token and by key.
//
// It starts no goroutine. Whatever changes hands does so in one commit, so that a
// crash leaves a host in or out and never half. It must never keep or tell a secret,
// and it trusts nothing of a certificate request but the key.
package enroll

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/release"
	"atoll/internal/store"
)

// Desk is what hosts come to.
type Desk struct {
	Group store.Cluster // the servers that keep the state; nil: none that others could join
	Store store.Store
	Auth  *auth.Authority
	CA    *auth.CA // nil: nobody can join
	Clock clock.Clock
	Rand  io.Reader // cryptographic

	Node      string   // the host this server runs on
	Names     []string // names in this server's certificate, which no host may take
	Endpoints []string // where hosts reach this server, such as https://10.0.0.1:7443
	Pool      api.PoolSettings

	// turn is who decides now: hosts that come by the same token all change it, and each
	// would make all others decide anew.
	turn sync.Mutex
}

const (
	retries   = 16  // how often a commit is decided anew when somebody was faster
	maxJoined = 100 // names a token remembers
)

// Info tells what a host needs to find the pool.
func (d *Desk) Info() (api.JoinInfo, error) {
	if len(d.Endpoints) == 0 || d.CA == nil {
		return api.JoinInfo{}, errs.New(errs.Conflict, "the API listens on this host only: no other host can reach it").
			WithHint("start atolld with --listen 0.0.0.0:7443 (or the host's address); instances run on meanwhile")
	}
	pin, err := d.CA.Pin()
	return api.JoinInfo{Endpoints: d.Endpoints, Pin: pin}, err
}

// Mint makes the secret of a new token and its default expiry. What it puts into the
// status' secret is the word a host shows, and must not be stored.
func (d *Desk) Mint(ctx context.Context, who auth.Identity, t *api.JoinToken) error {
	if d.CA == nil {
		return errs.New(errs.Unsupported, "this server has no certificate authority, so no host can join").WithHint("start atolld with --listen 0.0.0.0:7443 (or the host's address)")
	}
	if t.Spec.ExpiresAt == nil {
		e := d.now().Add(auth.JoinLife)
		t.Spec.ExpiresAt = &e
	}
	if err := d.expiry(t); err != nil {
		return err
	}
	if err := d.mayAdopt(ctx, who, t); err != nil {
		return err
	}
	text, hash, err := d.CA.MintJoin(t.Name, d.Rand)
	if err != nil {
		return err
	}
	t.Status = api.JoinTokenStatus{Hash: hash, Secret: text}
	return nil
}

// Change checks what is made of a token: until when it is good, and what it allows.
func (d *Desk) Change(ctx context.Context, who auth.Identity, old, t *api.JoinToken) error {
	if t.Spec.ExpiresAt == nil {
		t.Spec.ExpiresAt = old.Spec.ExpiresAt
	}
	if err := d.expiry(t); err != nil {
		return err
	}
	return d.mayAdopt(ctx, who, t)
}

// expiry checks until when a token shall be good.
func (d *Desk) expiry(t *api.JoinToken) error {
	now := d.now()
	if e := t.Spec.ExpiresAt; e == nil || !e.After(now) || e.After(now.Add(auth.MaxJoinLife)) {
		f := errs.Field{Field: "spec.expiresAt", Rule: "must be in the future, at most 30 days away", Example: now.Add(auth.JoinLife).Format(time.RFC3339)}
		if e != nil {
			f.Value = e.Format(time.RFC3339)
		}
		return errs.InvalidFields("jointoken "+t.Name, []errs.Field{f})
	}
	return nil
}

func (d *Desk) now() time.Time { return d.Clock.Now().UTC().Round(time.Millisecond) }

// Join takes a host in. from is the address it calls from. Who is in already, by the
// same key, gets the same answer, and nothing is counted: its first one was lost.
func (d *Desk) Join(ctx context.Context, req api.JoinRequest, from string) (*api.JoinAnswer, error) {
	text, err := d.shown(ctx, req.Token, from)
	if err != nil {
		return nil, err
	}
	key, err := auth.ParseRequest([]byte(req.CSR))
	if err != nil {
		return nil, err
	}
	if err := checkRequest(req); err != nil {
		return nil, err
	}
	if err := d.fits(ctx, req); err != nil {
		return nil, err
	}
	a := arrival{req: req, text: text, key: key.KeyHash, from: from}
	for try := 0; ; try++ {
		id, err := d.admit(ctx, a)
		if d.again(ctx, err, try) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return d.answer(ctx, id, req.CSR)
	}
}

// shown checks the join token that somebody shows.
func (d *Desk) shown(ctx context.Context, token, from string) (auth.JoinText, error) {
	if d.CA == nil {
		return auth.JoinText{}, errs.New(errs.Unsupported, "this server takes no hosts in")
	}
	text, err := auth.ParseJoin(token)
	if err != nil {
		return text, d.Auth.Failed(from, errs.New(errs.Unauthenticated, "%w", err).WithHint("paste it as atoll node token printed it"))
	}
	if mine, err := d.CA.Hash(); err != nil {
		return text, err
	} else if mine != text.Authority {
		return text, d.Auth.Failed(from, errs.New(errs.Unauthenticated, "this join token is of another pool").WithHint("make one here: atoll node token"))
	}
	return text, d.token(ctx, text, from)
}

// fits refuses a host whose release the pool cannot work with, before it is one of it.
func (d *Desk) fits(ctx context.Context, req api.JoinRequest) error {
	pool, err := maybe[*api.Pool](ctx, d.Store, api.PoolRef())
	if err != nil {
		return err
	}
	if err := api.ReadableAt(req.Release, api.LevelOf(pool)); err != nil {
		return fmt.Errorf("host %s cannot join: %w", req.Node, err)
	}
	if !release.Compatible(req.Release, release.Number()) {
		return errs.New(errs.Unsupported, "host %s cannot join: it is release %d, this server is release %d", req.Node, release.Or(req.Release), release.Number()).
			WithHint("install the version of the other hosts there: atoll version")
	}
	return nil
}

// token checks the secret, by the picture first: what is guessed costs the store nothing.
func (d *Desk) token(ctx context.Context, text auth.JoinText, from string) error {
	ref := api.Ref{Kind: api.KindJoinToken, Name: text.Name}
	_, err := d.Auth.Join(text, from)
	if errors.Is(err, errs.Unauthenticated) && !d.Auth.Knows(ref) { // made through another server a moment ago?
		if o, gerr := d.Store.Get(ctx, ref); gerr == nil {
			d.Auth.Put(o)
			_, err = d.Auth.Join(text, from)
		}
	}
	return err
}

func checkRequest(req api.JoinRequest) error {
	f := api.NodeNameFields("node", req.Node)
	for name, v := range map[string]string{"address": req.Address, "version": req.Version, "arch": req.Arch} {
		if len(v) > 253 || !plain(v) {
			f = append(f, errs.Field{Field: name, Rule: "must be at most 253 printable characters without spaces", Example: map[string]string{"address": "10.0.0.2", "version": "1.0", "arch": "amd64"}[name]})
		}
	}
	return errs.InvalidFields("join", f)
}

func plain(s string) bool {
	for _, r := range s {
		if r <= ' ' || r > '~' {
			return false
		}
	}
	return true
}

// arrival is a host at the desk.
type arrival struct {
	req  api.JoinRequest
	text auth.JoinText
	key  string
	from string
	with []store.Op // what it brings along, its node among it; nil: nothing
}

// errRace: what was read has changed meanwhile; it is decided anew.
var errRace = errors.New("somebody was faster")

// present is what there is under the name a host wants.
type present struct {
	token *api.JoinToken
	id    *api.NodeIdentity // nil: none
	node  *api.Node         // nil: none
}

func (d *Desk) look(ctx context.Context, a arrival) (p present, err error) {
	if p.token, err = store.Get[*api.JoinToken](ctx, d.Store, api.Ref{Kind: api.KindJoinToken, Name: a.text.Name}); err != nil {
		if errors.Is(err, errs.NotFound) {
			err = errs.New(errs.Unauthenticated, "this join token was removed").WithHint("make a new one: atoll node token")
		}
		return p, err
	}
	if p.id, err = maybe[*api.NodeIdentity](ctx, d.Store, identityRef(a.req.Node)); err != nil {
		return p, err
	}
	p.node, err = maybe[*api.Node](ctx, d.Store, nodeRef(a.req.Node))
	return p, err
}

func identityRef(node string) api.Ref { return api.Ref{Kind: api.KindNodeIdentity, Name: node} }

func nodeRef(node string) api.Ref { return api.Ref{Kind: api.KindNode, Name: node} }

// maybe reads what need not be there; then it is the zero value.
func maybe[T api.Object](ctx context.Context, s store.Store, ref api.Ref) (T, error) {
	o, err := store.Get[T](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		var none T
		return none, nil
	}
	return o, err
}

// admit decides and commits once: the token's use is counted, the identity changes
// hands and the node is there, or nothing of that.
func (d *Desk) admit(ctx context.Context, a arrival) (*api.NodeIdentity, error) {
	d.turn.Lock()
	defer d.turn.Unlock()
	p, err := d.look(ctx, a)
	if err != nil {
		return nil, err
	}
	role := p.token.Spec.EffectiveRole()
	if p.id != nil && p.id.Spec.Revoked == "" && p.id.Spec.KeyHash == a.key && p.id.Spec.Role == role {
		if a.with != nil {
			return nil, errRace // it came meanwhile
		}
		return p.id, nil // it is in already: the answer was lost, or it asks once more
	}
	if err := d.mayTake(a, p); err != nil {
		return nil, err
	}
	now := d.now()
	tok := api.Clone(p.token)
	tok.Status.Used++
	tok.Status.Joined = append(slices.DeleteFunc(tok.Status.Joined, func(n string) bool { return n == a.req.Node }), a.req.Node)
	if n := len(tok.Status.Joined); n > maxJoined {
		tok.Status.Joined = tok.Status.Joined[n-maxJoined:]
	}
	id := &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: a.req.Node, CreatedAt: &now, Generation: 1}}}
	if p.id != nil {
		id = api.Clone(p.id)
		id.Generation++
	} else if id.UID, err = d.uid(); err != nil {
		return nil, err
	}
	id.Spec = api.NodeIdentitySpec{KeyHash: a.key, Role: role, JoinedAt: now, Token: tok.Name, From: a.from, Address: a.req.Address}
	if role != api.RoleNode {
		id.Spec.Zone = tok.Spec.Zone
	}
	if id.Spec.Address == "" && net.ParseIP(a.from) != nil {
		id.Spec.Address = a.from
	}
	ops := []store.Op{store.Update(tok), {Verb: store.Put, Object: id, Rev: id.Revision}}
	if a.with != nil {
		id.Spec.Adopted = tok.Spec.Adopt
		ops = append(ops, a.with...)
	} else if role == api.RoleNode && p.node == nil {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: a.req.Node, CreatedAt: &now, Generation: 1, Labels: tok.Spec.Labels}}, Spec: api.NodeSpec{Zone: tok.Spec.Zone}}
		if n.UID, err = d.uid(); err != nil {
			return nil, err
		}
		ops = append(ops, store.Create(n))
	}
	rev, err := d.commit(ctx, ops...)
	if err != nil {
		return nil, err
	}
	tok.Revision, id.Revision = rev, rev
	d.Auth.Put(tok)
	d.Auth.Put(id)
	return id, nil
}

// commit marks it with errRace when a revision moved on, or what was not there is
// there, or the other way round.
func (d *Desk) commit(ctx context.Context, ops ...store.Op) (int64, error) {
	rev, err := d.Store.Commit(ctx, ops...)
	if errors.Is(err, errs.Conflict) || errors.Is(err, errs.Exists) || errors.Is(err, errs.NotFound) {
		return 0, fmt.Errorf("%w: %w", errRace, err)
	}
	return rev, err
}

// again tells whether a decision is to be made anew, a little later each time.
func (d *Desk) again(ctx context.Context, err error, try int) bool {
	return errors.Is(err, errRace) && try < retries && d.Clock.Sleep(ctx, time.Millisecond<<min(try, 6)) == nil
}

func (d *Desk) uid() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(d.Rand, b[:]); err != nil {
		return "", errs.New(errs.Internal, "make uid: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// mayTake says why a host may not have the name it wants.
func (d *Desk) mayTake(a arrival, p present) error {
	name, spec := a.req.Node, &p.token.Spec
	switch other, dup := d.Auth.KeyOf(a.key); {
	case dup && other != name:
		return errs.New(errs.Conflict, "host %s has this key already: was this machine copied from it?", other).
			WithHint("every machine needs a key of its own: remove pki/node.key below the state directory (/var/lib/atoll) of the copy, and join again")
	case spec.Node != "" && spec.Node != name:
		return errs.New(errs.Denied, "join token %s is for host %s only, not for %s", p.token.Name, spec.Node, name).WithHint("join with --node %s, or make another token: atoll node token", spec.Node)
	case spec.Uses > 0 && p.token.Status.Used >= spec.Uses:
		return errs.New(errs.Denied, "join token %s was used %d of %d times", p.token.Name, p.token.Status.Used, spec.Uses).WithHint("make a new one: atoll node token")
	case p.node != nil && spec.EffectiveRole() != api.RoleNode:
		return errs.New(errs.Exists, "host %s runs instances: it cannot become a %s", name, spec.EffectiveRole()).WithHint("remove it first: atoll drain %s, atoll node remove %s; or join under another name: --node NAME", name, name)
	case spec.Node == name: // a new machine in its place is what the token is for
		return nil
	case slices.Contains(d.Names, name):
		return errs.New(errs.Exists, "%s is a name of the server itself", name).WithHint("join under another name: --node NAME")
	case p.id != nil && p.id.Spec.Revoked == "":
		return errs.New(errs.Exists, "there is a host %s already, of another key", name).
			WithHint("another machine: join under another name (--node NAME). A new machine in its place, which turns the old one away: atoll node token --node %s", name)
	}
	return nil
}

// answer makes the certificate and gathers what a host must know.
func (d *Desk) answer(ctx context.Context, id *api.NodeIdentity, csr string) (*api.JoinAnswer, error) {
	cert, err := d.CA.SignNode([]byte(csr), id)
	if err != nil {
		return nil, err
	}
	authority, err := d.CA.CertPEM()
	if err != nil {
		return nil, err
	}
	ends, err := d.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	return &api.JoinAnswer{Node: id.Name, Role: id.Spec.Role, Certificate: string(cert), Authority: string(authority), Endpoints: ends, Pool: d.Pool}, nil
}

// Elsewhere adds to an error that this server cannot do it the addresses of those that may; nil stays nil.
func (d *Desk) Elsewhere(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	all, lerr := d.endpoints(ctx)
	if lerr != nil {
		return err // it is what matters
	}
	all = slices.DeleteFunc(all, func(u string) bool { return slices.Contains(d.Endpoints, u) })
	if len(all) == 0 {
		return err
	}
	hint := "ask another server: atoll --server URL, with one of " + strings.Join(all, " ")
	if h := errs.HintOf(err); h != "" {
		hint = h + "; " + hint
	}
	return errs.New(errs.KindOf(err), "%w", err).WithHint("%s", hint)
}

// endpoints are this server's and those of the other members that answer the API.
func (d *Desk) endpoints(ctx context.Context) ([]string, error) {
	out := slices.Clone(d.Endpoints)
	members, _, err := store.List[*api.Member](ctx, d.Store, api.Selector{Kind: api.KindMember})
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	for _, m := range members {
		if m.Spec.API != "" && !m.Spec.Witness && m.Spec.State != api.MemberLeaving && !slices.Contains(out, m.Spec.API) {
			out = append(out, m.Spec.API)
		}
	}
	return out, nil
}

// Renew makes a new certificate for a key that a host is known by. It needs no valid
// certificate: the request is signed by the key, and what one could do with an
// answer that was meant for another needs that key, too.
func (d *Desk) Renew(ctx context.Context, req api.RenewRequest, from string) (*api.JoinAnswer, error) {
	if d.CA == nil {
		return nil, errs.New(errs.Unsupported, "this server takes no hosts in")
	}
	key, err := auth.ParseRequest([]byte(req.CSR))
	if err != nil {
		return nil, err
	}
	if err := errs.InvalidFields("renew", api.NodeNameFields("node", req.Node)); err != nil {
		return nil, err
	}
	who := auth.Identity{Node: req.Node, Key: key.KeyHash, Via: "certificate"}
	if err := d.Recognise(ctx, who); err != nil {
		return nil, d.Auth.Failed(from, err)
	}
	// The store has the last word: the picture may not have heard of a revocation yet.
	id, err := store.Get[*api.NodeIdentity](ctx, d.Store, identityRef(req.Node))
	if errors.Is(err, errs.NotFound) {
		return nil, errs.New(errs.Unauthenticated, "host %s was removed from the pool", req.Node).WithHint("an administrator lets it join anew: atoll node token, and on the host: atolld join")
	}
	if err != nil {
		return nil, err
	}
	return d.answer(ctx, id, req.CSR)
}

// Recognise checks the identity of a host, and looks into the store before it turns
// one away: who joined through another server a moment ago is not in the picture yet.
func (d *Desk) Recognise(ctx context.Context, who auth.Identity) error {
	err := d.Auth.Check(who)
	if !errors.Is(err, errs.Unauthenticated) {
		return err
	}
	id, gerr := store.Get[*api.NodeIdentity](ctx, d.Store, identityRef(who.Node))
	if gerr != nil {
		return err
	}
	d.Auth.Put(id)
	return d.Auth.Check(who)
}
