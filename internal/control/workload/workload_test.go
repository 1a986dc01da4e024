package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
	"atoll/internal/store/quota"
)

var ctx = context.Background()

// world is the real engine and controllers with admission, on a store in memory, a clock
// that stands still, and nodes that start and remove what they are given.
type world struct {
	t   *testing.T
	mem *store.Mem
	s   store.Store
	clk *clock.Manual
	eng *reconcile.Engine
	// stuck are images that never run; sick ones run, and are not healthy.
	stuck, sick map[string]bool
	down        bool // the nodes do nothing
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, mem: store.NewMem(), clk: clock.NewManual(t0), stuck: map[string]bool{}, sick: map[string]bool{}}
	q := quota.New(w.mem)
	q.Clock = w.clk
	w.s = q
	w.restart()
	for _, n := range []string{"n1", "n2", "n3"} {
		w.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: n, Labels: map[string]string{"n": n}}}, Status: api.NodeStatus{
			Allocatable: api.Resources{api.CPU: 8000, api.Memory: 64 << 30}, Conditions: []api.Condition{{Type: "Ready", Status: true}}}})
	}
	w.put(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "t"}}})
	return w
}

// restart is another leader: it knows only what is in the store.
func (w *world) restart() {
	w.eng = reconcile.New(w.s, w.clk, slog.New(slog.DiscardHandler), reconcile.Events{})
	for _, c := range All(w.clk) {
		w.eng.Add(c, 1)
	}
}

func (w *world) put(o api.Object) {
	w.t.Helper()
	if err := api.Check(o); err != nil {
		w.t.Fatal(err)
	}
	d, _ := api.Lookup(string(o.ObjectKind()))
	m := o.Metadata()
	now := w.clk.Now()
	m.UID, m.CreatedAt, m.Finalizers, m.Generation = fmt.Sprintf("uid-%s-%d", m.Name, w.mem.Revision()), &now, d.Finalizers, 1
	if _, err := w.s.Commit(ctx, store.Create(o)); err != nil {
		w.t.Fatal(err)
	}
}

