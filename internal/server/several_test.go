package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mrand "math/rand/v2"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/store/storetest"
	"atoll/internal/tunnel"
)

// box is one server of several, which can be killed, stopped in its tracks, made to
// say that it cannot, and started again at the same address.
type box struct {
	t     testing.TB
	addr  string
	inner http.Handler
	mode  atomic.Int32 // of modes
	calls atomic.Int64
	free  chan struct{} // closed at the end: hung requests go on

	mu sync.Mutex
	hs *http.Server
	l  net.Listener
}

const (
	works    = iota
	hangs    // takes requests and does not answer
	refuses  // 503, such as without a leader
	starts   // 503 before it did anything
	resets   // takes a request, does nothing and resets the connection
	breaks   // does what is asked, and cuts the connection before the answer
	modes    // number of the above
	deadMode = modes
)

func (b *box) url() string { return "http://" + b.addr }

func (b *box) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.calls.Add(1)
	switch b.mode.Load() {
	case hangs:
		select {
		case <-b.free:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case starts:
		w.Header().Set(api.HeaderNothingDone, "true")
		writeProblem(w, errs.New(errs.Unavailable, "users are not loaded yet"))
	case refuses:
		writeProblem(w, errs.New(errs.Unavailable, "the store has no leader"))
	case resets:
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			if tc, ok := c.(*net.TCPConn); ok {
				_ = tc.SetLinger(0)
			}
			c.Close()
		}
	case breaks:
		b.inner.ServeHTTP(&cut{ResponseWriter: w, left: 40}, r)
		panic(http.ErrAbortHandler)
	default:
		b.inner.ServeHTTP(w, r)
	}
}

// cut lets only the first bytes of an answer through.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if _, err := c.ResponseWriter.Write(p[:n]); err != nil {
		return 0, err
	}
	if n < len(p) {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func (b *box) start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hs != nil {
		return
	}
	addr := b.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		b.t.Errorf("start again: %v", err)
		return
	}
	b.addr, b.l = l.Addr().String(), l
	b.hs = &http.Server{Handler: b}
	go b.hs.Serve(l)
}

func (b *box) kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hs != nil {
		b.l.Close() // Serve may not have begun yet: who connects until it has would be taken, and reset
		b.hs.Close()
		b.hs = nil
	}
}

// set brings the server into a mode.
func (b *box) set(mode int) {
	if mode == deadMode {
		b.kill()
		return
	}
	b.mode.Store(int32(mode))
	b.start()
}

// boxes are n servers over one store, to which everybody is root.
func boxes(t testing.TB, n int) (*store.Mem, []*box) {
	t.Helper()
	mem := store.NewMem()
	var out []*box
	free := make(chan struct{})
	for range n {
		s := New(Deps{Store: mem, Auth: auth.New(clock.Real{}, auth.Config{}), Hub: tunnel.NewHub(), Clock: clock.Real{}, Rand: rand.Reader}, Config{Heartbeat: 50 * time.Millisecond})
		if err := s.LoadAuth(context.Background()); err != nil {
			t.Fatal(err)
		}
		b := &box{t: t, inner: s.As(root()), free: free}
		b.start()
		t.Cleanup(b.kill)
		out = append(out, b)
	}
	t.Cleanup(func() { close(free) })
	return mem, out
}

func urls(list []*box) (out []string) {
	for _, b := range list {
		out = append(out, b.url())
	}
	return out
}

