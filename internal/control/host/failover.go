package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Failover has what was on a lost host started elsewhere, by priority. A host is lost
// when its lease has ended: then its agent can write nothing any more, and Failover
// speaks for it: it writes that an instance has been stopped, and asks for a new place
// in the same commit. What must not run twice waits for a proof that it does not run:
// the host stops it by itself before its lease ends, or was switched off, or somebody
// says that it is off. What has its data on the host stays its, and is shown as unknown.
type Failover struct {
	FailoverDeps
	lost    map[string]bool  // nodes whose lease has ended
	classes map[string]int64 // priorities by class
	normal  int64
}

// FailoverDeps is what it is built from.
type FailoverDeps struct {
	Clock clock.Clock
	Log   *slog.Logger
	// Off switches a host off by its management controller and returns when it is off
	// for certain; nil: that cannot be done here.
	Off func(ctx context.Context, n *api.Node) error
	// Tell is told what happens to instances, for people; nil: nobody is.
	Tell Teller
}

const (
	// offPatience bounds one attempt to switch a host off; it is tried again.
	offPatience = 30 * time.Second
	offAgain    = 10 * time.Second
)

// NewFailover makes the controller.
func NewFailover(d FailoverDeps) *Failover {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Failover{FailoverDeps: d, lost: map[string]bool{}, classes: map[string]int64{}}
}

// Name is "failover".
func (f *Failover) Name() string { return "failover" }

// Watches leases first: what is lost decides about all the rest.
func (f *Failover) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindPriorityClass}, {Kind: api.KindLease}, {Kind: api.KindNode}, {Kind: api.KindAssignment}, {Kind: api.KindInstance}}
}

// Owns what the agent of a lost host would have written, the wish for a new place, and the proof in the lease.
func (f *Failover) Owns() []api.Kind {
	return []api.Kind{api.KindAssignment, api.KindInstance, api.KindLease}
}

// Key makes an instance and its assignment one name, and a node and its lease.
func (f *Failover) Key(ref api.Ref) api.Ref {
	switch ref.Kind {
	case api.KindAssignment:
		ref.Kind = api.KindInstance
	case api.KindNode:
		return api.NodeLease(ref.Name)
	}
	return ref
}

// Reconcile looks at one host, or at one instance of a lost one.
func (f *Failover) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	switch ref.Kind {
	case api.KindPriorityClass:
		return reconcile.Result{}, f.class(ctx, s, ref)
	case api.KindLease:
		if ref.Name == api.LeaseLeader {
			return reconcile.Result{}, nil
		}
		return f.host(ctx, s, ref)
	}
	if len(f.lost) == 0 {
		return reconcile.Result{}, nil
	}
	as, err := lookup[*api.Assignment](ctx, s, api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name})
	if err != nil || as == nil || !f.lost[as.Spec.Node] {
		return reconcile.Result{}, err
	}
	lease, err := lookup[*api.Lease](ctx, s, api.NodeLease(as.Spec.Node))
	if err != nil || lease == nil || lease.Spec.State != api.LeaseExpired {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, f.instance(ctx, s, lease, as)
}

// lookup is store.Get with nil for what is not there.
func lookup[T api.Object](ctx context.Context, s store.Store, ref api.Ref) (T, error) {
	o, err := store.Get[T](ctx, s, ref)
	var none T
	if errors.Is(err, errs.NotFound) {
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("read %s: %w", ref, err)
	}
	return o, nil
}

func (f *Failover) class(ctx context.Context, s store.Store, ref api.Ref) error {
	c, err := lookup[*api.PriorityClass](ctx, s, ref)
	if err != nil {
		return err
	}
	delete(f.classes, ref.Name)
	if c != nil {
		f.classes[ref.Name] = c.Spec.Value
		if c.Spec.Default {
			f.normal = c.Spec.Value
		}
	}
	return nil
}