func get[T api.Object](w *world, kind api.Kind, name string) T {
	w.t.Helper()
	o, err := store.Get[T](ctx, w.s, api.Ref{Kind: kind, Tenant: "t", Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) gone(kind api.Kind, name string) bool {
	_, err := w.s.Get(ctx, api.Ref{Kind: kind, Tenant: "t", Name: name})
	return errors.Is(err, errs.NotFound)
}

// edit changes a spec as the server does.
func edit[T api.Object](w *world, kind api.Kind, name string, fn func(T)) {
	w.t.Helper()
	n := api.Clone(get[T](w, kind, name))
	fn(n)
	n.Metadata().Generation++
	if err := api.Check(n); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.s.Commit(ctx, store.Update(n)); err != nil {
		w.t.Fatal(err)
	}
}

func del[T api.Object](w *world, kind api.Kind, name string) {
	edit(w, kind, name, func(o T) { now := w.clk.Now(); o.Metadata().DeletedAt = &now })
}

func (w *world) instances() []*api.Instance {
	w.t.Helper()
	list, _, err := store.List[*api.Instance](ctx, w.s, api.Selector{Kind: api.KindInstance})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// settle lets controllers and nodes work until both have nothing to do.
func (w *world) settle() {
	w.t.Helper()
	for range 200 {
		if _, err := w.eng.Settle(ctx, w.mem, 10_000); err != nil {
			w.t.Fatal(err)
		}
		if !w.turn() {
			return
		}
	}
	w.t.Fatal("does not settle")
}

// pass lets time pass, in steps.
func (w *world) pass(d, step time.Duration) {
	w.t.Helper()
	for ; d > 0; d -= step {
		w.clk.Advance(min(d, step))
		w.settle()
	}
}

// turn is one look of all nodes.
func (w *world) turn() (busy bool) {
	if w.down {
		return false
	}
	now := w.clk.Now()
	for _, in := range w.instances() {
		n := api.Clone(in)
		st := &n.Status
		switch {
		case in.DeletedAt != nil:
			if _, err := w.s.Commit(ctx, store.Remove(api.RefOf(in), in.Revision)); err != nil {
				w.t.Fatal(err)
			}
			busy = true
			continue
		case in.Spec.Stopped && st.State != api.StateStopped:
			st.State, st.Reason = api.StateStopped, "Stopped"
		case st.State == "" && !in.Spec.Stopped && !w.stuck[in.Spec.Image]:
			st.State, st.StartedAt, st.Starts = api.StateRunning, &now, 1
			if in.Spec.Health != nil {
				ok := !w.sick[in.Spec.Image]
				st.Healthy = &ok
			}
		default:
			continue
		}
		busy = true
		if _, err := w.s.Commit(ctx, store.Update(n)); err != nil {
			w.t.Fatal(err)
		}
	}
	return busy
}

// finish ends an instance.
func (w *world) finish(name string, code int) {
	w.t.Helper()
	n := api.Clone(get[*api.Instance](w, api.KindInstance, name))
	now := w.clk.Now()
	n.Status.State, n.Status.ExitCode, n.Status.FinishedAt = api.StateStopped, &code, &now
	if code != 0 {
		n.Status.State = api.StateFailed
	}
	if _, err := w.s.Commit(ctx, store.Update(n)); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
}

// census says how many living instances there are of each image.
func (w *world) census() string {
	count := map[string]int{}
	for _, in := range w.instances() {
		if in.DeletedAt == nil {
			count[in.Spec.Image]++
		}
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(count)) {
		out = append(out, fmt.Sprintf("%s:%d", k, count[k]))
	}
	return strings.Join(out, " ")
}

func (w *world) want(what, got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Fatalf("%s: %s, want %s", what, got, want)
	}
}

func web(replicas int, fn func(*api.Deployment)) *api.Deployment {
	d := &api.Deployment{Head: api.Head{K: api.KindDeployment, Meta: api.Meta{Name: "web", Tenant: "t"}}, Spec: api.DeploymentSpec{
		Replicas: &replicas, Template: api.Template{Labels: map[string]string{"app": "web"}, Spec: api.InstanceSpec{Image: "v1"}}}}
	if fn != nil {
		fn(d)
	}
	return d
}

func (w *world) web() *api.Deployment { return get[*api.Deployment](w, api.KindDeployment, "web") }

func (w *world) change(fn func(*api.Deployment)) {
	w.t.Helper()
	edit(w, api.KindDeployment, "web", fn)
	w.settle()
}

func image(v string) func(*api.Deployment) {
	return func(d *api.Deployment) { d.Spec.Template.Spec.Image = v }
}

func reason(d *api.Deployment, typ string) string {
	if c := api.FindCondition(d.Status.Conditions, typ); c != nil {
		return fmt.Sprint(c.Status, " ", c.Reason)
	}
	return "-"
}

func TestADeploymentFromItsCreationToItsEnd(t *testing.T) {
	w := newWorld(t)
	w.put(web(4, nil))
	w.settle()
	d := w.web()
	w.want("made", w.census(), "v1:4")
	if !d.RolledOut() || d.Status.Revision != 1 || reason(d, "Available") != "true Enough" || reason(d, "Progressing") != "true RolledOut" {
		t.Fatalf("status %+v", d.Status)
	}
	in := w.instances()[0]
	if in.Owner == nil || *in.Owner != api.RefOf(d) || in.Labels["app"] != "web" || in.Labels[api.LabelHash] != d.Status.Hash || len(in.Finalizers) != 1 || len(in.UID) != 32 || !in.Spec.Queue {
		t.Fatalf("an instance: %+v", in)
	}
	if s := in.Spec.Placement.Spread; len(s) != 1 || s[0] != (api.SpreadTerm{Topology: "host"}) {
		t.Fatalf("spread %+v", s)
	}
	if b := get[*api.DisruptionBudget](w, api.KindDisruptionBudget, "web"); *b.Spec.MaxUnavailable != 1 || b.Spec.Labels[api.LabelDeployment] != "web" {
		t.Fatalf("budget %+v", b.Spec)
	}

	w.change(image("v2"))
	w.want("updated", w.census(), "v2:4")
	w.change(func(d *api.Deployment) { n := 6; d.Spec.Replicas = &n })
	w.want("scaled", w.census(), "v2:6")
	if d = w.web(); d.Status.Revision != 2 || !d.RolledOut() {
		t.Fatalf("status %+v", d.Status)
	}
	rev := w.mem.Revision()
	w.pass(time.Hour, 10*time.Minute)
	if now := w.mem.Revision(); now != rev {
		t.Fatalf("%d commits in an hour of rest", now-rev)
	}

	del[*api.Instance](w, api.KindInstance, w.instances()[2].Name)
	w.settle()
	w.want("one was removed by hand", w.census(), "v2:6")

	w.down = true
	del[*api.Deployment](w, api.KindDeployment, "web")
	w.settle()
	if w.gone(api.KindDeployment, "web") || len(w.instances()) != 6 {
		t.Fatal("it went before its instances")
	}
	w.down = false
	w.settle()
	for _, k := range []api.Kind{api.KindDeployment, api.KindDisruptionBudget, api.KindInstance, api.KindRevision} {
		if list, _, err := w.s.List(ctx, api.Selector{Kind: k}); err != nil || len(list) > 0 {
			t.Errorf("%d of %s are left, %v", len(list), k, err)
		}
	}
}

func TestARevisionThatNeverWorksIsStopped(t *testing.T) {
	w := newWorld(t)
	w.stuck["bad"] = true
	w.put(web(4, nil))
	w.settle()
	w.change(image("bad"))
	w.want("goes no further than it may", w.census(), "bad:2 v1:3")
	w.pass(9*time.Minute, time.Minute)
	w.want("still on its way", reason(w.web(), "Progressing"), "true Rolling")
	w.pass(2*time.Minute, time.Minute)
	w.want("stuck", reason(w.web(), "Progressing"), "false ProgressDeadlineExceeded")
	w.want("stuck", w.census(), "bad:2 v1:3")
	w.want("but available", reason(w.web(), "Available"), "true Enough")
	if m := w.web().Status.Message; !strings.Contains(m, "atoll rollout undo deployment/web") {
		t.Errorf("message %q", m)
	}
	w.restart()
	w.settle()
	w.want("another leader says the same", reason(w.web(), "Progressing"), "false ProgressDeadlineExceeded")
	for _, in := range w.instances() {
		if in.Spec.Image == "v1" {
			del[*api.Instance](w, api.KindInstance, in.Name)
			break
		}
	}
	w.settle()
	w.want("an old one that goes comes again", w.census(), "bad:2 v1:3")
	w.change(image("v1"))
	w.want("undone", w.census(), "v1:4")
	d := w.web()
	if d.Status.Revision != 3 || !d.RolledOut() {
		t.Fatalf("status %+v", d.Status)
	}
	revs, _, _ := w.s.List(ctx, api.Selector{Kind: api.KindRevision})
	if len(revs) != 2 {
		t.Errorf("%d revisions of two templates", len(revs))
	}
}

func TestHealthAndMinReadyGateARollout(t *testing.T) {
	w := newWorld(t)
	w.sick["v2"] = true
	w.put(web(2, func(d *api.Deployment) {
		d.Spec.Template.Spec.Health = &api.Health{TCP: "80"}
		d.Spec.MinReady = api.Duration(30 * time.Second)
	}))
	w.settle()
	w.want("not yet", fmt.Sprint(w.web().Status.Ready, w.web().Status.Available), "2 0")
	w.pass(29*time.Second, time.Second)
	w.want("not yet", fmt.Sprint(w.web().Status.Available), "0")
	w.pass(time.Second, time.Second)
	w.want("now", fmt.Sprint(w.web().Status.Available), "2")
	w.change(image("v2"))
	w.pass(time.Minute, 10*time.Second)
	w.want("unhealthy", w.census(), "v1:2 v2:1")
	w.restart()
	w.settle()
	w.want("a new leader keeps what was available", fmt.Sprint(w.web().Status.Available), "2")
	w.change(image("v3"))
	w.want("a healthy one, not for long enough", w.census(), "v1:2 v3:1")
	w.pass(2*time.Minute, 10*time.Second)
	w.want("healthy", w.census(), "v3:2")
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld(t)
	w.put(web(3, nil))
	w.settle()
	w.change(func(d *api.Deployment) { d.Spec.Paused = true; d.Spec.Template.Spec.Image = "v2" })
	w.pass(time.Hour, 10*time.Minute)
	w.want("paused", w.census(), "v1:3")
	w.want("paused", reason(w.web(), "Progressing"), "false Paused")
	w.change(func(d *api.Deployment) { n := 5; d.Spec.Replicas = &n })
	w.want("scaled while paused", w.census(), "v1:5")
	w.change(func(d *api.Deployment) { d.Spec.Paused = false })
	w.want("resumed", w.census(), "v2:5")
}

func TestOldRevisionsAreForgotten(t *testing.T) {
	w := newWorld(t)
	w.put(web(1, func(d *api.Deployment) { n := 2; d.Spec.Revisions = &n }))
	for i := range 6 {
		w.settle()
		w.change(image(fmt.Sprint("v", i)))
	}
	revs, _, err := store.List[*api.Revision](ctx, w.s, api.Selector{Kind: api.KindRevision})
	if err != nil || len(revs) != 3 {
		t.Fatalf("%d revisions are kept: the present one and two", len(revs))
	}
	for _, r := range revs {
		if r.Spec.Number < 5 {
			t.Errorf("revision %d is kept", r.Spec.Number)
		}
	}
}

func TestAQuotaIsSaidAndTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.put(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "small"}}, Spec: api.TenantSpec{Limit: api.Resources{api.Instances: 2}}})
	d := web(4, nil)
	d.Tenant = "small"
	w.put(d)
	w.settle()
	w.want("as many as may be", w.census(), "v1:2")
	read := func() *api.Deployment {
		d, err := store.Get[*api.Deployment](ctx, w.s, api.RefOf(d))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	w.want("refused", reason(read(), "Admitted"), "false Quota")
	if m := read().Status.Message; !strings.Contains(m, "the limit is 2") {
		t.Errorf("message %q", m)
	}
	rev := w.mem.Revision()
	w.pass(10*time.Minute, time.Second)
	if n := w.mem.Revision() - rev; n > 3 {
		t.Errorf("%d commits while nothing changes", n)
	}
	tn, err := store.Get[*api.Tenant](ctx, w.s, api.Ref{Kind: api.KindTenant, Name: "small"})
	if err != nil {
		t.Fatal(err)
	}
	tn = api.Clone(tn)
	tn.Spec.Limit[api.Instances] = 10
	if _, err := w.s.Commit(ctx, store.Update(tn)); err != nil {
		t.Fatal(err)
	}
	w.settle() // at once: no time has passed
	w.want("the limit was raised", w.census(), "v1:4")
	w.want("admitted", reason(read(), "Admitted"), "true Admitted")
}

