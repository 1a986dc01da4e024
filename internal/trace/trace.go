// Package trace is the form in which recordings of the real world reach the digital
// twin: arrivals, and values over time. Each source has an importer of its own below
// this package; what they read can be kept in the native format, JSON, plain or gzip.
//
// It reads what it is given and starts no goroutine. It must never open a file or the
// network by itself, nor believe a number without a bound.
package trace

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

// Bounds of a recording.
const (
	MaxBytes    = 256 << 20 // unpacked
	MaxArrivals = 5_000_000
	MaxSeries   = 100_000
	MaxPoints   = 50_000_000 // of all series together
	MaxTime     = 10 * 366 * 24 * time.Hour
	maxName     = 1024
)

// Trace is a recording. Times count from its beginning.
type Trace struct {
	Arrivals []Arrival `json:"arrivals,omitempty"` // in the order of At
	Series   []Series  `json:"series,omitempty"`
}

// Arrival is one thing that came.
type Arrival struct {
	At       Seconds       `json:"at"`
	Lasts    Seconds       `json:"lasts,omitempty"`    // 0: not known
	Requests api.Resources `json:"requests,omitempty"` // nil: not known
}

// Series is a value at equal steps; each holds until the next.
type Series struct {
	Name   string    `json:"name"`
	Step   Seconds   `json:"step"`
	Values []float64 `json:"values"`
}

// Seconds is a duration written as a number of seconds.
type Seconds float64

// D is the duration.
func (s Seconds) D() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// Secs makes Seconds.
func Secs(d time.Duration) Seconds { return Seconds(d.Seconds()) }

// At is the value at a time; before and after the recording it is the first and the last.
func (s *Series) At(t time.Duration) float64 {
	if len(s.Values) == 0 {
		return 0
	}
	i := int(t / max(s.Step.D(), 1))
	return s.Values[min(max(i, 0), len(s.Values)-1)]
}

// Length is how much time the series covers.
func (s *Series) Length() time.Duration { return s.Step.D() * time.Duration(len(s.Values)) }

// Length is when the last arrival comes, or how long the longest series is.
func (t *Trace) Length() time.Duration {
	var d time.Duration
	if n := len(t.Arrivals); n > 0 {
		d = t.Arrivals[n-1].At.D()
	}
	for i := range t.Series {
		d = max(d, t.Series[i].Length())
	}
	return d
}

// Reader unpacks gzip when that is what comes, and ends with an error beyond MaxBytes.
func Reader(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(2)
	if err != nil && len(head) < 2 || head[0] != 0x1f || head[1] != 0x8b {
		return &bounded{r: b, left: MaxBytes}, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		return nil, errs.New(errs.Invalid, "trace: not valid gzip: %w", err)
	}
	return &bounded{r: z, left: MaxBytes}, nil
}

type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errs.New(errs.Invalid, "trace: more than %d bytes", int64(MaxBytes))
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// Decode reads the native format.
func Decode(r io.Reader) (*Trace, error) {
	in, err := Reader(r)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(in)
	d.DisallowUnknownFields()
	t := &Trace{}
	if err := d.Decode(t); err != nil {
		return nil, errs.New(errs.Invalid, "trace: not a recording: %w", err).WithHint("make one with 'atoll sim import', or see docs/twin.md for the format")
	}
	return t, t.Check()
}

// Encode writes the native format.
func Encode(w io.Writer, t *Trace) error {
	if err := json.NewEncoder(w).Encode(t); err != nil {
		return fmt.Errorf("write trace: %w", err)
	}
	return nil
}

// Check holds a recording to the bounds and puts the arrivals in order.
func (t *Trace) Check() error {
	bad := func(field, value, rule, example string) error {
		return errs.InvalidFields("trace", []errs.Field{{Field: field, Value: value, Rule: rule, Example: example}})
	}
	if len(t.Arrivals) > MaxArrivals || len(t.Series) > MaxSeries {
		return bad("arrivals", fmt.Sprint(len(t.Arrivals)), fmt.Sprintf("must be at most %d, and at most %d series", MaxArrivals, MaxSeries), "")
	}
	most := Secs(MaxTime)
	for i, a := range t.Arrivals {
		if !(a.At >= 0 && a.At <= most) || !(a.Lasts >= 0 && a.Lasts <= most) {
			return bad(fmt.Sprintf("arrivals[%d]", i), fmt.Sprint(a.At, " ", a.Lasts), fmt.Sprintf("times must be 0 to %g seconds", most), "{at: 1.5, lasts: 30}")
		}
	}
	points := 0
	for i := range t.Series {
		s := &t.Series[i]
		if points += len(s.Values); points > MaxPoints {
			return bad("series", fmt.Sprint(points), fmt.Sprintf("must have at most %d values in all", MaxPoints), "")
		}
		if len(s.Name) > maxName || len(s.Values) == 0 {
			return bad(fmt.Sprintf("series[%d]", i), "", "must have at least one value and a name of at most 1024 bytes", "{name: web, step: 30, values: [0.4, 0.5]}")
		}
		if !(s.Step >= 0.001 && s.Step <= most) {
			return bad(fmt.Sprintf("series[%d].step", i), fmt.Sprint(s.Step), fmt.Sprintf("must be 0.001 to %g seconds", most), "30")
		}
		if slices.ContainsFunc(s.Values, func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) || math.Abs(v) > 1e18 }) {
			return bad(fmt.Sprintf("series[%d].values", i), "", "must be numbers up to 1e18", "[0.4, 0.5]")
		}
	}
	sort.SliceStable(t.Arrivals, func(i, j int) bool { return t.Arrivals[i].At < t.Arrivals[j].At })
	return nil
}
