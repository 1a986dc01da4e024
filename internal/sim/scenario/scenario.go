// Package scenario is what the digital twin is asked to play: hosts, tenants, what
// arrives and how long it stays, what goes wrong, and what the operator changes.
// Scenarios are YAML files, read strictly: an unknown field or a value out of range
// is named with its rule and an example.
//
// It only reads what it is given and starts no goroutine; it must never open a file
// or the network (traces are loaded by the caller), nor draw a random number.
package scenario

import (
	"time"

	"atoll/api"
)

// Scenario is one file.
type Scenario struct {
	Name        string `json:"name" doc:"a name, shown in reports" example:"small-company"`
	Description string `json:"description,omitempty" doc:"what it is about"`
	// Seed decides everything that is drawn; the same file and seed give the same report.
	Seed     uint64       `json:"seed,omitempty" doc:"decides everything that is drawn" default:"1"`
	Start    *time.Time   `json:"start,omitempty" doc:"pool time at the beginning; matters to daily rhythms" default:"2026-01-05T00:00:00Z"`
	Duration api.Duration `json:"duration" doc:"how long it plays" example:"24h"`
	Sample   api.Duration `json:"sample,omitempty" doc:"pause between two points of the charts" default:"a 240th of the duration, at least 1s"`

	Hosts    []HostGroup `json:"hosts,omitempty" doc:"groups of equal hosts"`
	Tenants  []Tenant    `json:"tenants,omitempty" doc:"who shares the pool"`
	Arrivals []Arrival   `json:"arrivals,omitempty" doc:"what is created, when and for how long"`
	Faults   []Fault     `json:"faults,omitempty" doc:"what goes wrong"`
	Changes  []Change    `json:"changes,omitempty" doc:"what the operator does meanwhile"`
	Policies Policies    `json:"policies,omitzero" doc:"how placement decides"`
}

// HostGroup is a number of equal hosts, named after the group: web-0, web-1, ...
type HostGroup struct {
	Name     string            `json:"name" doc:"name of the group; its hosts are NAME-0, NAME-1 and so on" example:"rack"`
	Count    int               `json:"count" doc:"how many" example:"12"`
	Later    bool              `json:"later,omitempty" doc:"not there at the beginning; a change adds them"`
	Capacity api.Resources     `json:"capacity" doc:"what each has" example:"{cpu: 32, memory: 128Gi}"`
	Reserve  api.Resources     `json:"reserve,omitempty" doc:"kept for the host itself"`
	Devices  []api.Device      `json:"devices,omitempty" doc:"its GPUs; the count and memory go into the capacity"`
	Cells    []api.Cell        `json:"cells,omitempty" doc:"its NUMA cells"`
	Labels   map[string]string `json:"labels,omitempty" doc:"labels of the nodes"`
	Taints   []api.Taint       `json:"taints,omitempty" doc:"what keeps away what does not tolerate it"`
	Region   string            `json:"region,omitempty" doc:"region of all"`
	Zones    []string          `json:"zones,omitempty" doc:"zones the hosts are dealt out to in turn" example:"[a, b, c]"`
	Racks    int               `json:"racks,omitempty" doc:"racks in each zone, dealt out in turn" example:"4"`

	Overcommit api.Overcommit `json:"overcommit,omitzero" doc:"how much more CPU is promised than there is"`
	Price      float64        `json:"price,omitempty" doc:"what a host costs per hour" example:"0.42"`
	Power      Power          `json:"power,omitzero" doc:"what a host draws"`
	Runtime    Runtime        `json:"runtime,omitzero" doc:"how fast and how reliable it starts things"`

	// Of a recorded host, which has a name of its own; not for files.
	Exact    bool   `json:"-"` // the group's name is the host's
	Rack     string `json:"-"`
	Cordoned bool   `json:"-"`
}

// Power is a host's consumption over its CPU use.
type Power struct {
	Idle  float64   `json:"idle,omitempty" doc:"watts with nothing to do" example:"90"`
	Max   float64   `json:"max,omitempty" doc:"watts at full load" example:"250"`
	Curve []float64 `json:"curve,omitempty" doc:"instead: watts at equal steps from no to full load" example:"[86, 92, 99, 106, 112, 117]"`
	Off   bool      `json:"off,omitempty" doc:"draws nothing while it is cordoned and empty"`
}