func TestOneInstanceOnEveryNodeThatAdmitsIt(t *testing.T) {
	w := newWorld(t)
	w.put(web(1, func(d *api.Deployment) { d.Spec.PerNode = true; d.Spec.Replicas = nil }))
	w.settle()
	where := func() string {
		var out []string
		for _, in := range w.instances() {
			out = append(out, in.Spec.Placement.Node+"="+in.Spec.Image)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	w.want("everywhere", where(), "n1=v1 n2=v1 n3=v1")
	if !w.gone(api.KindDisruptionBudget, "web") {
		t.Error("a budget, though nothing of it can move")
	}
	node := func(name string, fn func(*api.Node)) {
		n, err := store.Get[*api.Node](ctx, w.s, api.Ref{Kind: api.KindNode, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		n = api.Clone(n)
		fn(n)
		if _, err := w.s.Commit(ctx, store.Update(n)); err != nil {
			t.Fatal(err)
		}
		w.settle()
	}
	node("n2", func(n *api.Node) { n.Spec.Taints = []api.Taint{{Key: "gpu", Effect: "NoExecute"}} })
	w.want("tainted", where(), "n1=v1 n3=v1")
	w.change(func(d *api.Deployment) {
		d.Spec.Template.Spec.Image = "v2"
		d.Spec.Template.Spec.Placement = &api.Placement{Tolerate: []api.Taint{{Key: "gpu"}}}
	})
	w.want("tolerated", where(), "n1=v2 n2=v2 n3=v2")
	w.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "n4"}}, Status: api.NodeStatus{Conditions: []api.Condition{{Type: "Ready", Status: true}}}})
	w.settle()
	w.want("a new node", where(), "n1=v2 n2=v2 n3=v2 n4=v2")
}

