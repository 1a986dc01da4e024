package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"sort"
	"strings"
)

// Resource names one dimension of what a pool shares.
type Resource string

// The dimensions. A new one is a row in resourceTable, nothing else.
const (
	CPU           Resource = "cpu"           // thousandths of a core
	Memory        Resource = "memory"        // bytes
	Disk          Resource = "disk"          // bytes of writable layers and volumes
	IOPS          Resource = "iops"          // operations per second
	DiskBandwidth Resource = "diskBandwidth" // bytes per second
	NetBandwidth  Resource = "netBandwidth"  // bits per second
	GPU           Resource = "gpu"           // thousandths of a device
	GPUMemory     Resource = "gpuMemory"     // bytes
	Pids          Resource = "pids"          // processes and threads
	Instances     Resource = "instances"
	Volumes       Resource = "volumes"
	Snapshots     Resource = "snapshots"
	Backup        Resource = "backup" // bytes in backup targets
	Addresses     Resource = "addresses"
)

type unit int

const (
	milli unit = iota // 500m = 500, 2 = 2000
	bytesUnit
	count
)

type resourceRow struct {
	name    Resource
	unit    unit
	example string
	doc     string
}

var resourceTable = []resourceRow{
	{CPU, milli, "500m", "cores; 500m is half a core"},
	{Memory, bytesUnit, "512Mi", "bytes of memory"},
	{Disk, bytesUnit, "10Gi", "bytes of writable layers and volumes"},
	{IOPS, count, "2000", "disk operations per second"},
	{DiskBandwidth, bytesUnit, "100M", "disk bytes per second"},
	{NetBandwidth, bytesUnit, "1G", "network bits per second"},
	{GPU, milli, "1", "GPUs; 500m is half of one"},
	{GPUMemory, bytesUnit, "8Gi", "bytes of GPU memory"},
	{Pids, count, "512", "processes and threads"},
	{Instances, count, "50", "instances"},
	{Volumes, count, "20", "volumes"},
	{Snapshots, count, "100", "snapshots"},
	{Backup, bytesUnit, "1Ti", "bytes in backup targets"},
	{Addresses, count, "10", "addresses reachable from outside"},
}

func rowFor(r Resource) (resourceRow, bool) {
	for _, row := range resourceTable {
		if row.name == r {
			return row, true
		}
	}
	return resourceRow{}, false
}

// ResourceDoc is what a dimension means, and an amount of it.
func ResourceDoc(r Resource) (doc, example string) {
	row, _ := rowFor(r)
	return row.doc, row.example
}

// ResourceNames lists the dimensions in their fixed order.
func ResourceNames() []Resource {
	out := make([]Resource, len(resourceTable))
	for i, r := range resourceTable {
		out[i] = r.name
	}
	return out
}

// Resources is an amount in each dimension, in the dimension's own smallest unit
// (see the constants). A missing entry means "none asked" in a request and
// "no ceiling" in a limit, which is why a zero entry is kept apart from it.
// In JSON and YAML amounts use the Kubernetes notation: {cpu: 500m, memory: 512Mi}.
type Resources map[Resource]int64

// ParseQuantity reads an amount of r: "500m", "2", "1.5", "512Mi", "10G".
// It refuses what is negative, not a whole number of the smallest unit, or over 2^63-1.
func ParseQuantity(r Resource, s string) (int64, error) {
	row, ok := rowFor(r)
	if !ok {
		return 0, fmt.Errorf("unknown resource %q; known: %s", r, joinResources())
	}
	bad := func(rule string) error {
		return fmt.Errorf("%s %q: %s (example: %s)", r, s, rule, row.example)
	}
	num, suffix := splitSuffix(strings.TrimSpace(s))
	if num == "" || len(num) > 40 {
		return 0, bad("must be a number with an optional unit")
	}
	if v, ok := wholeQuantity(row.unit, num, suffix); ok {
		return v, nil
	}
	scale, ok := suffixScale(suffix)
	if !ok {
		return 0, bad("unit must be one of m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei")
	}
	v, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, bad("must be a number with an optional unit")
	}
	if v.Sign() < 0 {
		return 0, bad("must not be negative")
	}
	v.Mul(v, scale)
	if row.unit == milli {
		v.Mul(v, big.NewRat(1000, 1))
	}
	if !v.IsInt() {
		return 0, bad("is finer than the smallest unit")
	}
	if !v.Num().IsInt64() {
		return 0, bad("is too large")
	}
	return v.Num().Int64(), nil
}

