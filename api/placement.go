package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// Placement says where an instance may and should run.
type Placement struct {
	Node       string            `json:"node,omitempty" doc:"only on this node" example:"isle1"`
	NodeLabels map[string]string `json:"nodeLabels,omitempty" doc:"only on nodes with these labels" example:"disk: ssd"`
	Zone       string            `json:"zone,omitempty" doc:"only in this zone" example:"room-a"`
	Tolerate   []Taint           `json:"tolerate,omitempty" doc:"taints that do not keep it away; an empty value tolerates any"`
	Spread     []SpreadTerm      `json:"spread,omitempty" doc:"keep instances of the same labels apart, evenly"`
	Near       []AffinityTerm    `json:"near,omitempty" doc:"run where these run"`
	Avoid      []AffinityTerm    `json:"avoid,omitempty" doc:"do not run where these run"`
	MaxPerNode int               `json:"maxPerNode,omitempty" doc:"at most so many with the same labels on one node"`
	Nodes      []NodeTerm        `json:"nodes,omitempty" doc:"conditions on the node's labels, and wishes"`
	Gang       *Gang             `json:"gang,omitempty" doc:"start together with others, or not at all"`
}

// NodeTerm is a condition on a label of a node, or with a weight a wish.
type NodeTerm struct {
	Key    string   `json:"key" doc:"label of the node" example:"disk"`
	Op     string   `json:"op,omitempty" doc:"how it is compared" enum:"in|notin|exists|absent|above|below" default:"in"`
	Values []string `json:"values,omitempty" doc:"what it is compared with; above and below take one number" example:"[ssd, nvme]"`
	Weight int      `json:"weight,omitempty" doc:"0: a condition; 1 to 100: a wish that counts so much"`
}

// Gang is a set of instances that only make sense together.
type Gang struct {
	Name    string    `json:"name" doc:"the gang; its members are of one tenant" example:"train-7"`
	Size    int       `json:"size" doc:"members it needs before any is placed" example:"8"`
	Timeout *Duration `json:"timeout,omitempty" doc:"give up when it was not placed by then: its members fail" default:"10m"`
}

// SpreadTerm asks for even spreading.
type SpreadTerm struct {
	Topology string `json:"topology" doc:"what to spread over" enum:"host|rack|zone|region" example:"zone"`
	MaxSkew  int    `json:"maxSkew,omitempty" doc:"largest difference between domains; 0: as even as possible, but no refusal"`
}

// AffinityTerm names other instances of the tenant.
type AffinityTerm struct {
	Labels    map[string]string `json:"labels" doc:"instances with all these labels" example:"{app: db}"`
	Topology  string            `json:"topology,omitempty" doc:"where counts as the same place" enum:"host|rack|zone|region" default:"host"`
	Preferred bool              `json:"preferred,omitempty" doc:"a wish, not a condition"`
}

// DefaultGangTimeout is how long a gang waits when it does not say.
const DefaultGangTimeout = 10 * time.Minute

// maxTerms bounds the conditions of one instance of a sort: each is counted over the whole pool.
const maxTerms = 16

var topologies = []string{"host", "rack", "zone", "region"}

func (s *InstanceSpec) validatePlacement() []errs.Field {
	p := s.Placement
	if p == nil {
		return nil
	}
	var f []errs.Field
	for name, n := range map[string]int{"spread": len(p.Spread), "near": len(p.Near), "avoid": len(p.Avoid), "nodes": len(p.Nodes), "tolerate": len(p.Tolerate), "nodeLabels": len(p.NodeLabels)} {
		if n > maxTerms {
			f = append(f, errs.Field{Field: "spec.placement." + name, Value: strconv.Itoa(n), Rule: fmt.Sprintf("must be at most %d terms", maxTerms)})
		}
	}
	if len(f) > 0 {
		return f
	}
	f = append(f, labelFields("spec.placement.nodeLabels", p.NodeLabels)...)
	for i, t := range p.Spread {
		f = append(f, oneOf(fmt.Sprintf("spec.placement.spread[%d].topology", i), t.Topology, topologies)...)
		if t.MaxSkew < 0 {
			f = append(f, errs.Field{Field: fmt.Sprintf("spec.placement.spread[%d].maxSkew", i), Value: strconv.Itoa(t.MaxSkew), Rule: "must not be negative", Example: "1"})
		}
	}
	for name, terms := range map[string][]AffinityTerm{"near": p.Near, "avoid": p.Avoid} {
		for i, t := range terms {
			at := fmt.Sprintf("spec.placement.%s[%d]", name, i)
			f = append(f, optional(at+".topology", t.Topology, topologies...)...)
			if len(t.Labels) == 0 {
				f = append(f, errs.Field{Field: at + ".labels", Rule: "must name at least one label", Example: "{app: db}"})
			}
			f = append(f, labelFields(at+".labels", t.Labels)...)
		}
	}
	for i, t := range p.Nodes {
		f = append(f, t.validate(fmt.Sprintf("spec.placement.nodes[%d]", i))...)
	}
	if p.MaxPerNode < 0 {
		f = append(f, errs.Field{Field: "spec.placement.maxPerNode", Value: fmt.Sprint(p.MaxPerNode), Rule: "must not be negative", Example: "1"})
	}
	if g := p.Gang; g != nil {
		if !ValidName(g.Name) {
			f = append(f, errs.Field{Field: "spec.placement.gang.name", Value: clip(g.Name), Rule: nameRule, Example: "train-7"})
		}
		if g.Size < 2 || g.Size > 1000 {
			f = append(f, errs.Field{Field: "spec.placement.gang.size", Value: strconv.Itoa(g.Size), Rule: "must be 2 to 1000", Example: "8"})
		}
		if g.Timeout != nil && (g.Timeout.D() < time.Second || g.Timeout.D() > 7*24*time.Hour) {
			f = append(f, errs.Field{Field: "spec.placement.gang.timeout", Value: g.Timeout.D().String(), Rule: "must be 1s to 168h", Example: "10m"})
		}
	}
	return f
}