// host follows a lease. When it has ended, everything on its host is looked at, the most important first.
func (f *Failover) host(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	lease, err := lookup[*api.Lease](ctx, s, ref)
	if err != nil {
		return reconcile.Result{}, err
	}
	if lease == nil || lease.Spec.State != api.LeaseExpired {
		if lease != nil {
			delete(f.lost, lease.Spec.Holder)
		}
		return reconcile.Result{}, nil
	}
	f.lost[lease.Spec.Holder] = true
	lease, res, err := f.prove(ctx, s, lease)
	if err != nil {
		return res, err
	}
	list, err := f.ranked(ctx, s, lease.Spec.Holder)
	if err != nil {
		return res, err
	}
	for _, r := range list {
		if err := f.decide(ctx, s, lease, r.in, r.as); err != nil {
			return res, err
		}
	}
	return res, nil
}

// prove writes down how it is known that the host runs nothing that must not run twice,
// once it is.
func (f *Failover) prove(ctx context.Context, s store.Store, lease *api.Lease) (*api.Lease, reconcile.Result, error) {
	if lease.Spec.Proof != nil {
		return lease, reconcile.Result{}, nil
	}
	node, err := lookup[*api.Node](ctx, s, api.Ref{Kind: api.KindNode, Name: lease.Spec.Holder})
	if err != nil {
		return lease, reconcile.Result{}, err
	}
	var res reconcile.Result
	now := f.Clock.Now().UTC()
	proof := &api.FenceProof{At: now}
	switch {
	case node == nil: // nobody knows what kind of host it was: only its removal, with somebody's word, helps
		return lease, res, nil
	case node.Annotations[api.AnnotationOff] == strconv.FormatInt(lease.Spec.Epoch, 10):
		proof.By, proof.Message = "operator", "somebody said that it is off"
	case lease.Stopped(node):
		proof.By, proof.Message = "lease", "its own watchdog stops it before the lease ends"
	case node.Spec.BMC != nil && f.Off != nil:
		off, cancel := context.WithTimeout(ctx, offPatience)
		err := f.Off(off, node)
		cancel()
		if err != nil {
			f.Log.Warn("a lost host cannot be switched off; trying again", "node", node.Name, "error", err)
			return lease, reconcile.Result{Again: offAgain}, nil
		}
		proof.By, proof.At, proof.Message = "bmc", f.Clock.Now().UTC(), "its management controller switched it off"
	default:
		return lease, res, nil
	}
	next := api.Clone(lease)
	next.Spec.Proof = proof
	rev, err := s.Commit(ctx, store.Update(next))
	if err != nil {
		return lease, res, fmt.Errorf("note that %s is fenced: %w", lease.Spec.Holder, err)
	}
	next.Revision = rev
	return next, res, nil
}

// ranked is an instance of a lost host.
type ranked struct {
	in   *api.Instance
	as   *api.Assignment
	rank int64
}

// ranked lists what was on a host: by priority, the guaranteed before the others.
func (f *Failover) ranked(ctx context.Context, s store.Store, node string) ([]ranked, error) {
	list, _, err := store.List[*api.Assignment](ctx, s, api.Selector{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": node}})
	if err != nil {
		return nil, fmt.Errorf("list what was on %s: %w", node, err)
	}
	var out []ranked
	for _, as := range list {
		in, err := lookup[*api.Instance](ctx, s, api.Ref{Kind: api.KindInstance, Tenant: as.Tenant, Name: as.Name})
		if err != nil {
			return nil, err
		}
		if in != nil && in.UID == as.Spec.InstanceUID {
			out = append(out, ranked{in, as, f.rank(&in.Spec)})
		}
	}
	class := map[api.Class]int{api.ClassGuaranteed: 0, api.ClassBurstable: 1, api.ClassBestEffort: 2}
	slices.SortFunc(out, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(class[a.in.Spec.Class()], class[b.in.Spec.Class()]),
			cmp.Compare(api.SortKey(api.RefOf(a.in)), api.SortKey(api.RefOf(b.in))))
	})
	return out, nil
}

func (f *Failover) rank(spec *api.InstanceSpec) int64 {
	if v, ok := f.classes[spec.Priority]; ok {
		return v
	}
	return f.normal
}

