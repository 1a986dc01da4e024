package adopt_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"atoll/api"
	"atoll/cmd/atolld/adopt"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/image"
	"atoll/internal/image/imagetest"
	"atoll/internal/join"
	"atoll/internal/server"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
	"atoll/internal/store/quota"
)

// world is a pool, and a host with a pool of its own whose parts can be made to fail.
type world struct {
	t     *testing.T
	mem   *store.Mem
	url   string
	token string
	host  adopt.Host

	fail int // the step at which it is as if the command was killed; 0: never
	done int // steps begun

	tenant   string // of the instance, in the runtime's record
	volumes  string // of its volumes
	attached []string
}

var errKilled = errors.New("killed here")

// step is at every point where the command can be ended.
func (w *world) step() error {
	if w.done++; w.done == w.fail {
		return errKilled
	}
	return nil
}

type runtime struct {
	driver.Runtime
	w *world
}

func (r runtime) Rename(_ context.Context, tenants map[string]string) error {
	if err := r.w.step(); err != nil {
		return err
	}
	if to := tenants[r.w.tenant]; to != "" {
		r.w.tenant = to
	}
	return r.w.step()
}

func (r runtime) Observe(context.Context) ([]driver.Observed, error) {
	return []driver.Observed{{ID: "x1", UID: strings.Repeat("ab", 16), Phase: driver.PhaseRunning, Pid: 7, NetNS: "/proc/7/ns/net"}}, r.w.step()
}

type network struct {
	driver.Network
	w *world
}

func (n network) Attach(_ context.Context, _ string, s driver.Spec) error {
	if err := n.w.step(); err != nil {
		return err
	}
	n.w.attached = append(n.w.attached, s.Instance.Tenant+"/"+s.Instance.Name+" "+s.Network.Address)
	return nil
}

type storage struct {
	driver.Storage
	w *world
}

func (s storage) Rename(_ context.Context, tenants map[string]string) error {
	if to := tenants[s.w.volumes]; to != "" {
		s.w.volumes = to
	}
	return s.w.step()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, mem: store.NewMem(), tenant: "shop", volumes: "shop"}
	ca := auth.NewCA(t.TempDir(), clock.Real{}, rand.Reader)
	conf, err := ca.ServerTLS([]string{"isle1"})
	if err != nil {
		t.Fatal(err)
	}
	srv := server.New(server.Deps{Store: quota.New(w.mem), Auth: auth.New(clock.Real{}, auth.Config{}), CA: ca, Clock: clock.Real{}, Rand: rand.Reader},
		server.Config{Pool: api.PoolSettings{Subnet: "10.88.0.0/16"}, Advertise: []string{"https://192.0.2.9:7443"}})
	if err := srv.LoadAuth(t.Context()); err != nil {
		t.Fatal(err)
	}
	inner := srv.Handler()
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.step() != nil { // before anything was heard
			panic(http.ErrAbortHandler)
		}
		rec := httptest.NewRecorder()
		inner.ServeHTTP(rec, r)
		if w.step() != nil { // it was done, and the answer is lost
			panic(http.ErrAbortHandler)
		}
		rw.WriteHeader(rec.Code)
		_, _ = io.Copy(rw, rec.Body)
	}))
	web.Listener = tls.NewListener(web.Listener, conf)
	web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	web.Start()
	t.Cleanup(web.Close)
	w.url = strings.Replace(web.URL, "http:", "https:", 1)
	admin := func(path, body string) []byte {
		rec := httptest.NewRecorder()
		srv.As(auth.Identity{User: "root", Admin: true}).ServeHTTP(rec, httptest.NewRequest("POST", path, strings.NewReader(body)))
		if rec.Code >= 300 {
			t.Fatal(rec.Code, rec.Body)
		}
		return rec.Body.Bytes()
	}
	admin("/v1/tenants", `{"metadata":{"name":"acme"}}`)
	var tok api.JoinToken
	if err := json.Unmarshal(admin("/v1/jointokens", `{"metadata":{"name":"t"},"spec":{"uses":1,"adopt":"acme"}}`), &tok); err != nil {
		t.Fatal(err)
	}
	w.token = tok.Status.Secret
	w.makeHost()
	return w
}

