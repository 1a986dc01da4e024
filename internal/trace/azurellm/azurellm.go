// Package azurellm reads the request arrivals of the Azure LLM inference trace of 2023
// (Patel et al., ISCA'24): CSV with a time, the tokens of the context and the tokens
// that were generated; one row a request, in any order. It reads what it is given and
// starts no goroutine; it must never believe a number without a bound.
package azurellm

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
	"atoll/internal/trace"
)

const (
	maxTokens = 10_000_000 // of one request
	seriesBy  = 10 * time.Second
	layout    = "2006-01-02 15:04:05.9999999"
)

// Speed is how fast a model works on one request.
type Speed struct {
	Prefill float64 // tokens of context a second
	Decode  float64 // tokens written a second
}

type request struct {
	at    time.Time
	lasts time.Duration
}

// Read gives a request as an arrival that lasts as long as the model works on it, and
// two series by steps of ten seconds: "arrivals" a second, and "concurrency", the
// requests in work at the beginning of the step.
func Read(r io.Reader, sp Speed) (*trace.Trace, error) {
	if !(sp.Prefill > 0 && sp.Decode > 0) {
		return nil, errs.New(errs.Invalid, "azure-llm: the speeds must be above zero")
	}
	in, err := trace.Reader(r)
	if err != nil {
		return nil, err
	}
	rows, err := requests(in, sp)
	if err != nil {
		return nil, fmt.Errorf("azure-llm: %w", err)
	}
	slices.SortStableFunc(rows, func(a, b request) int { return a.at.Compare(b.at) })
	first := rows[0].at
	if rows[len(rows)-1].at.Sub(first) > trace.MaxTime {
		return nil, errs.New(errs.Invalid, "azure-llm: the requests are more than %s apart", trace.MaxTime)
	}
	t := &trace.Trace{Arrivals: make([]trace.Arrival, len(rows))}
	steps := int(rows[len(rows)-1].at.Sub(first)/seriesBy) + 1
	if steps > trace.MaxPoints/2 {
		return nil, errs.New(errs.Invalid, "azure-llm: the requests are more than %s apart", seriesBy*trace.MaxPoints/2)
	}
	come, diff := make([]float64, steps), make([]float64, steps+1)
	for i, q := range rows {
		at := q.at.Sub(first)
		t.Arrivals[i] = trace.Arrival{At: trace.Secs(at), Lasts: trace.Secs(q.lasts)}
		come[at/seriesBy] += 1 / seriesBy.Seconds()
		// In work at the beginning of the steps from the first at or after its start to the last before its end.
		from, to := int((at+seriesBy-1)/seriesBy), int((at+q.lasts+seriesBy-1)/seriesBy)
		diff[min(from, steps)]++
		diff[min(to, steps)]--
	}
	busy, now := make([]float64, steps), 0.0
	for i := range busy {
		now += diff[i]
		busy[i] = now
	}
	step := trace.Secs(seriesBy)
	t.Series = []trace.Series{{Name: "concurrency", Step: step, Values: busy}, {Name: "arrivals", Step: step, Values: come}}
	return t, t.Check()
}

func requests(r io.Reader, sp Speed) ([]request, error) {
	c := csv.NewReader(r)
	c.FieldsPerRecord, c.ReuseRecord = 3, true
	var out []request
	for n := 1; ; n++ {
		rec, err := c.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "line %d: %w", n, err)
		}
		if n == 1 && strings.EqualFold(strings.TrimPrefix(rec[0], "\ufeff"), "TIMESTAMP") {
			continue
		}
		q, err := row(rec, sp)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if out = append(out, q); len(out) > trace.MaxArrivals {
			return nil, errs.New(errs.Invalid, "more than %d requests", trace.MaxArrivals)
		}
	}
	if len(out) == 0 {
		return nil, errs.New(errs.Invalid, "no requests")
	}
	return out, nil
}

func row(rec []string, sp Speed) (request, error) {
	at, err := time.Parse(layout, rec[0])
	if err != nil {
		return request{}, errs.New(errs.Invalid, "TIMESTAMP must be a time such as 2023-11-16 18:15:46.6805900")
	}
	var tokens [2]int64
	for i := range tokens {
		v, err := strconv.ParseInt(rec[1+i], 10, 64)
		if err != nil || v < 0 || v > maxTokens {
			return request{}, errs.New(errs.Invalid, "tokens must be 0 to %d", maxTokens)
		}
		tokens[i] = v
	}
	secs := float64(tokens[0])/sp.Prefill + float64(tokens[1])/sp.Decode
	if secs > trace.MaxTime.Seconds() {
		return request{}, errs.New(errs.Invalid, "a request of %g seconds: the speeds are too low", secs)
	}
	return request{at, time.Duration(secs * float64(time.Second))}, nil
}
