// Package report is what a run of the digital twin leaves behind: numbers and series
// as JSON, a table for the terminal, and one HTML page with charts that needs nothing
// from the network. The same report gives the same bytes.
//
// It only turns what it is given into text and starts no goroutine; it must never
// compute anything about the pool itself.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"atoll/api"
)

// Report is one run.
type Report struct {
	Scenario    string       `json:"scenario"`
	Description string       `json:"description,omitempty"`
	Seed        uint64       `json:"seed"`
	Start       time.Time    `json:"start"`
	Duration    api.Duration `json:"duration"`
	Sample      api.Duration `json:"sample"`
	Policies    []string     `json:"policies"` // scorers with their weights

	Totals   Totals      `json:"totals"`
	Pending  Dist        `json:"pending"` // seconds from the first ask to the first start
	Use      []Resource  `json:"use"`
	Tenants  []Tenant    `json:"tenants"`
	Power    Power       `json:"power"`
	Cost     float64     `json:"cost"`
	Overload Overload    `json:"overload"`
	Faults   []Count     `json:"faults,omitempty"`
	Refusals []Count     `json:"refusals,omitempty"` // at admission, by reason
	Series   Series      `json:"series"`
	Broken   []Violation `json:"violations,omitempty"` // of the invariants; there must be none
}

// Totals counts over the whole run; Running, Waiting and Hosts are as of its end.
type Totals struct {
	Hosts        int `json:"hosts"`
	Created      int `json:"created"`
	Refused      int `json:"refused"`
	Removed      int `json:"removed"`
	Running      int `json:"running"`
	Waiting      int `json:"waiting"`
	Peak         int `json:"peakRunning"`
	Starts       int `json:"starts"`
	FailedStarts int `json:"failedStarts"`
	Ends         int `json:"ends"` // of runs by themselves: crashes and losses
	Moves        int `json:"moves"`
	Calls        int `json:"calls"` // of controllers and agents
	Commits      int `json:"commits"`
	Checks       int `json:"checks"` // of invariants
}

// Dist is a distribution of seconds.
type Dist struct {
	N       int      `json:"n"`
	Never   int      `json:"never"` // waited to the end
	Mean    float64  `json:"mean"`
	P50     float64  `json:"p50"`
	P90     float64  `json:"p90"`
	P99     float64  `json:"p99"`
	Max     float64  `json:"max"`
	Buckets []Bucket `json:"buckets"`
}

// Bucket counts the values up to and including Le, in seconds; Le 0 of the last one means above all others.
type Bucket struct {
	Le float64 `json:"le"`
	N  int     `json:"n"`
}

// Resource is the use of one dimension, as shares of what the hosts that were up had.
type Resource struct {
	Name          string  `json:"name"`
	Capacity      int64   `json:"capacity"` // mean, in the dimension's smallest unit
	Requested     float64 `json:"requested"`
	RequestedPeak float64 `json:"requestedPeak"`
	Used          float64 `json:"used"`
	UsedPeak      float64 `json:"usedPeak"`
	Fragmented    float64 `json:"fragmented"` // share of what is free where the next instance does not fit, mean
}

// Tenant is one tenant's story.
type Tenant struct {
	Name         string        `json:"name"`
	Guarantee    api.Resources `json:"guarantee,omitempty"`
	Created      int           `json:"created"`
	Refused      int           `json:"refused"`
	Peak         int           `json:"peak"`         // instances at once
	Short        float64       `json:"shortSeconds"` // time in which it had less than it asked for within its guarantee
	ShortCPU     float64       `json:"shortCoreHours"`
	PendingP50   float64       `json:"pendingP50"`
	PendingP99   float64       `json:"pendingP99"`
	MeanShare    float64       `json:"meanCpuShare"` // of the pool's CPU, requested
	RefusedInner int           `json:"refusedWithinGuarantee"`
}

// Power is what the hosts drew.
type Power struct {
	KWh    float64 `json:"kWh"`
	MeanKW float64 `json:"meanKW"`
	PeakKW float64 `json:"peakKW"`
	Known  bool    `json:"known"` // the scenario says what the hosts draw
}

// Overload is when hosts were asked for more CPU than they have.
type Overload struct {
	HostShare float64 `json:"hostShare"` // of the time of hosts that were up
	CoreHours float64 `json:"coreHours"` // that could not be given
}

// Count is how often something was.
type Count struct {
	What string `json:"what"`
	N    int    `json:"n"`
}

// Violation is an invariant that did not hold.
type Violation struct {
	At   api.Duration `json:"at"`
	What string       `json:"what"`
}

// Series are the points of the charts. All have the length of Seconds.
type Series struct {
	Seconds []float64   `json:"seconds"` // since the start
	Lines   []NamedLine `json:"lines"`
}

// NamedLine is one line. Names are fixed: up, running, waiting, moves, kW, cost, short,
// and for a resource r: r.requested, r.used, r.fragmented.
type NamedLine struct {
	Name   string    `json:"name"`
	Values []float64 `json:"values"`
}

// Line finds a line, nil when there is none.
func (s *Series) Line(name string) []float64 {
	for i := range s.Lines {
		if s.Lines[i].Name == name {
			return s.Lines[i].Values
		}
	}
	return nil
}

// JSON writes the report.
func JSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// bounds of the pending time's buckets, in seconds.
func bounds() []float64 {
	return []float64{0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600}
}

// NewDist sums up values, which it sorts.
func NewDist(values []float64, never int) Dist {
	slices.Sort(values)
	d := Dist{N: len(values), Never: never}
	le := bounds()
	d.Buckets = make([]Bucket, len(le)+1)
	for i, b := range le {
		d.Buckets[i].Le = b
	}
	sum := 0.0
	for _, v := range values {
		sum += v
		i, _ := slices.BinarySearch(le, v)
		d.Buckets[i].N++
	}
	if d.N == 0 {
		return d
	}
	d.Mean, d.Max = Round(sum/float64(d.N)), Round(values[d.N-1])
	d.P50, d.P90, d.P99 = Round(Quantile(values, 0.5)), Round(Quantile(values, 0.9)), Round(Quantile(values, 0.99))
	return d
}

// Quantile of sorted values, by the nearest rank; 0 when there are none.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(max(int(math.Ceil(q*float64(len(sorted))))-1, 0), len(sorted)-1)]
}

// Round keeps six digits after the point, so that reports stay readable.
func Round(v float64) float64 { return math.Round(v*1e6) / 1e6 }
