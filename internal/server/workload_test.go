package server

import (
	"fmt"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
)

func deployment(tenant, name string, spec api.InstanceSpec) *api.Deployment {
	return &api.Deployment{Head: api.Head{K: api.KindDeployment, Meta: api.Meta{Name: name, Tenant: tenant}}, Spec: api.DeploymentSpec{Template: api.Template{Spec: spec}}}
}

// workloads are all kinds that make instances of a template.
func workloads(tenant, name string, spec api.InstanceSpec) map[string]api.Object {
	head := func(k api.Kind) api.Head { return api.Head{K: k, Meta: api.Meta{Name: name, Tenant: tenant}} }
	job := api.JobSpec{Template: api.Template{Spec: spec}}
	return map[string]api.Object{
		"deployments": deployment(tenant, name, spec),
		"jobs":        &api.Job{Head: head(api.KindJob), Spec: job},
		"cronjobs":    &api.CronJob{Head: head(api.KindCronJob), Spec: api.CronJobSpec{Schedule: "@daily", Job: api.JobTemplate{Spec: job}}},
	}
}

// What needs a right in an instance needs it in a template.
func TestTemplatesAreAuthorizedLikeInstances(t *testing.T) {
	f := newFixture(t, Config{})
	f.put(&api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: meta("urgent")}, Spec: api.PriorityClassSpec{Value: 10, Preempt: true}})
	for want, spec := range map[string]api.InstanceSpec{
		"capability:NET_ADMIN": {Image: "b", Capabilities: &api.Capabilities{Add: []string{"net_admin"}}},
		"hostpath:/srv":        {Image: "b", Volumes: []api.Mount{{HostPath: "/srv", Path: "/d"}}},
		"network:host":         {Image: "b", Networks: []api.Attach{{Name: "host"}}},
		"priority:urgent":      {Image: "b", Priority: "urgent"},
	} {
		for plural, o := range workloads("acme", "w", spec) {
			p := f.do(as("ann"), "POST", "/v1/"+plural, encode(t, o)).problem(errs.Denied)
			if !strings.Contains(p.Detail, want) {
				t.Errorf("%s %s: %s", plural, want, p.Detail)
			}
		}
	}
	for plural, o := range workloads("acme", "plain", api.InstanceSpec{Image: "b"}) {
		f.do(as("ann"), "POST", "/v1/"+plural, encode(t, o)).want(201)
		f.do(as("nora"), "POST", "/v1/"+plural, encode(t, o)).problem(errs.Denied)
		o.Metadata().Tenant = "nowhere"
		f.do(root(), "POST", "/v1/"+plural, encode(t, o)).problem(errs.NotFound)
	}
	f.do(as("ann"), "PATCH", "/v1/deployments/plain?tenant=acme", `{"spec":{"template":{"spec":{"capabilities":{"add":["NET_ADMIN"]}}}}}`).problem(errs.Denied)
	f.do(as("ann"), "PATCH", "/v1/cronjobs/plain?tenant=acme", `{"spec":{"job":{"spec":{"template":{"spec":{"priorityClass":"urgent"}}}}}}`).problem(errs.Denied)
	p := f.do(as("ann"), "PATCH", "/v1/cronjobs/plain?tenant=acme", `{"spec":{"job":{"spec":{"template":{"spec":{"priorityClass":"none"}}}}}}`).problem(errs.Invalid)
	if !strings.Contains(fmt.Sprint(p), "spec.job.spec.template.spec.priorityClass") {
		t.Errorf("%+v", p)
	}

	// Who has not the right may not change what uses it, but have it more often, or not at all.
	f.do(root(), "POST", "/v1/deployments", encode(t, deployment("acme", "priv", api.InstanceSpec{Image: "b", Capabilities: &api.Capabilities{Add: []string{"NET_ADMIN"}}}))).want(201)
	f.do(as("ann"), "PATCH", "/v1/deployments/priv?tenant=acme", `{"spec":{"template":{"spec":{"command":["sh"]}}}}`).problem(errs.Denied)
	f.do(as("ann"), "PATCH", "/v1/deployments/priv?tenant=acme", `{"spec":{"replicas":3}}`).want(200)
	// More of a rank that makes others go needs the right to it; less does not.
	f.do(root(), "POST", "/v1/deployments", encode(t, deployment("acme", "rank", api.InstanceSpec{Image: "b", Priority: "urgent"}))).want(201)
	f.do(as("ann"), "PATCH", "/v1/deployments/rank?tenant=acme", `{"spec":{"replicas":3}}`).problem(errs.Denied)
	f.do(as("ann"), "PATCH", "/v1/deployments/rank?tenant=acme", `{"spec":{"replicas":0}}`).want(200)
}

