// Package near finds what was probably meant. It is pure.
package near

import (
	"slices"
	"strings"
)

// Of is the candidate at most two edits away from s, the first by name of several; "" if none is.
func Of(s string, candidates []string) string {
	best, bestD := "", 3
	for _, n := range slices.Sorted(slices.Values(candidates)) {
		if d := distance(strings.ToLower(s), strings.ToLower(n)); d < bestD {
			best, bestD = n, d
		}
	}
	return best
}

// distance is Levenshtein's edit distance; long words are not compared.
func distance(a, b string) int {
	if len(a) > 40 || len(b) > 40 {
		return 40
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := prev
			if a[i-1] != b[j-1] {
				cost++
			}
			prev = row[j]
			row[j] = min(row[j]+1, row[j-1]+1, cost)
		}
	}
	return row[len(b)]
}