func client(t testing.TB, list []*box, full bool) *remote.Store {
	t.Helper()
	s, err := remote.New(remote.Config{Endpoints: urls(list), Full: full, TryTimeout: 100 * time.Millisecond, Probe: 60 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// trouble breaks one server after the other, in every way, until stop is closed; one
// of three at a time, as a pool of three survives it.
func trouble(list []*box, seed uint64, stop <-chan struct{}) (rounds int) {
	rng := mrand.New(mrand.NewPCG(seed, 7))
	for {
		for _, mode := range rng.Perm(deadMode) {
			b := list[rng.IntN(len(list))]
			if rng.IntN(3) > 0 { // most often the one that is used
				b = slices.MaxFunc(list, func(a, b *box) int { return int(a.calls.Load() - b.calls.Load()) })
			}
			for _, x := range list {
				x.calls.Store(0)
			}
			b.set(mode + 1)
			select {
			case <-stop:
				b.set(works)
				return rounds
			case <-time.After(time.Duration(20+rng.IntN(120)) * time.Millisecond):
			}
			b.set(works)
			rounds++
			time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		}
	}
}

// during runs fn while servers break, and wants some to have.
func during(t *testing.T, list []*box, seed uint64, fn func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan int)
	go func() { done <- trouble(list, seed, stop) }()
	fn()
	close(stop)
	if n := <-done; n < 5 {
		t.Fatalf("only %d troubles", n)
	}
}

const load = 2500 * time.Millisecond

// No read fails while servers die, hang and refuse, one at a time.
func TestSeveralServersNoReadFails(t *testing.T) {
	mem, list := boxes(t, 3)
	for i := range 20 {
		if _, err := mem.Commit(t.Context(), store.Create(instance("acme", fmt.Sprint("i", i)))); err != nil {
			t.Fatal(err)
		}
	}
	s := client(t, list, true)
	var reads, worst atomic.Int64
	during(t, list, 1, func() {
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for end := time.Now().Add(load); time.Now().Before(end); {
					begin := time.Now()
					var err error
					n := 20
					if w%2 == 0 {
						_, err = s.Get(t.Context(), api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: "i3"})
					} else {
						var l []api.Object
						l, _, err = s.List(t.Context(), api.Selector{Kind: api.KindInstance})
						n = len(l)
					}
					if err != nil || n != 20 {
						t.Errorf("read: %d %v", n, err)
						return
					}
					reads.Add(1)
					for d := int64(time.Since(begin)); d > worst.Load(); {
						worst.Store(d)
					}
				}
			})
		}
		wg.Wait()
	})
	t.Logf("%d reads, the slowest %s", reads.Load(), time.Duration(worst.Load()))
	if reads.Load() < 50 {
		t.Error("hardly any reads")
	}
}

// Watches tell every change once and in order, whatever happens to their servers.
func TestSeveralServersWatchesLoseNothing(t *testing.T) {
	for seed := range uint64(3) {
		mem, list := boxes(t, 3)
		ctx, cancel := context.WithCancel(background(t))
		text := func(ev store.Event) string {
			return fmt.Sprint(ev.Rev, " ", api.RefOf(ev.Object), " ", ev.Deleted)
		}
		const watchers = 4
		got := make([][]string, watchers)
		var end atomic.Int64
		var wg sync.WaitGroup
		for i := range watchers {
			s := client(t, list, true)
			wg.Go(func() {
				err := s.Watch(ctx, api.Selector{Kind: api.KindInstance}, 0, func(ev store.Event) error {
					got[i] = append(got[i], text(ev))
					if ev.Rev == end.Load() && !ev.More {
						return errDone
					}
					return nil
				})
				if !errors.Is(err, errDone) {
					t.Errorf("watch %d after %d changes: %v", i, len(got[i]), err)
				}
			})
		}
		during(t, list, seed, func() {
			rng := mrand.New(mrand.NewPCG(seed, 1))
			for n, stop := 0, time.Now().Add(load); time.Now().Before(stop); n++ {
				var ops []store.Op
				for i := range 1 + rng.IntN(6) { // several changes of one revision
					ops = append(ops, store.Set(instance("acme", fmt.Sprintf("n%d-%d", n, i))))
				}
				if n > 3 && rng.IntN(3) == 0 {
					ops = append(ops, store.Op{Verb: store.Delete, Ref: api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: fmt.Sprintf("n%d-0", n-1)}, Rev: store.Any})
				}
				if _, err := mem.Commit(ctx, ops...); err != nil && !errors.Is(err, errs.NotFound) {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
			}
		})
		time.Sleep(20 * time.Millisecond)
		end.Store(mem.Revision() + 1)
		if _, err := mem.Commit(ctx, store.Set(instance("acme", "last"))); err != nil {
			t.Fatal(err)
		}
		var want []string
		if err := mem.Watch(ctx, api.Selector{Kind: api.KindInstance}, 0, func(ev store.Event) error {
			want = append(want, text(ev))
			if ev.Rev == end.Load() {
				return errDone
			}
			return nil
		}); !errors.Is(err, errDone) {
			t.Fatal(err)
		}
		wg.Wait()
		cancel()
		for i, g := range got {
			if !slices.Equal(g, want) {
				t.Errorf("seed %d, watch %d: %d changes, want %d; first difference %s", seed, i, len(g), len(want), differ(g, want))
			}
		}
		t.Logf("seed %d: %d changes", seed, len(want))
	}
}

var errDone = errors.New("done")

func differ(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("at %d: %s, want %s", i, a[i], b[i])
		}
	}
	return "in length"
}

