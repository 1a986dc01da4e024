package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

const (
	maxCSR     = 16 << 10
	minRSA     = 3072
	maxRSA     = 8192 // a larger one only costs time
	typeCSR    = "CERTIFICATE REQUEST"
	typeECKey  = "EC PRIVATE KEY"
	csrExample = "-----BEGIN CERTIFICATE REQUEST-----…"
)

// Request is what a certificate request is trusted for: the key, which whoever made
// the request has. Names, extensions and everything else in it are passed over.
type Request struct {
	KeyHash string // see KeyHash
	public  any
}

// ParseRequest reads a certificate request (PEM) and checks its signature.
func ParseRequest(csrPEM []byte) (*Request, error) {
	bad := func(rule string) (*Request, error) {
		return nil, errs.InvalidFields("certificate request", []errs.Field{{Field: "csr", Rule: rule, Example: csrExample}})
	}
	if len(csrPEM) > maxCSR {
		return bad(fmt.Sprintf("must be at most %d bytes", maxCSR))
	}
	b, rest := pem.Decode(csrPEM)
	if b == nil || b.Type != typeCSR || len(bytes.TrimSpace(rest)) > 0 {
		return bad("must be one certificate request in PEM")
	}
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return bad("must be a certificate request (PKCS #10)")
	}
	if rule := keyRule(csr.PublicKey); rule != "" { // before the signature: an absurd key only costs time
		return bad(rule)
	}
	if csr.CheckSignature() != nil {
		return bad("must be signed by its own key")
	}
	return &Request{KeyHash: KeyHash(csr.RawSubjectPublicKeyInfo), public: csr.PublicKey}, nil
}

// keyRule says what is wrong with a key; "" nothing.
func keyRule(public any) string {
	const want = "must have an ECDSA key (P-256 or P-384), an Ed25519 key, or an RSA key of 3072 bits or more"
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return ""
		}
		return want + ", not ECDSA on " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return ""
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Sprintf("%s (at most %d), not RSA of %d bits", want, maxRSA, n)
		}
		return ""
	}
	return want
}

// SignNode makes the certificate of a host, for 24 hours, from its certificate
// request: by it the host shows who it is when it calls a server, and to its peers
// when it becomes one. It is for the name and, where the host was seen to have it,
// the address of its identity; an address that it only claims could be somebody
// else's. The key must be the identity's.
func (ca *CA) SignNode(csrPEM []byte, id *api.NodeIdentity) ([]byte, error) {
	req, err := ParseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	if f := api.NodeNameFields("node", id.Name); f != nil {
		return nil, errs.InvalidFields("certificate request", f)
	}
	if err := GoodKey(id, req.KeyHash); err != nil {
		return nil, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if err := ca.open(); err != nil {
		return nil, err
	}
	tmpl, err := ca.template(id.Name, nodeLife)
	if err != nil {
		return nil, err
	}
	tmpl.Subject.OrganizationalUnit = []string{nodeUnit}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	addHost(tmpl, id.Name)
	if ip := net.ParseIP(id.Spec.Address); ip != nil && ip.Equal(net.ParseIP(id.Spec.From)) {
		addHost(tmpl, id.Spec.Address)
	}
	leaf, err := ca.sign(tmpl, req.public)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), nil
}

// Hash is SHA-256 of the authority's certificate, by which join tokens name it.
func (ca *CA) Hash() (sum [sha256.Size]byte, err error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if err := ca.open(); err != nil {
		return sum, err
	}
	return sha256.Sum256(ca.cert.Raw), nil
}

// Bundle is the authority as another server takes it over with Adopt: its
// certificate and its key, in PEM. Whoever has it is the pool; it goes to servers
// only, over connections that were verified.
func (ca *CA) Bundle() ([]byte, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if err := ca.open(); err != nil {
		return nil, err
	}
	raw, err := x509.MarshalECPrivateKey(ca.key)
	if err != nil {
		return nil, errs.New(errs.Internal, "write the authority's key: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	return append(cert, pem.EncodeToMemory(&pem.Block{Type: typeECKey, Bytes: raw})...), nil
}

// Adopt takes over the authority of another server. It never puts one authority in
// the place of another; the same one again is fine.
func (ca *CA) Adopt(bundle []byte) error {
	cert, key, err := parseBundle(bundle)
	if err != nil {
		return err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if now := ca.clock.Now(); now.After(cert.NotAfter) || now.Add(skew).Before(cert.NotBefore) {
		return errs.New(errs.Invalid, "the authority is good from %s to %s, and this host's clock says %s", cert.NotBefore.Format("2006-01-02"), cert.NotAfter.Format("2006-01-02"), now.Format("2006-01-02 15:04")).
			WithHint("set the clock of this host")
	}
	if err := os.MkdirAll(ca.dir, 0o700); err != nil {
		return errs.New(errs.Internal, "certificate directory: %w", err)
	}
	have, err := os.ReadFile(filepath.Join(ca.dir, "ca.crt"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Internal, "read the pool's certificate authority: %w", err)
	}
	if err == nil {
		old, err := ParseAuthority(have)
		if err != nil || !old.Equal(cert) {
			return errs.New(errs.Conflict, "this host has the authority of another pool in %s", ca.dir).
				WithHint("if that pool is no longer needed: atolld down --data")
		}
	}
	if err := ca.save("ca", cert.Raw, key); err != nil {
		return err
	}
	ca.cert, ca.key, ca.server = cert, key, nil
	return nil
}

func parseBundle(bundle []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	bad := errs.New(errs.Invalid, "this is not an authority: a certificate and its ECDSA key in PEM are needed")
	first, rest := pem.Decode(bundle)
	if first == nil {
		return nil, nil, bad
	}
	second, rest := pem.Decode(rest)
	if second == nil || second.Type != typeECKey || strings.TrimSpace(string(rest)) != "" {
		return nil, nil, bad
	}
	cert, err := ParseAuthority(pem.EncodeToMemory(first))
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParseECPrivateKey(second.Bytes)
	if err != nil {
		return nil, nil, bad
	}
	if public, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(&key.PublicKey) {
		return nil, nil, errs.New(errs.Invalid, "the key is not that of the authority's certificate")
	}
	return cert, key, nil
}

// MemberName is what the certificates say by which members of the control plane know
// each other. No host has it: it is no DNS label.
const MemberName = "atoll member"

// SignMember makes the certificate, for 24 hours, by which a host that keeps the pool's
// state is known to the others that do, and only there. host is where they reach it.
func (ca *CA) SignMember(csrPEM []byte, host string) ([]byte, error) {
	req, err := ParseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if err := ca.open(); err != nil {
		return nil, err
	}
	tmpl, err := ca.template(MemberName, nodeLife)
	if err != nil {
		return nil, err
	}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	addHost(tmpl, host)
	leaf, err := ca.sign(tmpl, req.public)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), nil
}
