package twin

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"atoll/internal/errs"
	"atoll/internal/sim"
	"atoll/internal/sim/report"
	"atoll/internal/sim/scenario"
)

const examples = "../../../docs/examples/sim/"

func playScenario(t *testing.T, path string, edit func(*scenario.Scenario)) *report.Report {
	t.Helper()
	sc, err := readScenario(path)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(sc)
	}
	w, err := sim.New(context.Background(), sc, sim.Options{Chain: simChain, Open: openBeside(path)})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := w.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// scaleDown makes a pool of a hundredth, with the same load.
func scaleDown(sc *scenario.Scenario) {
	const by = 100
	for i := range sc.Hosts {
		sc.Hosts[i].Count /= by
		sc.Hosts[i].Racks /= 10
	}
	for i := range sc.Tenants {
		for r := range sc.Tenants[i].Guarantee {
			sc.Tenants[i].Guarantee[r] /= by
		}
	}
	for i := range sc.Arrivals {
		a := &sc.Arrivals[i]
		a.Count = max(a.Count/by, 1)
		if a.Poisson != nil {
			a.Poisson.PerMinute /= by
		}
	}
}

// Every shipped scenario is played. ATOLL_SIM_FULL=1 plays the largest in full, too.
func TestTheShippedScenarios(t *testing.T) {
	files, err := filepath.Glob(examples + "*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%v %v", files, err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var edit func(*scenario.Scenario)
			if strings.Contains(path, "ten-thousand") && os.Getenv("ATOLL_SIM_FULL") == "" {
				edit = scaleDown
			}
			rep := playScenario(t, path, edit)
			tot := rep.Totals
			if tot.Created < 50 || tot.Starts < tot.Created*9/10 || tot.Running == 0 || len(rep.Series.Seconds) < 50 || len(rep.Faults) == 0 || rep.Power.KWh <= 0 || rep.Cost <= 0 {
				t.Fatalf("%+v %+v", tot, rep.Faults)
			}
			cpu := rep.Use[0]
			if cpu.Requested <= 0.05 || cpu.Requested > 1 || cpu.Used <= 0 || cpu.Used > cpu.Requested {
				t.Fatalf("%+v", cpu)
			}
			selfContained(t, rep)
		})
	}
}

var outside = regexp.MustCompile(`(?i)(src|href)=|https?://|url\(|@import|<link|<iframe`)

// selfContained: the page asks nobody for anything, and says everything in both languages.
func selfContained(t *testing.T, reps ...*report.Report) {
	t.Helper()
	var b bytes.Buffer
	if err := report.HTML(&b, reps...); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	if m := outside.FindString(page); m != "" {
		t.Fatalf("the page reaches outside: %q", m)
	}
	en, zh := strings.Count(page, `data-l="en"`), strings.Count(page, `data-l="zh"`)
	if en < 50 || en != zh {
		t.Fatalf("%d texts in English, %d in Chinese", en, zh)
	}
	if strings.Contains(page, "NaN") || strings.Contains(page, "Inf") || strings.Count(page, "<svg") < 6 || strings.Count(page, "<svg") != strings.Count(page, "</svg>") {
		t.Fatal("a chart is broken")
	}
}

func TestTwoPoliciesMeetTheSameArrivals(t *testing.T) {
	a := playScenario(t, examples+"gpu-lab.yaml", nil)
	b := playScenario(t, examples+"gpu-lab.yaml", func(sc *scenario.Scenario) {
		sc.Policies.Scorers, sc.Policies.Only = map[string]float64{"spread": 1}, true
	})
	if len(b.Policies) != 1 || len(a.Policies) < 2 {
		t.Fatalf("%v %v", a.Policies, b.Policies)
	}
	ask := func(r *report.Report) int { return r.Totals.Created + r.Totals.Refused }
	if a.Totals.Refused == 0 && b.Totals.Refused == 0 && ask(a) != ask(b) {
		t.Fatalf("%d and %d instances were asked for", ask(a), ask(b))
	}
	selfContained(t, a, b)
	c := report.Compare(a, b)
	if len(c.Facts) < 10 {
		t.Fatalf("%+v", c.Facts)
	}
}

func TestUnknownPoliciesAreNamed(t *testing.T) {
	_, err := simChain(scenario.Policies{Scorers: map[string]float64{"bestfit": 1}, Without: []string{"nothing"}})
	var e *errs.Error
	if !errors.As(err, &e) || len(e.Fields) != 2 || !strings.Contains(e.Fields[0].Rule, "fits") {
		t.Fatalf("%v", err)
	}
}

func TestTheVerbsSpeakPlainly(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("name: x\nduration: 1h\nhosts: []\nhots: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"check", bad}, "did you mean hosts?"},
		{[]string{"run", dir + "/none.yaml"}, "no such file"},
		{[]string{"run", "-o", "pdf", bad}, "must be one of table, json, html"},
		{[]string{"run"}, "0 arguments"},
		{[]string{"replay"}, "which backup?"},
		{[]string{"import", "csv"}, "import what?"},
		{[]string{"fly"}, "unknown verb"},
	} {
		if err := Run(context.Background(), c.args); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c.args, err)
		}
	}
	out := filepath.Join(dir, "r.html")
	if err := Run(context.Background(), []string{"run", examples + "one-host.yaml", "-o", "html", "--quiet", "--out", out, "--seed", "5"}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil || !bytes.Contains(b, []byte("</html>")) {
		t.Fatalf("%d bytes %v", len(b), err)
	}
}
