package control

import (
	"context"
	"errors"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

func TestWorkloadsGoWithTheirTenant(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	tenant := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "t"}}}
	w.put(tenant)
	none := 0
	head := func(k api.Kind) api.Head {
		return api.Head{K: k, Meta: api.Meta{Name: "a", Tenant: "t", UID: "u", Finalizers: []string{api.FinalizerWorkload}}}
	}
	template := api.Template{Spec: api.InstanceSpec{Image: "x"}}
	w.put(&api.Deployment{Head: head(api.KindDeployment), Spec: api.DeploymentSpec{Replicas: &none, Template: template}})
	w.put(&api.Job{Head: head(api.KindJob), Spec: api.JobSpec{Suspended: true, Template: template}})
	w.put(&api.CronJob{Head: head(api.KindCronJob), Spec: api.CronJobSpec{Schedule: "@yearly", Job: api.JobTemplate{Spec: api.JobSpec{Template: template}}}})
	w.settle()
	if _, err := w.mem.Commit(context.Background(), store.Remove(api.RefOf(tenant), store.Any)); err != nil {
		t.Fatal(err)
	}
	w.settle()
	for _, k := range []api.Kind{api.KindDeployment, api.KindJob, api.KindCronJob, api.KindRevision} {
		list, _, err := w.mem.List(context.Background(), api.Selector{Kind: k})
		if err != nil && !errors.Is(err, errs.NotFound) || len(list) > 0 {
			t.Errorf("%d of kind %s are left, %v", len(list), k, err)
		}
	}
}
