package api

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func TestShares(t *testing.T) {
	for _, c := range []struct {
		json     string
		of       int
		up, down int
		ok       bool
	}{
		{`3`, 10, 3, 3, true}, {`"3"`, 10, 3, 3, true}, {`"25%"`, 10, 3, 2, true}, {`"0%"`, 10, 0, 0, true}, {`"100%"`, 7, 7, 7, true}, {`"25%"`, 1, 1, 0, true}, {`0`, 5, 0, 0, true},
		{`"101%"`, 10, 0, 0, false}, {`-1`, 10, 0, 0, false}, {`"lots"`, 10, 0, 0, false}, {`"2.5%"`, 10, 0, 0, false}, {`"05"`, 10, 0, 0, false}, {`"%"`, 10, 0, 0, false}, {`99999`, 1, 0, 0, false},
	} {
		var s Share
		if err := json.Unmarshal([]byte(c.json), &s); err != nil {
			t.Fatalf("%s: %v", c.json, err)
		}
		if f := s.validate("x"); (len(f) == 0) != c.ok {
			t.Errorf("%s: %v", c.json, f)
		}
		if c.ok && (s.Of(c.of, true) != c.up || s.Of(c.of, false) != c.down) {
			t.Errorf("%s of %d: %d and %d, want %d and %d", c.json, c.of, s.Of(c.of, true), s.Of(c.of, false), c.up, c.down)
		}
	}
	if b, err := json.Marshal(Strategy{MaxSurge: "2", MaxUnavailable: "25%"}); err != nil || string(b) != `{"maxSurge":2,"maxUnavailable":"25%"}` {
		t.Errorf("%s %v", b, err)
	}
	var s Share
	if json.Unmarshal([]byte(`{}`), &s) == nil || json.Unmarshal([]byte(`1.5`), &s) == nil {
		t.Error("no number and no text was accepted")
	}
}

// Percentages are rounded as people know it from Kubernetes, and never come to nothing.
func TestBounds(t *testing.T) {
	for _, c := range []struct {
		surge, unavailable Share
		wants              int
		perNode            bool
		up, down           int
	}{
		{"", "", 4, false, 1, 1}, {"", "", 1, false, 1, 0}, {"", "", 10, false, 3, 2}, {"", "", 0, false, 0, 1}, {"0", "10%", 5, false, 0, 1},
		{"1", "0", 5, false, 1, 0}, {"", "", 5, true, 0, 1}, {"", "100%", 5, true, 0, 5}, {"", "9", 5, false, 2, 5},
	} {
		spec := DeploymentSpec{PerNode: c.perNode, Strategy: Strategy{MaxSurge: c.surge, MaxUnavailable: c.unavailable}}
		if up, down := spec.Bounds(c.wants); up != c.up || down != c.down {
			t.Errorf("%+v: %d and %d", c, up, down)
		}
	}
}