// Runtime says how the pretended driver behaves.
type Runtime struct {
	Start      Range        `json:"start,omitzero" doc:"how long a start takes" example:"{min: 300ms, max: 4s}"`
	Failures   float64      `json:"failures,omitempty" doc:"share of starts that fail" example:"0.01"`
	Crashes    float64      `json:"crashes,omitempty" doc:"share of runs that crash" example:"0.02"`
	CrashAfter api.Duration `json:"crashAfter,omitempty" doc:"how long after the start" default:"1m"`
}

// Range is a duration drawn evenly between two.
type Range struct {
	Min api.Duration `json:"min,omitempty" doc:"at least"`
	Max api.Duration `json:"max,omitempty" doc:"at most"`
}

// Tenant is one who shares the pool.
type Tenant struct {
	Name      string        `json:"name" doc:"its path" example:"acme/research"`
	Guarantee api.Resources `json:"guarantee,omitempty" doc:"always there when asked for"`
	Limit     api.Resources `json:"limit,omitempty" doc:"ceiling"`
	Weight    int64         `json:"weight,omitempty" doc:"share of what is idle" default:"100"`
}

// Arrival is a source of instances. Exactly one of At, Poisson, Bursts, Daily and Trace says when.
type Arrival struct {
	Name   string         `json:"name" doc:"prefix of the instances' names, and their label app" example:"web"`
	Tenant string         `json:"tenant" doc:"whose they are"`
	From   api.Duration   `json:"from,omitempty" doc:"not before"`
	Until  api.Duration   `json:"until,omitempty" doc:"not after" default:"the end"`
	Count  int            `json:"count,omitempty" doc:"instances at each time" default:"1"`
	Most   int            `json:"most,omitempty" doc:"so many instances in all, then it ends"`
	At     []api.Duration `json:"at,omitempty" doc:"at these times" example:"[0s, 30m]"`
	Over   api.Duration   `json:"over,omitempty" doc:"with at: the instances of one time come evenly over this" example:"10m"`

	Poisson *Rate    `json:"poisson,omitempty" doc:"at random, evenly over time"`
	Bursts  *Bursts  `json:"bursts,omitempty" doc:"in waves"`
	Daily   *Daily   `json:"daily,omitempty" doc:"at random, following the hours of the day"`
	Trace   *TraceIn `json:"trace,omitempty" doc:"as recorded"`

	Lifetime  Lifetime          `json:"lifetime,omitzero" doc:"how long each stays; default: to the end"`
	Sizes     []Size            `json:"sizes,omitempty" doc:"what they ask for, drawn by weight"`
	Use       Use               `json:"use,omitzero" doc:"how much of it they use"`
	Labels    map[string]string `json:"labels,omitempty" doc:"further labels"`
	Placement *api.Placement    `json:"placement,omitempty" doc:"where they may and should run"`
	Priority  string            `json:"priorityClass,omitempty" doc:"rank: low, normal or high"`
	Isolation api.Isolation     `json:"isolation,omitempty" doc:"kind of wall"`
	GPUModels []string          `json:"gpuModels,omitempty" doc:"only on one of these models"`
	Gang      *Gang             `json:"gang,omitempty" doc:"the instances of one time start together or not at all"`
	Retry     api.Duration      `json:"retry,omitempty" doc:"what was refused is asked for again after this" default:"never"`
}

// Gang is how long the instances of one time wait for each other.
type Gang struct {
	Timeout api.Duration `json:"timeout,omitempty" doc:"give up after this" default:"10m"`
}

// Rate is a mean rate.
type Rate struct {
	PerMinute float64 `json:"perMinute" doc:"how many, on average" example:"3"`
}

// Bursts are waves.
type Bursts struct {
	Every  api.Duration `json:"every" doc:"pause between waves" example:"1h"`
	Size   int          `json:"size" doc:"instances in a wave" example:"50"`
	Spread api.Duration `json:"spread,omitempty" doc:"a wave lasts this" example:"2m"`
	Jitter api.Duration `json:"jitter,omitempty" doc:"a wave comes up to this late" example:"10m"`
}

// Daily is a rate that follows the sun.
type Daily struct {
	PerMinute float64      `json:"perMinute" doc:"how many, on average over the day" example:"3"`
	Peak      api.Duration `json:"peak,omitempty" doc:"time of day with the most" default:"14h"`
	Ratio     float64      `json:"ratio,omitempty" doc:"most over least" default:"4"`
}

