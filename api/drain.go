package api

import (
	"fmt"
	"time"

	"atoll/internal/errs"
)

// KindDrain tells how the emptying of a host goes.
const KindDrain Kind = "Drain"

// Drain is how far the emptying of a host is, and afterwards how far it is taken back.
// It has the name of its node. The wish itself is the node's spec.maintenance; only
// the drain controller writes this.
type Drain struct {
	Head
	Spec DrainSpec `json:"spec"`
}

// DrainState is where the emptying of a host is in its life.
type DrainState string

// moving <-> waiting -> done -> returning -> restored. It is waiting when nothing can be
// done now; why is told, and it goes on by itself when that has changed.
const (
	DrainMoving    DrainState = "moving"
	DrainWaiting   DrainState = "waiting"
	DrainDone      DrainState = "done"
	DrainReturning DrainState = "returning" // the maintenance was taken back: what left comes back
	DrainRestored  DrainState = "restored"
)

// DrainSpec is what has become of the instances of the host.
type DrainSpec struct {
	Mode      string        `json:"mode" doc:"as in the node's spec.maintenance" enum:"drain|evacuate"`
	Leave     bool          `json:"leave,omitempty" doc:"as in the node's spec.maintenance"`
	Why       string        `json:"why,omitempty" doc:"as in the node's spec.maintenance"`
	Since     time.Time     `json:"since,omitzero" doc:"which wish it is about: the node's spec.maintenance.since"`
	State     DrainState    `json:"state" doc:"where it is in its life" enum:"moving|waiting|done|returning|restored"`
	Total     int           `json:"total" doc:"moved, underWay, left and stopped together"`
	Moved     int           `json:"moved" doc:"run elsewhere now"`
	UnderWay  int           `json:"underWay" doc:"are on their way, or are being stopped"`
	Left      int           `json:"left" doc:"run there still"`
	Kept      int           `json:"kept,omitempty" doc:"of those left, how many stay and run on"`
	Stopped   int           `json:"stopped,omitempty" doc:"are stopped there until the host is restored"`
	Returned  int           `json:"returned,omitempty" doc:"came back when the host was restored"`
	Waiting   []DrainReason `json:"waiting,omitempty" doc:"what is waited for"`
	Moves     []DrainMove   `json:"moves,omitempty" doc:"what left the host, and where it is; at most 2000"`
	StartedAt time.Time     `json:"startedAt" doc:"when it began"`
	RestoreAt *time.Time    `json:"restoreAt,omitempty" doc:"when the maintenance was taken back"`
	EndedAt   *time.Time    `json:"endedAt,omitempty" doc:"when it was done, or restored"`
}

// DrainReason is why some of what is left is still there.
type DrainReason struct {
	Reason    string `json:"reason" doc:"why" example:"disruption budget acme/web spares none now"`
	Count     int    `json:"count" doc:"how many instances"`
	Instances []Ref  `json:"instances" doc:"which; at most 20"`
}

// DrainMoveState is where one instance is on its way.
type DrainMoveState string

// moving -> moved -> returning -> returned; stays: it will not come back.
const (
	DrainMoveMoving    DrainMoveState = "moving"
	DrainMoveMoved     DrainMoveState = "moved"
	DrainMoveReturning DrainMoveState = "returning"
	DrainMoveReturned  DrainMoveState = "returned"
	DrainMoveStays     DrainMoveState = "stays"
)

// DrainMove is one instance that left the host.
type DrainMove struct {
	Instance Ref            `json:"instance" doc:"which"`
	UID      string         `json:"uid" doc:"the instance it was, should the name be used again"`
	From     string         `json:"from" doc:"the host it left"`
	To       string         `json:"to,omitempty" doc:"the host it went, or is to go, to"`
	State    DrainMoveState `json:"state" doc:"where it is on its way" enum:"moving|moved|returning|returned|stays"`
	At       time.Time      `json:"at" doc:"since when"`
	Note     string         `json:"note,omitempty" doc:"why it does not come back"`
}

// Validate has nothing to check: users cannot write drains.
func (d *Drain) Validate() []errs.Field { return nil }

// Over reports whether nothing more is done about it for now.
func (d *Drain) Over() bool { return d.Spec.State == DrainDone || d.Spec.State == DrainRestored }

