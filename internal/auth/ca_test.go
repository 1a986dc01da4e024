package auth

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

func roots(t testing.TB, ca *CA) *x509.CertPool {
	t.Helper()
	b, err := ca.CertPEM()
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(b) {
		t.Fatal("not PEM")
	}
	return p
}

// handshake connects client to server through a pipe and gives what the server saw.
func handshake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s := tls.Server(a, server)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	c := tls.Client(b, client)
	err := c.Handshake()
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1)) // in TLS 1.3 the server judges the client's certificate after that
	}
	b.Close()
	if err2 := <-done; err == nil {
		err = err2
	}
	return s.ConnectionState(), err
}

func TestCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	c := clock.NewManual(start())
	ca := NewCA(dir, c, rand.Reader)
	conf, err := ca.ServerTLS([]string{"localhost", "127.0.0.1", "isle1"})
	if err != nil {
		t.Fatal(err)
	}
	client := func(name string) *tls.Config {
		return &tls.Config{RootCAs: roots(t, ca), ServerName: name, Time: c.Now}
	}
	for _, name := range []string{"localhost", "127.0.0.1", "isle1"} {
		st, err := handshake(t, conf, client(name))
		if err != nil || st.Version != tls.VersionTLS13 {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok := Certificate(&st); ok {
			t.Error("a caller without a certificate is a node")
		}
	}
	if _, err := handshake(t, conf, client("example.org")); err == nil {
		t.Error("the certificate is for any name")
	}
	old := client("localhost")
	old.MaxVersion = tls.VersionTLS12
	if _, err := handshake(t, conf, old); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 4 {
		t.Fatalf("%v %v", files, err)
	}
	for _, f := range files {
		if i, err := f.Info(); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f.Name(), i.Mode(), err)
		}
	}
	// The same after a restart; a new one before it runs out.
	serial := func(conf *tls.Config) string {
		pair, err := conf.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	again, err := NewCA(dir, c, rand.Reader).ServerTLS([]string{"localhost", "127.0.0.1", "isle1"})
	if err != nil || serial(again) != serial(conf) {
		t.Errorf("a restart makes a new certificate: %v", err)
	}
	other, err := NewCA(dir, c, rand.Reader).ServerTLS([]string{"localhost", "newname"})
	if err != nil || serial(other) == serial(conf) {
		t.Errorf("a new name is not in the certificate: %v", err)
	}
	before := serial(conf)
	c.Advance(61 * 24 * time.Hour)
	if serial(conf) == before {
		t.Error("not renewed")
	}
	if _, err := handshake(t, conf, client("localhost")); err != nil {
		t.Error(err)
	}
}

func TestBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	ca := NewCA(dir, clock.NewManual(start()), rand.Reader)
	if err := ca.Open(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := NewCA(dir, clock.NewManual(start()), rand.Reader).Open()
	if !errors.Is(err, errs.Internal) || errs.HintOf(err) == "" {
		t.Fatalf("a broken key is replaced silently: %v", err)
	}
}

func BenchmarkColdStart(b *testing.B) {
	for b.Loop() {
		if _, err := NewCA(b.TempDir(), clock.NewManual(start()), rand.Reader).ServerTLS([]string{"localhost", "127.0.0.1"}); err != nil {
			b.Fatal(err)
		}
	}
}
