package conn

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/url"
	"time"

	"atoll/api"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/tunnel"
)

const maxCA = 1 << 20

// Dial is the Dial of the real program: the API over the socket or the network.
func Dial(s Settings) (Client, error) {
	cfg := remote.Config{Token: s.Token, Agent: s.UserAgent}
	w := &wire{}
	if s.Server == "" {
		cfg.Socket = s.Socket
	} else {
		w.path, w.known = s.Memory, recall(s.Memory, s.Server)
		if cfg.Endpoints = w.known.Servers; len(cfg.Endpoints) == 0 {
			cfg.URL = s.Server // which says what is wrong with it
		}
		if s.CAFile != "" {
			ca, err := parse.ReadFile(s.CAFile, maxCA)
			if err != nil {
				return nil, errs.New(errs.Invalid, "read certificate authority: %w", err).WithHint("--ca-file FILE, or ATOLL_CA_FILE")
			}
			cfg.CA = ca
		}
	}
	var err error
	if w.Store, err = remote.New(cfg); err != nil {
		return nil, err
	}
	if s.Trace != nil {
		return &tracer{Client: w, trace: s.Trace, clock: clock.Real{}}, nil
	}
	return w, nil
}

// wire is a Client that speaks to a server.
type wire struct {
	*remote.Store
	path  string // of the memory
	known memory
}

// Create makes one object. Where there are several servers it has a key, so that it
// can be sent to the next when one does not answer; but for a token: its secret is told
// by the first answer only.
func (s *wire) Create(ctx context.Context, o api.Object) (api.Object, error) {
	key := ""
	if o.ObjectKind() != api.KindToken && len(s.Endpoints()) > 1 {
		key = rand.Text()
	}
	return s.Store.Create(ctx, o, key)
}

// Delete asks for removal.
func (s *wire) Delete(ctx context.Context, ref api.Ref, rev int64) error {
	_, err := s.Store.Delete(ctx, ref, max(rev, 0))
	return err
}

// DryRun lets the server judge a commit.
func (s *wire) DryRun(ctx context.Context, ops ...store.Op) error {
	_, _, err := s.Apply(ctx, true, ops...)
	return err
}

// Stream opens a live stream.
func (s *wire) Stream(ctx context.Context, r StreamRequest) (Stream, error) {
	if r.Verb == tunnel.VerbImage {
		req, ok := r.Params.(api.ImageRequest)
		if !ok {
			return nil, errs.New(errs.Internal, "image stream with %T", r.Params)
		}
		c, err := s.ImageStream(ctx, req, r.Node)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	c, err := s.InstanceStream(ctx, r.Instance, r.Verb, r.Params)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// FollowFlows opens a stream of flows.
func (s *wire) FollowFlows(ctx context.Context, q url.Values) (Stream, error) {
	c, err := s.NetFlows(ctx, q)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// WhoAmI asks who the server takes the caller for.
func (s *wire) WhoAmI(ctx context.Context) (Identity, error) {
	w, err := s.Store.WhoAmI(ctx)
	id := Identity{User: cmp.Or(w.User, w.Node), Admin: w.Admin}
	for _, b := range w.Bindings {
		if b.Tenant != "" {
			id.Tenants = append(id.Tenants, b.Tenant)
		}
	}
	return id, err
}

// ServerVersion asks for the server's version.
func (s *wire) ServerVersion(ctx context.Context) (string, error) {
	v, err := s.Store.Version(ctx)
	return v.Version, err
}

// Backup reads the whole state.
func (s *wire) Backup(ctx context.Context, w io.Writer) error {
	_, err := s.Store.Backup(ctx, w)
	return err
}

// Restore replaces the whole state.
func (s *wire) Restore(ctx context.Context, r io.Reader) error {
	_, err := s.Store.Restore(ctx, r)
	return err
}

// Close gives the connections back.
func (s *wire) Close() error {
	s.remember()
	s.Store.Close()
	return nil
}

// Located is a Client that knows the addresses of its servers.
type Located interface {
	Endpoints() []string // the one that is asked in front
}

// tracer tells of every request what it was about and how long it took, and
// never what it carried: that may be a secret.
type tracer struct {
	Client
	trace func(string)
	clock clock.Clock
}

// Endpoints are those of the client below.
func (t *tracer) Endpoints() []string {
	if l, ok := t.Client.(Located); ok {
		return l.Endpoints()
	}
	return nil
}

func (t *tracer) tell(start time.Time, what, about string, err error) {
	result := "ok"
	if err != nil {
		result = string(errs.KindOf(err))
	}
	t.trace(fmt.Sprintf("> %s %s  %s  %s", what, about, result, t.clock.Now().Sub(start).Round(10*time.Microsecond)))
}

// Get tells of a read.
func (t *tracer) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	start := t.clock.Now()
	o, err := t.Client.Get(ctx, ref)
	t.tell(start, "get", ref.String(), err)
	return o, err
}

// List tells of a list.
func (t *tracer) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	start := t.clock.Now()
	objs, rev, err := t.Client.List(ctx, sel)
	t.tell(start, "list", about(sel), err)
	return objs, rev, err
}

func about(sel api.Selector) string {
	return fmt.Sprintf("%s tenant=%s name=%s", sel.Kind, render.Dash(sel.Tenant), render.Dash(sel.Name))
}

// Commit tells of a transaction.
func (t *tracer) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	start := t.clock.Now()
	rev, err := t.Client.Commit(ctx, ops...)
	what := render.Plural(len(ops), "change")
	if len(ops) > 0 {
		what += ", first " + ops[0].Target().String()
	}
	t.tell(start, "commit", what, err)
	return rev, err
}

