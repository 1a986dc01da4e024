package etcdstore

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// certs makes an authority and one certificate that every member shows.
func certs(t *testing.T) (cert, key, ca string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, typ string, der []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	must := func(b []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	c := write("m.crt", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)))
	return c, write("m.key", "EC PRIVATE KEY", must(x509.MarshalECPrivateKey(k))), c
}

// group is a cluster of members in this process.
type group struct {
	t             *testing.T
	cert, key, ca string
	stores        []*Store
}

func newGroup(t *testing.T) *group {
	g := &group{t: t}
	g.cert, g.key, g.ca = certs(t)
	return g
}

func (g *group) peers(url string) Peers {
	return Peers{Listen: url, Advertise: url, CertFile: g.cert, KeyFile: g.key, CAFile: g.ca, Subject: "test"}
}

func (g *group) open(cfg Config) *Store {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	cfg.Log = slog.New(slog.NewTextHandler(logTo{g.t}, nil))
	s, err := Open(ctx, cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = s.Close() })
	g.stores = append(g.stores, s)
	return s
}

// join adds a member the way a host does: as a learner that is promoted when it has caught up.
func (g *group) join(name string) *Store {
	g.t.Helper()
	url := "https://" + freePort(g.t)
	first := g.stores[0]
	p, err := first.AddLearner(g.t.Context(), url)
	for errors.Is(err, errs.Unavailable) { // etcd wants members to have been up for a moment
		time.Sleep(100 * time.Millisecond)
		p, err = first.AddLearner(g.t.Context(), url)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	if again, err := first.AddLearner(g.t.Context(), url); err != nil || again.ID != p.ID {
		g.t.Fatalf("asked again: %v %v", again, err)
	}
	peers, err := first.Peers(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	conf := g.peers(url)
	conf.Join, conf.Cluster = true, map[string]string{}
	for _, x := range peers {
		n := x.Name
		if x.ID == p.ID {
			n = name
		}
		conf.Cluster[n] = x.URL
	}
	s := g.open(Config{DataDir: g.t.TempDir(), Name: name, Peers: conf})
	for {
		err := first.Promote(g.t.Context(), p.ID)
		if err == nil {
			return s
		}
		if !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.Unavailable) {
			g.t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// One member becomes three while it is written to: no call fails, nothing is lost, and
// what is acknowledged by one is read by every other.
func TestGrowUnderWrites(t *testing.T) {
	g := newGroup(t)
	first := g.open(Config{DataDir: t.TempDir(), Name: "m1"})
	var done atomic.Bool
	var wg sync.WaitGroup
	var acked atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			for i := 0; !done.Load(); i++ {
				rev, err := first.Commit(t.Context(), store.Create(thing(fmt.Sprintf("w%d-%d", w, i))))
				if err != nil {
					t.Errorf("commit while growing: %v", err)
					return
				}
				acked.Add(1)
				_ = rev
				time.Sleep(time.Millisecond)
			}
		})
	}
	began := time.Now()
	if err := first.Regroup(t.Context(), g.peers("https://"+freePort(t))); err != nil {
		t.Fatal(err)
	}
	t.Logf("regrouped in %s", time.Since(began))
	m2 := g.join("m2")
	m3 := g.join("m3")
	t.Logf("three voters after %s", time.Since(began))
	done.Store(true)
	wg.Wait()
	for _, s := range []*Store{first, m2, m3} {
		objs, _, err := s.List(t.Context(), api.Selector{Kind: api.KindAssignment})
		if err != nil || int64(len(objs)) != acked.Load() {
			t.Errorf("%d objects of %d: %v", len(objs), acked.Load(), err)
		}
		rev, err := s.Sync(t.Context())
		if err != nil || rev < acked.Load() {
			t.Errorf("sync: %d %v", rev, err)
		}
	}
	peers, err := m3.Peers(t.Context())
	if err != nil || len(peers) != 3 || peers[0].Name != "m1" || peers[2].Learner {
		t.Errorf("%v %v", peers, err)
	}
}

// Exactly one leads; when it goes, another does within two seconds, and writes go on.
func TestLeaderIsReplaced(t *testing.T) {
	g := newGroup(t)
	first := g.open(Config{DataDir: t.TempDir(), Name: "m1"})
	if err := first.Regroup(t.Context(), g.peers("https://"+freePort(t))); err != nil {
		t.Fatal(err)
	}
	g.join("m2")
	g.join("m3")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	leading := make(chan int, 16)
	for i, s := range g.stores {
		wg.Go(func() {
			_ = s.Lead(ctx, fmt.Sprint("m", i+1), func(c context.Context) error {
				leading <- i
				<-c.Done()
				return nil
			})
		})
	}
	lead := <-leading
	began := time.Now()
	g.stores[lead].member.server.Server.HardStop() // no handing over
	next := <-leading
	if next == lead {
		t.Fatalf("the one that was stopped leads again")
	}
	took := time.Since(began)
	if _, err := g.stores[next].Commit(t.Context(), store.Create(thing("after"))); err != nil {
		t.Fatal(err)
	}
	t.Logf("another leads after %s, writes after %s", took, time.Since(began))
	if took > 2*time.Second {
		t.Errorf("took %s", took)
	}
	select {
	case i := <-leading:
		t.Errorf("a second leader: %d", i)
	case <-time.After(300 * time.Millisecond):
	}
}

// Writers count one object up through two members while the third, which leads, dies:
// no call fails, every acknowledged step counts once, and writes stand still for a moment only.
func TestWritesOutliveTheLeader(t *testing.T) {
	g := newGroup(t)
	first := g.open(Config{DataDir: t.TempDir(), Name: "m1"})
	if err := first.Regroup(t.Context(), g.peers("https://"+freePort(t))); err != nil {
		t.Fatal(err)
	}
	g.join("m2")
	g.join("m3")
	lead := g.stores[0]
	for _, s := range g.stores {
		if s.leads() {
			lead = s
		}
	}
	count := func(o api.Object) int64 { return o.(*api.Assignment).Spec.Generation }
	if _, err := lead.Commit(t.Context(), store.Create(thing("count"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	var acked, worst atomic.Int64
	var wg sync.WaitGroup
	for _, s := range g.stores {
		if s == lead {
			continue
		}
		for range 3 {
			wg.Go(func() {
				for ctx.Err() == nil {
					o, err := s.Get(t.Context(), api.RefOf(thing("count")))
					if err != nil {
						t.Errorf("read: %v", err)
						return
					}
					next := api.Clone(o).(*api.Assignment)
					next.Spec.Generation++
					began := time.Now()
					_, err = s.Commit(t.Context(), store.Update(next))
					took := int64(time.Since(began))
					for old := worst.Load(); took > old && !worst.CompareAndSwap(old, took); old = worst.Load() {
					}
					if err == nil {
						acked.Add(1)
					} else if !errors.Is(err, errs.Conflict) {
						t.Errorf("commit after %s: %v", time.Duration(took), err)
					}
				}
			})
		}
	}
	time.Sleep(2 * time.Second)
	before := acked.Load()
	lead.member.server.Server.HardStop()
	wg.Wait()
	for _, s := range g.stores {
		if s == lead {
			continue
		}
		o, err := s.Get(t.Context(), api.RefOf(thing("count")))
		if err != nil || count(o) != acked.Load() {
			t.Errorf("counted %d, acknowledged %d: %v", count(o), acked.Load(), err)
		}
	}
	t.Logf("%d before the leader died, %d in all; the slowest write took %s", before, acked.Load(), time.Duration(worst.Load()))
	if w := time.Duration(worst.Load()); w > 3*time.Second || before == 0 || acked.Load() <= before {
		t.Errorf("slowest %s", w)
	}
}

func TestRemovedMemberEnds(t *testing.T) {
	g := newGroup(t)
	first := g.open(Config{DataDir: t.TempDir(), Name: "m1"})
	if err := first.Regroup(t.Context(), g.peers("https://"+freePort(t))); err != nil {
		t.Fatal(err)
	}
	m2 := g.join("m2")
	g.join("m3")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := m2.RemovePeer(ctx, m2.Self())
	for errors.Is(err, errs.Conflict) && ctx.Err() == nil { // etcd wants all to have been heard of for a while
		time.Sleep(100 * time.Millisecond)
		err = m2.RemovePeer(ctx, m2.Self())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := m2.Ended(ctx); !errors.Is(err, errs.Unavailable) {
		t.Errorf("it did not notice: %v", err)
	}
	if err := first.RemovePeer(t.Context(), m2.Self()); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := first.Commit(t.Context(), store.Create(thing("on"))); err != nil {
		t.Error(err)
	}
}
