package api

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindJoinToken lets hosts join.
const KindJoinToken Kind = "JoinToken"

// JoinToken lets hosts join the pool. Its secret is shown once, when it is made;
// only the hash is kept.
type JoinToken struct {
	Head
	Spec   JoinTokenSpec   `json:"spec"`
	Status JoinTokenStatus `json:"status,omitzero"`
}

// JoinRole is what a host may become by a token.
type JoinRole string

// The roles. Every host that runs instances may be chosen to keep the pool's state.
const (
	RoleNode    JoinRole = "node"    // runs instances
	RoleServer  JoinRole = "server"  // answers the API and runs nothing
	RoleWitness JoinRole = "witness" // keeps the state and votes, nothing else
)

// JoinTokenSpec says what it is good for.
type JoinTokenSpec struct {
	Role      JoinRole          `json:"role,omitempty" doc:"what the host becomes" enum:"node|server|witness" default:"node"`
	ExpiresAt *time.Time        `json:"expiresAt,omitempty" doc:"not good after" default:"in an hour"`
	Uses      int               `json:"uses,omitempty" doc:"for so many hosts; 0: any number" example:"1"`
	Node      string            `json:"node,omitempty" doc:"only for the host of this name, also when one of this name is there: a new machine in its place" example:"isle2"`
	Zone      string            `json:"zone,omitempty" doc:"failure domain its hosts get" example:"room-a"`
	Labels    map[string]string `json:"labels,omitempty" doc:"labels its hosts get" example:"{disk: ssd}"`
	Adopt     string            `json:"adopt,omitempty" doc:"a host with a pool of its own may bring what it runs along, into this tenant" example:"acme"`
	Grants    []string          `json:"grants,omitempty" doc:"dangerous rights that what is brought along may use" example:"[\"hostpath:/srv\", \"network:host\"]"`
}

// JoinTokenStatus is what became of it.
type JoinTokenStatus struct {
	Hash   string   `json:"hash,omitempty" doc:"of the secret; never shown"`
	Secret string   `json:"secret,omitempty" doc:"what a host shows; in the answer to its creation only"`
	Joined []string `json:"joined,omitempty" doc:"hosts that joined by it; the latest 100"`
	Used   int      `json:"used,omitempty" doc:"how many hosts joined by it"`
}

// EffectiveRole is the role with its default.
func (s *JoinTokenSpec) EffectiveRole() JoinRole {
	if s.Role == "" {
		return RoleNode
	}
	return s.Role
}

// Validate checks role, number and names.
func (t *JoinToken) Validate() []errs.Field {
	f := optional("spec.role", string(t.Spec.Role), string(RoleNode), string(RoleServer), string(RoleWitness))
	if t.Spec.Uses < 0 || t.Spec.Uses > 10_000 {
		f = append(f, errs.Field{Field: "spec.uses", Value: strconv.Itoa(t.Spec.Uses), Rule: "must be 0 to 10000", Example: "1"})
	}
	if n := t.Spec.Node; n != "" {
		f = append(f, NodeNameFields("spec.node", n)...)
	}
	if z := t.Spec.Zone; z != "" && !ValidName(z) {
		f = append(f, errs.Field{Field: "spec.zone", Value: clip(z), Rule: nameRule, Example: "room-a"})
	}
	f = append(f, grantFields("spec.grants", t.Spec.Grants)...)
	switch a := t.Spec.Adopt; {
	case a == "" && len(t.Spec.Grants) > 0:
		f = append(f, errs.Field{Field: "spec.grants", Value: clip(strings.Join(t.Spec.Grants, ",")), Rule: "go with spec.adopt only", Example: "adopt: acme"})
	case a != "" && !ValidTenantPath(a):
		f = append(f, errs.Field{Field: "spec.adopt", Value: clip(a), Rule: "must be a tenant: one to four names joined by /", Example: "acme"})
	case a != "" && t.Spec.EffectiveRole() != RoleNode:
		f = append(f, errs.Field{Field: "spec.adopt", Value: a, Rule: "goes with role node only: a " + string(t.Spec.Role) + " runs no instances", Example: "role: node"})
	}
	return append(f, labelFields("spec.labels", t.Spec.Labels)...)
}

