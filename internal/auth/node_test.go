package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// request asks for everything a host must not get: other names, an authority's rights.
func request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "root", OrganizationalUnit: []string{"boss"}}, DNSNames: []string{"evil.example"},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func known(t testing.TB, name string, csr []byte, role api.JoinRole) *api.NodeIdentity {
	t.Helper()
	r, err := ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	return &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: meta(name)}, Spec: api.NodeIdentitySpec{KeyHash: r.KeyHash, Role: role, Address: "10.0.0.2", From: "10.0.0.2"}}
}

func pairOf(t testing.TB, ca *CA, id *api.NodeIdentity, csr []byte, key crypto.Signer) tls.Certificate {
	t.Helper()
	b, err := ca.SignNode(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := pem.Decode(b)
	leaf, err := x509.ParseCertificate(p.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{p.Bytes}, PrivateKey: key, Leaf: leaf}
}

func TestNodeIdentity(t *testing.T) {
	c := clock.NewManual(start())
	ca := NewCA(t.TempDir(), c, rand.Reader)
	conf, err := ca.ServerTLS([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := newPool(t)
	key := newKey(t)
	csr := request(t, key)
	id := known(t, "isle7", csr, api.RoleNode)
	pair := pairOf(t, ca, id, csr, key)
	leaf := pair.Leaf
	if leaf.Subject.CommonName != "isle7" || leaf.IsCA || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "isle7" || len(leaf.IPAddresses) != 1 || !leaf.IPAddresses[0].Equal(net.ParseIP("10.0.0.2")) ||
		len(leaf.Subject.OrganizationalUnit) != 1 || leaf.NotAfter.Sub(c.Now()) != 24*time.Hour || leaf.NotBefore.After(c.Now().Add(-time.Minute)) {
		t.Fatalf("%+v", leaf)
	}
	authority, err := ca.CertPEM()
	if err != nil {
		t.Fatal(err)
	}
	root, err := ParseAuthority(authority)
	if err != nil {
		t.Fatal(err)
	}
	client := ClientTLS(root, c)
	client.Certificates = []tls.Certificate{pair}
	st, err := handshake(t, conf, client)
	if err != nil {
		t.Fatal(err)
	}
	who, ok := Certificate(&st)
	if !ok || who.Node != "isle7" || who.Admin || who.Key != id.Spec.KeyHash {
		t.Fatalf("%+v", who)
	}
	may := func(want bool, why string) {
		t.Helper()
		if a.Allowed(who, "list", api.KindAssignment, "") != want || (a.Check(who) == nil) != want {
			t.Errorf("%s: %v", why, a.Check(who))
		}
		if err := a.Check(who); !want && (!errors.Is(err, errs.Unauthenticated) || errs.HintOf(err) == "") {
			t.Errorf("%s: %v", why, err)
		}
	}
	may(false, "no identity")
	a.Put(id)
	may(true, "known")
	if a.Allowed(who, "create", api.KindInstance, "") || a.Allowed(who, "get", api.KindToken, "") || a.Allowed(who, "backup", AnyKind, "") || a.Allowed(who, "get", api.KindJoinToken, "") || a.Allowed(who, "update", api.KindNodeIdentity, "") {
		t.Error("what a node may do")
	}
	changed := func(fn func(n *api.NodeIdentity)) {
		n := api.Clone(id)
		n.Revision = a.nodes["isle7"].Revision + 1
		fn(n)
		a.Put(n)
	}
	changed(func(n *api.NodeIdentity) { n.Spec.Revoked = "stolen" })
	may(false, "revoked")
	changed(func(n *api.NodeIdentity) { n.Spec.KeyHash = strings.Repeat("0", 64) })
	may(false, "replaced")
	changed(func(n *api.NodeIdentity) { n.Spec.KeyHash = "" })
	may(false, "no key at all")
	for _, role := range []api.JoinRole{api.RoleWitness, api.RoleServer} {
		changed(func(n *api.NodeIdentity) { n.Spec.Role = role })
		if a.Check(who) != nil {
			t.Error("a", role, "is nobody")
		}
		for _, d := range api.Definitions() {
			for _, v := range api.Verbs() {
				own := v == api.VerbGet && d.Kind == api.KindMember // whether it is wanted; see Own
				if a.Allowed(who, v, d.Kind, "") != own || a.Authorize(who, v, d.Kind, "acme") == nil != own {
					t.Errorf("a %s may %s %s", role, v, d.Kind)
				}
			}
		}
		if a.Own(who, api.Ref{Kind: api.KindMember, Name: "isle7"}) != nil || errs.KindOf(a.Own(who, api.Ref{Kind: api.KindMember, Name: "isle8"})) != errs.Denied {
			t.Errorf("a %s sees more or less than its own membership", role)
		}
	}
	changed(func(*api.NodeIdentity) {})
	may(true, "good again")
	if a.Own(who, api.Ref{Kind: api.KindMember, Name: "isle8"}) != nil {
		t.Error("a node does not see who keeps the state")
	}
	a.Delete(api.RefOf(id), 99)
	may(false, "removed")
	a.Reset(nil)
	may(false, "after a reload without it")

	// The certificate ends with its day; another pool's never counts.
	c.Advance(24*time.Hour + time.Minute)
	if _, err := handshake(t, conf, client); err == nil {
		t.Error("an expired certificate is accepted")
	}
	other := NewCA(t.TempDir(), c, rand.Reader)
	foreign := pairOf(t, withCA(t, other), id, csr, key)
	client.Certificates = []tls.Certificate{foreign}
	if st, err := handshake(t, conf, client); err == nil {
		if who, ok := Certificate(&st); ok {
			t.Errorf("a foreign certificate is %+v", who)
		}
	}
	own, err := conf.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if who, ok := Certificate(&tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{own.Leaf}}}); ok {
		t.Errorf("a server's certificate is %+v", who)
	}
}

func withCA(t testing.TB, ca *CA) *CA {
	t.Helper()
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	return ca
}

// Only an address the host was seen to have is in its certificate.
func TestClaimedAddress(t *testing.T) {
	ca := NewCA(t.TempDir(), clock.NewManual(start()), rand.Reader)
	key := newKey(t)
	csr := request(t, key)
	for _, c := range []struct {
		address, from string
		want          int
	}{{"10.0.0.1", "10.0.0.9", 0}, {"10.0.0.9", "10.0.0.9", 1}, {"fe80::1", "fe80:0::1", 1}, {"isle1.example", "10.0.0.9", 0}, {"", "", 0}} {
		id := known(t, "isle7", csr, api.RoleNode)
		id.Spec.Address, id.Spec.From = c.address, c.from
		leaf := pairOf(t, ca, id, csr, key).Leaf
		if len(leaf.IPAddresses) != c.want || len(leaf.DNSNames) != 1 {
			t.Errorf("%+v: %v %v", c, leaf.IPAddresses, leaf.DNSNames)
		}
	}
}

func TestKeys(t *testing.T) {
	ecKey := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	rsaKey := func(bits int) crypto.Signer {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := NewCA(t.TempDir(), clock.NewManual(start()), rand.Reader)
	for name, k := range map[string]crypto.Signer{"P-256": ecKey(elliptic.P256()), "P-384": ecKey(elliptic.P384()), "Ed25519": ed, "RSA 3072": rsaKey(3072)} {
		csr := request(t, k)
		if leaf := pairOf(t, ca, known(t, "isle7", csr, api.RoleNode), csr, k).Leaf; leaf.Subject.CommonName != "isle7" {
			t.Error(name)
		}
	}
	for name, k := range map[string]crypto.Signer{"P-521": ecKey(elliptic.P521()), "RSA 2048": rsaKey(2048), "P-224": ecKey(elliptic.P224())} {
		if _, err := ParseRequest(request(t, k)); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "3072") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A request that is not signed by its key, of another key than the identity's, and none.
	good := request(t, ecKey(elliptic.P256()))
	p, _ := pem.Decode(good)
	p.Bytes[len(p.Bytes)-5] ^= 1
	for name, b := range map[string][]byte{"forged": pem.EncodeToMemory(p), "empty": nil, "certificate": []byte(strings.ReplaceAll(string(good), " REQUEST", "")), "two": append(bytes.Clone(good), good...), "long": bytes.Repeat([]byte("a"), maxCSR+1)} {
		if _, err := ParseRequest(b); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ca.SignNode(request(t, newKey(t)), known(t, "isle7", good, api.RoleNode)); !errors.Is(err, errs.Unauthenticated) {
		t.Errorf("another key is signed: %v", err)
	}
	bad := known(t, "isle7", good, api.RoleNode)
	bad.Name = "../x"
	if _, err := ca.SignNode(good, bad); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

// A host accepts servers of its pool under any name, and nobody else: not another
// pool, not a host that says it is a server, not the authority's certificate itself.
func TestClientTLS(t *testing.T) {
	c := clock.NewManual(start())
	ca, other := NewCA(t.TempDir(), c, rand.Reader), NewCA(t.TempDir(), c, rand.Reader)
	conf, err := ca.ServerTLS([]string{"some.other.name"})
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := other.ServerTLS([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ca.CertPEM()
	if err != nil {
		t.Fatal(err)
	}
	root, err := ParseAuthority(b)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := ca.Hash()
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	csr := request(t, key)
	pair := pairOf(t, ca, known(t, "isle7", csr, api.RoleNode), csr, key)
	// The host's certificate with the authority behind it, as a server shows it.
	pair.Certificate = append(pair.Certificate, root.Raw)
	impostor := &tls.Config{Certificates: []tls.Certificate{pair}}
	// The other pool's server shows our authority, which did not sign it.
	op, err := wrong.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	mixed := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{op.Certificate[0], root.Raw}, PrivateKey: op.PrivateKey}}}
	for name, client := range map[string]*tls.Config{"known": ClientTLS(root, c), "pinned": PinnedTLS(sum, c)} {
		if _, err := handshake(t, conf, client); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for what, srv := range map[string]*tls.Config{"another pool": wrong, "a host": impostor, "a foreign signature": mixed} {
			if _, err := handshake(t, srv, client); !errors.Is(err, ErrOtherPool) {
				t.Errorf("%s: %s is accepted: %v", name, what, err)
			}
		}
	}
	pinned := PinnedTLS(sum, c)
	c.Advance(91 * 24 * time.Hour)
	if _, err := handshake(t, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return ca.server, nil }}, pinned); err == nil {
		t.Error("an expired server certificate is accepted")
	}
}

func TestPin(t *testing.T) {
	c := clock.NewManual(start())
	dir := t.TempDir()
	ca := NewCA(dir, c, rand.Reader)
	if _, err := ca.Pin(); !errors.Is(err, errs.Unavailable) || errs.HintOf(err) == "" {
		t.Fatal(err)
	}
	pin := func() string {
		t.Helper()
		if _, err := ca.ServerTLS([]string{"localhost"}); err != nil {
			t.Fatal(err)
		}
		p, err := ca.Pin()
		if err != nil || !strings.HasPrefix(p, "sha256//") || len(p) != 52 {
			t.Fatal(p, err)
		}
		return p
	}
	first, cert := pin(), ca.server.Leaf.SerialNumber.String()
	c.Advance(80 * 24 * time.Hour)
	if pin() != first || ca.server.Leaf.SerialNumber.String() == cert {
		t.Error("a renewal must keep the key, so that a line pasted later still works")
	}
	ca = NewCA(dir, c, rand.Reader)
	if pin() != first {
		t.Error("a restart changes the key")
	}
}

func TestBundle(t *testing.T) {
	c := clock.NewManual(start())
	first := NewCA(t.TempDir(), c, rand.Reader)
	bundle, err := first.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pki")
	second := NewCA(dir, c, rand.Reader)
	for range 2 { // again is fine
		if err := second.Adopt(bundle); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := first.Hash()
	again := NewCA(dir, c, rand.Reader)
	if b, err := again.Hash(); err != nil || a != b {
		t.Fatal("another authority after a restart", err)
	}
	if i, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || i.Mode().Perm() != 0o600 {
		t.Fatal(i, err)
	}
	// A host that joined has the certificate already, and no key: it makes no authority
	// of its own, and takes over this one only.
	joined := t.TempDir()
	pemText, err := first.CertPEM()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(joined, "ca.crt"), pemText, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewCA(joined, c, rand.Reader).Open(); !errors.Is(err, errs.Conflict) || errs.HintOf(err) == "" {
		t.Fatalf("an authority is made where a pool was joined: %v", err)
	}
	foreign, err := withCA(t, NewCA(t.TempDir(), c, rand.Reader)).Bundle()
	if err != nil {
		t.Fatal(err)
	}
	if err := NewCA(joined, c, rand.Reader).Adopt(foreign); !errors.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	if err := second.Adopt(foreign); !errors.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	if err := NewCA(joined, c, rand.Reader).Adopt(bundle); err != nil {
		t.Fatal(err)
	}
	certOf := func(b []byte) []byte { return b[:bytes.Index(b, []byte("-----BEGIN EC"))] }
	keyOf := func(b []byte) []byte { return b[bytes.Index(b, []byte("-----BEGIN EC")):] }
	for name, b := range map[string][]byte{"empty": nil, "no key": certOf(bundle), "another's key": append(bytes.Clone(certOf(bundle)), keyOf(foreign)...), "key first": append(bytes.Clone(keyOf(bundle)), certOf(bundle)...), "more": append(bytes.Clone(bundle), 'x')} {
		if err := NewCA(t.TempDir(), c, rand.Reader).Adopt(b); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	late := clock.NewManual(start().Add(-72 * time.Hour))
	if err := NewCA(t.TempDir(), late, rand.Reader).Adopt(bundle); !errors.Is(err, errs.Invalid) || !strings.Contains(errs.HintOf(err), "clock") {
		t.Error(err)
	}
}

func TestJoinTokens(t *testing.T) {
	ca := NewCA(t.TempDir(), clock.NewManual(start()), rand.Reader)
	text, hash, err := ca.MintJoin("brisk-otter", rand.Reader)
	if err != nil || strings.Contains(hash, text) {
		t.Fatal(err)
	}
	p, err := ParseJoin(text)
	if sum, _ := ca.Hash(); err != nil || p.Name != "brisk-otter" || p.Authority != sum || p.String() != text {
		t.Fatalf("%+v %v", p, err)
	}
	end := start().Add(time.Hour)
	tok := &api.JoinToken{Head: api.Head{K: api.KindJoinToken, Meta: meta("brisk-otter")}, Spec: api.JoinTokenSpec{ExpiresAt: &end}, Status: api.JoinTokenStatus{Hash: hash}}
	a, c := newPool(t, tok)
	if got, err := a.Join(p, "10.0.0.1"); err != nil || got.Name != tok.Name {
		t.Fatal(err)
	}
	wrong := p
	wrong.Secret = strings.Repeat("A", 43)
	var last error
	for range failBurst + 1 {
		if _, last = a.Join(wrong, "10.0.0.1"); errors.Is(last, errs.Unavailable) {
			break
		}
		if !errors.Is(last, errs.Unauthenticated) || strings.Contains(last.Error(), wrong.Secret) {
			t.Fatal(last)
		}
	}
	if !errors.Is(last, errs.Unavailable) {
		t.Errorf("guessing is not slowed down: %v", last)
	}
	if _, err := a.Join(p, "10.0.0.1"); err != nil {
		t.Errorf("a good token must pass: %v", err)
	}
	if id, err := a.Bearer(text, "x"); err == nil {
		t.Errorf("a join token speaks for %v", id)
	}
	c.Advance(time.Hour)
	if _, err := a.Join(p, "x"); !errors.Is(err, errs.Unauthenticated) || !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
	a.Delete(api.RefOf(tok), 9)
	if _, err := a.Join(p, "y"); !errors.Is(err, errs.Unauthenticated) {
		t.Error(err)
	}
	for _, s := range []string{"", "atoll_x_y", text[:len(text)-1], text + "A", strings.Replace(text, "brisk-otter", "Brisk", 1), strings.Replace(text, "atoll-join_", "atoll-join_-_", 1), text[:len(text)-1] + "=", strings.ToUpper(text)} {
		if _, err := ParseJoin(s); !errors.Is(err, errs.Invalid) || s != "" && strings.Contains(err.Error(), p.Secret) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParseJoin(f *testing.F) {
	f.Add("atoll-join_a_" + strings.Repeat("A", 43) + "_" + strings.Repeat("A", 43))
	f.Add("atoll-join_a_" + strings.Repeat("_", 43) + "_" + strings.Repeat("-", 42) + "A")
	f.Add("atoll_ci_x")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseJoin(s)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if p.String() != s || !api.ValidName(p.Name) {
			t.Fatalf("%q is read as %+v", s, p)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	good := request(f, newKey(f))
	f.Add(good)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if len(r.KeyHash) != 64 {
			t.Fatal(r)
		}
	})
}

func FuzzAdopt(f *testing.F) {
	c := clock.NewManual(start())
	b, err := withCA(f, NewCA(f.TempDir(), c, rand.Reader)).Bundle()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := parseBundle(b); err != nil && !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
		if _, err := ParseAuthority(b); err != nil && !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
}
