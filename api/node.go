package api

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindNode is a host of the pool.
const KindNode Kind = "Node"

// Node is a host. Its spec is the operator's, its status the agent's.
type Node struct {
	Head
	Spec   NodeSpec   `json:"spec"`
	Status NodeStatus `json:"status,omitzero"`
}

// NodeSpec is what the operator decides about a host.
type NodeSpec struct {
	Cordoned bool      `json:"cordoned,omitempty" doc:"nothing new is placed here; what runs stays"`
	Taints   []Taint   `json:"taints,omitempty" doc:"keep away what does not tolerate them"`
	Reserve  Resources `json:"reserve,omitempty" doc:"kept for the host itself" default:"cpu 200m, memory 1Gi (at most a tenth of the host)"`
	Zone     string    `json:"zone,omitempty" doc:"failure domain" example:"room-a"`
	Rack     string    `json:"rack,omitempty" doc:"failure domain inside the zone" example:"r12"`
	Region   string    `json:"region,omitempty" doc:"where the zone is" example:"north"`

	// DisconnectAllowed makes an edge host: it runs on alone, also across restarts, and syncs later.
	DisconnectAllowed *Duration    `json:"disconnectAllowed,omitempty" doc:"it may be out of reach so long; it runs on alone, and nothing of it is started elsewhere before" example:"24h"`
	Maintenance       *Maintenance `json:"maintenance,omitempty" doc:"it is being emptied, or was; set by atoll drain and atoll evacuate"`
	BMC               *BMC         `json:"bmc,omitempty" doc:"how to switch it off for certain when it is lost"`

	Overcommit Overcommit `json:"overcommit,omitzero" doc:"how much more CPU is promised than there is"`
	Price      string     `json:"price,omitempty" doc:"what the host costs per hour" example:"0.42"`
	IdleWatts  int        `json:"idleWatts,omitempty" doc:"power it draws with nothing to do" example:"90"`
	MaxWatts   int        `json:"maxWatts,omitempty" doc:"power it draws at full load" example:"250"`
}

// Maintenance is the wish to have a host emptied. It stays until atoll restore takes it back.
type Maintenance struct {
	Mode  string    `json:"mode" doc:"drain: within disruption budgets; evacuate: as fast as can be, budgets are passed over" enum:"drain|evacuate"`
	Leave bool      `json:"leave,omitempty" doc:"what cannot move stays and runs on; otherwise it is stopped"`
	Since time.Time `json:"since,omitzero" doc:"when it was asked for; set by the server"`
	Why   string    `json:"why,omitempty" doc:"for people" example:"new memory"`

	// Patience is for what would begin anew elsewhere; evacuate has none.
	Patience *Duration `json:"patience,omitempty" doc:"drain: how long what runs to its end (restart: never) is waited for before it is started anew elsewhere" default:"1h" example:"10m"`
}

// BMC is the management controller of a host. Credentials are a file on the servers:
// /etc/atoll/bmc/<credentials>, with the lines "user=…" and "password=…".
type BMC struct {
	Protocol    string `json:"protocol" doc:"how it is spoken to" enum:"redfish|ipmi"`
	Address     string `json:"address" doc:"where it is" example:"https://10.0.9.2"`
	Credentials string `json:"credentials" doc:"name of the file with user and password on the servers, in /etc/atoll/bmc" example:"isle2"`
	System      string `json:"system,omitempty" doc:"Redfish: the system, when the controller has several" example:"1"`
	Insecure    bool   `json:"insecure,omitempty" doc:"do not check its certificate"`
}

// PowerRequest asks a server to switch a host by its management controller: POST
// /v1/nodes/{name}/power. It is not stored.
type PowerRequest struct {
	State string `json:"state" doc:"on; off: at once, without asking the system on it; status: only look" enum:"on|off|status"`
}

// PowerAnswer is what the management controller said in the end.
type PowerAnswer struct {
	Node  string `json:"node" doc:"name of the host"`
	State string `json:"state" doc:"what its management controller reads" enum:"on|off|between|unknown"`
}

// Overcommit is how much CPU a host promises for what it has, in percent, by class.
type Overcommit struct {
	Guaranteed int `json:"guaranteed,omitempty" doc:"100 to 115" default:"100" example:"110"`
	Burstable  int `json:"burstable,omitempty" doc:"100 to 1000; over all requests" default:"100" example:"200"`
}