func splitSuffix(s string) (num, suffix string) {
	i := 0
	for i < len(s) && (s[i] == '.' || s[i] == '-' || s[i] == '+' || s[i] >= '0' && s[i] <= '9') {
		i++
	}
	return s[:i], s[i:]
}

// wholeQuantity is the common case of ParseQuantity, a whole number of whole units, as
// every object that is read has several; false leaves the rest to exact fractions.
func wholeQuantity(u unit, num, suffix string) (int64, bool) {
	v := uint64(0)
	for i := range len(num) {
		if num[i] < '0' || num[i] > '9' || len(num) > 15 {
			return 0, false
		}
		v = v*10 + uint64(num[i]-'0')
	}
	base, steps := uint64(1000), 0
	switch {
	case suffix == "m" && u == milli:
		return int64(v), true //nolint:gosec // at most 15 digits
	case suffix == "":
	case len(suffix) == 2 && suffix[1] == 'i':
		base = 1024
		fallthrough
	case len(suffix) == 1:
		if steps = strings.IndexByte("kMGTPE", suffix[0]) + 1; steps == 0 {
			return 0, false
		}
	default:
		return 0, false
	}
	if u == milli {
		v *= 1000
	}
	for range steps {
		hi, lo := bits.Mul64(v, base)
		if hi != 0 {
			return 0, false
		}
		v = lo
	}
	return int64(v), v <= math.MaxInt64 //nolint:gosec // not used when larger
}

func suffixScale(s string) (*big.Rat, bool) {
	if s == "" {
		return big.NewRat(1, 1), true
	}
	if s == "m" {
		return big.NewRat(1, 1000), true
	}
	if s == "K" {
		s = "k"
	}
	i := strings.IndexByte("kMGTPE", s[0])
	if s[0] == 'K' {
		i = 0
	}
	if i < 0 {
		return nil, false
	}
	base := int64(1000)
	switch s[1:] {
	case "":
	case "i", "iB":
		base = 1024
	case "B":
	default:
		return nil, false
	}
	n := new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(i+1)), nil)
	return new(big.Rat).SetInt(n), true
}

func joinResources() string {
	var names []string
	for _, r := range resourceTable {
		names = append(names, string(r.name))
	}
	return strings.Join(names, ", ")
}

// FormatQuantity writes an amount so that ParseQuantity gives it back exactly.
func FormatQuantity(r Resource, v int64) string {
	row, _ := rowFor(r)
	switch row.unit {
	case milli:
		if v%1000 == 0 {
			return fmt.Sprintf("%d", v/1000)
		}
		return fmt.Sprintf("%dm", v)
	case bytesUnit:
		two := shorten(v, 1024, []string{"Ki", "Mi", "Gi", "Ti", "Pi", "Ei"})
		if ten := shorten(v, 1000, []string{"k", "M", "G", "T", "P", "E"}); len(ten) < len(two) {
			return ten
		}
		return two
	}
	return fmt.Sprintf("%d", v)
}

func shorten(v, base int64, names []string) string {
	n := -1
	for v != 0 && v%base == 0 && n+1 < len(names) {
		v /= base
		n++
	}
	if n < 0 {
		return fmt.Sprintf("%d", v)
	}
	return fmt.Sprintf("%d%s", v, names[n])
}