func TestWhatIsLeftIsAdopted(t *testing.T) {
	w := newWorld(t)
	w.put(web(3, nil))
	w.settle()
	names := func() (out []string) {
		for _, in := range w.instances() {
			out = append(out, in.Name+" "+in.UID)
		}
		return out
	}
	was := names()
	w.change(func(d *api.Deployment) { d.Annotations = map[string]string{api.AnnotationCascade: api.CascadeOrphan} })
	del[*api.Deployment](w, api.KindDeployment, "web")
	w.settle()
	if !w.gone(api.KindDeployment, "web") || !slices.Equal(names(), was) || w.instances()[0].Owner != nil {
		t.Fatalf("left: %v", names())
	}
	w.put(web(3, nil))
	w.settle()
	if !slices.Equal(names(), was) || w.instances()[0].Owner == nil {
		t.Fatalf("adopted: %v, was %v", names(), was)
	}
}

func TestABudgetFollowsAndYields(t *testing.T) {
	w := newWorld(t)
	own := &api.DisruptionBudget{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: "web", Tenant: "t"}}, Spec: api.DisruptionBudgetSpec{Labels: map[string]string{"app": "web"}, MinAvailable: 1}}
	w.put(own)
	w.put(web(8, nil))
	w.settle()
	b := func() *api.DisruptionBudget {
		return get[*api.DisruptionBudget](w, api.KindDisruptionBudget, "web")
	}
	if b().Spec.MinAvailable != 1 || b().Owner != nil {
		t.Fatal("a user's budget was changed")
	}
	if _, err := w.s.Commit(ctx, store.Remove(api.RefOf(own), store.Any)); err != nil {
		t.Fatal(err)
	}
	w.change(func(d *api.Deployment) { n := 9; d.Spec.Replicas = &n })
	w.want("a quarter", fmt.Sprint(*b().Spec.MaxUnavailable), "2")
	w.change(func(d *api.Deployment) { d.Spec.Budget = &api.HoldBudget{MinAvailable: 5} })
	w.want("as said", fmt.Sprint(b().Spec.MinAvailable, b().Spec.MaxUnavailable), "5 <nil>")
	if _, err := w.s.Commit(ctx, store.Remove(api.RefOf(own), store.Any)); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.want("made again", fmt.Sprint(b().Spec.MinAvailable), "5")
	w.change(func(d *api.Deployment) { d.Spec.Budget = &api.HoldBudget{None: true} })
	if !w.gone(api.KindDisruptionBudget, "web") {
		t.Error("a budget, though none is wanted")
	}
}

