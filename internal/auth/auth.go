// Package auth says who a caller is and what they may do. Roles and bindings are
// data (api.Role, api.RoleBinding); they are compiled into Cedar policies, and
// Cedar decides. It also keeps the pool's certificate authority.
//
// An Authority holds a picture of users, roles, bindings, tokens,
// join tokens and identities of hosts that its owner keeps current with Reset, Put and Delete; it starts no goroutines and reads
// nothing by itself but the host's account database. It must never answer "yes"
// because something is missing: without a picture everybody but an administrator
// is turned away, and a policy that cannot be evaluated allows nothing.
package auth

import (
	"os/user"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

// Identity is a caller who was recognised.
type Identity struct {
	User  string     // name of the api.User; "root" for the host's administrator
	Admin bool       // everything is allowed
	Token *api.Token // what the caller showed; narrows the user's rights
	Node  string     // the caller is the agent of this node
	Key   string     // with Node: SHA-256 of the public key it proved to have, in hexadecimal
	Via   string     // socket, token, certificate or process
}

// String names the caller for logs.
func (id Identity) String() string {
	switch {
	case id.Node != "":
		return "node/" + id.Node
	case id.Token != nil:
		return "user/" + id.User + " (token " + id.Token.Name + ")"
	case id.User == "":
		return "nobody"
	}
	return "user/" + id.User
}

// Trusted reports whether the caller is a part of Atoll, or the host's administrator.
func (id Identity) Trusted() bool { return id.Admin || id.Node != "" }

// Config sets an Authority up. The zero value is right for a server.
type Config struct {
	// Admins are host accounts beside 0 that are administrators.
	Admins []uint32
	// Account finds the name of a host account; default: the host's account database.
	Account func(uid uint32) (string, error)
}

// Authority recognises callers and decides. Safe for use by many goroutines.
type Authority struct {
	cfg   Config
	clock clock.Clock
	fails *limiter

	policy atomic.Pointer[policySet] // of the roles and bindings below

	mu       sync.RWMutex
	ready    bool
	users    map[string]*api.User
	byHost   map[string][]string // host account -> users
	tokens   map[string]*api.Token
	roles    map[string]*api.Role
	bindings map[string]*api.RoleBinding
	joins    map[string]*api.JoinToken
	nodes    map[string]*api.NodeIdentity
	gone     map[api.Ref]int64 // revision of a deletion: an older Put is late news

	accounts sync.Map // uid -> account
}

type account struct {
	name  string
	err   error
	until time.Time
}

// Kinds lists what an Authority must be told about.
func Kinds() []api.Kind {
	return []api.Kind{api.KindUser, api.KindRole, api.KindRoleBinding, api.KindToken, api.KindJoinToken, api.KindNodeIdentity}
}

// New knows nobody until Reset.
func New(c clock.Clock, cfg Config) *Authority {
	if cfg.Account == nil {
		cfg.Account = hostAccount
	}
	a := &Authority{cfg: cfg, clock: c, fails: newLimiter(c)}
	a.clear()
	a.rebuild()
	return a
}

func hostAccount(uid uint32) (string, error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return "", err
	}
	return u.Username, nil
}

func (a *Authority) clear() {
	a.users, a.byHost = map[string]*api.User{}, map[string][]string{}
	a.tokens, a.roles = map[string]*api.Token{}, map[string]*api.Role{}
	a.bindings, a.gone = map[string]*api.RoleBinding{}, map[api.Ref]int64{}
	a.joins, a.nodes = map[string]*api.JoinToken{}, map[string]*api.NodeIdentity{}
}

// Ready reports whether Reset was called.
func (a *Authority) Ready() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.ready
}

// Reset replaces the whole picture. Objects of other kinds are passed over.
func (a *Authority) Reset(objs []api.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clear()
	for _, o := range objs {
		a.put(o)
	}
	a.ready = true
	a.rebuild()
}

// Put takes in one object as it is now. An older state than the one known is passed over.
func (a *Authority) Put(o api.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.put(o) {
		a.rebuild()
	}
}

// Delete forgets an object that was removed at rev.
func (a *Authority) Delete(ref api.Ref, rev int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.known(ref); old != nil && old.Metadata().Revision > rev {
		return
	}
	a.gone[ref] = rev
	if len(a.gone) > 4096 { // late news is milliseconds late; what is older cannot come back
		a.gone = map[api.Ref]int64{ref: rev}
	}
	switch ref.Kind {
	case api.KindUser:
		delete(a.users, ref.Name)
		a.index()
	case api.KindToken:
		delete(a.tokens, ref.Name)
	case api.KindRole:
		delete(a.roles, ref.Name)
		a.rebuild()
	case api.KindRoleBinding:
		delete(a.bindings, ref.Name)
		a.rebuild()
	case api.KindJoinToken:
		delete(a.joins, ref.Name)
	case api.KindNodeIdentity:
		delete(a.nodes, ref.Name)
	}
}

