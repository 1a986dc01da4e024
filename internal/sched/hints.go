package sched

import (
	"fmt"

	"atoll/api"
	"atoll/internal/policy"
)

// HintNodes is the hint about refusals for the state of hosts.
const HintNodes = "see 'atoll get nodes -o wide' and 'atoll describe node/NAME'"

// hints says what would help.
func hints(v *policy.View, it *policy.Item, refusals []api.Refusal) []string {
	if len(v.Nodes) == 0 {
		return []string{"the pool has no node: start one with 'atolld up', or see 'atoll node token'"}
	}
	var out []string
	for _, r := range refusals {
		switch r.Policy {
		case "resources":
			out = append(out, lackHints(v, it)...)
		case "host":
			out = append(out, HintNodes)
		case "ports":
			out = append(out, "publish on another port, or leave the host's port out")
		}
	}
	return unique(out)
}

func lackHints(v *policy.View, it *policy.Item) []string {
	var out []string
	for i, name := range api.ResourceNames() {
		most, size := int64(0), int64(0)
		for _, n := range v.Nodes {
			if !n.Takes() {
				continue
			}
			most, size = max(most, n.Free(i)), max(size, n.Allocatable[i])
		}
		switch {
		case it.Request[i] <= most || name != api.CPU && name != api.Memory && name != api.Disk:
		case most <= 0 && size > 0:
			out = append(out, fmt.Sprintf("no node has any %s free now (the largest has %s)", word(name), api.HumanQuantity(name, size)))
		case most > 0:
			out = append(out, fmt.Sprintf("at most %s=%s fits on one node now (the largest node has %s)", name, api.HumanQuantity(name, most), api.HumanQuantity(name, size)))
		}
	}
	return out
}

func word(r api.Resource) string {
	if r == api.CPU {
		return "CPU"
	}
	return string(r)
}

func unique(in []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, s := range in {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