// Device is a GPU of a host.
type Device struct {
	Model  string `json:"model" doc:"model" example:"A100"`
	Memory int64  `json:"memory,omitempty" doc:"bytes of its memory"`
	Cell   int    `json:"cell,omitempty" doc:"NUMA cell it is attached to"`
}

// Cell is a NUMA node of a host: cores and memory that are near each other.
type Cell struct {
	ID        int    `json:"id" doc:"the kernel's number of it"`
	CPUs      string `json:"cpus" doc:"its cores" example:"0-15,32-47"`
	Memory    int64  `json:"memory,omitempty" doc:"bytes of its memory"`
	Hugepages int64  `json:"hugepages,omitempty" doc:"bytes of it in huge pages"`
}

// Taint keeps instances away that do not tolerate it.
type Taint struct {
	Key    string `json:"key" doc:"name" example:"gpu"`
	Value  string `json:"value,omitempty" doc:"value" example:"only"`
	Effect string `json:"effect" doc:"NoSchedule: nothing new; NoExecute: what runs must go, too" enum:"NoSchedule|NoExecute"`
}

func (t Taint) String() string {
	s := t.Key
	if t.Value != "" {
		s += "=" + t.Value
	}
	return s + ":" + t.Effect
}

// NodeStatus is what the agent found and measured.
type NodeStatus struct {
	Capacity    Resources    `json:"capacity,omitempty" doc:"what the host has"`
	Allocatable Resources    `json:"allocatable,omitempty" doc:"capacity less the reserve"`
	Conditions  []Condition  `json:"conditions,omitempty" doc:"Ready, and one for everything this host cannot enforce"`
	Drivers     []Capability `json:"drivers,omitempty" doc:"what its drivers can do"`
	Addresses   []string     `json:"addresses,omitempty" doc:"addresses of the host"`
	OS          string       `json:"os,omitempty" doc:"distribution"`
	Kernel      string       `json:"kernel,omitempty" doc:"kernel release"`
	Arch        string       `json:"arch,omitempty" doc:"CPU architecture" example:"amd64"`
	Version     string       `json:"version,omitempty" doc:"version of the agent"`
	Release     int          `json:"release,omitempty" doc:"its release"`
	Upgrade     *NodeUpgrade `json:"upgrade,omitempty" doc:"what it says of its versions"`
	BootID      string       `json:"bootId,omitempty" doc:"changes with every boot of the host"`
	Images      []string     `json:"images,omitempty" doc:"digests of the images that are here"`
	Devices     []Device     `json:"devices,omitempty" doc:"its GPUs"`
	Cells       []Cell       `json:"cells,omitempty" doc:"its NUMA cells"`
	BGP         []BGPSession `json:"bgp,omitempty" doc:"its sessions with routers"`

	Encryption *NodeEncryption `json:"encryption,omitempty" doc:"how it encrypts what networks of tenants send to other hosts"`
}

// Capability is one driver of a node and what it can do.
type Capability struct {
	Type     string            `json:"type" doc:"runtime, storage or network" enum:"runtime|storage|network"`
	Name     string            `json:"name" doc:"name of the driver" example:"container"`
	Version  string            `json:"version,omitempty" doc:"version of what does the work" example:"crun 1.8.1"`
	Features map[string]string `json:"features,omitempty" doc:"abilities and limits" example:"{userns: idmapped}"`
}

// Tunnel is the address to which the other hosts send what is for instances on networks of
// tenants; "" when the host takes no part in them.
func (n *Node) Tunnel() string {
	for _, d := range n.Status.Drivers {
		if d.Type == "network" && d.Name == DriverOverlay {
			return d.Features["tunnel"]
		}
	}
	return ""
}

// Conditions of nodes that more than one component looks at.
const (
	ConditionReady    = "Ready"      // the agent says that it works; the control plane, that it is not heard of
	ConditionHeldBack = "HeldBack"   // it has been coming and going; the reason is until when
	ConditionFences   = "SelfFences" // it stops by itself what must not run twice
)

// Ready reports whether the node's agent said it can run things, and is heard of.
func (n *Node) Ready() bool {
	c := n.Condition(ConditionReady)
	return c != nil && c.Status
}

