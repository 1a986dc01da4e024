package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

// How long a join token works when its spec does not say, and at most.
const (
	JoinLife    = time.Hour
	MaxJoinLife = 30 * 24 * time.Hour
)

const (
	joinPrefix = "atoll-join_"
	hashChars  = 43 // 32 bytes in base64url without padding
)

// JoinText is a join token as a person carries it to a host: one word with the
// token's name, its secret and the hash of the pool's authority, so that the host
// knows the pool before it has spoken to it.
type JoinText struct {
	Name      string
	Secret    string
	Authority [sha256.Size]byte // SHA-256 of the authority's certificate (DER)
}

// String is the word; it is a secret.
func (t JoinText) String() string {
	return joinPrefix + t.Name + "_" + t.Secret + "_" + base64.RawURLEncoding.EncodeToString(t.Authority[:])
}

// ParseJoin reads the word. Errors never repeat it.
func ParseJoin(s string) (JoinText, error) {
	bad := func(rule string) (JoinText, error) {
		return JoinText{}, errs.InvalidFields("join token", []errs.Field{{Field: "token", Rule: rule, Example: joinPrefix + "NAME_SECRET_HASH"}})
	}
	rest, ok := strings.CutPrefix(s, joinPrefix)
	if !ok {
		return bad("must begin with " + joinPrefix)
	}
	name, rest, ok := strings.Cut(rest, "_")
	if !ok || !api.ValidName(name) {
		return bad("must have a name after " + joinPrefix)
	}
	// Secret and hash may have underscores themselves, so their length tells them apart.
	if len(rest) != 2*hashChars+1 || rest[hashChars] != '_' {
		return bad("must be whole: a part of it is missing, or something was added")
	}
	t := JoinText{Name: name, Secret: rest[:hashChars]}
	// Strict: two words for one token would be one too many.
	strict := base64.RawURLEncoding.Strict()
	if b, err := strict.DecodeString(t.Secret); err != nil || len(b) != secretBytes {
		return bad("must be as it was shown: it has a character that does not belong there")
	}
	b, err := strict.DecodeString(rest[hashChars+1:])
	if err != nil || len(b) != len(t.Authority) {
		return bad("must be as it was shown: it has a character that does not belong there")
	}
	copy(t.Authority[:], b)
	return t, nil
}

// MintJoin makes a join token of the pool of this authority. The text is what a
// host shows later; only the hash may be stored.
func (ca *CA) MintJoin(name string, rand io.Reader) (text, hash string, err error) {
	sum, err := ca.Hash()
	if err != nil {
		return "", "", err
	}
	whole, hash, err := Mint(name, rand)
	if err != nil {
		return "", "", err
	}
	secret := whole[len(tokenPrefix)+len(name)+1:]
	return JoinText{Name: name, Secret: secret, Authority: sum}.String(), hash, nil
}

// ParseAuthority reads the certificate of a pool's authority.
func ParseAuthority(certPEM []byte) (*x509.Certificate, error) {
	b, rest := pem.Decode(certPEM)
	if b == nil || b.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errs.New(errs.Invalid, "the certificate of the pool's authority must be one PEM block")
	}
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, errs.New(errs.Invalid, "read the certificate of the pool's authority: %w", err)
	}
	if !c.IsCA || !c.BasicConstraintsValid || c.CheckSignatureFrom(c) != nil {
		return nil, errs.New(errs.Invalid, "this certificate is not that of an authority")
	}
	return c, nil
}

// AuthorityHash is by what join tokens name an authority.
func AuthorityHash(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.Raw) }

// PinnedTLS is how a host speaks to a pool of which it only has the hash of the
// authority, from a join token: the server must show that authority, and a
// certificate of a server that it signed.
func PinnedTLS(hash [sha256.Size]byte, c clock.Clock) *tls.Config {
	return clientTLS(c, func(chain []*x509.Certificate) *x509.Certificate {
		for _, x := range chain {
			sum := sha256.Sum256(x.Raw)
			if subtle.ConstantTimeCompare(sum[:], hash[:]) == 1 && x.IsCA {
				return x
			}
		}
		return nil
	})
}

// ClientTLS is how a host speaks to servers of its pool, whose authority it knows.
func ClientTLS(authority *x509.Certificate, c clock.Clock) *tls.Config {
	return clientTLS(c, func([]*x509.Certificate) *x509.Certificate { return authority })
}

// ErrOtherPool is what a connection ends with whose other end is not a server of the pool.
var ErrOtherPool = errors.New("the other end is not a server of this pool")

// clientTLS accepts any server certificate of the authority that find gives, under
// whatever name it was reached: hosts reach servers by addresses that are in no
// certificate (behind NAT, through a tunnel, by a new address), and the authority
// signs certificates of this pool only, so a name would add nothing. What it does not
// accept is the certificate of a host, which could otherwise pass itself off as a
// server: whoever is a server has the authority's key and makes itself one of its own.
func clientTLS(c clock.Clock, find func(chain []*x509.Certificate) *x509.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, also for resumed sessions
		Time:               c.Now,
		VerifyConnection: func(st tls.ConnectionState) error {
			if len(st.PeerCertificates) == 0 {
				return ErrOtherPool
			}
			leaf, authority := st.PeerCertificates[0], find(st.PeerCertificates)
			if authority == nil || leaf.Equal(authority) || ofNode(leaf) {
				return ErrOtherPool
			}
			roots := x509.NewCertPool()
			roots.AddCert(authority)
			_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: c.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			var unknown x509.UnknownAuthorityError
			if errors.As(err, &unknown) {
				return ErrOtherPool
			}
			return err
		},
	}
}