// NodeNameFields says what is wrong with a node's name.
func NodeNameFields(field, name string) []errs.Field {
	if !ValidName(name) || len(name) > MaxNodeName {
		return []errs.Field{{Field: field, Value: clip(name), Rule: fmt.Sprintf("must be 1 to %d of a-z, 0-9 and -, starting and ending with a letter or digit", MaxNodeName), Example: "isle2"}}
	}
	return nil
}

func joinTokenDefinition() *Definition {
	tok := func(o Object) *JoinToken { return o.(*JoinToken) }
	return &Definition{
		Kind: KindJoinToken, Plural: "jointokens", Aliases: []string{"jt"},
		Doc: "Lets hosts join the pool.",
		New: func() Object { return &JoinToken{Head: Head{K: KindJoinToken}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "ROLE", Value: func(o Object, _ time.Time) string { return string(tok(o).Spec.EffectiveRole()) }},
			{Name: "USED", Value: func(o Object, _ time.Time) string {
				if n := tok(o).Spec.Uses; n > 0 {
					return fmt.Sprintf("%d of %d", tok(o).Status.Used, n)
				}
				return strconv.Itoa(tok(o).Status.Used)
			}},
			{Name: "JOINED", Value: func(o Object, _ time.Time) string { return dash(strings.Join(tok(o).Status.Joined, ",")) }},
			{Name: "EXPIRES", Value: func(o Object, _ time.Time) string {
				if e := tok(o).Spec.ExpiresAt; e != nil {
					return e.UTC().Format(time.RFC3339)
				}
				return "-"
			}},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{},
	}
}

// KindNodeIdentity is by what a host is known.
const KindNodeIdentity Kind = "NodeIdentity"

// NodeIdentity is the key by which a host is known. It has the node's name. A
// certificate is good only while the identity of its node has its key, so removing
// the identity, or joining another machine under the name, revokes it at once.
type NodeIdentity struct {
	Head
	Spec   NodeIdentitySpec   `json:"spec"`
	Status NodeIdentityStatus `json:"status,omitzero"`
}

// NodeIdentityStatus is what a host that runs no instances, and so has no Node, tells of
// itself (POST /v1/nodeidentities/{name}/version).
type NodeIdentityStatus struct {
	Version string       `json:"version,omitempty" doc:"of its daemon"`
	Release int          `json:"release,omitempty" doc:"of its daemon"`
	Arch    string       `json:"arch,omitempty" doc:"its processor" example:"amd64"`
	Upgrade *NodeUpgrade `json:"upgrade,omitempty" doc:"the versions it has"`
}

// Validate checks what a host tells.
func (s *NodeIdentityStatus) Validate() []errs.Field {
	f := VersionFields("version", s.Version)
	if s.Release < 0 || s.Release > maxRelease {
		f = append(f, errs.Field{Field: "release", Value: strconv.Itoa(s.Release), Rule: "must be from 0 to " + strconv.Itoa(maxRelease)})
	}
	if len(s.Arch) > maxToldText {
		f = append(f, errs.Field{Field: "arch", Rule: "is too long", Example: "amd64"})
	}
	u := s.Upgrade
	if u == nil {
		return f
	}
	if len(u.Staged) > maxToldVersions || len(u.Error) > maxToldError {
		f = append(f, errs.Field{Field: "upgrade", Rule: "tells too much"})
	}
	for _, v := range append([]string{u.Active}, u.Staged...) {
		if v != "" && !ValidVersion(v) {
			return append(f, VersionFields("upgrade", v)...)
		}
	}
	return f
}

const (
	maxRelease      = 1 << 20
	maxToldText     = 64
	maxToldError    = 4096
	maxToldVersions = 256
)

// NodeIdentitySpec is the key and how it came.
type NodeIdentitySpec struct {
	KeyHash  string    `json:"keyHash" doc:"SHA-256 of the host's public key, in hexadecimal"`
	Role     JoinRole  `json:"role" doc:"what the host is" enum:"node|server|witness"`
	JoinedAt time.Time `json:"joinedAt" doc:"when it joined"`
	Token    string    `json:"token,omitempty" doc:"the token it joined by"`
	From     string    `json:"from,omitempty" doc:"address it joined from"`
	Address  string    `json:"address,omitempty" doc:"where it says it can be reached" example:"10.0.0.2"`
	Zone     string    `json:"zone,omitempty" doc:"failure domain it counts for while it has no node"`
	Adopted  string    `json:"adopted,omitempty" doc:"tenant into which it brought what it ran"`
	Revoked  string    `json:"revoked,omitempty" doc:"why its certificates are no longer good; empty: they are"`
}

// Validate has nothing to check: users cannot write identities.
func (n *NodeIdentity) Validate() []errs.Field { return nil }

func nodeIdentityDefinition() *Definition {
	spec := func(o Object) *NodeIdentitySpec { return &o.(*NodeIdentity).Spec }
	return &Definition{
		Kind: KindNodeIdentity, Plural: "nodeidentities", ReadOnly: true,
		Doc: "The key by which a host of the pool is known.",
		New: func() Object { return &NodeIdentity{Head: Head{K: KindNodeIdentity}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "ROLE", Value: func(o Object, _ time.Time) string { return string(spec(o).Role) }},
			{Name: "STATE", Value: func(o Object, _ time.Time) string {
				if spec(o).Revoked != "" {
					return "revoked"
				}
				return "good"
			}},
			{Name: "ADDRESS", Value: func(o Object, _ time.Time) string { return dash(spec(o).Address) }},
			{Name: "JOINED", Value: func(o Object, now time.Time) string { return Age(&spec(o).JoinedAt, now) }},
		},
		Fields: map[string]func(Object) string{},
	}
}

// JoinInfo is what an operator must know to let a host join: the answer of GET /v1/join.
type JoinInfo struct {
	Endpoints []string `json:"endpoints" doc:"where hosts reach the API"`
	Pin       string   `json:"pin" doc:"SHA-256 of this server's public key, for curl --pinnedpubkey" example:"sha256//…"`
}

// JoinRequest is the body of POST /v1/join: a host asks to be taken in.
type JoinRequest struct {
	Token   string `json:"token" doc:"the join token, as it was shown"`
	CSR     string `json:"csr" doc:"certificate request, PEM; only its key counts"`
	Node    string `json:"node" doc:"name the host wants" example:"isle2"`
	Address string `json:"address,omitempty" doc:"where it can be reached" example:"10.0.0.2"`
	Version string `json:"version,omitempty" doc:"version of its atolld"`
	Release int    `json:"release,omitempty" doc:"release of its atolld"`
	Arch    string `json:"arch,omitempty" doc:"its CPU architecture" example:"amd64"`
}

// RenewRequest is the body of POST /v1/join/renew. The request's own signature
// proves that the key is there, so it needs no token and no valid certificate.
type RenewRequest struct {
	CSR  string `json:"csr" doc:"certificate request of the key that is known, PEM"`
	Node string `json:"node" doc:"the host that has the key" example:"isle2"`
}

// JoinAnswer is what a host gets that joined or renewed.
type JoinAnswer struct {
	Node        string       `json:"node" doc:"its name"`
	Role        JoinRole     `json:"role" doc:"what it is" enum:"node|server|witness"`
	Certificate string       `json:"certificate" doc:"its certificate, PEM"`
	Authority   string       `json:"authority" doc:"certificate of the pool's authority, PEM"`
	Endpoints   []string     `json:"endpoints" doc:"where the API answers"`
	Pool        PoolSettings `json:"pool,omitzero" doc:"what is the same on every host"`
}

// PoolSettings are settings that every host of a pool must share.
type PoolSettings struct {
	Subnet string `json:"subnet,omitempty" doc:"addresses of instances on the default network" example:"10.88.0.0/16"`
}

// Revocation is the body of POST /v1/nodes/{name}/revoke.
type Revocation struct {
	Why string `json:"why,omitempty" doc:"for people" example:"stolen"`
}