// Fences reports whether the host stops by itself what must not run twice, before its lease ends.
func (n *Node) Fences() bool {
	c := n.Condition(ConditionFences)
	return c != nil && c.Status
}

// ReasonOutOfReach is why a node is not ready that is not heard of but may run on alone
// (spec.disconnectAllowed): its lease is held.
const ReasonOutOfReach = "OutOfReach"

// Away reports whether the node is not heard of, but may run on alone.
func (n *Node) Away() bool {
	c := n.Condition(ConditionReady)
	return c != nil && !c.Status && c.Reason == ReasonOutOfReach
}

// Condition finds a condition; nil when it was never said.
func (n *Node) Condition(typ string) *Condition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == typ {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// Closed says why nothing new may be placed on the host, in the words of refusals; "" when it may.
func (n *Node) Closed() string {
	if why := n.Spec.Closed(); why != "" {
		return why
	}
	if c := n.Condition(ConditionHeldBack); c != nil && c.Status {
		return "node is held back: it has been coming and going"
	}
	return ""
}

// HeldBack says until when nothing new is placed on it, for its coming and going; false when it is not so.
func (n *Node) HeldBack(now time.Time) (until time.Time, held bool) {
	c := n.Condition(ConditionHeldBack)
	if c == nil || !c.Status {
		return time.Time{}, false
	}
	until, err := time.Parse(time.RFC3339, c.Reason)
	return until, err == nil && now.Before(until)
}

// Validate checks the taints.
func (n *Node) Validate() []errs.Field {
	var f []errs.Field
	for i, t := range n.Spec.Taints {
		path := fmt.Sprintf("spec.taints[%d]", i)
		if !validLabelKey(t.Key) {
			f = append(f, errs.Field{Field: path + ".key", Value: clip(t.Key), Rule: "must be a label key", Example: "gpu"})
		}
		f = append(f, oneOf(path+".effect", t.Effect, []string{"NoSchedule", "NoExecute"})...)
	}
	f = append(f, n.Spec.Overcommit.validate()...)
	f = append(f, n.Spec.validateHost()...)
	if p := n.Spec.Price; p != "" {
		if v, err := strconv.ParseFloat(p, 64); err != nil || v < 0 || v > 1e9 {
			f = append(f, errs.Field{Field: "spec.price", Value: clip(p), Rule: "must be a number of 0 or more", Example: "0.42"})
		}
	}
	if n.Spec.IdleWatts < 0 || n.Spec.MaxWatts < 0 || n.Spec.MaxWatts > 0 && n.Spec.IdleWatts > n.Spec.MaxWatts {
		f = append(f, errs.Field{Field: "spec.idleWatts", Value: strconv.Itoa(n.Spec.IdleWatts), Rule: "must be 0 to spec.maxWatts, " + strconv.Itoa(n.Spec.MaxWatts), Example: "90"})
	}
	for field, v := range map[string]string{"spec.zone": n.Spec.Zone, "spec.rack": n.Spec.Rack, "spec.region": n.Spec.Region} {
		if v != "" && !ValidName(v) {
			f = append(f, errs.Field{Field: field, Value: clip(v), Rule: nameRule, Example: "room-a"})
		}
	}
	return f
}

func (s *NodeSpec) validateHost() []errs.Field {
	var f []errs.Field
	if d := s.DisconnectAllowed; d != nil && (d.D() < 0 || d.D() > 30*24*time.Hour) {
		f = append(f, errs.Field{Field: "spec.disconnectAllowed", Value: d.D().String(), Rule: "must be 0 to 720h", Example: "24h"})
	}
	if m := s.Maintenance; m != nil {
		f = append(f, oneOf("spec.maintenance.mode", m.Mode, []string{"drain", "evacuate"})...)
		if d := m.Patience; d != nil && (d.D() < 0 || d.D() > 30*24*time.Hour) {
			f = append(f, errs.Field{Field: "spec.maintenance.patience", Value: d.D().String(), Rule: "must be 0 to 720h", Example: "10m"})
		}
		if len(m.Why) > 500 {
			f = append(f, errs.Field{Field: "spec.maintenance.why", Value: clip(m.Why), Rule: "must be at most 500 characters", Example: "new memory"})
		}
	}
	if b := s.BMC; b != nil {
		f = append(f, oneOf("spec.bmc.protocol", b.Protocol, []string{"redfish", "ipmi"})...)
		if b.Address == "" || len(b.Address) > 255 {
			f = append(f, errs.Field{Field: "spec.bmc.address", Value: clip(b.Address), Rule: "must be its address", Example: "https://10.0.9.2"})
		}
		if !ValidName(b.Credentials) {
			f = append(f, errs.Field{Field: "spec.bmc.credentials", Value: clip(b.Credentials), Rule: "must be the name of a file in /etc/atoll/bmc on the servers: " + nameRule, Example: "isle2"})
		}
	}
	return f
}

func (o Overcommit) validate() []errs.Field {
	var f []errs.Field
	if g := o.Guaranteed; g != 0 && (g < 100 || g > MaxGuaranteedOvercommit) {
		f = append(f, errs.Field{Field: "spec.overcommit.guaranteed", Value: strconv.Itoa(g), Rule: fmt.Sprintf("must be 100 to %d percent", MaxGuaranteedOvercommit), Example: "110"})
	}
	if b := o.Burstable; b != 0 && (b < 100 || b > 1000) {
		f = append(f, errs.Field{Field: "spec.overcommit.burstable", Value: strconv.Itoa(b), Rule: "must be 100 to 1000 percent", Example: "200"})
	}
	return f
}

// MaxGuaranteedOvercommit is the most CPU, in percent of what a host has, that may
// be promised to instances of the class guaranteed.
const MaxGuaranteedOvercommit = 115

func nodeDefinition() *Definition {
	return &Definition{
		Kind: KindNode, Plural: "nodes", Aliases: []string{"no", "host", "hosts"},
		Doc: "A host of the pool.",
		New: func() Object { return &Node{Head: Head{K: KindNode}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "STATE", Value: func(o Object, _ time.Time) string {
				n := o.(*Node)
				s := "not ready"
				switch {
				case n.Ready():
					s = "ready"
				case n.Away():
					s = "away (runs on alone)"
				}
				if n.Spec.Cordoned {
					s += ",cordoned"
				}
				if n.Spec.Maintenance != nil {
					s += ",maintenance"
				}
				return s
			}},
			{Name: "CPU", Value: func(o Object, _ time.Time) string { return HumanQuantity(CPU, o.(*Node).Status.Capacity[CPU]) }},
			{Name: "MEMORY", Value: func(o Object, _ time.Time) string { return HumanQuantity(Memory, o.(*Node).Status.Capacity[Memory]) }},
			{Name: "RUNTIMES", Value: func(o Object, _ time.Time) string { return driversColumn(o.(*Node), "runtime") }},
			{Name: "ZONE", Wide: true, Value: func(o Object, _ time.Time) string { return dash(o.(*Node).Spec.Zone) }},
			{Name: "VERSION", Wide: true, Value: func(o Object, _ time.Time) string { return dash(o.(*Node).Status.Version) }},
			{Name: "ENCRYPTION", Wide: true, Value: func(o Object, now time.Time) string { return encryptionColumn(o.(*Node), now) }},
			{Name: "KERNEL", Wide: true, Value: func(o Object, _ time.Time) string { return o.(*Node).Status.Kernel }},
			{Name: "WARNINGS", Wide: true, Value: func(o Object, _ time.Time) string {
				var out []string
				for _, c := range o.(*Node).Status.Conditions {
					if !c.Status {
						out = append(out, c.Type)
					}
				}
				return dash(strings.Join(out, ","))
			}},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{"spec.zone": func(o Object) string { return o.(*Node).Spec.Zone }},
	}
}

// encryptionColumn is how a host encrypts, and how old its key is.
func encryptionColumn(n *Node, now time.Time) string {
	e, c := n.Status.Encryption, n.Condition(ConditionEncryption)
	switch {
	case c != nil && !c.Status:
		return "failed"
	case e == nil || e.Key == "":
		return "-"
	case !e.Active:
		return "ready"
	}
	return "wireguard " + e.By + ", key " + Age(&e.Since, now)
}

func driversColumn(n *Node, typ string) string {
	var out []string
	for _, d := range n.Status.Drivers {
		if d.Type == typ {
			out = append(out, d.Name)
		}
	}
	sort.Strings(out)
	return dash(strings.Join(out, ","))
}

// KindPriorityClass names a rank of importance.
const KindPriorityClass Kind = "PriorityClass"

// PriorityClass ranks instances: higher is placed first and moved last.
type PriorityClass struct {
	Head
	Spec PriorityClassSpec `json:"spec"`
}

// PriorityClassSpec is the rank.
type PriorityClassSpec struct {
	Value   int64 `json:"value" doc:"-1000000 to 1000000; higher is placed first" example:"1000"`
	Preempt bool  `json:"preempt,omitempty" doc:"may take the place of instances of a lower class"`
	Default bool  `json:"default,omitempty" doc:"used by instances that name no class"`
}

// Validate checks the range.
func (p *PriorityClass) Validate() []errs.Field {
	if p.Spec.Value < -1e6 || p.Spec.Value > 1e6 {
		return []errs.Field{{Field: "spec.value", Value: fmt.Sprint(p.Spec.Value), Rule: "must be -1000000 to 1000000", Example: "1000"}}
	}
	if p.Spec.Default && p.Spec.Preempt {
		return []errs.Field{{Field: "spec.preempt", Value: "true", Rule: "cannot go with spec.default: who names no class would take the place of others", Example: "false"}}
	}
	return nil
}

func priorityClassDefinition() *Definition {
	return &Definition{
		Kind: KindPriorityClass, Plural: "priorityclasses", Aliases: []string{"pc", "priority"},
		Doc: "A rank: higher is placed first and moved last.",
		New: func() Object { return &PriorityClass{Head: Head{K: KindPriorityClass}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "VALUE", Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*PriorityClass).Spec.Value) }},
			{Name: "PREEMPT", Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*PriorityClass).Spec.Preempt) }},
			{Name: "DEFAULT", Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*PriorityClass).Spec.Default) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{},
	}
}

