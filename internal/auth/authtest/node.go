// Package authtest makes the certificates of nodes for tests.
package authtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"atoll/api"
	"atoll/internal/auth"
)

// Node makes a host's key and certificate, signed by ca, and the identity by which it is known.
func Node(t testing.TB, ca *auth.CA, name string) (*tls.Certificate, *api.NodeIdentity) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	r, err := auth.ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	id := &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: name}}, Spec: api.NodeIdentitySpec{KeyHash: r.KeyHash, Role: api.RoleNode}}
	cert, err := ca.SignNode(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}))
	if err != nil {
		t.Fatal(err)
	}
	return &pair, id
}