func task(fn func(*api.Job)) *api.Job {
	j := &api.Job{Head: api.Head{K: api.KindJob, Meta: api.Meta{Name: "sum", Tenant: "t"}}, Spec: api.JobSpec{Template: api.Template{Spec: api.InstanceSpec{Image: "x"}}}}
	if fn != nil {
		fn(j)
	}
	return j
}

func (w *world) job() string {
	j := get[*api.Job](w, api.KindJob, "sum")
	return fmt.Sprintf("%s active %d done %q failed %d", j.Finished(), j.Status.Active, j.Status.Done, j.Status.Failed)
}

func TestAJobRunsEveryIndexOnce(t *testing.T) {
	w := newWorld(t)
	w.put(task(func(j *api.Job) { j.Spec.Completions, j.Spec.Parallelism = 4, 2 }))
	w.settle()
	w.want("begun", w.job(), ` active 2 done "" failed 0`)
	in := get[*api.Instance](w, api.KindInstance, "sum-1")
	if e := in.Spec.Env; in.Spec.Restart != "never" || len(e) != 1 || e[0] != (api.EnvVar{Name: "ATOLL_JOB_INDEX", Value: "1"}) {
		t.Fatalf("instance %+v", in.Spec)
	}
	w.finish("sum-1", 0)
	w.want("one is done", w.job(), ` active 2 done "1" failed 0`)
	if in = get[*api.Instance](w, api.KindInstance, "sum-1"); !in.Spec.Stopped {
		t.Error("what ended keeps its share of the limit")
	}
	del[*api.Instance](w, api.KindInstance, "sum-1")
	w.settle()
	w.want("its removal undoes nothing", w.job(), ` active 2 done "1" failed 0`)
	w.finish("sum-0", 3)
	w.want("one failed", w.job(), ` active 2 done "1" failed 1`)
	w.finish("sum-2", 0)
	w.finish("sum-3", 0)
	w.want("the failed one waits", w.job(), ` active 0 done "1-3" failed 1`)
	w.pass(5*time.Second, time.Second)
	w.finish("sum-0-r1", 1)
	w.pass(9*time.Second, time.Second)
	w.want("it waits longer", w.job(), ` active 0 done "1-3" failed 2`)
	w.pass(time.Second, time.Second)
	w.restart()
	w.settle()
	w.finish("sum-0-r2", 0)
	w.want("all done", w.job(), `Complete active 0 done "0-3" failed 2`)
	rev := w.mem.Revision()
	w.pass(time.Hour, time.Minute)
	if w.mem.Revision() != rev {
		t.Error("a job that is over is written")
	}
	del[*api.Job](w, api.KindJob, "sum")
	w.settle()
	if !w.gone(api.KindJob, "sum") || len(w.instances()) > 0 {
		t.Error("something is left")
	}
}

