package policy

import (
	"encoding/json"
	"slices"
	"sort"
	"strconv"
	"strings"

	"atoll/api"
)

// Vector is an amount in every dimension of api.ResourceNames, in that order.
type Vector [NumResources]int64

// NumResources is the number of dimensions.
const NumResources = 14

// Places of the dimensions that policies name; a test compares them with api.
const (
	CPU = iota
	Memory
	Disk
	IOPS
	DiskBandwidth
	NetBandwidth
	GPU
	GPUMemory
	Pids
	Instances
)

// Index finds a dimension's place in a Vector.
func Index(r api.Resource) int { return slices.Index(api.ResourceNames(), r) }

// VectorOf reads amounts; what is missing is zero.
func VectorOf(r api.Resources) Vector {
	var v Vector
	if len(r) == 0 {
		return v
	}
	for i, n := range api.ResourceNames() {
		v[i] = r[n]
	}
	return v
}

// Add adds o in place.
func (v *Vector) Add(o *Vector) {
	for i := range v {
		v[i] += o[i]
	}
}

// Sub subtracts o in place.
func (v *Vector) Sub(o *Vector) {
	for i := range v {
		v[i] -= o[i]
	}
}

// Item is an instance as policies see it. It does not change once it is in use.
type Item struct {
	Ref       api.Ref
	UID       string
	Labels    map[string]string
	Spec      *api.InstanceSpec
	Request   Vector
	Class     api.Class
	Isolation api.Isolation
	Publish   []string // api.Port.PublishKey of published ports
	Priority  int64
	Hugepages int64 // bytes, part of Request[Memory]

	key string
}

// ItemOf compiles an instance of priority 0.
func ItemOf(in *api.Instance) *Item { return ItemAt(in, 0) }

// ItemAt compiles an instance of a priority.
func ItemAt(in *api.Instance, priority int64) *Item {
	it := &Item{Ref: api.RefOf(in), UID: in.UID, Labels: in.Labels, Spec: &in.Spec, Request: VectorOf(in.Spec.Requests),
		Class: in.Spec.Class(), Isolation: in.Spec.EffectiveIsolation(), Priority: priority}
	it.Request[Instances] = 1
	for _, p := range in.Spec.Ports {
		if p.Publish != 0 {
			it.Publish = append(it.Publish, p.PublishKey())
		}
	}
	if in.Spec.Hugepages != "" {
		it.Hugepages, _ = api.ParseQuantity(api.Memory, in.Spec.Hugepages) // validated
	}
	it.key = it.makeKey()
	return it
}

// Idle is the item without its share: it keeps its place only, as a stopped instance does.
func (it *Item) Idle() *Item {
	c := *it
	c.Request, c.Hugepages = Vector{}, 0
	c.Request[GPU], c.Request[GPUMemory] = it.Request[GPU], it.Request[GPUMemory] // its devices are its own until it goes
	c.key = "idle " + it.key
	return &c
}

// GPUs is how many devices are asked for and how much of each, in thousandths.
func (it *Item) GPUs() (count int, share int64) {
	g := it.Request[GPU]
	switch {
	case g == 0:
		return 0, 0
	case g < 1000:
		return 1, g
	}
	return int(g / 1000), 1000
}

// Key is equal for items that every policy must answer equally: all but name and UID.
func (it *Item) Key() string { return it.key }

func (it *Item) makeKey() string {
	b := make([]byte, 0, 128)
	str := func(s string) {
		b = strconv.AppendQuote(b, s)
	}
	str(it.Ref.Tenant)
	b = appendLabels(b, it.Labels)
	for i, v := range it.Request {
		if v != 0 {
			b = strconv.AppendInt(append(strconv.AppendInt(append(b, ';'), int64(i), 10), '='), v, 10)
		}
	}
	b = strconv.AppendInt(append(b, ';', 'p'), it.Priority, 10)
	b = strconv.AppendInt(append(b, ';', 'h'), it.Hugepages, 10)
	str(string(it.Class))
	str(string(it.Isolation))
	str(it.Spec.Image)
	str(it.Spec.CPUs)
	b = strconv.AppendBool(b, it.Spec.ExclusiveCPUs)
	b = strconv.AppendBool(b, it.Spec.OnNetworks())
	for _, p := range it.Publish {
		str(p)
	}
	for _, m := range it.Spec.GPUModels {
		str(m)
	}
	if it.Spec.Placement != nil {
		raw, err := json.Marshal(it.Spec.Placement)
		if err != nil { // it was decoded from JSON
			raw = []byte(err.Error())
		}
		b = append(b, raw...)
	}
	return string(b)
}

func appendLabels(b []byte, m map[string]string) []byte {
	b = append(b, '{')
	switch len(m) {
	case 0:
	case 1:
		for k, v := range m {
			b = strconv.AppendQuote(strconv.AppendQuote(b, k), v)
		}
	default:
		keys := make([]string, 0, len(m))
		for k := range m {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			b = strconv.AppendQuote(strconv.AppendQuote(b, k), m[k])
		}
	}
	return append(b, '}')
}

// Matches reports whether labels have all of want.
func Matches(labels, want map[string]string) bool {
	for k, v := range want {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// Alloc is what of a node an instance got.
type Alloc struct {
	Devices []int // numbers of its GPUs
	CPUs    []int // cores it alone uses
	Cell    int   // NUMA cell, when Bound
	Bound   bool
}

// AllocOf reads what an assignment says.
func AllocOf(a *api.AssignmentSpec) Alloc {
	out := Alloc{Devices: a.Devices}
	if a.CPUs != "" {
		out.CPUs, _ = api.ParseCPUSet(a.CPUs) // written by FormatCPUs
	}
	if a.Cell != nil {
		out.Cell, out.Bound = *a.Cell, true
	}
	return out
}

// Write puts it into an assignment.
func (a Alloc) Write(s *api.AssignmentSpec) {
	s.Devices, s.CPUs, s.Cell = a.Devices, FormatCPUs(a.CPUs), nil
	if a.Bound {
		s.Cell = &a.Cell
	}
}

// FormatCPUs writes core numbers as "0-3,8".
func FormatCPUs(cpus []int) string {
	cpus = slices.Sorted(slices.Values(cpus))
	var out []string
	for i := 0; i < len(cpus); {
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 {
			j++
		}
		s := strconv.Itoa(cpus[i])
		if j > i {
			s += "-" + strconv.Itoa(cpus[j])
		}
		out = append(out, s)
		i = j + 1
	}
	return strings.Join(out, ",")
}
