package openb

import (
	"math/rand"
	"slices"
	"strings"
)

// Arrivals is the sequence of the published experiment for a seed: the list sorted
// by name, shuffled, then inflated with copies (or thinned) until its GPU demand
// reaches ratio times the capacity. The generator is the one of math/rand, whose
// sequence for a seed is fixed; one value is drawn first, as in the original, where
// a log line consumes it. The original's stop test adds the milli of one device,
// not of all; that is kept, so that the sequences are the same.
func Arrivals(list []Pod, capacity int64, ratio float64, seed int64) []Pod {
	base := slices.Clone(list)
	slices.SortStableFunc(base, func(a, b Pod) int { return strings.Compare(a.Name, b.Name) })
	pods := slices.Clone(base)
	rng := rand.New(rand.NewSource(seed))
	rng.Int()
	rng.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	total := int64(0)
	for i := range pods {
		total += pods[i].Demand()
	}
	goal := ratio * float64(capacity)
	if float64(total) >= goal {
		for float64(total) > goal && len(pods) > 0 {
			i := rng.Intn(len(pods))
			total -= pods[i].Demand()
			pods = slices.Delete(pods, i, i+1)
		}
		return pods
	}
	if total == 0 {
		return pods
	}
	for {
		p := base[rng.Intn(len(base))]
		if float64(total+p.Milli) > goal {
			return pods
		}
		pods = append(pods, p)
		total += p.Demand()
	}
}
