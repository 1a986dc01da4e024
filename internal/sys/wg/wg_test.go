package wg

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/sys/systest"
)

func key(t *testing.T) Key {
	t.Helper()
	k, err := NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeysAreNotPrinted(t *testing.T) {
	k := key(t)
	for _, f := range []string{"%v", "%s", "%x", "%+v", "%#v", "%q", "%d"} {
		if got := fmt.Sprintf(f, k); strings.Contains(got, k.Text()) || len(got) > 20 {
			t.Errorf("%s prints %s", f, got)
		}
		if got := fmt.Sprintf(f, Peer{Key: k}); strings.Contains(got, k.Text()) || strings.Contains(got, fmt.Sprint(k[:4])) {
			t.Errorf("%s prints %s", f, got)
		}
	}
	back, err := ParseKey(k.Text())
	if err != nil || back != k {
		t.Errorf("%v, %v", back, err)
	}
	for _, bad := range []string{"", "x", k.Text()[1:], k.Text() + "\n"} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
}

// TestPublic has two sides agree by what each knows of the other.
func TestPublic(t *testing.T) {
	shared := func(private, public Key) []byte {
		a, err := ecdh.X25519().NewPrivateKey(private[:])
		if err != nil {
			t.Fatal(err)
		}
		b, err := ecdh.X25519().NewPublicKey(public[:])
		if err != nil {
			t.Fatal(err)
		}
		s, err := a.ECDH(b)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := key(t), key(t)
	pa, err1 := a.Public()
	pb, err2 := b.Public()
	if err1 != nil || err2 != nil || pa == pb || !bytes.Equal(shared(a, pb), shared(b, pa)) {
		t.Error("two sides do not agree", err1, err2)
	}
}

const told = `private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
listen_port=12912
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
endpoint=[abcd:23::33]:51820
allowed_ip=192.168.4.4/32
last_handshake_time_sec=5
last_handshake_time_nsec=7
rx_bytes=12
tx_bytes=13
protocol_version=1
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
last_handshake_time_sec=0
last_handshake_time_nsec=0
errno=0
`

func TestParse(t *testing.T) {
	s, err := parse([]byte(told))
	if err != nil {
		t.Fatal(err)
	}
	if s.Port != 12912 || s.Public == (Key{}) || len(s.Peers) != 2 {
		t.Fatalf("%+v", s)
	}
	p := s.Peers[0]
	if p.Endpoint != netip.MustParseAddrPort("[abcd:23::33]:51820") || len(p.Allowed) != 1 || !p.Handshake.Equal(time.Unix(5, 7)) || p.Rx != 12 || p.Tx != 13 {
		t.Errorf("%+v", p)
	}
	if !s.Peers[1].Handshake.IsZero() {
		t.Error("a handshake that never was")
	}
	for _, bad := range []string{"", "errno=1\n", strings.Replace(told, "192.168", "x", 1), strings.Replace(told, "rx_bytes=12", "rx_bytes=-1", 1), told[:100], "private_key=00\nerrno=0\n", told + told} {
		_, err := parse([]byte(bad))
		if err == nil {
			t.Errorf("understood: %q", bad)
		} else if strings.Contains(err.Error(), "e84b5a") {
			t.Errorf("an error tells the key: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(told))
	f.Add([]byte("errno=0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parse(b)
		if err != nil {
			if bytes.Contains([]byte(err.Error()), []byte("e84b5a6d2717c1003a13b431570353db")) {
				t.Errorf("an error tells a key: %v", err)
			}
			return
		}
		for _, p := range s.Peers {
			if p.Rx < 0 || p.Tx < 0 {
				t.Errorf("%+v", p)
			}
		}
	})
}

func TestChangeInWords(t *testing.T) {
	k, p := Key{1}, uint16(4799)
	got := string(Change{Private: &k, Port: &p, Drop: []Key{{2}}, Put: []Peer{{Key: Key{3}, Endpoint: netip.MustParseAddrPort("192.0.2.7:4799"), Allowed: []netip.Prefix{netip.MustParsePrefix("fd00::1/128")}}}}.words())
	hex := func(n byte) string { return fmt.Sprintf("%02x", n) + strings.Repeat("00", 31) }
	want := "set=1\nprivate_key=" + hex(1) + "\nlisten_port=4799\npublic_key=" + hex(2) + "\nremove=true\npublic_key=" + hex(3) + "\nendpoint=192.0.2.7:4799\nreplace_allowed_ips=true\nallowed_ip=fd00::1/128\n\n"
	if got != want {
		t.Errorf("%q\n%q", got, want)
	}
}

// TestServe has a process's life in this one.
func TestServe(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	c := ServeConfig{Dir: t.TempDir(), Name: "wgtest0", MTU: 1420, Log: io.Discard}
	d := OpenProcess(c.Dir, c.Name, clock.Real{})
	if _, err := d.State(); errs.KindOf(err) != errs.Unavailable {
		t.Errorf("without a process: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, c) }()
	var err error
	for range 500 {
		if _, err = d.State(); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := Serve(ctx, c); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a second one: %v", err)
	}
	if pid, err := Process(c.Dir, c.Name); err != nil || pid != os.Getpid() {
		t.Errorf("process %d, %v", pid, err)
	}
	if st, err := os.Stat(SocketOf(c.Dir, c.Name)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", st.Mode(), err)
	}
	private, other, port := key(t), key(t), uint16(4799)
	public, _ := private.Public()
	theirs, _ := other.Public()
	in := netip.MustParsePrefix("fd61:746f:6c6c::7/128")
	put := Peer{Key: theirs, Endpoint: netip.MustParseAddrPort("192.0.2.7:4799"), Allowed: []netip.Prefix{in}}
	if err := d.Apply(Change{Private: &private, Port: &port, Put: []Peer{put}}); err != nil {
		t.Fatal(err)
	}
	s, err := d.State()
	if err != nil || s.Public != public || s.Port != port || len(s.Peers) != 1 || s.Peers[0].Key != theirs || s.Peers[0].Endpoint != put.Endpoint || s.Peers[0].Allowed[0] != in {
		t.Errorf("%+v, %v", s, err)
	}
	// An address is one peer's: given to another, it is taken from the first.
	next := key(t)
	if err := d.Apply(Change{Put: []Peer{{Key: next, Allowed: put.Allowed}}}); err != nil {
		t.Fatal(err)
	}
	if s, err = d.State(); err != nil || len(s.Peers) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, p := range s.Peers {
		if (len(p.Allowed) == 1) != (p.Key == next) {
			t.Errorf("allowed to the wrong peer: %v", p.Allowed)
		}
	}
	if err := d.Apply(Change{Drop: []Key{next, theirs}}); err != nil {
		t.Fatal(err)
	}
	if s, err = d.State(); err != nil || len(s.Peers) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := End(c.Dir, c.Name, func(time.Duration) error { return nil }); err != nil {
		t.Error(err)
	}
	if es, _ := os.ReadDir(c.Dir); len(es) != 0 {
		t.Errorf("left: %v", es)
	}
}
