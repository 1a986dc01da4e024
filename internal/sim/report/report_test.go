package report

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"atoll/api"
)

func small(name string, cost float64) *Report {
	n := 2000 // longer than a chart is wide
	s := Series{Seconds: make([]float64, n)}
	up := make([]float64, n)
	for i := range n {
		s.Seconds[i], up[i] = float64(i)*60, float64(i%7)/7
	}
	for _, l := range []string{"cpu.requested", "cpu.used", "cpu.fragmented", "running", "waiting", "short", "up", "moves", "kW", "cost"} {
		s.Lines = append(s.Lines, NamedLine{Name: l, Values: up})
	}
	return &Report{Scenario: name, Description: `<script>alert("x")</script>`, Seed: 1, Start: time.Unix(0, 0).UTC(), Duration: api.Duration(33 * time.Hour), Policies: []string{"fits=1"},
		Pending: NewDist([]float64{3, 0, 100_000, 0.1}, 1), Use: []Resource{{Name: "cpu", Requested: 0.5}}, Tenants: []Tenant{{Name: "a&b", Guarantee: api.Resources{api.CPU: 500}}},
		Power: Power{Known: true}, Cost: cost, Series: s, Faults: []Count{{"zone", 1}}, Broken: []Violation{{At: 1, What: "it <broke>"}}}
}

func TestDistributions(t *testing.T) {
	d := NewDist([]float64{5, 1, 2, 4, 3, 0}, 2)
	if d.N != 6 || d.Never != 2 || d.P50 != 2 || d.P99 != 5 || d.Max != 5 || d.Mean != 2.5 || d.Buckets[0].N != 1 {
		t.Fatalf("%+v", d)
	}
	sum := 0
	for _, b := range small("x", 0).Pending.Buckets {
		sum += b.N
	}
	last := small("x", 0).Pending.Buckets
	if sum != 4 || last[len(last)-1].N != 1 {
		t.Fatalf("%+v", last)
	}
	if e := NewDist(nil, 0); e.N != 0 || e.P99 != 0 {
		t.Fatalf("%+v", e)
	}
}

func TestThePageIsWholeAndEscaped(t *testing.T) {
	var one, two, again bytes.Buffer
	for b, reps := range map[*bytes.Buffer][]*Report{&one: {small("a", 1)}, &again: {small("a", 1)}, &two: {small("a", 1), small("b", 2)}} {
		if err := HTML(b, reps...); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), again.Bytes()) {
		t.Fatal("the same report gives another page")
	}
	for _, bad := range []string{"<script>alert", "it <broke>", "a&b<", "%!", "NaN"} {
		if strings.Contains(one.String(), bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	for _, want := range []string{`role="alert"`, "stroke-dasharray", ">B requested<", ">A requested<", `aria-labelledby="power"`} {
		if !strings.Contains(two.String(), want) {
			t.Errorf("two side by side: no %s", want)
		}
	}
	for _, tag := range []string{"figure", "section", "table", "details", "svg", "ul", "dl"} {
		if a, b := strings.Count(two.String(), "<"+tag), strings.Count(two.String(), "</"+tag+">"); a != b || a == 0 && tag != "dl" {
			t.Errorf("%d <%s>, %d ends", a, tag, b)
		}
	}
	if n := two.Len(); n > 2<<20 {
		t.Errorf("%d bytes", n)
	}
}

func TestTheTableSaysWhoIsBetter(t *testing.T) {
	var b bytes.Buffer
	if err := Table(&b, small("a", 1), small("b", 2)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "A better") || strings.Contains(b.String(), "B better") {
		t.Fatal(b.String())
	}
	b.Reset()
	if err := Table(&b, small("a", 1)); err != nil || !strings.Contains(b.String(), "a&b") {
		t.Fatalf("%v %s", err, &b)
	}
}

func TestTimesAreShort(t *testing.T) {
	for v, want := range map[float64]string{0: "0 s", 0.35: "0.35 s", 12.4: "12 s", 200: "3m20s", 3600: "1h0m", 57350: "15h55m50s"} {
		if got := seconds(v); got != want {
			t.Errorf("%g: %q, want %q", v, got, want)
		}
	}
}