// HumanQuantity writes an amount for eyes: at most three digits, rounded.
func HumanQuantity(r Resource, v int64) string {
	row, _ := rowFor(r)
	if row.unit == milli {
		if v < 1000 {
			return fmt.Sprintf("%dm", v)
		}
		return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(v)/1000), ".0")
	}
	if row.unit == count {
		return fmt.Sprintf("%d", v)
	}
	f, names := float64(v), []string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	i := 0
	for f >= 1024 && i < len(names)-1 {
		f /= 1024
		i++
	}
	if f >= 10 || f == math.Trunc(f) {
		return fmt.Sprintf("%.0f%s", f, names[i])
	}
	return fmt.Sprintf("%.1f%s", f, names[i])
}

// ParseResources reads "cpu=1,memory=2Gi".
func ParseResources(s string) (Resources, error) {
	out := Resources{}
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, val, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("%q: must be resource=amount (example: cpu=1,memory=2Gi)", part)
		}
		v, err := ParseQuantity(Resource(name), val)
		if err != nil {
			return nil, err
		}
		if _, twice := out[Resource(name)]; twice {
			return nil, fmt.Errorf("%s is given twice", name)
		}
		out[Resource(name)] = v
	}
	return out, nil
}

// MarshalJSON writes the dimensions in their fixed order.
func (r Resources) MarshalJSON() ([]byte, error) {
	if r == nil {
		return []byte("null"), nil
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for _, row := range resourceTable {
		if v, ok := r[row.name]; ok {
			if b.Len() > 1 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "%q:%q", row.name, FormatQuantity(row.name, v))
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// UnmarshalJSON reads amounts given as strings or as plain numbers.
func (r *Resources) UnmarshalJSON(data []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return fmt.Errorf("resources must be an object such as {\"cpu\": \"500m\"}")
	}
	if raw == nil {
		*r = nil
		return nil
	}
	out := make(Resources, len(raw))
	names := make([]string, 0, len(raw))
	for k := range raw {
		names = append(names, k)
	}
	sort.Strings(names) // the same input gives the same first error
	for _, k := range names {
		s := string(raw[k])
		if len(s) > 0 && s[0] == '"' {
			if err := json.Unmarshal(raw[k], &s); err != nil {
				return err
			}
		}
		v, err := ParseQuantity(Resource(k), s)
		if err != nil {
			return err
		}
		out[Resource(k)] = v
	}
	*r = out
	return nil
}

// String is the form ParseResources reads.
func (r Resources) String() string {
	var parts []string
	for _, row := range resourceTable {
		if v, ok := r[row.name]; ok {
			parts = append(parts, string(row.name)+"="+FormatQuantity(row.name, v))
		}
	}
	return strings.Join(parts, ",")
}

// Clone copies the amounts.
func (r Resources) Clone() Resources {
	if r == nil {
		return nil
	}
	out := make(Resources, len(r))
	for k, v := range r {
		out[k] = v
	}
	return out
}

// Add returns r + o; an overflow stays at the largest amount.
func (r Resources) Add(o Resources) Resources {
	out := r.Clone()
	if out == nil {
		out = Resources{}
	}
	for k, v := range o {
		if s := out[k] + v; s < out[k] && v > 0 {
			out[k] = math.MaxInt64
		} else {
			out[k] = s
		}
	}
	return out
}

// Sub returns r - o, never below zero.
func (r Resources) Sub(o Resources) Resources {
	out := r.Clone()
	if out == nil {
		out = Resources{}
	}
	for k, v := range o {
		out[k] = max(out[k]-v, 0)
	}
	return out
}

// Max returns the larger amount in each dimension.
func (r Resources) Max(o Resources) Resources {
	out := r.Clone()
	if out == nil {
		out = Resources{}
	}
	for k, v := range o {
		out[k] = max(out[k], v)
	}
	return out
}

// Over lists the dimensions in which r is more than limit allows, in the fixed
// order; a dimension missing in limit has no ceiling.
func (r Resources) Over(limit Resources) []Resource {
	var out []Resource
	for _, row := range resourceTable {
		if l, ok := limit[row.name]; ok && r[row.name] > l {
			out = append(out, row.name)
		}
	}
	return out
}
