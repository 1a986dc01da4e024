package remote

import (
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"atoll/internal/auth"
	"atoll/internal/auth/authtest"
	"atoll/internal/clock"
)

// A renewed certificate is shown on the next connection.
func TestClientCertIsAskedForEachConnection(t *testing.T) {
	ca := auth.NewCA(t.TempDir(), clock.Real{}, rand.Reader)
	conf, err := ca.ServerTLS([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, _ := auth.Certificate(r.TLS)
		fmt.Fprintf(w, `{"node":%q}`, id.Node)
	}))
	url := "https://" + hs.Listener.Addr().String()
	hs.Listener = tls.NewListener(hs.Listener, conf)
	hs.Start()
	t.Cleanup(hs.Close)
	pem, err := ca.CertPEM()
	if err != nil {
		t.Fatal(err)
	}
	var now atomic.Pointer[tls.Certificate]
	s, err := New(Config{URL: url, CA: pem, ClientCert: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return now.Load(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, name := range []string{"isle1", "isle2"} {
		pair, _ := authtest.Node(t, ca, name)
		now.Store(pair)
		s.client.CloseIdleConnections()
		if w, err := s.WhoAmI(bounded(t)); err != nil || w.Node != name {
			t.Fatalf("%+v %v", w, err)
		}
	}
}
