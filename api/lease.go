package api

import (
	"fmt"
	"time"

	"atoll/internal/errs"
)

// KindLease is the right to act for now.
const KindLease Kind = "Lease"

// Lease says who may act: one for every node, one for the leader of the control
// plane. It changes only when the right changes hands or ends, never with a
// heartbeat; whoever holds it adds store.Expect(lease, revision) to every commit, so
// what a former holder still writes is refused. Only the control plane writes it.
type Lease struct {
	Head
	Spec LeaseSpec `json:"spec"`
}

// LeaseState is where a lease is in its life.
type LeaseState string

// held -> expired -> held again (a new epoch), or held -> released when the holder leaves in good order.
const (
	LeaseHeld     LeaseState = "held"
	LeaseExpired  LeaseState = "expired"
	LeaseReleased LeaseState = "released"
)

// LeaseSpec is who holds it, and how it came to be.
type LeaseSpec struct {
	Holder   string      `json:"holder" doc:"the node that holds it, or held it last"`
	Epoch    int64       `json:"epoch" doc:"grows every time it is taken; what an older epoch decided is void"`
	State    LeaseState  `json:"state" doc:"whether it is held" enum:"held|expired|released"`
	Since    time.Time   `json:"since" doc:"when it came into this state"`
	Duration Duration    `json:"duration,omitempty" doc:"how long it lasts without a heartbeat" example:"5s"`
	Losses   []time.Time `json:"losses,omitempty" doc:"when it expired, the latest last; at most 10"`
	Proof    *FenceProof `json:"proof,omitempty" doc:"how it is known that the holder runs nothing any more that must not run twice"`
}

// FenceProof is why instances of a lost node may be started elsewhere.
type FenceProof struct {
	By      string    `json:"by" doc:"lease: the host stopped by itself before the lease ended; bmc: it was switched off; operator: somebody said so" enum:"lease|bmc|operator"`
	At      time.Time `json:"at" doc:"since when"`
	Message string    `json:"message,omitempty" doc:"what was done, or who said so"`
}

// LeaseLeader is the name of the lease of the control plane's leader.
const LeaseLeader = "leader"

// AnnotationOff on a node is an operator's word that the host is off, for the epoch of
// the lease it names: what was on it may be started elsewhere.
const AnnotationOff = "atoll/off"

// MaxNodeName bounds a node's name, so that its lease's name is a DNS label.
const MaxNodeName = 58

// NodeLease is the ref of a node's lease.
func NodeLease(node string) Ref { return Ref{Kind: KindLease, Name: "node-" + node} }

// LeaderLease is the ref of the leader's lease.
func LeaderLease() Ref { return Ref{Kind: KindLease, Name: LeaseLeader} }

// Held reports whether somebody may act by it.
func (l *Lease) Held() bool { return l.Spec.State == LeaseHeld }

// Stopped reports whether it is known that the holder runs nothing that must not run
// twice: it left in good order, somebody proved it, or the lease ended on a host that
// stops such things by itself before. That a lease ended says nothing about any other
// host, nor about one whose node (nil) is not known.
func (l *Lease) Stopped(n *Node) bool {
	switch {
	case l.Held():
		return false
	case l.Spec.Proof != nil, l.Spec.State == LeaseReleased:
		return true
	}
	return l.Spec.State == LeaseExpired && n != nil && n.Fences()
}

// Validate has nothing to check: users cannot write leases.
func (l *Lease) Validate() []errs.Field { return nil }

func leaseDefinition() *Definition {
	spec := func(o Object) *LeaseSpec { return &o.(*Lease).Spec }
	return &Definition{
		Kind: KindLease, Plural: "leases", ReadOnly: true,
		Doc: "Who may act: every node that is heard of, and the leader of the control plane.",
		New: func() Object { return &Lease{Head: Head{K: KindLease}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "HOLDER", Value: func(o Object, _ time.Time) string { return dash(spec(o).Holder) }},
			{Name: "STATE", Value: func(o Object, _ time.Time) string { return string(spec(o).State) }},
			{Name: "EPOCH", Value: func(o Object, _ time.Time) string { return fmt.Sprint(spec(o).Epoch) }},
			{Name: "SINCE", Value: func(o Object, now time.Time) string { return Age(&spec(o).Since, now) }},
		},
		Fields: map[string]func(Object) string{"spec.state": func(o Object) string { return string(spec(o).State) }},
	}
}
