package api

import (
	"encoding/json"
	"time"
)

// A plan answers "what if" about the pool as it is now, and changes nothing: POST
// /v1/plan with a PlanRequest is answered by a PlanAnswer. Neither is stored.

// PlanRequest has exactly one question.
type PlanRequest struct {
	// Objects asks where new or changed instances would land, together with the
	// tenants, priority classes, budgets and nodes given beside them.
	Objects []json.RawMessage `json:"objects,omitempty"`
	// Exact asks, with Objects, also for the best there is, found by an exact solver; for small pools.
	Exact bool       `json:"exact,omitempty"`
	Lose  *PlanHosts `json:"lose,omitempty"`  // these hosts fail now, all at once
	Drain *PlanHosts `json:"drain,omitempty"` // everything is to leave these hosts, within disruption budgets
	Add   *PlanAdd   `json:"add,omitempty"`
	Fit   *PlanFit   `json:"fit,omitempty"`
	Quota *PlanQuota `json:"quota,omitempty"`
}

// PlanHosts names hosts, or chooses those in all the places that are given.
type PlanHosts struct {
	Nodes  []string `json:"nodes,omitempty"`
	Region string   `json:"region,omitempty"`
	Zone   string   `json:"zone,omitempty"`
	Rack   string   `json:"rack,omitempty"`

	// Of a drain only: Evacuate passes disruption budgets over, Leave lets run on what cannot move.
	Evacuate bool `json:"evacuate,omitempty"`
	Leave    bool `json:"leave,omitempty"`
}