// What a caller writes happens once when it is told so, once or not at all when it is
// told that this is not known, and creates with a key never fail.
func TestSeveralServersNothingIsWrittenTwice(t *testing.T) {
	mem, list := boxes(t, 3)
	s := client(t, list, true)
	var mu sync.Mutex
	applied := map[string]int{}
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		_ = mem.Watch(ctx, api.Selector{Kind: api.KindInstance}, 0, func(ev store.Event) error {
			mu.Lock()
			defer mu.Unlock()
			applied[ev.Object.Metadata().Annotations["attempt"]]++
			return nil
		})
	}()
	told := map[string]bool{}
	unknown, refused := 0, 0
	during(t, list, 3, func() {
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for n, stop := 0, time.Now().Add(load); time.Now().Before(stop); n++ {
					id := fmt.Sprintf("%d-%d", w, n)
					in := instance("acme", "")
					in.Annotations = map[string]string{"attempt": id}
					wctx, done := context.WithTimeout(t.Context(), 300*time.Millisecond)
					var err error
					if w%2 == 0 {
						done()
						wctx, done = context.WithTimeout(t.Context(), 10*time.Second)
						_, err = s.Create(wctx, in, "key "+id) // without a name: a second one would not collide
						if err != nil {
							t.Errorf("create with a key: %v", err)
						}
					} else {
						in.Name = fmt.Sprint("w", w)
						_, err = s.Commit(wctx, store.Set(in)) // at any revision: a second one would not conflict
					}
					done()
					mu.Lock()
					switch {
					case err == nil:
						told[id] = true
					case errors.Is(err, errs.Unavailable) && strings.Contains(err.Error(), "not known"), errors.Is(err, context.DeadlineExceeded):
						unknown++
					case errors.Is(err, errs.Unavailable):
						refused++
					default:
						t.Errorf("write: %v", err)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	})
	last := instance("acme", "last")
	last.Annotations = map[string]string{"attempt": "last"}
	if _, err := mem.Commit(t.Context(), store.Create(last)); err != nil {
		t.Fatal(err)
	}
	for seen := false; !seen; time.Sleep(time.Millisecond) {
		mu.Lock()
		seen = applied["last"] > 0
		mu.Unlock()
	}
	cancel()
	<-watched
	for id := range told {
		if applied[id] != 1 {
			t.Errorf("%s is told as done and was done %d times", id, applied[id])
		}
	}
	for id, n := range applied {
		if n > 1 {
			t.Errorf("%s was done %d times", id, n)
		}
	}
	t.Logf("%d done, %d unknown, %d refused", len(told), unknown, refused)
	if len(told) < 50 || unknown == 0 {
		t.Error("the test has not seen what it is about")
	}
}

// A client of several servers, the first of which is dead, keeps the contract.
func TestSeveralServersContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		mem, list := boxes(t, 3)
		list[0].kill()
		s, err := remote.New(remote.Config{Endpoints: urls(list), Full: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return compactable{s, mem}
	})
}

// A change that names revisions is asked for again when its connection is reset: done
// the second time, it was not done the first time. When it is refused then, nobody knows.
func TestSeveralServersResetIsNoEnd(t *testing.T) {
	mem, list := boxes(t, 2)
	s := client(t, list, true)
	in := instance("acme", "web")
	rev, err := s.Commit(t.Context(), store.Create(in))
	if err != nil {
		t.Fatal(err)
	}
	for n := range 6 { // each is the preferred one now and then
		list[n%2].set(resets)
		list[1-n%2].set(works)
		in.Revision = rev
		in.Annotations = map[string]string{"n": fmt.Sprint(n)}
		if rev, err = s.Commit(t.Context(), store.Update(in)); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		in.Revision = rev
		o, err := s.Replace(t.Context(), in)
		if err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if rev = o.Metadata().Revision; rev != mem.Revision() {
			t.Fatalf("%d: at %d, not %d", n, rev, mem.Revision())
		}
		o, err = s.Create(t.Context(), instance("acme", ""), fmt.Sprint("key", n))
		if err != nil {
			t.Fatalf("%d: a create with a key: %v", n, err)
		}
		if _, err := s.Delete(t.Context(), api.RefOf(o), o.Metadata().Revision); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
	}
	unknown := func(err error) bool {
		return errors.Is(err, errs.Unavailable) && strings.Contains(err.Error(), "not known")
	}
	for n := range 6 {
		list[n%2].set(breaks)
		list[1-n%2].set(works)
		before := mem.Revision()
		in.Revision = rev
		in.Annotations = map[string]string{"n": fmt.Sprint("b", n)}
		got, err := s.Commit(t.Context(), store.Update(in))
		rev = mem.Revision()
		if rev != before+1 || err == nil && got != rev || err != nil && !unknown(err) {
			t.Errorf("%d: %d, now at %d after %d: %v", n, got, rev, before, err)
		}
	}
	list[0].set(resets)
	list[1].set(resets)
	if _, err := s.Commit(t.Context(), store.Update(in)); !unknown(err) {
		t.Error("reset by all:", err)
	}
	list[0].set(works)
	if _, err := s.Commit(t.Context(), store.Set(in)); err != nil && !unknown(err) { // whoever is asked first
		t.Error(err)
	}
}