func (t NodeTerm) validate(at string) []errs.Field {
	f := optional(at+".op", t.Op, "in", "notin", "exists", "absent", "above", "below")
	if !validLabelKey(t.Key) {
		f = append(f, errs.Field{Field: at + ".key", Value: clip(t.Key), Rule: "must be a label key", Example: "disk"})
	}
	if t.Weight < 0 || t.Weight > 100 {
		f = append(f, errs.Field{Field: at + ".weight", Value: strconv.Itoa(t.Weight), Rule: "must be 0 to 100", Example: "10"})
	}
	values := errs.Field{Field: at + ".values", Value: clip(strings.Join(t.Values, ","))}
	switch t.Op {
	case "", "in", "notin":
		if len(t.Values) == 0 || len(t.Values) > 100 {
			values.Rule, values.Example = "must have 1 to 100 values", "[ssd]"
		}
	case "exists", "absent":
		if len(t.Values) != 0 {
			values.Rule, values.Example = "must be empty", "[]"
		}
	case "above", "below":
		if len(t.Values) != 1 {
			values.Rule, values.Example = "must be one number", "[8]"
		} else if _, err := strconv.ParseInt(t.Values[0], 10, 64); err != nil {
			values.Rule, values.Example = "must be one number", "[8]"
		}
	}
	if values.Rule != "" {
		f = append(f, values)
	}
	return f
}

// Holds reports whether labels meet the term, whatever its weight.
func (t NodeTerm) Holds(labels map[string]string) bool {
	v, ok := labels[t.Key]
	switch t.Op {
	case "exists":
		return ok
	case "absent":
		return !ok
	case "notin":
		return !ok || !slices.Contains(t.Values, v)
	case "above", "below":
		have, err := strconv.ParseInt(v, 10, 64)
		want, werr := strconv.ParseInt(t.Values[0], 10, 64)
		return ok && err == nil && werr == nil && (t.Op == "above" && have > want || t.Op == "below" && have < want)
	}
	return ok && slices.Contains(t.Values, v)
}

// String is the term as people say it.
func (t NodeTerm) String() string {
	switch t.Op {
	case "exists":
		return "has " + t.Key
	case "absent":
		return "has no " + t.Key
	case "above", "below":
		return t.Key + " " + t.Op + " " + strings.Join(t.Values, ",")
	case "notin":
		return t.Key + " not " + strings.Join(t.Values, ",")
	}
	return t.Key + "=" + strings.Join(t.Values, "|")
}

func (s *InstanceSpec) validateDevices() []errs.Field {
	var f []errs.Field
	if g := s.Requests[GPU]; g > 1000 && g%1000 != 0 {
		f = append(f, errs.Field{Field: "spec.requests.gpu", Value: FormatQuantity(GPU, g), Rule: "must be a part of one device, or whole devices", Example: "2"})
	}
	if s.Requests[GPUMemory] > 0 && s.Requests[GPU] == 0 {
		f = append(f, errs.Field{Field: "spec.requests.gpuMemory", Value: FormatQuantity(GPUMemory, s.Requests[GPUMemory]), Rule: "needs spec.requests.gpu", Example: "{gpu: 500m, gpuMemory: 8Gi}"})
	}
	if len(s.GPUModels) > maxTerms {
		f = append(f, errs.Field{Field: "spec.gpuModels", Value: strconv.Itoa(len(s.GPUModels)), Rule: fmt.Sprintf("must be at most %d", maxTerms)})
	}
	if len(s.GPUModels) > 0 && s.Requests[GPU] == 0 {
		f = append(f, errs.Field{Field: "spec.gpuModels", Value: clip(strings.Join(s.GPUModels, ",")), Rule: "needs spec.requests.gpu", Example: "{gpu: 1}"})
	}
	if s.ExclusiveCPUs {
		if c := s.Requests[CPU]; s.Class() != ClassGuaranteed || c%1000 != 0 {
			f = append(f, errs.Field{Field: "spec.exclusiveCpus", Value: "true", Rule: "needs whole cores and the class guaranteed: requests of cpu and memory equal to their limits", Example: "requests: {cpu: 2, memory: 1Gi}, limits: {cpu: 2, memory: 1Gi}"})
		}
		if s.CPUs != "" {
			f = append(f, errs.Field{Field: "spec.cpus", Value: clip(s.CPUs), Rule: "cannot go with exclusiveCpus, which chooses the cores", Example: ""})
		}
	}
	if s.Hugepages != "" {
		v, err := ParseQuantity(Memory, s.Hugepages)
		if err != nil || v <= 0 || v > s.Requests[Memory] {
			f = append(f, errs.Field{Field: "spec.hugepages", Value: clip(s.Hugepages), Rule: "must be an amount within spec.requests.memory", Example: "1Gi"})
		}
	}
	return f
}
