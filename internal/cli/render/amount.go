package render

import (
	"strings"

	"atoll/api"
)

// Cores is an amount of CPU.
func Cores(milli int64) string {
	if milli == 0 {
		return "0"
	}
	return api.HumanQuantity(api.CPU, milli)
}

// Size is an amount of bytes.
func Size(b int64) string { return api.HumanQuantity(api.Memory, b) }

// Brief shows CPU and memory of an amount: "1 CPU 2Gi".
func Brief(r api.Resources) string {
	if len(r) == 0 {
		return "-"
	}
	var out []string
	if v, ok := r[api.CPU]; ok {
		out = append(out, Cores(v)+" CPU")
	}
	if v, ok := r[api.Memory]; ok {
		out = append(out, Size(v))
	}
	return Dash(strings.Join(out, " "))
}

// Amounts puts requests into words: "64 CPU, 512Mi memory".
func Amounts(r api.Resources) string {
	var out []string
	for _, name := range api.ResourceNames() {
		if v, ok := r[name]; ok {
			out = append(out, Amount(name, v))
		}
	}
	return strings.Join(out, ", ")
}

// Amount is an amount with its unit: "64 CPU", "500m CPU", "512Mi memory".
func Amount(r api.Resource, v int64) string {
	name := string(r)
	if r == api.CPU {
		name = "CPU"
	}
	return api.HumanQuantity(r, v) + " " + name
}

// Short is an amount without its unit's name.
func Short(r api.Resource, v int64) string {
	if r == api.CPU {
		return Cores(v)
	}
	return api.HumanQuantity(r, v)
}
