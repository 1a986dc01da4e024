package sim

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sim/scenario"
)

func TestTracesArePlayed(t *testing.T) {
	files := map[string]string{
		"requests.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,8000,400\n2023-11-16 18:00:05,0,80\n2023-11-16 18:01:00,0,40\n2023-11-16 18:59:00,0,40\n",
		"cpu.json":     `{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"pod":"web"},"values":[[0,"0.2"],[600,"1"],[1200,"0.6"]]}]}}`,
		"rate.json":    `{"series":[{"name":"rate","step":60,"values":[0,2,0]}]}`,
	}
	open := func(name string) (io.ReadCloser, error) {
		if s, ok := files[name]; ok {
			return io.NopCloser(strings.NewReader(s)), nil
		}
		return nil, errs.New(errs.NotFound, "no %s", name)
	}
	sc := &scenario.Scenario{Name: "traces", Duration: api.Duration(30 * time.Minute), Sample: api.Duration(5 * time.Minute),
		Hosts:   []scenario.HostGroup{{Name: "h", Count: 4, Capacity: api.Resources{api.CPU: 64000, api.Memory: 64 << 30}}},
		Tenants: []scenario.Tenant{{Name: "t"}},
		Arrivals: []scenario.Arrival{
			{Name: "chat", Tenant: "t", Trace: &scenario.TraceIn{File: "requests.csv", Format: "azure-llm", Speed: 2}, Lifetime: scenario.Lifetime{Trace: true}},
			{Name: "web", Tenant: "t", At: []api.Duration{0}, Sizes: []scenario.Size{{Requests: api.Resources{api.CPU: 10000}}},
				Use: scenario.Use{CPU: &scenario.Level{Trace: &scenario.TraceIn{File: "cpu.json", Format: "prometheus", Series: "web"}}}},
			{Name: "hits", Tenant: "t", Trace: &scenario.TraceIn{File: "rate.json"}, Lifetime: scenario.Lifetime{Fixed: api.Duration(time.Second)}},
		}}
	sc.Defaults()
	rep, err := play(t, sc, Options{Open: open})
	if err != nil {
		t.Fatal(err)
	}
	// Four requests (the last after 29.5 minutes at double speed), one that stays, and about 120 hits in the second minute.
	n := rep.Totals.Created - 5
	if n < 80 || n > 160 || rep.Totals.Running != 1 || rep.Totals.Removed != rep.Totals.Created-1 {
		t.Fatalf("%+v", rep.Totals)
	}
	used := rep.Series.Line("cpu.used")
	all := 4 * (64000.0 - 200)
	for i, share := range []float64{0.2, 0.2, 1, 1, 0.6, 0.6, 0.6} {
		if want := share * 10000 / all; fmt.Sprintf("%.4f", used[i]) != fmt.Sprintf("%.4f", want) {
			t.Errorf("after %g s: %g, want %g", rep.Series.Seconds[i], used[i], want)
		}
	}
	sc.Arrivals[0].Trace.File = "none.csv"
	if _, err := New(t.Context(), sc, Options{Chain: testChain, Open: open}); err == nil || !strings.Contains(err.Error(), "arrivals[0].trace") {
		t.Fatalf("a file that is not there: %v", err)
	}
}