func TestAJobGivesUp(t *testing.T) {
	w := newWorld(t)
	two := 2
	w.put(task(func(j *api.Job) { j.Spec.Completions, j.Spec.Parallelism, j.Spec.BackoffLimit = 3, 3, &two }))
	w.settle()
	w.finish("sum-0", 1)
	w.pass(5*time.Second, time.Second)
	w.finish("sum-0-r1", 1)
	w.pass(10*time.Second, time.Second)
	w.finish("sum-0-r2", 1)
	w.want("gave up", w.job(), `Failed active 0 done "" failed 3`)
	if in := get[*api.Instance](w, api.KindInstance, "sum-1"); !in.Spec.Stopped || in.DeletedAt != nil {
		t.Error("what still ran is to be stopped, and kept for its log")
	}
	j := get[*api.Job](w, api.KindJob, "sum")
	if c := api.FindCondition(j.Status.Conditions, "Failed"); c.Reason != api.ReasonBackoffLimit {
		t.Errorf("%+v", c)
	}
}

func TestAJobsDeadlineAndItsRemoval(t *testing.T) {
	w := newWorld(t)
	w.put(task(func(j *api.Job) {
		d, ttl := api.Duration(time.Minute), api.Duration(time.Hour)
		j.Spec.Deadline, j.Spec.TTL = &d, &ttl
	}))
	w.settle()
	w.pass(59*time.Second, time.Second)
	w.want("on its way", w.job(), ` active 1 done "" failed 0`)
	w.pass(time.Second, time.Second)
	w.want("too late", w.job(), `Failed active 0 done "" failed 0`)
	w.pass(59*time.Minute, time.Minute)
	if w.gone(api.KindJob, "sum") {
		t.Fatal("gone too early")
	}
	w.pass(time.Minute, time.Minute)
	if !w.gone(api.KindJob, "sum") || len(w.instances()) > 0 {
		t.Error("is still there")
	}
}

