package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

const (
	caLife     = 10 * 365 * 24 * time.Hour
	serverLife = 90 * 24 * time.Hour
	nodeLife   = 24 * time.Hour // a host renews its own after a third of that
	renewEarly = 3              // renewed when less than a third of the life is left
	nodeUnit   = "atoll node"
	skew       = time.Hour // clocks of clients may be behind
)

// CA is the pool's own certificate authority: ECDSA P-256 keys in files only root
// can read. Every server of the pool has the same one (Bundle, Adopt). The methods read and write the directory; safe for many goroutines.
type CA struct {
	dir   string
	clock clock.Clock
	rand  io.Reader

	mu     sync.Mutex
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	server *tls.Certificate
	hosts  []string
}

// NewCA keeps its files in dir: ca.crt, ca.key, server.crt, server.key.
func NewCA(dir string, c clock.Clock, rand io.Reader) *CA { return &CA{dir: dir, clock: c, rand: rand} }

// Open loads the authority, or makes it at the first start.
func (ca *CA) Open() error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.open()
}

func (ca *CA) open() error {
	if ca.cert != nil {
		return nil
	}
	if err := os.MkdirAll(ca.dir, 0o700); err != nil {
		return errs.New(errs.Internal, "certificate directory: %w", err)
	}
	pair, err := ca.load("ca")
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(ca.dir, "ca.crt")); err == nil {
			// The key is written first, so this is the certificate of a pool that was joined.
			return errs.New(errs.Conflict, "this host belongs to a pool whose authority's key is on its servers only").
				WithHint("take it out of that pool first: atoll node remove, then atolld down --data here")
		}
		return ca.create()
	}
	if err != nil {
		return errs.New(errs.Internal, "read the pool's certificate authority: %w", err).
			WithHint("restore ca.crt and ca.key in %s from a backup; removing both makes a new authority that clients must be told about", ca.dir)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return errs.New(errs.Internal, "%s is not an authority of this pool", filepath.Join(ca.dir, "ca.crt"))
	}
	ca.cert, ca.key = pair.Leaf, key
	return nil
}

func (ca *CA) create() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), ca.rand)
	if err != nil {
		return errs.New(errs.Internal, "make key: %w", err)
	}
	tmpl, err := ca.template("Atoll pool", caLife)
	if err != nil {
		return err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(ca.rand, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return errs.New(errs.Internal, "make certificate authority: %w", err)
	}
	if err := ca.save("ca", der, key); err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return errs.New(errs.Internal, "make certificate authority: %w", err)
	}
	ca.cert, ca.key = cert, key
	return nil
}

func (ca *CA) template(name string, life time.Duration) (*x509.Certificate, error) {
	var serial [16]byte
	if _, err := io.ReadFull(ca.rand, serial[:]); err != nil {
		return nil, errs.New(errs.Internal, "make serial number: %w", err)
	}
	serial[0] &= 0x7f
	now := ca.clock.Now()
	return &x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial[:]), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-skew), NotAfter: now.Add(life)}, nil
}

// CertPEM is the authority's certificate: what a client needs to trust this pool.
func (ca *CA) CertPEM() ([]byte, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if err := ca.open(); err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), nil
}

// ServerTLS serves TLS 1.3 with a certificate for hosts (names and addresses) that
// is renewed by itself, and recognises the certificates of nodes.
func (ca *CA) ServerTLS(hosts []string) (*tls.Config, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if err := ca.open(); err != nil {
		return nil, err
	}
	ca.hosts = slices.Clone(hosts)
	if _, err := ca.current(); err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	clients.AddCert(ca.cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  clients,
		Time:       ca.clock.Now,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			ca.mu.Lock()
			defer ca.mu.Unlock()
			return ca.current()
		},
	}, nil
}