func TestGoingBackToARevision(t *testing.T) {
	f := newFixture(t, Config{})
	f.do(as("ann"), "POST", "/v1/deployments", encode(t, deployment("acme", "web", api.InstanceSpec{Image: "v2"}))).want(201)
	rev := func(n int64, spec api.InstanceSpec) *api.Revision {
		return &api.Revision{Head: api.Head{K: api.KindRevision, Meta: api.Meta{Name: fmt.Sprint("web-", n), Tenant: "acme"}},
			Spec: api.RevisionSpec{Deployment: "web", Number: n, Template: api.Template{Spec: spec}}}
	}
	f.put(rev(1, api.InstanceSpec{Image: "v1"}), rev(2, api.InstanceSpec{Image: "host", Networks: []api.Attach{{Name: "host"}}}))
	url := "/v1/deployments/web?tenant=acme"
	p := f.do(as("ann"), "PATCH", url, `{"spec":{"rollbackTo":7}}`).problem(errs.Invalid)
	if !strings.Contains(fmt.Sprint(p), "spec.rollbackTo") {
		t.Errorf("%+v", p)
	}
	f.do(as("ann"), "PATCH", url, `{"spec":{"rollbackTo":2}}`).problem(errs.Denied) // an old right is no right
	r := f.do(as("ann"), "PATCH", url, `{"spec":{"rollbackTo":1}}`).want(200)
	if body := r.Body.String(); !strings.Contains(body, `"image":"v1"`) || strings.Contains(body, "rollbackTo") {
		t.Errorf("%s", body)
	}
	f.do(as("ann"), "POST", "/v1/revisions", encode(t, rev(3, api.InstanceSpec{Image: "x"}))).problem(errs.Unsupported)
	d := deployment("acme", "new", api.InstanceSpec{Image: "x"})
	d.Spec.RollbackTo = 1
	f.do(as("ann"), "POST", "/v1/deployments", encode(t, d)).problem(errs.Invalid)
}

func TestWhatOthersHaveBuiltOnCannotChange(t *testing.T) {
	f := newFixture(t, Config{})
	for plural, o := range workloads("acme", "w", api.InstanceSpec{Image: "b"}) {
		f.do(as("ann"), "POST", "/v1/"+plural, encode(t, o)).want(201)
	}
	for patch, field := range map[string]string{
		`deployments {"spec":{"selector":{"labels":{"a":"b"}},"template":{"labels":{"a":"b"}}}}`: "spec.selector",
		`deployments {"spec":{"perNode":true}}`:                                                  "spec.perNode",
		`jobs {"spec":{"completions":2}}`:                                                        "spec.completions",
		`jobs {"spec":{"template":{"spec":{"image":"c"}}}}`:                                      "spec.template",
	} {
		plural, body, _ := strings.Cut(patch, " ")
		p := f.do(as("ann"), "PATCH", "/v1/"+plural+"/w?tenant=acme", body).problem(errs.Invalid)
		if !strings.Contains(fmt.Sprint(p), field) {
			t.Errorf("%s: %+v", patch, p)
		}
	}
	f.do(as("ann"), "PATCH", "/v1/jobs/w?tenant=acme", `{"spec":{"parallelism":2,"suspended":true}}`).want(200)
	f.do(as("ann"), "DELETE", "/v1/jobs/w?tenant=acme", "").want(202)
}
