// Package prometheus reads range queries of a Prometheus server, or of what speaks
// its HTTP API: from the network, or from a saved answer. It is how a user's own
// cluster gets into the twin. Fetch uses only the client and the address it is given;
// it starts no goroutine, and nothing it reads is believed without a bound.
package prometheus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
	"atoll/internal/trace"
)

const (
	maxAnswer = 64 << 20 // bytes of one answer
	perQuery  = 10_000   // points of a series in one answer; servers allow 11,000
	maxChunks = 1000
)

type answer struct {
	Status string `json:"status"`
	Error  string `json:"error"`
	Data   struct {
		ResultType string `json:"resultType"`
		Result     []struct {
			Metric map[string]string    `json:"metric"`
			Values [][2]json.RawMessage `json:"values"`
		} `json:"result"`
	} `json:"data"`
}

type point struct {
	at float64 // seconds since 1970
	v  float64
}

// matrix is what was read so far, by the name of the series.
type matrix map[string][]point

// Read reads one saved answer of /api/v1/query_range, plain or gzip.
func Read(r io.Reader) (*trace.Trace, error) {
	in, err := trace.Reader(r)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	m := matrix{}
	if err := m.add(b); err != nil {
		return nil, err
	}
	return m.trace(0)
}

// Query is one range query.
type Query struct {
	URL      string // of the server, such as http://prometheus:9090
	Expr     string // in PromQL
	From, To time.Time
	Step     time.Duration
	Token    string // bearer token; "": none. It is never repeated in an error.
}

// Fetch asks the server, in several calls where the range is long.
func Fetch(ctx context.Context, c *http.Client, q Query) (*trace.Trace, error) {
	u, err := q.check()
	if err != nil {
		return nil, err
	}
	m := matrix{}
	span := q.Step * (perQuery - 1)
	for from := q.From; !from.After(q.To); from = from.Add(span + q.Step) {
		to := from.Add(span)
		if to.After(q.To) {
			to = q.To
		}
		b, err := q.get(ctx, c, u, from, to)
		if err != nil {
			return nil, fmt.Errorf("prometheus: ask %s: %w", u.Host, err)
		}
		if err := m.add(b); err != nil {
			return nil, err
		}
	}
	return m.trace(q.Step)
}

func (q Query) check() (*url.URL, error) {
	var f []errs.Field
	u, err := url.Parse(q.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		f = append(f, errs.Field{Field: "url", Rule: "must be the http or https address of the server", Example: "http://prometheus:9090"})
	}
	if strings.TrimSpace(q.Expr) == "" || len(q.Expr) > 1<<16 {
		f = append(f, errs.Field{Field: "query", Rule: "must be a query in PromQL", Example: "rate(container_cpu_usage_seconds_total[5m])"})
	}
	if q.Step < time.Second || q.Step > 24*time.Hour {
		f = append(f, errs.Field{Field: "step", Value: q.Step.String(), Rule: "must be 1s to 24h", Example: "1m"})
	}
	if !q.To.After(q.From) || q.Step > 0 && q.To.Sub(q.From)/q.Step > perQuery*maxChunks {
		f = append(f, errs.Field{Field: "to", Value: q.To.Format(time.RFC3339), Rule: fmt.Sprintf("must be after from, by at most %d steps", perQuery*maxChunks), Example: q.From.Add(24 * time.Hour).Format(time.RFC3339)})
	}
	return u, errs.InvalidFields("prometheus", f)
}

