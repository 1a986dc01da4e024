package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

// chat sends blocks through an echo and wants each back; then the exit code.
func chat(s *tunnel.Stream, blocks int, block []byte) error {
	defer s.Close()
	for range blocks {
		if err := s.Write(api.ChanStdin, block); err != nil {
			return err
		}
		_, p, err := s.Read()
		if err != nil || !bytes.Equal(p, block) {
			return fmt.Errorf("%d bytes back of %d: %w", len(p), len(block), err)
		}
	}
	if err := s.Write(api.ChanStdin, nil); err != nil {
		return err
	}
	ch, p, err := s.Read()
	var x api.StreamExit
	if err != nil || ch != api.ChanExit || json.Unmarshal(p, &x) != nil || x.Code != 7 {
		return fmt.Errorf("end: %d %s %w", ch, p, err)
	}
	return nil
}

func TestStreamsBothWays(t *testing.T) {
	p := newPool(t, Config{})
	p.node = func(_ context.Context, h tunnel.Header, s *tunnel.Stream) error {
		if h.Verb != "beat" {
			return errs.New(errs.Unsupported, "no verb %s", h.Verb)
		}
		_, b, err := s.Read()
		if err != nil {
			return err
		}
		return s.Write(api.ChanStdout, append([]byte("got "), b...))
	}
	l := p.link(LinkConfig{}, p.http.URL+"/")
	p.await(l, p.http.URL, true)
	s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
	if err != nil {
		t.Fatal(err)
	}
	if err := chat(s, 10, bytes.Repeat([]byte("x"), 300_000)); err != nil {
		t.Fatal(err)
	}
	// An error of the node arrives as one.
	if s, err = p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: "fail"}); err != nil {
		t.Fatal(err)
	}
	ch, b, err := s.Read()
	if err != nil || ch != api.ChanExit || !strings.Contains(string(b), "look elsewhere") || !strings.Contains(string(b), "not-found") {
		t.Fatalf("%d %s %v", ch, b, err)
	}
	s.Close()
	// What the node opens.
	if s, err = l.Open(t.Context(), p.http.URL, tunnel.Header{Verb: "beat"}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Write(api.ChanStdin, []byte("7")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := s.Read(); err != nil || string(b) != "got 7" {
		t.Fatalf("%s %v", b, err)
	}
	if _, err := l.Open(t.Context(), "https://elsewhere:1", tunnel.Header{}); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
}

func TestThousandStreams(t *testing.T) {
	p := newPool(t, Config{})
	l := p.link(LinkConfig{}, p.http.URL)
	p.await(l, p.http.URL, true)
	const n = 1000
	streams := make([]*tunnel.Stream, n)
	for i := range streams {
		s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		streams[i] = s
	}
	var wg sync.WaitGroup
	for i, s := range streams {
		wg.Go(func() {
			if err := chat(s, 5, bytes.Repeat([]byte{byte(i)}, 1000+i)); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	// Their places are free again, on both sides.
	for i := range 3000 {
		s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
		if err != nil {
			t.Fatalf("stream %d after: %v", i, err)
		}
		if err := chat(s, 1, []byte("hi")); err != nil {
			t.Fatalf("stream %d after: %v", i, err)
		}
	}
}

// One more than allowed waits for its turn, as long as its caller does; what a node
// opens too many of is turned away with a reason.
func TestStreamLimits(t *testing.T) {
	p := newPool(t, Config{MaxOpen: 3, MaxServe: 2})
	wait := make(chan struct{})
	p.node = func(context.Context, tunnel.Header, *tunnel.Stream) error { <-wait; return nil }
	defer close(wait)
	l := p.link(LinkConfig{}, p.http.URL)
	p.await(l, p.http.URL, true)
	var open []*tunnel.Stream
	for range 3 {
		s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := p.hub.Open(ctx, "isle1", tunnel.Header{}); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "3 streams") {
		t.Fatal(err)
	}
	open[0].Close()
	s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	for i := range 4 {
		s, err := l.Open(t.Context(), p.http.URL, tunnel.Header{Verb: "beat"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if i < 2 {
			continue
		}
		if ch, b, err := s.Read(); err != nil || ch != api.ChanExit || !strings.Contains(string(b), "too many") {
			t.Fatalf("stream %d: %d %s %v", i, ch, b, err)
		}
	}
}

// Somebody who does not read holds up nobody else.
func TestSlowReader(t *testing.T) {
	p := newPool(t, Config{})
	l := p.link(LinkConfig{}, p.http.URL)
	p.await(l, p.http.URL, true)
	var slow []*tunnel.Stream
	for range 8 {
		s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: "flood"})
		if err != nil {
			t.Fatal(err)
		}
		slow = append(slow, s)
	}
	time.Sleep(100 * time.Millisecond) // until their windows are full
	begin := time.Now()
	s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
	if err != nil {
		t.Fatal(err)
	}
	if err := chat(s, 200, make([]byte, 20_000)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("200 exchanges beside slow readers took %s", d)
	}
	for _, s := range slow {
		if _, b, err := s.Read(); err != nil || len(b) != 64<<10 {
			t.Fatalf("a slow reader lost what it waited for: %d %v", len(b), err)
		}
		s.Close() // the writer on the other side must end: link's cleanup waits for it
	}
}

// A connection over which nothing passes any more is noticed by both sides within
// seconds, and the node comes back as soon as the way is free.
func TestHalfDead(t *testing.T) {
	fast := Config{Beat: 50 * time.Millisecond, Silence: 300 * time.Millisecond}
	p := newPool(t, fast)
	px := newProxy(t, p.http.Listener.Addr().String())
	l := p.link(LinkConfig{Session: fast}, px.url())
	p.await(l, px.url(), true)
	time.Sleep(3 * fast.Silence) // idle is not dead
	if st := p.await(l, px.url(), true); st.Error != "" || p.up.Load() != 1 {
		t.Fatalf("an idle connection was given up: %+v", st)
	}
	s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: "flood"})
	if err != nil {
		t.Fatal(err)
	}
	px.frozen.Store(true)
	begin := time.Now()
	for err == nil { // what is on its way first
		_, _, err = s.Read()
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the server noticed after %s", d)
	}
	st := p.await(l, px.url(), false)
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("the node noticed after %s", d)
	}
	if !strings.Contains(st.Error, "nothing was heard") {
		t.Errorf("the node says: %q", st.Error)
	}
	for len(p.hub.Nodes()) > 0 {
		time.Sleep(time.Millisecond)
	}
	px.frozen.Store(false)
	p.await(l, px.url(), true)
}

// A broken connection is back within a few hundred milliseconds; a refusal is not
// asked for again and again, and says why.
func TestReconnect(t *testing.T) {
	p := newPool(t, Config{})
	l := p.link(LinkConfig{RetryMin: 20 * time.Millisecond, RetryMax: 200 * time.Millisecond}, p.http.URL)
	p.await(l, p.http.URL, true)
	for i := range int64(5) {
		p.drop()
		begin := time.Now()
		for p.up.Load() < i+2 {
			time.Sleep(time.Millisecond)
			if time.Since(begin) > 5*time.Second {
				t.Fatalf("not back after %s", time.Since(begin))
			}
		}
		p.await(l, p.http.URL, true)
		s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbExec})
		if err != nil {
			t.Fatal(err)
		}
		if err := chat(s, 1, []byte("again")); err != nil {
			t.Fatal(err)
		}
	}
	p.mu.Lock()
	p.refuse = errs.New(errs.Denied, "this node was removed")
	p.mu.Unlock()
	p.drop()
	st := p.await(l, p.http.URL, false)
	for st.Attempts == 0 {
		time.Sleep(time.Millisecond)
		st = p.await(l, p.http.URL, false)
	}
	if st.Error != "this node was removed" {
		t.Fatalf("%+v", st)
	}
}