func (a *Authority) known(ref api.Ref) api.Object {
	switch ref.Kind {
	case api.KindUser:
		if o, ok := a.users[ref.Name]; ok {
			return o
		}
	case api.KindToken:
		if o, ok := a.tokens[ref.Name]; ok {
			return o
		}
	case api.KindRole:
		if o, ok := a.roles[ref.Name]; ok {
			return o
		}
	case api.KindRoleBinding:
		if o, ok := a.bindings[ref.Name]; ok {
			return o
		}
	case api.KindJoinToken:
		if o, ok := a.joins[ref.Name]; ok {
			return o
		}
	case api.KindNodeIdentity:
		if o, ok := a.nodes[ref.Name]; ok {
			return o
		}
	}
	return nil
}

// put reports whether policies must be compiled anew.
func (a *Authority) put(o api.Object) bool {
	ref, rev := api.RefOf(o), o.Metadata().Revision
	if old := a.known(ref); old != nil && old.Metadata().Revision > rev {
		return false
	}
	if at, ok := a.gone[ref]; ok && rev != 0 && rev <= at {
		return false
	}
	switch o := o.(type) {
	case *api.User:
		a.users[ref.Name] = o
		a.index()
	case *api.Token:
		a.tokens[ref.Name] = o
	case *api.Role:
		a.roles[ref.Name] = o
		return true
	case *api.RoleBinding:
		a.bindings[ref.Name] = o
		return true
	case *api.JoinToken:
		a.joins[ref.Name] = o
	case *api.NodeIdentity:
		a.nodes[ref.Name] = o
	}
	return false
}

func (a *Authority) index() {
	m := make(map[string][]string, len(a.users))
	for name, u := range a.users {
		host := u.Spec.HostUser
		if host == "" {
			host = name
		}
		m[host] = append(m[host], name)
	}
	a.byHost = m
}

// Host recognises the host account at the other end of the unix socket: account 0
// is administrator, any other is the user bound to it.
func (a *Authority) Host(uid uint32) (Identity, error) {
	if uid == 0 {
		return Identity{User: "root", Admin: true, Via: "socket"}, nil
	}
	for _, admin := range a.cfg.Admins {
		if uid == admin {
			return Identity{User: "uid-" + strconv.FormatUint(uint64(uid), 10), Admin: true, Via: "socket"}, nil
		}
	}
	name, err := a.account(uid)
	if err != nil {
		return Identity{}, errs.New(errs.Unauthenticated, "host account %d has no name on this host", uid).
			WithHint("only accounts in the host's user database can be users")
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if !a.ready {
		return Identity{}, starting()
	}
	switch users := a.byHost[name]; len(users) {
	case 0:
		return Identity{}, errs.New(errs.Unauthenticated, "host account %q is not a user of this pool", name).
			WithHint("an administrator adds you: sudo atoll user create %s, and gives you a role: sudo atoll user bind %s developer --in TENANT", name, name)
	case 1:
		if a.users[users[0]].Spec.Suspended {
			return Identity{}, suspended(users[0])
		}
		return Identity{User: users[0], Via: "socket"}, nil
	default:
		return Identity{}, errs.New(errs.Unauthenticated, "host account %q belongs to %d users", name, len(users)).
			WithHint("an administrator must give spec.hostUser %s to one user only", name)
	}
}

func (a *Authority) account(uid uint32) (string, error) {
	now := a.clock.Now()
	if v, ok := a.accounts.Load(uid); ok {
		if c := v.(account); now.Before(c.until) {
			return c.name, c.err
		}
	}
	name, err := a.cfg.Account(uid)
	a.accounts.Store(uid, account{name: name, err: err, until: now.Add(10 * time.Second)})
	return name, err
}

// Check says whether an identity found earlier still holds: its user is not
// suspended, its token neither removed nor expired, its host still known by the same
// key. Long streams ask again and again.
func (a *Authority) Check(id Identity) error {
	if id.Admin {
		return nil
	}
	if id.Node != "" {
		_, err := a.roleOf(id)
		return err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.check(id)
}

func (a *Authority) check(id Identity) error {
	if !a.ready {
		return starting()
	}
	u, ok := a.users[id.User]
	if !ok {
		return errs.New(errs.Unauthenticated, "user %s does not exist", id.User).WithHint("an administrator makes it: atoll user create %s", id.User)
	}
	if u.Spec.Suspended {
		return suspended(id.User)
	}
	if id.Token == nil {
		return nil
	}
	t, ok := a.tokens[id.Token.Name]
	if !ok || t.Status.Hash != id.Token.Status.Hash {
		return badToken()
	}
	return a.fresh(t)
}

func (a *Authority) fresh(t *api.Token) error {
	if t.Spec.ExpiresAt != nil && !a.clock.Now().Before(*t.Spec.ExpiresAt) {
		return errs.New(errs.Unauthenticated, "token %s expired at %s", t.Name, t.Spec.ExpiresAt.UTC().Format(time.RFC3339)).
			WithHint("make a new one: atoll token create NAME")
	}
	return nil
}

func starting() error {
	return errs.New(errs.Unavailable, "the server is starting: users are not loaded yet").WithHint("try again in a moment")
}

func suspended(name string) error {
	return errs.New(errs.Denied, "user %s is suspended", name).WithHint("an administrator takes it back with: atoll edit user/%s (spec.suspended: false)", name)
}