func (q Query) get(ctx context.Context, c *http.Client, u *url.URL, from, to time.Time) ([]byte, error) {
	form := url.Values{"query": {q.Expr}, "start": {stamp(from)}, "end": {stamp(to)}, "step": {strconv.FormatFloat(q.Step.Seconds(), 'f', -1, 64)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.JoinPath("api/v1/query_range").String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if q.Token != "" {
		req.Header.Set("Authorization", "Bearer "+q.Token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "%w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, errs.New(errs.Unavailable, "%w", err)
	case len(b) > maxAnswer:
		return nil, errs.New(errs.Invalid, "the answer has more than %d bytes", maxAnswer).WithHint("ask for fewer series or a larger step")
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return nil, errs.New(errs.Denied, "the server answers %s", resp.Status).WithHint("give a token in the environment, see --help")
	case resp.StatusCode != http.StatusOK && !json.Valid(b):
		return nil, errs.New(errs.Unavailable, "the server answers %s", resp.Status)
	}
	return b, nil
}

func stamp(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}

// add takes in one answer.
func (m matrix) add(b []byte) error {
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		return errs.New(errs.Invalid, "prometheus: not an answer of its API: %w", err)
	}
	if a.Status != "success" {
		return errs.New(errs.Invalid, "prometheus: the query failed: %s", clip(a.Error))
	}
	if a.Data.ResultType != "matrix" {
		return errs.New(errs.Invalid, "prometheus: the result is a %q, not a matrix", clip(a.Data.ResultType)).WithHint("save the answer of /api/v1/query_range")
	}
	total := 0
	for _, r := range a.Data.Result {
		name := seriesName(r.Metric)
		for _, raw := range r.Values {
			p, err := parse(raw)
			if err != nil {
				return err
			}
			m[name] = append(m[name], p)
		}
		if total += len(r.Values); total > trace.MaxPoints || len(m) > trace.MaxSeries {
			return errs.New(errs.Invalid, "prometheus: more than %d values or %d series", trace.MaxPoints, trace.MaxSeries)
		}
	}
	return nil
}

func parse(raw [2]json.RawMessage) (point, error) {
	bad := errs.New(errs.Invalid, "prometheus: a value must be [seconds, \"number\"]")
	var p point
	var text string
	if json.Unmarshal(raw[0], &p.at) != nil || json.Unmarshal(raw[1], &text) != nil || math.Abs(p.at) > 1e12 {
		return p, bad
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return p, bad
	}
	if math.IsNaN(v) || math.IsInf(v, 0) || math.Abs(v) > 1e18 {
		v = 0 // nothing was measured
	}
	p.v = v
	return p, nil
}

// seriesName is the metric as Prometheus writes it.
func seriesName(m map[string]string) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		if k != "__name__" {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	var b bytes.Buffer
	b.WriteString(m["__name__"])
	b.WriteByte('{')
	for i, k := range keys {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s=%q", k, m[k])
	}
	b.WriteByte('}')
	if b.Len() > 512 {
		b.Truncate(512)
	}
	return strings.ToValidUTF8(b.String(), "")
}

// trace puts all series on one grid that begins with the first value of any; a gap
// keeps the value before it, and before the first value there is zero.
func (m matrix) trace(step time.Duration) (*trace.Trace, error) {
	names := make([]string, 0, len(m))
	first, last, grid := math.Inf(1), math.Inf(-1), step.Seconds()
	for n, ps := range m {
		if len(ps) == 0 {
			continue
		}
		names = append(names, n)
		sort.SliceStable(ps, func(i, j int) bool { return ps[i].at < ps[j].at })
		first, last = min(first, ps[0].at), max(last, ps[len(ps)-1].at)
		for i := 1; i < len(ps) && step == 0; i++ {
			if d := ps[i].at - ps[i-1].at; d >= 0.001 && (grid == 0 || d < grid) {
				grid = d
			}
		}
	}
	if len(names) == 0 {
		return nil, errs.New(errs.NotFound, "prometheus: the answer has no series").WithHint("check the query and its range")
	}
	if grid == 0 {
		grid = 60
	}
	n := int(math.Min((last-first)/grid+1.5, trace.MaxPoints+1))
	if n*len(names) > trace.MaxPoints || n > trace.MaxPoints {
		return nil, errs.New(errs.Invalid, "prometheus: %d series over %g s by %g s are more than %d values", len(names), last-first, grid, trace.MaxPoints)
	}
	sort.Strings(names)
	t := &trace.Trace{}
	for _, name := range names {
		s := trace.Series{Name: name, Step: trace.Seconds(grid), Values: make([]float64, max(n, 1))}
		ps, v := m[name], 0.0
		for i := range s.Values {
			for at := first + (float64(i)+0.5)*grid; len(ps) > 0 && ps[0].at < at; ps = ps[1:] {
				v = ps[0].v
			}
			s.Values[i] = v
		}
		t.Series = append(t.Series, s)
	}
	return t, t.Check()
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