// TraceIn is a recording to follow.
type TraceIn struct {
	File   string       `json:"file" doc:"file, relative to the scenario's; may be gzip" example:"requests.csv.gz"`
	Format string       `json:"format,omitempty" doc:"how it is written" enum:"atoll|azure-llm|prometheus" default:"atoll"`
	Series string       `json:"series,omitempty" doc:"part of the name of the series to take; default: all, dealt out in turn"`
	Offset api.Duration `json:"offset,omitempty" doc:"skip so much of its beginning"`
	Speed  float64      `json:"speed,omitempty" doc:"2 plays it twice as fast" default:"1"`
	Keep   float64      `json:"keep,omitempty" doc:"share of the arrivals to keep, drawn" default:"1"`
	Scale  float64      `json:"scale,omitempty" doc:"values are multiplied by it" default:"1"`
	Loop   bool         `json:"loop,omitempty" doc:"begin anew at its end"`

	// What a request of azure-llm takes.
	PrefillPerSecond float64 `json:"prefillPerSecond,omitempty" doc:"azure-llm: context tokens read a second" default:"8000"`
	DecodePerSecond  float64 `json:"decodePerSecond,omitempty" doc:"azure-llm: tokens written a second" default:"40"`
}

// Lifetime is how long an instance stays: Fixed, or drawn around Mean, or the trace's.
type Lifetime struct {
	Fixed api.Duration `json:"fixed,omitempty" doc:"always this" example:"1h"`
	Mean  api.Duration `json:"mean,omitempty" doc:"on average" example:"20m"`
	Shape string       `json:"shape,omitempty" doc:"how it is drawn" enum:"exponential|lognormal|uniform|pareto" default:"exponential"`
	Sigma float64      `json:"sigma,omitempty" doc:"lognormal: how wide; pareto: the exponent, above 1" default:"1, and 1.5"`
	Min   api.Duration `json:"min,omitempty" doc:"at least"`
	Max   api.Duration `json:"max,omitempty" doc:"at most"`
	Trace bool         `json:"trace,omitempty" doc:"what the trace of the arrivals says"`
}

// Size is one kind of request and how often it comes.
type Size struct {
	Weight   float64       `json:"weight,omitempty" doc:"how often, against the other sizes" default:"1"`
	Requests api.Resources `json:"requests,omitempty" doc:"placed by it" example:"{cpu: 500m, memory: 512Mi}"`
	Limits   api.Resources `json:"limits,omitempty" doc:"ceiling"`
}

// Use is what is used of the request, by resource.
type Use struct {
	CPU    *Level `json:"cpu,omitempty" doc:"share of the requested CPU"`
	Memory *Level `json:"memory,omitempty" doc:"share of the requested memory"`
	GPU    *Level `json:"gpu,omitempty" doc:"share of the requested GPUs"`
}

// Level is a share over time. Exactly one of Share, Mean and Trace.
type Level struct {
	Share  *float64 `json:"share,omitempty" doc:"always this" example:"0.5"`
	Mean   float64  `json:"mean,omitempty" doc:"drawn for each instance around this" example:"0.4"`
	Spread float64  `json:"spread,omitempty" doc:"standard deviation of the draw" example:"0.1"`
	Noise  float64  `json:"noise,omitempty" doc:"standard deviation from one sample to the next" example:"0.05"`
	Daily  float64  `json:"daily,omitempty" doc:"0 to 1: how much it follows the hours of the day, with its peak at 14:00"`
	Trace  *TraceIn `json:"trace,omitempty" doc:"as recorded; 1 is the whole request"`
}

// Selection names hosts. Host, Group, Zone and Rack narrow it down; Share or Pick draw from what is left.
type Selection struct {
	Host  string  `json:"host,omitempty" doc:"one host" example:"web-3"`
	Group string  `json:"group,omitempty" doc:"hosts of the group"`
	Zone  string  `json:"zone,omitempty" doc:"hosts of the zone"`
	Rack  string  `json:"rack,omitempty" doc:"hosts of the rack, as zone/rack" example:"a/r1"`
	Pick  int     `json:"pick,omitempty" doc:"so many, drawn"`
	Share float64 `json:"share,omitempty" doc:"this share, drawn" example:"0.1"`
}

// The kinds of faults.
const (
	FaultHosts     = "hosts"     // lose power, return after Lasts
	FaultZone      = "zone"      // the same for a whole zone
	FaultSlowDisk  = "slow-disk" // starts take Factor times as long
	FaultPartition = "partition" // cut off from the control plane; what runs goes on
	FaultClock     = "clock"     // the clocks of the hosts jump by By
	FaultStarts    = "starts"    // Rate of the starts fail
	FaultFlap      = "flap"      // lose power and return, Every, for Lasts each
	FaultAgents    = "agents"    // the agents are restarted; what runs goes on
)