// makeHost makes the host's own pool.
func (w *world) makeHost() {
	t, dir := w.t, w.t.TempDir()
	if _, err := join.KeyHash(dir, rand.Reader); err != nil {
		t.Fatal(err)
	}
	open := func(ctx context.Context, member string) (adopt.Store, error) {
		return etcdstore.Open(ctx, etcdstore.Config{DataDir: filepath.Join(dir, "etcd"), Name: member})
	}
	images := func(context.Context) (*image.Store, error) {
		return image.Open(filepath.Join(dir, "images"), image.Options{Clock: clock.Real{}})
	}
	st, err := open(t.Context(), "isle9")
	if err != nil {
		t.Fatal(err)
	}
	head := func(k api.Kind, tenant, name string) api.Head {
		return api.Head{K: k, Meta: api.Meta{Tenant: tenant, Name: name, UID: strings.Repeat("ab", 16), Generation: 1}}
	}
	tn := &api.Tenant{Head: head(api.KindTenant, "", "shop"), Status: api.TenantStatus{UIDBase: 1 << 22, UIDCount: 65536}}
	in := &api.Instance{Head: head(api.KindInstance, "shop", "web"), Spec: api.InstanceSpec{Image: "tool:1"}, Status: api.InstanceStatus{Node: "isle9", State: api.StateRunning}}
	as := &api.Assignment{Head: head(api.KindAssignment, "shop", "web"), Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: "isle9", Address: "10.88.0.2", Generation: 1}}
	ops := []store.Op{store.Create(tn), store.Create(in), store.Create(as), store.Create(&api.Node{Head: head(api.KindNode, "", "isle9")})}
	is, err := images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for scope, name := range map[string]string{"": "tool:1", "shop": "own:1"} {
		info, err := is.Import(t.Context(), scope, name, bytes.NewReader(imagetest.Tar(t, imagetest.File("f", name))), image.ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		o := &api.Image{Head: head(api.KindImage, scope, api.ImageName(info.Name())), Spec: api.ImageSpec{Reference: info.Name(), Digest: info.Digest}}
		if scope == "" {
			o.Tenant, o.Spec.Shared = api.SharedTenant, true
		}
		ops = append(ops, store.Create(o))
	}
	if err := is.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Commit(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	w.host = adopt.Host{State: dir, Node: "a-host-name", Subnet: "10.88.0.0/16", Version: "test", Deps: join.Deps{Clock: clock.Real{}, Rand: rand.Reader},
		Open: func(ctx context.Context, member string) (adopt.Store, error) {
			if err := w.step(); err != nil {
				return nil, err
			}
			return open(ctx, member)
		},
		Drivers: func() (adopt.Drivers, error) {
			return adopt.Drivers{Runtimes: map[string]driver.Runtime{"container": runtime{w: w}}, Network: network{w: w}, Storage: storage{w: w}}, w.step()
		},
		Images: func(ctx context.Context) (*image.Store, error) {
			if err := w.step(); err != nil {
				return nil, err
			}
			return images(ctx)
		}}
}

func (w *world) run(o adopt.Options) error {
	o.URLs, o.Token, o.Into, o.Out = []string{w.url}, w.token, "acme", io.Discard
	return adopt.Run(w.t.Context(), w.host, o)
}

// arrived fails unless everything is as it is to be.
func (w *world) arrived(when int) {
	t := w.t
	t.Helper()
	id, err := join.Load(w.host.State, w.host.Deps)
	if err != nil || id.Node() != "isle9" || id.Founder() {
		t.Fatalf("killed at step %d: %+v %v", when, id, err)
	}
	in, err := store.Get[*api.Instance](t.Context(), w.mem, api.Ref{Kind: api.KindInstance, Tenant: "acme/shop", Name: "web"})
	if err != nil || in.Status.Node != "isle9" {
		t.Fatalf("killed at step %d: %+v %v", when, in, err)
	}
	if w.tenant != "acme/shop" || w.volumes != "acme/shop" || !slices.Contains(w.attached, "acme/shop/web 10.88.0.2") {
		t.Errorf("killed at step %d: %q %q %q", when, w.tenant, w.volumes, w.attached)
	}
	is, err := w.host.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer is.Close()
	for _, ref := range []string{"tool:1", "own:1"} {
		if info, err := is.Resolve(t.Context(), "acme/shop", ref); err != nil || info.Scope != "acme/shop" {
			t.Errorf("killed at step %d: image %s: %+v %v", when, ref, info, err)
		}
	}
	if err := join.Blocked(w.host.State); err != nil {
		t.Errorf("killed at step %d: %v", when, err)
	}
	f, err := os.Open(filepath.Join(w.host.State, "before-join.atoll"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	back := store.NewMem()
	if n, err := store.Load(t.Context(), back, f, store.LoadOptions{}); err != nil || n != 6 {
		t.Errorf("killed at step %d: the backup has %d objects: %v", when, n, err)
	}
}

// The command is ended at each of its steps in turn, and then repeated.
func TestEndedAnywhere(t *testing.T) {
	for at := 1; ; at++ {
		w := newWorld(t)
		w.fail = at
		err := w.run(adopt.Options{})
		if err == nil {
			if at < 12 {
				t.Errorf("only %d steps were looked at", at-1)
			}
			w.fail = 0
			w.arrived(at)
			if err := w.run(adopt.Options{}); err != nil {
				t.Errorf("again: %v", err)
			}
			break
		}
		taken := false
		if _, err := w.mem.Get(t.Context(), api.Ref{Kind: api.KindNode, Name: "isle9"}); err == nil {
			taken = true
		}
		if blocked := join.Blocked(w.host.State); taken && blocked == nil {
			t.Fatalf("killed at step %d: both pools have it, and the old one may go on", at)
		}
		w.fail = 0
		if err := w.run(adopt.Options{}); err != nil {
			t.Fatalf("killed at step %d, then: %v (%s)", at, err, errs.HintOf(err))
		}
		w.arrived(at)
	}
}

// Nothing changes by a dry run, or when something is in the way.
func TestNothingChanges(t *testing.T) {
	w := newWorld(t)
	look := func() (out []string) {
		err := filepath.WalkDir(w.host.State, func(p string, d os.DirEntry, err error) error {
			if !strings.Contains(p, "/etcd/") && !strings.Contains(p, "/images/tmp") {
				out = append(out, p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	_, rev, err := w.mem.List(t.Context(), api.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	before := look()
	if err := w.run(adopt.Options{DryRun: true, Output: "json"}); err != nil {
		t.Fatal(err)
	}
	w.host.Subnet = "10.77.0.0/16"
	if err := w.run(adopt.Options{}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Fatal(err)
	}
	_, now, err := w.mem.List(t.Context(), api.Selector{})
	if after := look(); err != nil || now != rev || !slices.Equal(before, after) || w.tenant != "shop" || w.volumes != "shop" || len(w.attached) > 0 {
		t.Fatalf("%d %d %v\n%v\n%v", rev, now, err, before, after)
	}
}

// A host that was asked for and not taken, as something is in the way by now, is its own
// pool's again.
func TestGoesBack(t *testing.T) {
	w := newWorld(t)
	m, err := join.NewMove(w.host.State, "acme", "isle9")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Save(w.host.State); err != nil {
		t.Fatal(err)
	}
	w.host.Subnet = "10.77.0.0/16"
	if err := w.run(adopt.Options{DryRun: true}); !errors.Is(err, errs.Conflict) || join.Blocked(w.host.State) == nil {
		t.Fatal("a dry run changed something", err)
	}
	if err := w.run(adopt.Options{}); !errors.Is(err, errs.Conflict) || join.Blocked(w.host.State) != nil {
		t.Fatal(err)
	}
	// No pool at all.
	w.host.State = t.TempDir()
	if err := w.run(adopt.Options{}); !errors.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}

// The host may be called otherwise in its new pool.
func TestAnotherName(t *testing.T) {
	w := newWorld(t)
	w.host.Node, w.host.Named = "isle7", true
	if err := w.run(adopt.Options{}); err != nil {
		t.Fatal(err)
	}
	id, err := join.Load(w.host.State, w.host.Deps)
	if err != nil || id.Node() != "isle7" {
		t.Fatalf("%+v %v", id, err)
	}
	as, err := store.Get[*api.Assignment](t.Context(), w.mem, api.Ref{Kind: api.KindAssignment, Tenant: "acme/shop", Name: "web"})
	if err != nil || as.Spec.Node != "isle7" {
		t.Fatalf("%+v %v", as, err)
	}
	if _, err := w.mem.Get(t.Context(), api.Ref{Kind: api.KindNode, Name: "isle9"}); !errors.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}