// Annotations of the maintenance of hosts.
const (
	// AnnotationPerNode is on instances that belong to their host, such as an agent on
	// every host: they are not moved, and run as long as the host does.
	AnnotationPerNode = "atoll/per-node"
	// AnnotationShutdown is on a node whose maintenance was asked for by the host itself as
	// it was going down; its value is the boot it was. Such a host restores itself.
	AnnotationShutdown = "atoll/shutdown"
	// AnnotationLeftAway is on a node that was restored without bringing back what had
	// left; its value is the spec.maintenance.since this was about (LeftAway).
	AnnotationLeftAway = "atoll/left-away"
)

// LeftAway is the value of AnnotationLeftAway for a maintenance asked for at that time.
func LeftAway(since time.Time) string { return since.UTC().Format(time.RFC3339Nano) }

// PerNode reports whether an instance belongs to its host.
func (i *Instance) PerNode() bool { return i.Annotations[AnnotationPerNode] != "" }

// BoundTo says why an instance cannot be started on another host than this one, whatever
// room there is; "" when it can.
func (i *Instance) BoundTo(node string) string {
	if p := i.Spec.Placement; p != nil && p.Node == node && node != "" {
		return "it is placed on " + node + " by name"
	}
	for _, v := range i.Spec.Volumes {
		switch {
		case v.Name != "":
			return fmt.Sprintf("volume %s is on %s", v.Name, node)
		case v.HostPath != "":
			return fmt.Sprintf("it uses %s of %s", v.HostPath, node)
		}
	}
	return ""
}

// RunsToEnd reports whether it runs once and is then over: moved, it would begin anew.
func (s *InstanceSpec) RunsToEnd() bool { return s.Restart == "never" || s.AutoRm }

// DefaultPatience is how long a drain waits for what runs to its end.
const DefaultPatience = time.Hour

// WaitsUntil is until when what runs to its end is waited for; began counts where
// nobody noted when it was asked for.
func (m *Maintenance) WaitsUntil(began time.Time) time.Time {
	if !m.Since.IsZero() {
		began = m.Since
	}
	switch {
	case m.Mode == "evacuate":
		return began
	case m.Patience != nil:
		return began.Add(m.Patience.D())
	}
	return began.Add(DefaultPatience)
}

// Closed says why nothing new is placed on a node; "" when it is.
func (s *NodeSpec) Closed() string {
	switch {
	case s.Maintenance != nil:
		return "node is in maintenance"
	case s.Cordoned:
		return "node is cordoned"
	}
	return ""
}

func drainDefinition() *Definition {
	spec := func(o Object) *DrainSpec { return &o.(*Drain).Spec }
	count := func(name string, n func(*DrainSpec) int) Column {
		return Column{Name: name, Value: func(o Object, _ time.Time) string { return fmt.Sprint(n(spec(o))) }}
	}
	return &Definition{
		Kind: KindDrain, Plural: "drains", ReadOnly: true,
		Doc: "How far the emptying of a host is, and what is waited for.",
		New: func() Object { return &Drain{Head: Head{K: KindDrain}} },
		Columns: []Column{
			{Name: "NODE", Value: nameColumn},
			{Name: "STATE", Value: func(o Object, _ time.Time) string { return string(spec(o).State) }},
			{Name: "MODE", Value: func(o Object, _ time.Time) string { return spec(o).Mode }},
			count("TOTAL", func(s *DrainSpec) int { return s.Total }),
			count("MOVED", func(s *DrainSpec) int { return s.Moved }),
			count("LEFT", func(s *DrainSpec) int { return s.Left }),
			count("STOPPED", func(s *DrainSpec) int { return s.Stopped }),
			{Name: "WAITS FOR", Value: func(o Object, _ time.Time) string { return dash(spec(o).waits()) }},
			{Name: "WHY", Wide: true, Value: func(o Object, _ time.Time) string { return dash(spec(o).Why) }},
			{Name: "AGE", Value: func(o Object, now time.Time) string { return Age(&spec(o).StartedAt, now) }},
		},
		Fields: map[string]func(Object) string{"spec.state": func(o Object) string { return string(spec(o).State) }},
	}
}

// waits is the first reason, and how many more there are.
func (s *DrainSpec) waits() string {
	switch n := len(s.Waiting); n {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%s (%d)", s.Waiting[0].Reason, s.Waiting[0].Count)
	default:
		return fmt.Sprintf("%s (%d), and %d more", s.Waiting[0].Reason, s.Waiting[0].Count, n-1)
	}
}