// Watch tells of a watch when it ends.
func (t *tracer) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	start := t.clock.Now()
	t.trace(fmt.Sprintf("> watch %s from revision %d", about(sel), rev))
	err := t.Client.Watch(ctx, sel, rev, fn)
	t.tell(start, "watch", about(sel)+" ended", nil)
	return err
}

// Create tells of a creation.
func (t *tracer) Create(ctx context.Context, o api.Object) (api.Object, error) {
	start := t.clock.Now()
	made, err := t.Client.Create(ctx, o)
	t.tell(start, "create", api.RefOf(o).String(), err)
	return made, err
}

// Delete tells of a removal.
func (t *tracer) Delete(ctx context.Context, ref api.Ref, rev int64) error {
	start := t.clock.Now()
	err := t.Client.Delete(ctx, ref, rev)
	t.tell(start, "delete", ref.String(), err)
	return err
}

// Stream tells of a stream when it opens.
func (t *tracer) Stream(ctx context.Context, r StreamRequest) (Stream, error) {
	start := t.clock.Now()
	s, err := t.Client.Stream(ctx, r)
	t.tell(start, "stream", r.Verb+" "+r.Instance.String(), err)
	return s, err
}

// Usage tells of a look at what is used.
func (t *tracer) Usage(ctx context.Context, tenant string) (api.UsageReport, error) {
	start := t.clock.Now()
	rep, err := t.Client.Usage(ctx, tenant)
	t.tell(start, "usage", render.Dash(tenant), err)
	return rep, err
}

// Net tells of a question about traffic.
func (t *tracer) Net(ctx context.Context, question string, q url.Values, out any) error {
	start := t.clock.Now()
	err := t.Client.Net(ctx, question, q, out)
	t.tell(start, "net", question, err)
	return err
}

// Plan tells of a question.
func (t *tracer) Plan(ctx context.Context, tenant string, req api.PlanRequest) (api.PlanAnswer, error) {
	start := t.clock.Now()
	a, err := t.Client.Plan(ctx, tenant, req)
	t.tell(start, "plan", render.Dash(a.Question), err)
	return a, err
}

// Power tells of a switch.
func (t *tracer) Power(ctx context.Context, node string, req api.PowerRequest) (api.PowerAnswer, error) {
	start := t.clock.Now()
	a, err := t.Client.Power(ctx, node, req)
	t.tell(start, "power", req.State+" "+node, err)
	return a, err
}

// DryRun tells of a rehearsal, where the client can do one.
func (t *tracer) DryRun(ctx context.Context, ops ...store.Op) error {
	d, ok := t.Client.(DryRunner)
	if !ok {
		return nil
	}
	start := t.clock.Now()
	err := d.DryRun(ctx, ops...)
	t.tell(start, "dry run", render.Plural(len(ops), "change"), err)
	return err
}