func (f *Failover) instance(ctx context.Context, s store.Store, lease *api.Lease, as *api.Assignment) error {
	in, err := lookup[*api.Instance](ctx, s, api.Ref{Kind: api.KindInstance, Tenant: as.Tenant, Name: as.Name})
	if err != nil || in == nil || in.UID != as.Spec.InstanceUID {
		return err
	}
	return f.decide(ctx, s, lease, in, as)
}

// decide does for one instance what its agent cannot do any more.
func (f *Failover) decide(ctx context.Context, s store.Store, lease *api.Lease, in *api.Instance, as *api.Assignment) error {
	ops := f.next(lease, in, as)
	if len(ops) == 0 {
		return nil
	}
	// The lease is checked: when the host has come back meanwhile, it speaks for itself.
	ops = append(ops, store.Expect(api.RefOf(lease), lease.Revision))
	switch _, err := s.Commit(ctx, ops...); {
	case errors.Is(err, errs.NotFound): // it is gone
	case err != nil:
		return fmt.Errorf("%s on the lost host %s: %w", api.RefOf(in), lease.Spec.Holder, err)
	default:
		if now, ok := ops[0].Object.(*api.Instance); ok && now.Status.Message != in.Status.Message {
			f.Tell.of(in, "warning", api.ReasonHostLost, now.Status.Message)
		}
	}
	return nil
}

// next is the decision about one instance. It is pure but for the clock.
func (f *Failover) next(lease *api.Lease, in *api.Instance, as *api.Assignment) []store.Op {
	now := f.Clock.Now().UTC()
	host := lease.Spec.Holder
	st := in.Status
	over := (st.State == api.StateStopped || st.State == api.StateFailed) && st.Reason != api.ReasonEvicted &&
		in.Spec.Restarts == st.RestartsIn && !in.Spec.Stopped && st.Node == host
	switch free := lease.Spec.Proof != nil || !in.Spec.RunsOnce(); {
	case in.DeletedAt != nil && free, in.Spec.AutoRm && free:
		return []store.Op{store.Remove(api.RefOf(in), in.Revision), store.Remove(api.RefOf(as), as.Revision)}
	case as.Spec.Evict != nil && as.Spec.Evict.Lost, over:
		return nil // placement does the rest; or nothing of it would run again
	case in.Spec.Local():
		return f.status(in, api.StateUnknown, "its host "+host+" is lost, and its volumes with it: it waits for the host to come back; 'atoll node remove "+host+" --force' gives it up")
	case !free:
		return f.status(in, api.StateUnknown, "its host "+host+" is lost, and nothing proves that it does not run there: switch the host off, then say so: atoll node confirm-off "+host)
	case in.Spec.RestartPolicy() == "never" && st.State != "" && st.Starts > 0:
		ops := f.status(in, api.StateFailed, "its host "+host+" was lost, and spec.restart is never")
		if len(ops) > 0 {
			ops[0].Object.(*api.Instance).Status.FinishedAt = &now
		}
		return ops
	}
	next, asked := api.Clone(in), api.Clone(as)
	next.Status.Node, next.Status.Assigned, next.Status.Pid, next.Status.NextStart, next.Status.Healthy = host, as.Spec.Generation, 0, nil, nil
	next.Status.FinishedAt = &now
	if !in.Spec.Stopped {
		next.Status.State, next.Status.Reason, next.Status.Message = api.StateStopped, api.ReasonEvicted, "its host "+host+" was lost"
	}
	asked.Spec.Evict = &api.Eviction{At: now, Reason: "its host " + host + " was lost", Lost: true}
	return []store.Op{store.Update(next), store.Update(asked)}
}

// status is the op that shows a state, or none when it is shown already.
func (f *Failover) status(in *api.Instance, state api.State, msg string) []store.Op {
	if in.Status.State == state && in.Status.Message == msg {
		return nil
	}
	next := api.Clone(in)
	next.Status.State, next.Status.Reason, next.Status.Message, next.Status.Healthy, next.Status.Pid = state, api.ReasonHostLost, msg, nil, 0
	return []store.Op{store.Update(next)}
}