// FaultKinds lists them.
func FaultKinds() []string {
	return []string{FaultHosts, FaultZone, FaultSlowDisk, FaultPartition, FaultClock, FaultStarts, FaultFlap, FaultAgents}
}

// Fault is one thing that goes wrong: once At, or again and again with a mean pause of MeanEvery.
type Fault struct {
	Kind      string         `json:"kind" doc:"what goes wrong" enum:"hosts|zone|slow-disk|partition|clock|starts|flap|agents"`
	At        []api.Duration `json:"at,omitempty" doc:"when" example:"[2h]"`
	MeanEvery api.Duration   `json:"meanEvery,omitempty" doc:"instead: at random, with this mean pause" example:"6h"`
	Where     Selection      `json:"where,omitzero" doc:"which hosts" example:"{zone: a}"`
	Lasts     api.Duration   `json:"lasts,omitempty" doc:"how long; for hosts, zones, disks, partitions and starts 0 is for ever" example:"10m"`
	Every     api.Duration   `json:"every,omitempty" doc:"flap: pause between two losses" example:"5m"`
	Times     int            `json:"times,omitempty" doc:"flap: how often" default:"5"`
	Factor    float64        `json:"factor,omitempty" doc:"slow-disk: starts take so many times as long" example:"20"`
	Rate      float64        `json:"rate,omitempty" doc:"starts: share that fails" example:"0.5"`
	By        api.Duration   `json:"by,omitempty" doc:"clock: by how much, also backwards" example:"-10m"`
}

// Change is something the operator does.
type Change struct {
	At     api.Duration `json:"at" doc:"when" example:"3h"`
	Add    string       `json:"add,omitempty" doc:"the group whose hosts come (see later)"`
	Remove *Selection   `json:"remove,omitempty" doc:"hosts that are switched off and taken out of the pool"`
	Cordon *Selection   `json:"cordon,omitempty" doc:"hosts that get nothing new"`
	Open   *Selection   `json:"uncordon,omitempty" doc:"hosts that may get something new again"`
	Drain  *Selection   `json:"drain,omitempty" doc:"hosts that are emptied for maintenance, within disruption budgets"`
	Back   *Selection   `json:"restore,omitempty" doc:"hosts whose maintenance is over: what left comes back"`
	Tenant *Tenant      `json:"tenant,omitempty" doc:"a tenant with its new guarantee, limit and weight"`
	Stop   *Stop        `json:"stop,omitempty" doc:"instances that are removed"`
}

// Stop removes what an arrival made.
type Stop struct {
	Arrival string  `json:"arrival" doc:"name of the arrival"`
	Share   float64 `json:"share,omitempty" doc:"this share of them, drawn" default:"1"`
}

// Policies change how placement decides. What is left out is as in the product.
type Policies struct {
	Scorers   map[string]float64 `json:"scorers,omitempty" doc:"weights by name of the policy; 0 switches it off" example:"{fits: 1, spread: 0}"`
	Only      bool               `json:"only,omitempty" doc:"switch off every scorer that is not named"`
	Without   []string           `json:"without,omitempty" doc:"filters to leave out" example:"[numa]"`
	Seed      uint64             `json:"seed,omitempty" doc:"of the choice between equal hosts" default:"1"`
	Unlimited bool               `json:"unlimited,omitempty" doc:"no admission: limits and guarantees are not kept at the door, and what finds no room waits"`
}

// Bounds are the watts with nothing to do and at full load.
func (p *Power) Bounds() (idle, most float64) {
	if n := len(p.Curve); n > 0 {
		return p.Curve[0], p.Curve[n-1]
	}
	return p.Idle, p.Max
}

// At is what a host draws at a share of its CPU, from 0 to 1.
func (p *Power) At(load float64) float64 {
	load = min(max(load, 0), 1)
	if n := len(p.Curve); n > 0 {
		x := load * float64(n-1)
		i := min(int(x), n-2)
		return p.Curve[i] + (p.Curve[i+1]-p.Curve[i])*(x-float64(i))
	}
	return p.Idle + (p.Max-p.Idle)*load
}

// Known reports whether anything is said.
func (p *Power) Known() bool { return p.Max > 0 || len(p.Curve) > 0 }