// A node that comes a second time while its first connection still stands.
func TestReplaced(t *testing.T) {
	p := newPool(t, Config{})
	name := func(n string) tunnel.Handler {
		return func(_ context.Context, _ tunnel.Header, s *tunnel.Stream) error {
			return s.Write(api.ChanStdout, []byte(n))
		}
	}
	asks := func() string {
		t.Helper()
		s, err := p.hub.Open(t.Context(), "isle1", tunnel.Header{Verb: tunnel.VerbUsage})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, b, err := s.Read()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	old := p.link(LinkConfig{Handler: name("old")}, p.http.URL)
	p.await(old, p.http.URL, true)
	if got := asks(); got != "old" {
		t.Fatal(got)
	}
	p.mu.Lock()
	first := p.sessions[0]
	p.mu.Unlock()
	young := p.link(LinkConfig{Handler: name("new")}, p.http.URL)
	p.await(young, p.http.URL, true)
	for p.up.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	if got := asks(); got != "new" {
		t.Fatal(got)
	}
	old.Set([]string{"https://127.0.0.1:1"}) // the old one goes
	select {
	case <-first.mux.CloseChan():
	case <-time.After(5 * time.Second):
		t.Fatal("the old connection does not end")
	}
	for range 20 {
		if got := asks(); got != "new" {
			t.Fatal(got)
		}
		time.Sleep(time.Millisecond)
	}
}

// The list of servers may change at any time.
func TestServersChange(t *testing.T) {
	p := newPool(t, Config{})
	q := poolOf(t, Config{}, p.ca)
	l := p.link(LinkConfig{}, p.http.URL)
	p.await(l, p.http.URL, true)
	l.Set([]string{p.http.URL, q.http.URL, q.http.URL + "/"})
	q.await(l, q.http.URL, true)
	if n := len(l.States()); n != 2 {
		t.Fatalf("%d servers", n)
	}
	l.Set(nil) // no news
	l.Set([]string{q.http.URL})
	for len(p.hub.Nodes()) > 0 {
		time.Sleep(time.Millisecond)
	}
	q.await(l, q.http.URL, true)
	if st := l.States(); len(st) != 1 || st[0].Endpoint != q.http.URL || q.up.Load() != 1 {
		t.Fatalf("%+v", st)
	}
}

// Requests that are no upgrades, and servers that are none.
func TestUpgradeChecks(t *testing.T) {
	p := newPool(t, Config{})
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: p.tls("isle1")}}
	defer c.CloseIdleConnections()
	for _, set := range []map[string]string{{}, {"Upgrade": Protocol}, {"Upgrade": "websocket", "Connection": "Upgrade"}} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", p.http.URL+Path, nil)
		for k, v := range set {
			req.Header.Set(k, v)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != errs.HTTPStatus(errs.Invalid) {
			t.Errorf("%v: %s", set, resp.Status)
		}
	}
	for _, u := range []string{"http://127.0.0.1:1", "127.0.0.1:1", "https://", "\x00"} {
		if _, err := dial(t.Context(), u, p.tls("isle1")); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", u, err)
		}
	}
	if _, err := dial(t.Context(), p.http.URL, &tls.Config{}); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
	conf := p.tls("isle1")
	conf.GetClientCertificate = nil
	if _, err := dial(t.Context(), p.http.URL, conf); err == nil {
		t.Error("a nobody was let in")
	}
}

// What a node sends before it can know of the upgrade is not lost.
func TestEarlyBytes(t *testing.T) {
	p := newPool(t, Config{})
	conf := p.tls("isle1")
	conf.NextProtos, conf.ServerName = []string{"http/1.1"}, "127.0.0.1"
	conn, err := tls.Dial("tcp", p.http.Listener.Addr().String(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ping := "\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x2a"
	if _, err := io.WriteString(conn, "GET "+Path+" HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n"+ping); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 0, 4096)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for !bytes.HasSuffix(got, []byte("\x00\x02\x00\x02\x00\x00\x00\x00\x00\x00\x00\x2a")) {
		b := make([]byte, 512)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		got = append(got, b[:n]...)
	}
}
