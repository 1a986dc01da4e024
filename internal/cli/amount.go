package cli

import (
	"strings"

	"atoll/api"
)

func cores(milli int64) string {
	if milli == 0 {
		return "0"
	}
	return api.HumanQuantity(api.CPU, milli)
}

func size(b int64) string { return api.HumanQuantity(api.Memory, b) }

// both shows CPU and memory of an amount: "1 CPU 2Gi".
func both(r api.Resources) string {
	if len(r) == 0 {
		return "-"
	}
	var out []string
	if v, ok := r[api.CPU]; ok {
		out = append(out, cores(v)+" CPU")
	}
	if v, ok := r[api.Memory]; ok {
		out = append(out, size(v))
	}
	return dash(strings.Join(out, " "))
}

// askedFor puts requests into words: "64 CPU, 512Mi memory".
func askedFor(r api.Resources) string {
	var out []string
	for _, name := range api.ResourceNames() {
		if v, ok := r[name]; ok {
			out = append(out, amount(name, v))
		}
	}
	return strings.Join(out, ", ")
}

// amount is an amount with its unit: "64 CPU", "500m CPU", "512Mi memory".
func amount(r api.Resource, v int64) string {
	name := string(r)
	if r == api.CPU {
		name = "CPU"
	}
	return api.HumanQuantity(r, v) + " " + name
}

// short is an amount without its unit's name.
func short(r api.Resource, v int64) string {
	if r == api.CPU {
		return cores(v)
	}
	return api.HumanQuantity(r, v)
}