// PlanAdd is hosts that would join.
type PlanAdd struct {
	Capacity Resources         `json:"capacity"` // of one; the usual reserve is taken off
	Count    int               `json:"count,omitempty"`
	Region   string            `json:"region,omitempty"`
	Zone     string            `json:"zone,omitempty"`
	Rack     string            `json:"rack,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	GPUModel string            `json:"gpuModel,omitempty"` // of the GPUs in Capacity
}

// PlanFit is one instance, of which as many as possible are wanted.
type PlanFit struct {
	Tenant string            `json:"tenant,omitempty"` // whose limit counts; "": nobody's
	Labels map[string]string `json:"labels,omitempty"`
	Spec   InstanceSpec      `json:"spec"`
	Count  int               `json:"count,omitempty"` // it is enough if so many fit; 0: any
}

// PlanQuota is a tenant as it would be.
type PlanQuota struct {
	Tenant    string    `json:"tenant"`
	Guarantee Resources `json:"guarantee"`
	Limit     Resources `json:"limit"`
}

// PlanAnswer is what would be. Only the parts that belong to the question are there.
type PlanAnswer struct {
	At       time.Time `json:"at"`
	Question string    `json:"question"` // objects, lose, drain, add, fit or quota
	// Holds: everything asked about has a place, is admitted, and breaks no guarantee.
	Holds bool     `json:"holds"`
	Nodes []string `json:"nodes,omitempty"` // the hosts the question is about
	Of    int      `json:"of"`              // hosts of the pool

	Placed  int         `json:"placed"`            // of Places, how many have a node
	Pending int         `json:"pending"`           // how many have none
	Stopped int         `json:"stopped,omitempty"` // instances that are stopped and stay where they are
	Places  []PlanPlace `json:"places,omitempty"`
	// Evicted is what would have to go for the sake of others, and where it would go.
	Evicted       []PlanPlace `json:"evicted,omitempty"`
	EvictedOthers int         `json:"evictedOthers,omitempty"` // of tenants the caller may not see

	Admission  *PlanRefusal    `json:"admission,omitempty"` // why the server would refuse it; missing: it would not
	Guarantees []PlanGuarantee `json:"guarantees,omitempty"`
	Spare      *PlanSpare      `json:"spare,omitempty"`

	Exact    *PlanExact    `json:"exact,omitempty"`
	Fit      *PlanRoom     `json:"fit,omitempty"`
	Headroom *PlanHeadroom `json:"headroom,omitempty"`
	Notes    []string      `json:"notes,omitempty"` // for people
}

// PlanExact is the most new instances that could have a place next to what runs.
type PlanExact struct {
	Placed int  `json:"placed"`
	Of     int  `json:"of"`
	Proven bool `json:"proven"`          // there is no better; else the best found in time
	Loose  bool `json:"loose,omitempty"` // what they ask of each other, or of parts of a host, was left out: it may be too high
}

// PlanPlace is where an instance would be.
type PlanPlace struct {
	Instance Ref    `json:"instance"`
	From     string `json:"from,omitempty"`
	To       string `json:"to,omitempty"` // "": nowhere
	// Round tells when a drain may move it: 1 at once, 2 when those of round 1 are up
	// again, and so on; 0: it stays.
	Round         int       `json:"round,omitempty"`
	Evicts        []Ref     `json:"evicts,omitempty"`
	EvictsOthers  int       `json:"evictsOthers,omitempty"` // of tenants the caller may not see
	Stays         string    `json:"stays,omitempty"`        // why it may not move
	Halts         bool      `json:"halts,omitempty"`        // it stays, but stopped until its host is restored
	Notes         []string  `json:"notes,omitempty"`
	Decision      *Decision `json:"decision,omitempty"` // why there (for new ones), or why nowhere
	Unchanged     bool      `json:"unchanged,omitempty"`
	Requests      Resources `json:"requests,omitempty"`
	PriorityValue int64     `json:"priority,omitempty"`
}

// PlanRefusal is an error the server would answer with.
type PlanRefusal struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// PlanGuarantee is a promise that would be broken. Each has only the amounts concerned.
type PlanGuarantee struct {
	Tenant     string    `json:"tenant,omitempty"` // "": the sum of all promises is more than the hosts have
	Guaranteed Resources `json:"guaranteed"`
	Requested  Resources `json:"requested,omitempty"`
	Placed     Resources `json:"placed"` // of a tenant: what has a node; of all: what the hosts have
}

// PlanSpare tells whether any one host may be lost (N+1): everything that requests
// something would find room on the others, without evicting anything.
type PlanSpare struct {
	Holds   bool            `json:"holds"`
	Before  *bool           `json:"before,omitempty"`  // as it is now, where the question changes it
	Checked int             `json:"checked"`           // hosts
	Failing int             `json:"failing"`           // of them, how many must not be lost
	AtLeast bool            `json:"atLeast,omitempty"` // checking stopped there
	Worst   []PlanSpareNode `json:"worst,omitempty"`   // some of these
	Reason  string          `json:"reason,omitempty"`  // where it cannot hold at all
}

// PlanSpareNode is a host that must not be lost.
type PlanSpareNode struct {
	Node    string `json:"node"`
	Pending int    `json:"pending"` // instances without room then
}

// PlanRoom is how many more fit.
type PlanRoom struct {
	Count   int            `json:"count"`
	AtLeast bool           `json:"atLeast,omitempty"` // counting stopped there
	Wanted  int            `json:"wanted,omitempty"`
	Nodes   []PlanRoomNode `json:"nodes,omitempty"` // most first
	// Bottleneck is what is short first: with more of only that, More would fit.
	Bottleneck []Resource `json:"bottleneck,omitempty"`
	More       int        `json:"more,omitempty"`
	Decision   *Decision  `json:"decision,omitempty"` // about the first that does not fit
	// Admitted is how many the tenant's limits and the pool's promises allow; missing: any number.
	Admitted *int         `json:"admitted,omitempty"`
	Refusal  *PlanRefusal `json:"refusal,omitempty"` // about the first that is not admitted
}

// PlanRoomNode is how many fit on a host.
type PlanRoomNode struct {
	Node  string `json:"node"`
	Count int    `json:"count"`
}

// PlanHeadroom is what is free, now and then.
type PlanHeadroom struct {
	Now  PlanFree `json:"now"`
	Then PlanFree `json:"then"`
}

// PlanFree is what the hosts that take newcomers have free.
type PlanFree struct {
	Nodes   int       `json:"nodes"`
	Free    Resources `json:"free"`    // on all of them
	Largest Resources `json:"largest"` // the most on one, each amount by itself
}