// current is the server's certificate: the one in memory, the one on disk, or a new
// one. The key stays the same, so that what was pinned to it (see Pin) stays right.
func (ca *CA) current() (*tls.Certificate, error) {
	if ca.server != nil && ca.good(ca.server) {
		return ca.server, nil
	}
	if pair, err := ca.load("server"); err == nil && ca.good(&pair) {
		ca.server = &pair
		return ca.server, nil
	}
	key, err := ca.serverKey()
	if err != nil {
		return nil, err
	}
	tmpl, err := ca.template("atoll server", serverLife)
	if err != nil {
		return nil, err
	}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, h := range ca.hosts {
		addHost(tmpl, h)
	}
	leaf, err := ca.sign(tmpl, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := ca.save("server", leaf.Raw, key); err != nil {
		return nil, err
	}
	ca.server = &tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.cert.Raw}, PrivateKey: key, Leaf: leaf}
	return ca.server, nil
}

func (ca *CA) serverKey() (*ecdsa.PrivateKey, error) {
	if b, err := os.ReadFile(filepath.Join(ca.dir, "server.key")); err == nil {
		if p, _ := pem.Decode(b); p != nil {
			if key, err := x509.ParseECPrivateKey(p.Bytes); err == nil {
				return key, nil
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), ca.rand)
	if err != nil {
		return nil, errs.New(errs.Internal, "make key: %w", err)
	}
	return key, nil
}

// Pin is the hash of this server's public key as curl --pinnedpubkey takes it.
// ServerTLS must have been called.
func (ca *CA) Pin() (string, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.cert == nil || ca.hosts == nil {
		return "", errs.New(errs.Unavailable, "this server does not listen on the network").WithHint("start atolld with --listen 0.0.0.0:7443 (or the host's address); instances run on meanwhile")
	}
	pair, err := ca.current()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(pair.Leaf.RawSubjectPublicKeyInfo)
	return "sha256//" + base64.StdEncoding.EncodeToString(sum[:]), nil
}

func (ca *CA) good(c *tls.Certificate) bool {
	leaf := c.Leaf
	left := leaf.NotAfter.Sub(ca.clock.Now())
	if left < leaf.NotAfter.Sub(leaf.NotBefore)/renewEarly || leaf.CheckSignatureFrom(ca.cert) != nil {
		return false
	}
	for _, h := range ca.hosts {
		if leaf.VerifyHostname(h) != nil {
			return false
		}
	}
	return true
}

// sign makes a certificate by a template that says what it is for and for whom.
func (ca *CA) sign(tmpl *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(ca.rand, tmpl, ca.cert, public, ca.key)
	if err != nil {
		return nil, errs.New(errs.Internal, "sign certificate of %s: %w", tmpl.Subject.CommonName, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errs.New(errs.Internal, "sign certificate of %s: %w", tmpl.Subject.CommonName, err)
	}
	return leaf, nil
}

func addHost(tmpl *x509.Certificate, h string) {
	if ip := net.ParseIP(h); ip != nil {
		tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
	} else {
		tmpl.DNSNames = append(tmpl.DNSNames, h)
	}
}

func (ca *CA) load(name string) (tls.Certificate, error) {
	cert, err := os.ReadFile(filepath.Join(ca.dir, name+".crt"))
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := os.ReadFile(filepath.Join(ca.dir, name+".key"))
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

// save writes the key first: a certificate without its key would not load.
func (ca *CA) save(name string, der []byte, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return errs.New(errs.Internal, "write key of %s: %w", name, err)
	}
	var cert bytes.Buffer
	_ = pem.Encode(&cert, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a Buffer takes everything
	if name != "ca" {
		_ = pem.Encode(&cert, &pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
	if err := writeFile(filepath.Join(ca.dir, name+".key"), keyPEM); err != nil {
		return err
	}
	return writeFile(filepath.Join(ca.dir, name+".crt"), cert.Bytes())
}

// writeFile replaces a file as a whole, so that a crash leaves the old or the new one.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return errs.New(errs.Internal, "write certificate file: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync() // the name must not last longer than what is in it
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errs.New(errs.Internal, "write certificate file: %w", err)
	}
	return nil
}