// The one that answers stays preferred, also when an earlier one is back.
func TestSeveralServersStick(t *testing.T) {
	_, list := boxes(t, 3)
	s := client(t, list, true)
	read := func() {
		t.Helper()
		if _, _, err := s.List(background(t), api.Selector{Kind: api.KindNode}); err != nil {
			t.Fatal(err)
		}
	}
	read()
	list[0].kill()
	read()
	if got := s.Endpoints(); got[0] != list[1].url() || len(got) != 3 {
		t.Fatalf("%v", got)
	}
	list[0].start()
	before := list[0].calls.Load()
	for range 20 {
		read()
	}
	if n := list[0].calls.Load() - before; n > 0 {
		t.Errorf("%d calls went to the one that had failed", n)
	}
	// It is looked at when its time is over, and is good for the next trouble.
	for end := time.Now().Add(5 * time.Second); list[0].calls.Load() == before && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		read()
	}
	if list[0].calls.Load() == before {
		t.Error("a server that failed is never looked at again")
	}
}

// With no server there is one error that names each, and why; it comes soon.
func TestSeveralServersNone(t *testing.T) {
	_, list := boxes(t, 3)
	s, err := remote.New(remote.Config{Endpoints: urls(list), TryTimeout: 30 * time.Millisecond, Patience: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	list[0].kill()
	list[1].set(hangs)
	list[2].set(refuses)
	begin := time.Now()
	_, err = s.WhoAmI(background(t))
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("it took %s", d)
	}
	if !errors.Is(err, errs.Unavailable) || errs.HintOf(err) == "" {
		t.Fatal(err)
	}
	for i, why := range []string{"refused", "no answer within", "no leader"} {
		if want := list[i].url() + " ("; !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s %s: %v", want, why, err)
		}
	}
	// A change that certainly did not begin goes on to where it can; one that may have, does not.
	list[0].start()
	list[2].set(starts)
	list[1].kill()
	if _, err := s.Create(background(t), tenantObj("acme"), ""); err != nil {
		t.Fatal(err)
	}
	list[0].set(refuses)
	if _, err := s.Create(background(t), tenantObj("demo"), ""); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "no leader") {
		t.Fatal(err)
	}
}

// A stream is opened where it can be.
func TestSeveralServersStreams(t *testing.T) {
	_, list := boxes(t, 3)
	f := newFixture(t, Config{})
	f.node("isle1")
	in := f.placed("acme", "web", "isle1")
	list[2].inner = f.As(root())
	s := client(t, list, false)
	list[0].kill()
	list[1].set(refuses)
	for _, mode := range []int{refuses, starts, deadMode} {
		list[1].set(mode)
		c, err := s.InstanceStream(background(t), api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"cat"}})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Write(api.ChanStdin, []byte("x"))
		_ = c.Write(api.ChanStdin, nil)
		if out, _, x := drain(t, c); !strings.HasPrefix(out, "X") || x.Code != 7 {
			t.Fatalf("%q %+v", out, x)
		}
		c.Close()
	}
	list[2].kill()
	if _, err := s.InstanceStream(background(t), api.RefOf(in), "exec", api.ExecRequest{Argv: []string{"cat"}}); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), list[1].url()) {
		t.Fatal(err)
	}
}

// The list is taken from the pool; what does not belong in it is not believed.
func TestRefreshEndpoints(t *testing.T) {
	mem, list := boxes(t, 3)
	s, err := remote.New(remote.Config{URL: list[0].url(), Full: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if got, err := s.RefreshEndpoints(t.Context()); err != nil || len(got) != 1 {
		t.Fatalf("%v %v", got, err)
	}
	for i, u := range []string{list[1].url(), list[2].url() + "/", "ftp://x", "nonsense", list[1].url()} {
		m := &api.Member{Head: api.Head{K: api.KindMember, Meta: meta(fmt.Sprint("m", i))}, Spec: api.MemberSpec{State: api.MemberVoter, API: u}}
		if _, err := mem.Commit(t.Context(), store.Create(m)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.RefreshEndpoints(t.Context())
	if want := []string{list[0].url(), list[1].url(), list[2].url()}; err != nil || !slices.Equal(got, want) {
		t.Fatalf("%v %v", got, err)
	}
	list[0].kill()
	if _, _, err := s.List(t.Context(), api.Selector{Kind: api.KindNode}); err != nil {
		t.Fatal(err)
	}
	if got := s.Endpoints(); got[0] == list[0].url() {
		t.Fatalf("%v", got)
	}
}
