package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

// ViaProcess marks an Identity of the server's own process, which shows no certificate.
const ViaProcess = "process"

// KeyHash is by what a key is known: SHA-256 of the SubjectPublicKeyInfo, in hexadecimal.
func KeyHash(spki []byte) string {
	h := sha256.Sum256(spki)
	return hex.EncodeToString(h[:])
}

// Certificate says who the caller of a TLS connection is whose certificate chain was
// verified, and by which key. It does not say that the host is still one of the pool:
// Check does, and must be asked with every request. When the certificate ends does
// not matter once the connection stands: the identity is what is taken away.
func Certificate(state *tls.ConnectionState) (Identity, bool) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return Identity{}, false
	}
	leaf := state.VerifiedChains[0][0]
	if !ofNode(leaf) || !api.ValidName(leaf.Subject.CommonName) {
		return Identity{}, false
	}
	return Identity{Node: leaf.Subject.CommonName, Key: KeyHash(leaf.RawSubjectPublicKeyInfo), Via: "certificate"}, true
}

func ofNode(c *x509.Certificate) bool { return slices.Contains(c.Subject.OrganizationalUnit, nodeUnit) }

// roleOf is the role of a host that is still one of the pool.
func (a *Authority) roleOf(id Identity) (api.JoinRole, error) {
	if id.Via == ViaProcess {
		return api.RoleNode, nil
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	if !a.ready {
		return "", starting()
	}
	n, ok := a.nodes[id.Node]
	if !ok {
		return "", errs.New(errs.Unauthenticated, "no host %s is known here: it was removed, or never joined", id.Node).
			WithHint("an administrator lets it join: atoll node token, and on the host: atolld join")
	}
	return n.Spec.Role, GoodKey(n, id.Key)
}

// RoleOf is the role of the host that a caller is, as long as it is one of the pool.
func (a *Authority) RoleOf(id Identity) (api.JoinRole, error) { return a.roleOf(id) }

// KeyOf finds the host that is known by a key.
func (a *Authority) KeyOf(key string) (node string, ok bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for name, n := range a.nodes {
		if n.Spec.KeyHash == key && n.Spec.Revoked == "" {
			return name, true
		}
	}
	return "", false
}

// GoodKey says whether a host may act by a key.
func GoodKey(n *api.NodeIdentity, key string) error {
	if n.Spec.Revoked != "" {
		return errs.New(errs.Unauthenticated, "the identity of host %s was revoked: %s", n.Name, n.Spec.Revoked).
			WithHint("an administrator lets it join anew: atoll node token --node %s, and on the host: atolld join", n.Name)
	}
	if n.Spec.KeyHash == "" || subtle.ConstantTimeCompare([]byte(n.Spec.KeyHash), []byte(key)) != 1 {
		return errs.New(errs.Unauthenticated, "host %s is known by another key: another machine joined under this name", n.Name).
			WithHint("if this machine should have the name again: atoll node token --node %s, and here: atolld join", n.Name)
	}
	return nil
}

// Join recognises a join token by its text. source is as for Bearer. A token that was
// made through another server a moment ago may be missing in the picture: see Knows.
func (a *Authority) Join(text JoinText, source string) (*api.JoinToken, error) {
	t, err := a.join(text)
	if err != nil {
		return nil, a.Failed(source, err)
	}
	return t, nil
}

// Failed counts a failed attempt of source and gives what to answer: err, or that
// there were too many. Only failures of who the caller is count.
func (a *Authority) Failed(source string, err error) error {
	if errs.KindOf(err) == errs.Unauthenticated && !a.fails.allow(source) {
		return errs.New(errs.Unavailable, "too many failed attempts from %s", source).WithHint("wait a few seconds")
	}
	return err
}

// Knows reports whether the picture has an object; one that was made through another
// server a moment ago may be missing.
func (a *Authority) Knows(ref api.Ref) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.known(ref) != nil
}

func (a *Authority) join(text JoinText) (*api.JoinToken, error) {
	hash := hashSecret(text.Secret)
	a.mu.RLock()
	defer a.mu.RUnlock()
	if !a.ready {
		return nil, starting()
	}
	t, known := a.joins[text.Name]
	want := strings.Repeat("0", len(hash)) // compared all the same, as for tokens of users
	if known && t.Status.Hash != "" {
		want = t.Status.Hash
	}
	same := subtle.ConstantTimeCompare([]byte(hash), []byte(want)) == 1
	if !known || t.Status.Hash == "" || !same || t.DeletedAt != nil {
		return nil, errs.New(errs.Unauthenticated, "this join token is not known").WithHint("it was removed, or mistyped; make a new one: atoll node token")
	}
	if e := t.Spec.ExpiresAt; e != nil && !a.clock.Now().Before(*e) {
		return nil, errs.New(errs.Unauthenticated, "join token %s expired at %s", t.Name, e.UTC().Format("2006-01-02 15:04:05 MST")).
			WithHint("make a new one: atoll node token")
	}
	return t, nil
}
