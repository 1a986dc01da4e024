package etcdstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/storetest"
)

// The suite gets a prefix of its own per test: one etcd serves them all.
func runSuite(t *testing.T, open func(prefix string) *Store) {
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		return open(fmt.Sprintf("/test%d/", n))
	})
}

func TestEmbedded(t *testing.T) {
	base := embedded(t, t.TempDir())
	runSuite(t, func(prefix string) *Store { return withPrefix(base, prefix) })
}

// withPrefix looks at another part of the same etcd.
func withPrefix(s *Store, prefix string) *Store {
	return &Store{cfg: s.cfg, peers: s.peers, root: prefix + "o/", mark: prefix + "mark", cl: s.cl, member: s.member}
}

func embedded(t testing.TB, dir string) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := Open(ctx, Config{DataDir: dir, Log: slog.New(slog.NewTextHandler(logTo{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

type logTo struct{ t testing.TB }

func (l logTo) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func TestExternal(t *testing.T) {
	url := debianEtcd(t)
	first := true
	runSuite(t, func(prefix string) *Store {
		s, err := Open(context.Background(), Config{Endpoints: []string{url}, Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		if first && s.key(api.Ref{Kind: "Node", Name: "a"}) != prefix+"o/Node//a" {
			t.Errorf("key %s", s.key(api.Ref{Kind: "Node", Name: "a"}))
		}
		first = false
		return s
	})
}

// debianEtcd starts the distribution's etcd on loopback ports of its own.
func debianEtcd(t *testing.T) string {
	bin, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("no etcd binary on this machine (apt-get install etcd-server)")
	}
	client, peer := "http://"+freePort(t), "http://"+freePort(t)
	cmd := exec.Command(bin, "--name=t", "--data-dir="+t.TempDir(), "--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=t="+peer, "--log-level=error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // ends with the signal
	})
	return client
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func thing(name string) *api.Assignment {
	return &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: "t", Name: name}}}
}

func TestReopenKeepsEverything(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	s := embedded(t, dir)
	rev, err := s.Commit(ctx, store.Create(thing("a")), store.Create(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "acme/research"}}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, Config{DataDir: dir}); !errors.Is(err, errs.Unavailable) {
		t.Fatalf("two processes on one directory: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = embedded(t, dir)
	a, err := s.Get(ctx, api.RefOf(thing("a")))
	if err != nil || a.Metadata().Revision != rev {
		t.Fatalf("%+v %v", a, err)
	}
	tn, _, err := s.List(ctx, api.Selector{Kind: api.KindTenant})
	if err != nil || len(tn) != 1 || tn[0].Metadata().Name != "acme/research" {
		t.Fatalf("%+v %v", tn, err)
	}
}

// A member takes the lead at once whatever it finds in its log.
func TestReopenAfterAnyNumberOfCommits(t *testing.T) {
	dir, ctx, total := t.TempDir(), context.Background(), 0
	for _, n := range []int{0, 1, 98, 1, 1, 400, 498, 1, 1, 1, 120, 1500, 3, 0, 2600, 0, 40} {
		s := embedded(t, dir)
		var wg sync.WaitGroup
		for w := range 10 {
			wg.Go(func() {
				for i := w; i < n; i += 10 {
					if _, err := s.Commit(ctx, store.Create(thing(fmt.Sprintf("n%d", total+i)))); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		total += n
		if objs, _, err := s.List(ctx, api.Selector{Kind: api.KindAssignment}); err != nil || len(objs) != total {
			t.Fatalf("%d of %d are there, %v", len(objs), total, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A member that ended before it had a snapshot starts, too, with whatever it has logged.
func TestStartWithoutSnapshot(t *testing.T) {
	for _, n := range []int{0, 5, 300} {
		dir, ctx := t.TempDir(), context.Background()
		cfg, err := Config{DataDir: dir}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		ec, err := embedConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ec.TickMs, ec.ElectionMs = 10, 50
		lock, err := lockDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		m := &member{lock: lock}
		if err := m.run(ctx, ec, nil); err != nil {
			t.Fatal(err)
		}
		s := &Store{cfg: cfg, root: "/atoll/o/", cl: v3client.New(m.server.Server), member: m, closing: func() {}}
		for i := range n {
			if _, err := s.Commit(ctx, store.Create(thing(fmt.Sprint("n", i)))); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if hasSnapshot(ec.Dir) {
			t.Fatal("the test is about a directory without snapshot")
		}
		s = embedded(t, dir)
		if objs, _, err := s.List(ctx, api.Selector{Kind: api.KindAssignment}); err != nil || len(objs) != n {
			t.Fatalf("%d of %d are there, %v", len(objs), n, err)
		}
		if !hasSnapshot(ec.Dir) {
			t.Error("no snapshot was made")
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []Config{
		{},
		{DataDir: "x", Endpoints: []string{"y"}},
		{DataDir: "x", Peers: Peers{Listen: "https://0.0.0.0:7380"}},
	} {
		if _, err := Open(context.Background(), c); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestAnEtcdThatIsDownIsUnavailable(t *testing.T) {
	ctx := context.Background()
	_, err := Open(ctx, Config{Endpoints: []string{"http://" + freePort(t)}, Timeout: 300 * time.Millisecond})
	if k := errs.KindOf(err); k != errs.Unavailable && k != errs.Timeout || errs.HintOf(err) == "" {
		t.Fatalf("got %v (%s), hint %q", err, k, errs.HintOf(err))
	}
	s := embedded(t, t.TempDir())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, lerr := s.List(ctx, api.Selector{Kind: api.KindNode})
	_, gerr := s.Get(ctx, api.RefOf(thing("a")))
	_, cerr := s.Commit(ctx, store.Set(thing("a")))
	werr := s.Watch(ctx, api.Selector{Kind: api.KindNode}, 1, func(store.Event) error { return nil })
	for what, err := range map[string]error{"list": lerr, "get": gerr, "commit": cerr, "watch": werr} {
		if k := errs.KindOf(err); err == nil || k != errs.Unavailable && k != errs.Timeout {
			t.Errorf("%s after close: %v (%s)", what, err, k)
		}
	}
}

// An external etcd that dies and comes back is told as such, and used again.
func TestExternalGoesAndComes(t *testing.T) {
	bin, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("no etcd binary on this machine (apt-get install etcd-server)")
	}
	dir, client, peer := t.TempDir(), "http://"+freePort(t), "http://"+freePort(t)
	launch := func() *exec.Cmd {
		cmd := exec.Command(bin, "--name=t", "--data-dir="+dir, "--listen-client-urls="+client, "--advertise-client-urls="+client,
			"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=t="+peer, "--log-level=error")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	end := func(cmd *exec.Cmd) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // ends with the signal
	}
	cmd := launch()
	defer func() { end(cmd) }()
	ctx := context.Background()
	s, err := Open(ctx, Config{Endpoints: []string{client}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.cfg.Timeout = time.Second
	if _, err := s.Commit(ctx, store.Create(thing("a"))); err != nil {
		t.Fatal(err)
	}
	end(cmd)
	_, err = s.Commit(ctx, store.Create(thing("b")))
	if k := errs.KindOf(err); k != errs.Unavailable && k != errs.Timeout {
		t.Fatalf("got %v (%s)", err, k)
	}
	cmd = launch()
	s.cfg.Timeout = 10 * time.Second
	if _, err := s.Get(ctx, api.RefOf(thing("a"))); err != nil {
		t.Fatal(err)
	}
}

func TestCompactionKeepsWhatIsThere(t *testing.T) {
	s, ctx := embedded(t, t.TempDir()), context.Background()
	s.cfg.HistoryRevisions = 5
	for i := range 20 {
		if _, err := s.Commit(ctx, store.Set(thing(fmt.Sprint("n", i%2)))); err != nil {
			t.Fatal(err)
		}
	}
	var k keeper
	if err := s.keepOnce(ctx, &k); err != nil {
		t.Fatal(err)
	}
	if err := s.Watch(ctx, api.Selector{}, 1, func(store.Event) error { return errors.New("an event") }); !errors.Is(err, errs.Compacted) {
		t.Fatalf("got %v", err)
	}
	if objs, _, err := s.List(ctx, api.Selector{Kind: api.KindAssignment}); err != nil || len(objs) != 2 {
		t.Fatal(len(objs), err)
	}
	if err := s.keepOnce(ctx, &k); err != nil {
		t.Fatalf("a second time: %v", err)
	}
}

func TestHorizon(t *testing.T) {
	at := func(min int) time.Time { return time.Unix(0, 0).Add(time.Duration(min) * time.Minute) }
	marks := []mark{{at(0), 100}, {at(5), 200}, {at(9), 300}, {at(12), 400}}
	left, upTo := horizon(marks, 10*time.Minute, 10_000)
	if upTo != 100 || len(left) != 3 {
		t.Errorf("by age: %d, %v", upTo, left)
	}
	if _, upTo = horizon(marks, time.Hour, 150); upTo != 250 {
		t.Errorf("by number: %d", upTo)
	}
	if _, upTo = horizon(marks, time.Hour, 10_000); upTo != 0 {
		t.Errorf("young and few: %d", upTo)
	}
}

// A full database refuses writes with a hint, still lets things be deleted, and recovers.
func TestFullDatabase(t *testing.T) {
	ctx := context.Background()
	s, err := Open(ctx, Config{DataDir: t.TempDir(), QuotaBytes: 24 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	big := func(i int) *api.Assignment {
		a := thing(fmt.Sprint("big", i))
		a.Annotations = map[string]string{"x": strings.Repeat("x", 1<<20)}
		return a
	}
	n := 0
	for ; n < 600; n++ {
		if n%30 == 29 {
			time.Sleep(batchInterval + 100*time.Millisecond) // etcd learns its size when it writes its file
		}
		if _, err = s.Commit(ctx, store.Create(big(n))); err != nil {
			break
		}
	}
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(errs.HintOf(err), "delete") {
		t.Fatalf("after %d: %v, hint %q", n, err, errs.HintOf(err))
	}
	for i := range n - 2 {
		if _, err := s.Commit(ctx, store.Remove(api.RefOf(big(i)), store.Any)); err != nil {
			t.Fatalf("delete %d of %d: %v", i, n, err)
		}
	}
	var k keeper
	if err := s.keepOnce(ctx, &k); err != nil {
		t.Fatal(err)
	}
	if _, err = s.Commit(ctx, store.Create(thing("small"))); err != nil {
		t.Fatalf("still full: %v", err)
	}
}

func TestTooMuchForOneCommit(t *testing.T) {
	s, ctx := embedded(t, t.TempDir()), context.Background()
	a := thing("a")
	a.Annotations = map[string]string{"x": strings.Repeat("x", maxRequestBytes)}
	if _, err := s.Commit(ctx, store.Create(a)); !errors.Is(err, errs.Invalid) {
		t.Fatalf("got %v", err)
	}
}

// The order of keys in etcd is not that of the contract, and lists span pages.
func TestListOverPages(t *testing.T) {
	s, ctx := embedded(t, t.TempDir()), context.Background()
	const n = pageKeys + 500
	for from := 0; from < n; from += 500 {
		var ops []store.Op
		for i := from; i < from+500; i++ {
			ops = append(ops, store.Create(thing(fmt.Sprintf("n%05d", i))))
		}
		if _, err := s.Commit(ctx, ops...); err != nil {
			t.Fatal(err)
		}
	}
	objs, _, err := s.List(ctx, api.Selector{Kind: api.KindAssignment})
	if err != nil || len(objs) != n {
		t.Fatal(len(objs), err)
	}
	objs, _, err = s.List(ctx, api.Selector{Kind: api.KindAssignment, After: api.SortKey(api.RefOf(thing("n02100"))), Limit: 2})
	if err != nil || len(objs) != 2 || objs[1].Metadata().Name != "n02102" {
		t.Fatal(objs, err)
	}
}

const crashDir = "ATOLL_TEST_ETCD_CRASH_DIR"

// A process that is killed while it commits has lost nothing that was acknowledged.
func TestKilledInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]int{}
	for round := range 3 {
		killChild(t, dir, round, 150+round*170, acked)
		s := embedded(t, dir)
		for name, want := range acked {
			o, err := store.Get[*api.Assignment](context.Background(), s, api.RefOf(thing(name)))
			if err != nil {
				t.Fatalf("round %d: %s was acknowledged: %v", round, name, err)
			}
			if o.Spec.Generation < int64(want) {
				t.Fatalf("round %d: %s is at %d, %d was acknowledged", round, name, o.Spec.Generation, want)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(acked) < 4 {
		t.Fatalf("only %d names were written", len(acked))
	}
}

// killChild lets a child commit, kills it after some acknowledgements and notes all it told.
func killChild(t *testing.T, dir string, round, after int, acked map[string]int) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildCommits$", "-test.v")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, fmt.Sprintf("ATOLL_TEST_ROUND=%d", round))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // ends with the signal
	}()
	sc, n := bufio.NewScanner(out), 0
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) != 3 || f[0] != "acked" {
			continue
		}
		v, err := strconv.Atoi(f[2])
		if err != nil {
			t.Fatal(err)
		}
		acked[f[1]] = max(acked[f[1]], v)
		if n++; n == after {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n < after {
		t.Fatalf("the child ended after %d commits", n)
	}
}

// TestChildCommits is the child of TestKilledInTheMiddle.
func TestChildCommits(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("only as a child of TestKilledInTheMiddle")
	}
	s := embedded(t, dir)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 1; ; i++ {
				a := thing(fmt.Sprintf("r%s-w%d", os.Getenv("ATOLL_TEST_ROUND"), w))
				a.Spec.Generation = int64(i)
				if _, err := s.Commit(context.Background(), store.Set(a)); err != nil {
					return
				}
				mu.Lock()
				fmt.Printf("acked %s %d\n", a.Name, i)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestNothingListens(t *testing.T) {
	before := listeners(t)
	embedded(t, t.TempDir())
	if after := listeners(t); after != before {
		t.Fatalf("%d sockets of this process listen, %d before", after, before)
	}
}

// listeners counts the listening TCP sockets this process holds.
func listeners(t *testing.T) int {
	mine := map[string]bool{}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if l, err := os.Readlink(fd); err == nil && strings.HasPrefix(l, "socket:[") {
			mine[strings.TrimSuffix(strings.TrimPrefix(l, "socket:["), "]")] = true
		}
	}
	n := 0
	for _, f := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // no IPv6 here
		}
		for _, line := range strings.Split(string(data), "\n") {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && mine[f[9]] {
				n++
			}
		}
	}
	return n
}

func BenchmarkPutSequential(b *testing.B) {
	s, ctx := embedded(b, b.TempDir()), context.Background()
	for b.Loop() {
		if _, err := s.Commit(ctx, store.Set(thing("a"))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut64Writers(b *testing.B) {
	s, ctx := embedded(b, b.TempDir()), context.Background()
	b.SetParallelism(32) // of 2 cores
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Commit(ctx, store.Set(thing("a"))); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkOpenFresh(b *testing.B) { benchOpen(b, func() string { return b.TempDir() }) }

func BenchmarkOpenExisting(b *testing.B) {
	dir := b.TempDir()
	s := embedded(b, dir)
	for i := range 1000 {
		if _, err := s.Commit(context.Background(), store.Set(thing(fmt.Sprint("n", i)))); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	benchOpen(b, func() string { return dir })
}

func benchOpen(b *testing.B, dir func() string) {
	b.StopTimer()
	b.ResetTimer()
	for range b.N {
		d := dir()
		b.StartTimer()
		s, err := Open(context.Background(), Config{DataDir: d})
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestLogOfASlowTransactionIsClipped(t *testing.T) {
	var out strings.Builder
	z := zap.New(zapCore{log: slog.New(slog.NewTextHandler(&out, nil))})
	z.Warn("apply request took too long", zap.String("request", strings.Repeat("key ", 10_000)), zap.String("took", "1s"))
	if n := out.Len(); n > 1000 || n < fieldMost || !strings.Contains(out.String(), "took:1s") {
		t.Errorf("%d bytes: %.500s", n, out.String())
	}
}