func TestWorkloadsAreValidated(t *testing.T) {
	for spec, field := range map[string]string{
		`deployment {"template":{"spec":{"image":""}}}`:                                                                    "spec.template.spec.image",
		`deployment {"template":{"spec":{"image":"x","limits":{"memory":"1Ki"}}}}`:                                         "spec.template.spec.limits.memory",
		`deployment {"template":{"spec":{"image":"x","stopped":true}}}`:                                                    "spec.template.spec.stopped",
		`deployment {"template":{"spec":{"image":"x","autoRemove":true}}}`:                                                 "spec.template.spec.autoRemove",
		`deployment {"template":{"spec":{"image":"x","restart":"never"}}}`:                                                 "spec.template.spec.restart",
		`deployment {"template":{"labels":{"atoll/x":"y"},"spec":{"image":"x"}}}`:                                          "spec.template.labels",
		`deployment {"template":{"annotations":{"atoll/attached":"true"},"spec":{"image":"x"}}}`:                           "spec.template.annotations",
		`deployment {"replicas":2,"template":{"spec":{"image":"x","networks":[{"name":"default","address":"10.0.0.1"}]}}}`: "spec.template.spec.networks[0].address",
		`deployment {"template":{"spec":{"image":"x","placement":{"gang":{"name":"g","size":2}}}}}`:                        "spec.template.spec.placement.gang",
		`deployment {"replicas":-1,"template":{"spec":{"image":"x"}}}`:                                                     "spec.replicas",
		`deployment {"replicas":1000000,"template":{"spec":{"image":"x"}}}`:                                                "spec.replicas",
		`deployment {"selector":{"labels":{"a":"b"}},"template":{"spec":{"image":"x"}}}`:                                   "spec.selector.labels.a",
		`deployment {"strategy":{"maxSurge":0,"maxUnavailable":0},"template":{"spec":{"image":"x"}}}`:                      "spec.strategy.maxUnavailable",
		`deployment {"strategy":{"type":"recreate","maxSurge":1},"template":{"spec":{"image":"x"}}}`:                       "spec.strategy",
		`deployment {"strategy":{"type":"slowly"},"template":{"spec":{"image":"x"}}}`:                                      "spec.strategy.type",
		`deployment {"perNode":true,"strategy":{"maxSurge":1},"template":{"spec":{"image":"x"}}}`:                          "spec.strategy.maxSurge",
		`deployment {"minReady":"10m","progressDeadline":"5m","template":{"spec":{"image":"x"}}}`:                          "spec.progressDeadline",
		`deployment {"budget":{"none":true,"minAvailable":1},"template":{"spec":{"image":"x"}}}`:                           "spec.budget",
		`deployment {"budget":{"minAvailable":2},"template":{"spec":{"image":"x"}}}`:                                       "spec.budget.minAvailable",
		`deployment {"revisionHistory":1000,"template":{"spec":{"image":"x"}}}`:                                            "spec.revisionHistory",
		`job {"template":{"spec":{"image":"x","restart":"always"}}}`:                                                       "spec.template.spec.restart",
		`job {"completions":100000,"template":{"spec":{"image":"x"}}}`:                                                     "spec.completions",
		`job {"parallelism":-1,"template":{"spec":{"image":"x"}}}`:                                                         "spec.parallelism",
		`job {"activeDeadline":"0s","template":{"spec":{"image":"x"}}}`:                                                    "spec.activeDeadline",
		`job {"template":{"spec":{"image":"x","env":[{"name":"ATOLL_JOB_INDEX","value":"1"}]}}}`:                           "spec.template.spec.env[0].name",
		`cronjob {"schedule":"* * * *","job":{"spec":{"template":{"spec":{"image":"x"}}}}}`:                                "spec.schedule",
		`cronjob {"schedule":"@every 5m","job":{"spec":{"template":{"spec":{"image":"x"}}}}}`:                              "spec.schedule",
		`cronjob {"schedule":"TZ=UTC @daily","job":{"spec":{"template":{"spec":{"image":"x"}}}}}`:                          "spec.schedule",
		`cronjob {"schedule":"0 0 30 2 *","job":{"spec":{"template":{"spec":{"image":"x"}}}}}`:                             "spec.schedule",
		`cronjob {"schedule":"@daily","timezone":"Local","job":{"spec":{"template":{"spec":{"image":"x"}}}}}`:              "spec.timezone",
		`cronjob {"schedule":"@daily","concurrency":"maybe","job":{"spec":{"template":{"spec":{"image":"x"}}}}}`:           "spec.concurrency",
		`cronjob {"schedule":"@daily","successfulHistory":-1,"job":{"spec":{"template":{"spec":{"image":"x"}}}}}`:          "spec.successfulHistory",
		`cronjob {"schedule":"@daily","job":{"spec":{"template":{"spec":{"image":""}}}}}`:                                  "spec.job.spec.template.spec.image",
	} {
		kind, body, _ := strings.Cut(spec, " ")
		o, err := DecodeStrict([]byte(`{"kind":"` + kind + `","metadata":{"name":"a","tenant":"t"},"spec":` + body + `}`))
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		if err := Check(o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v, want one about %s", spec, err, field)
		}
	}
	long := &Deployment{Head: Head{K: KindDeployment, Meta: Meta{Name: strings.Repeat("a", 60), Tenant: "t"}}, Spec: DeploymentSpec{Template: Template{Spec: InstanceSpec{Image: "x"}}}}
	if err := Check(long); err == nil || !strings.Contains(err.Error(), "metadata.name") {
		t.Errorf("a name that leaves no room for those of instances: %v", err)
	}
}

// The fingerprint of a template depends on what it says, not on how it came about.
func TestTemplateHash(t *testing.T) {
	a := Template{Labels: map[string]string{"a": "1", "b": "2"}, Spec: InstanceSpec{Image: "x"}}
	b, err := DecodeStrict([]byte(`{"kind":"Deployment","metadata":{"name":"d"},"spec":{"template":{"spec":{"image":"x"},"labels":{"b":"2","a":"1"}}}}`))
	if err != nil || b.(*Deployment).Spec.Template.Hash() != a.Hash() || len(a.Hash()) != 10 {
		t.Errorf("%v %s", err, a.Hash())
	}
	if a.Spec.Image = "y"; a.Hash() == b.(*Deployment).Spec.Template.Hash() {
		t.Error("two templates have one fingerprint")
	}
}

// The files that the documentation shows are what a server takes.
func TestExamplesOfWorkloads(t *testing.T) {
	files, err := filepath.Glob("../docs/examples/workloads/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if b, err = yaml.YAMLToJSONStrict(b); err != nil {
			t.Fatal(err)
		}
		o, err := DecodeStrict(b)
		if err == nil {
			err = Check(o)
		}
		if err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// Whatever is written as a schedule is refused, or comes at times that grow.
func FuzzParseSchedule(f *testing.F) {
	for _, s := range []string{"* * * * *", "@daily", "*/5 1-3 1,15 * MON", "0 0 29 2 *", "TZ=", "@every 1s", "61 * * * *", "*/0 * * * *", "1-0 * * * *", "? ? ? ? ?", "99999999999999999999 * * * *"} {
		f.Add(s, "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, s, zone string) {
		sched, err := ParseSchedule(s, zone)
		if err != nil {
			return
		}
		at := time.Unix(1_700_000_000, 0)
		for range 3 {
			n := sched.Next(at)
			if n.IsZero() {
				return
			}
			if !n.After(at) || n.Second() != 0 {
				t.Fatalf("%q: after %s comes %s", s, at, n)
			}
			at = n
		}
	})
}