// KindEvent is something that happened.
const KindEvent Kind = "Event"

// Event tells what happened to an object, for people. Repeats are counted, not
// written again, and old ones are removed.
type Event struct {
	Head
	Spec EventSpec `json:"spec"`
}

// EventSpec is the story.
type EventSpec struct {
	About   Ref       `json:"about" doc:"what it happened to"`
	Type    string    `json:"type" doc:"normal or warning" enum:"normal|warning"`
	Reason  string    `json:"reason" doc:"one word, for programs" example:"Started"`
	Message string    `json:"message" doc:"a sentence, for people"`
	Source  string    `json:"source,omitempty" doc:"part of Atoll that saw it" example:"agent/isle1"`
	Count   int64     `json:"count" doc:"how often"`
	First   time.Time `json:"first" doc:"the first time"`
	Last    time.Time `json:"last" doc:"the last time"`
}

// Validate has nothing to check: users cannot write events.
func (e *Event) Validate() []errs.Field { return nil }

func eventDefinition() *Definition {
	return &Definition{
		Kind: KindEvent, Plural: "events", Aliases: []string{"ev"}, Tenanted: true, ReadOnly: true,
		Doc: "Something that happened to an object.",
		New: func() Object { return &Event{Head: Head{K: KindEvent}} },
		Columns: []Column{
			{Name: "LAST", Value: func(o Object, now time.Time) string { return Age(&o.(*Event).Spec.Last, now) }},
			{Name: "TYPE", Value: func(o Object, _ time.Time) string { return o.(*Event).Spec.Type }},
			{Name: "REASON", Value: func(o Object, _ time.Time) string { return o.(*Event).Spec.Reason }},
			{Name: "ABOUT", Value: func(o Object, _ time.Time) string { return o.(*Event).Spec.About.String() }},
			{Name: "COUNT", Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*Event).Spec.Count) }},
			{Name: "MESSAGE", Value: func(o Object, _ time.Time) string { return o.(*Event).Spec.Message }},
			{Name: "SOURCE", Wide: true, Value: func(o Object, _ time.Time) string { return o.(*Event).Spec.Source }},
		},
		Fields: map[string]func(Object) string{
			"spec.about":  func(o Object) string { return o.(*Event).Spec.About.String() },
			"spec.reason": func(o Object) string { return o.(*Event).Spec.Reason },
			"spec.type":   func(o Object) string { return o.(*Event).Spec.Type },
		},
	}
}
