package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"atoll/api"
	"atoll/test/rig"
)

// plans asks what would be, of the live pool with web running, and sees that it is.
func plans(t *testing.T, p *rig.Pool) {
	ask := func(want int, args ...string) (string, api.PlanAnswer) {
		t.Helper()
		text, stderr, code := ends(t, p, "", append([]string{"plan"}, args...)...)
		if code != want || stderr != "" {
			t.Fatalf("plan %v: code %d, want %d: %s%s", args, code, want, text, stderr)
		}
		raw, _, again := ends(t, p, "", append([]string{"plan", "-o", "json"}, args...)...)
		if args[0] != "-f" {
			raw, _, again = ends(t, p, "", append(append([]string{"plan"}, args...), "-o", "json")...)
		}
		var a api.PlanAnswer
		if err := json.Unmarshal([]byte(raw), &a); err != nil || again != want || a.Holds != (want == 0) {
			t.Fatalf("plan %v -o json: code %d, %v: %s", args, again, err, raw)
		}
		return text, a
	}
	before := do(t, p, "get", "instances", "-A", "-o", "name")
	text, a := ask(5, "lose", "isle1")
	if !strings.Contains(text, "If isle1 were lost now: 0 instances move, 1 stays pending") || !strings.Contains(text, "demo/web -> nowhere") || a.Pending != 1 {
		t.Errorf("lose: %s", text)
	}
	if text, _ = ask(5, "drain", "isle1"); !strings.Contains(text, "demo/web stays") {
		t.Errorf("drain: %s", text)
	}
	if text, a = ask(0, "add", "--cpu", "4", "--memory", "8Gi"); a.Headroom.Then.Nodes != 2 {
		t.Errorf("add: %s", text)
	}
	// As many as are said to fit are placed, and one more is not.
	text, a = ask(0, "fit", "--cpu", "400m", "--memory", "16Mi")
	n := a.Fit.Count
	if n < 1 || len(a.Fit.Bottleneck) != 1 || a.Fit.Bottleneck[0] != api.CPU {
		t.Fatalf("fit: %s", text)
	}
	var docs strings.Builder
	for i := range n + 1 {
		docs.WriteString("---\nkind: Instance\nmetadata: {name: fill-" + string(rune('a'+i)) + ", tenant: demo}\nspec: {image: busybox, command: [sleep, \"1000\"], networks: [{name: none}], requests: {cpu: 400m, memory: 16Mi}}\n")
	}
	file := filepath.Join(t.TempDir(), "fill.yaml")
	if err := os.WriteFile(file, []byte(docs.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, a = ask(5, "-f", file); a.Placed != n || a.Pending != 1 {
		t.Errorf("%d fit, a file of one more has: %s", n, text)
	}
	if text, _ = ask(5, "quota", "demo", "--guarantee", "cpu=640"); !strings.Contains(text, "refused: ") {
		t.Errorf("quota: %s", text)
	}
	if now := do(t, p, "get", "instances", "-A", "-o", "name"); now != before {
		t.Errorf("plans changed the pool: %s", now)
	}
}
