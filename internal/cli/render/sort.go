package render

import (
	"fmt"
	"slices"
	"strings"

	"atoll/internal/errs"
)

// sortRows sorts by a column; amounts and ages sort by size, not by letter.
func (t *Table) Sort(by string) error {
	if by == "" {
		return nil
	}
	name := strings.TrimPrefix(by, "-")
	col := slices.IndexFunc(t.Head, func(h string) bool {
		word, _, _ := strings.Cut(h, " ")
		return strings.EqualFold(h, name) || strings.EqualFold(word, name)
	})
	if col < 0 {
		return errs.InvalidFields("flags", []errs.Field{{Field: "--sort-by", Value: by, Rule: "must be one of the columns " + strings.Join(t.Head, ", "), Example: "age"}})
	}
	slices.SortStableFunc(t.Rows, func(a, b []string) int {
		n := compareCells(a[col], b[col], strings.HasPrefix(t.Head[col], "CPU"))
		if name != by {
			return -n
		}
		return n
	})
	return nil
}

func compareCells(a, b string, cpu bool) int {
	x, ok1 := sizeOf(a, cpu)
	y, ok2 := sizeOf(b, cpu)
	if ok1 && ok2 {
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	}
	return strings.Compare(a, b)
}

// sizeOf reads "120m/500m/-", "88Mi", "12" and ages such as "3m"; with cpu an m is a thousandth.
func sizeOf(s string, cpu bool) (float64, bool) {
	s, _, _ = strings.Cut(s, "/")
	if word, _, both := strings.Cut(s, " CPU"); both { // "2.4 CPU 88Mi" sorts by its CPU
		s, cpu = word, true
	}
	if s == "-" {
		return -1, true
	}
	var n float64
	var unit string
	if k, _ := fmt.Sscanf(s, "%g%s", &n, &unit); k == 0 {
		return 0, false
	}
	scale := map[string]float64{"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50}
	f, ok := scale[unit]
	if cpu && unit == "m" {
		f = 0.001
	}
	return n * f, ok
}