func nightly(fn func(*api.CronJob)) *api.CronJob {
	c := &api.CronJob{Head: api.Head{K: api.KindCronJob, Meta: api.Meta{Name: "night", Tenant: "t"}}, Spec: api.CronJobSpec{Schedule: "0 * * * *",
		Job: api.JobTemplate{Spec: api.JobSpec{Template: api.Template{Spec: api.InstanceSpec{Image: "x"}}}}}}
	if fn != nil {
		fn(c)
	}
	return c
}

func (w *world) jobs() string {
	list, _, err := store.List[*api.Job](ctx, w.s, api.Selector{Kind: api.KindJob})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, j := range list {
		out = append(out, j.CreatedAt.UTC().Format("15:04")+strings.TrimSuffix(" "+j.Finished(), " "))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// t0 is 13:46:40.
func TestACronJobRunsByTheClock(t *testing.T) {
	w := newWorld(t)
	w.put(nightly(nil))
	w.settle()
	w.want("not yet", w.jobs(), "")
	w.pass(14*time.Minute, time.Minute)
	w.want("at the hour", w.jobs(), "14:00")
	w.finish(w.instances()[0].Name, 0)
	w.want("done", w.jobs(), "14:00 Complete")
	c := get[*api.CronJob](w, api.KindCronJob, "night")
	if len(c.Status.Active) != 0 || c.Status.LastSucceeded == nil || c.Status.NextSchedule.Format("15:04") != "15:00" {
		t.Errorf("%+v", c.Status)
	}
	del[*api.CronJob](w, api.KindCronJob, "night")
	w.settle()
	if w.jobs() != "" || !w.gone(api.KindCronJob, "night") || len(w.instances()) > 0 {
		t.Error("something is left")
	}
}

func TestOneMissedRunIsMadeUpFor(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*api.CronJob)
		jobs   string
		missed int64
	}{
		"the latest only":      {nil, "19:15", 5},
		"within its deadline":  {func(c *api.CronJob) { d := api.Duration(20 * time.Minute); c.Spec.Starting = &d }, "19:15", 5},
		"later than that":      {func(c *api.CronJob) { d := api.Duration(10 * time.Minute); c.Spec.Starting = &d }, "", 6},
		"not what was between": {func(c *api.CronJob) { c.Spec.Suspended = true }, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.put(nightly(c.edit))
			w.settle()
			w.clk.Advance(5*time.Hour + 28*time.Minute + 20*time.Second) // 19:15:00
			w.restart()
			w.settle()
			w.want("after the outage", w.jobs(), c.jobs)
			if n := get[*api.CronJob](w, api.KindCronJob, "night").Status.Missed; n != c.missed {
				t.Errorf("%d missed, want %d", n, c.missed)
			}
			edit(w, api.KindCronJob, "night", func(c *api.CronJob) { c.Spec.Suspended = false })
			w.settle()
			w.want("nothing more", w.jobs(), c.jobs)
		})
	}
}

func TestConcurrencyOfACronJob(t *testing.T) {
	for policy, want := range map[string]string{"allow": "14:00, 15:00", "forbid": "14:00", "replace": "15:00"} {
		w := newWorld(t)
		w.put(nightly(func(c *api.CronJob) { c.Spec.Concurrency = policy }))
		w.settle()
		w.pass(80*time.Minute, time.Minute)
		w.want(policy, w.jobs(), want)
	}
}

func TestACronJobKeepsSomeOfItsPast(t *testing.T) {
	w := newWorld(t)
	w.put(nightly(nil))
	w.settle()
	for i := range 8 {
		w.pass(time.Hour, 20*time.Minute)
		for _, in := range w.instances() {
			if in.StateOf() == api.StateRunning {
				edit(w, api.KindJob, in.Labels[api.LabelJob], func(j *api.Job) { zero := 0; j.Spec.BackoffLimit = &zero })
				w.finish(in.Name, i%2)
			}
		}
	}
	w.want("three that were complete, one that failed", w.jobs(), "16:06 Complete, 18:06 Complete, 20:06 Complete, 21:06 Failed")
}
