package workload

import (
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
)

// Whoever waits is told at once when it does not go on by itself.
func TestWhatStandsStill(t *testing.T) {
	progressing := func(reason string) api.Condition {
		return api.Condition{Type: api.ConditionProgressing, Reason: reason, Message: "got no further"}
	}
	for name, c := range map[string]struct {
		edit func(*api.Deployment)
		kind errs.Kind
		says string
	}{
		"on its way": {func(d *api.Deployment) { d.Status.Conditions = []api.Condition{progressing("Rolling")} }, "", ""},
		"new":        {func(*api.Deployment) {}, "", ""},
		"stuck":      {func(d *api.Deployment) { d.Status.Conditions = []api.Condition{progressing(api.ReasonDeadline)} }, errs.Timeout, "got no further"},
		"paused": {func(d *api.Deployment) {
			d.Spec.Paused = true
			d.Status.Conditions = []api.Condition{progressing(api.ReasonPaused)}
		}, errs.Conflict, "is paused"},
		"refused": {func(d *api.Deployment) {
			d.Status.Conditions = []api.Condition{{Type: api.ConditionAdmitted, Reason: "Quota", Message: "the limit is 2"}}
		}, errs.Quota, "1 of 4 updated, 3 available, 2 old: the limit is 2"},
	} {
		d := &api.Deployment{Head: api.Head{K: api.KindDeployment, Meta: api.Meta{Name: "web", Tenant: "acme"}}, Status: api.DeploymentStatus{Desired: 4, Updated: 1, Replicas: 3, Available: 3}}
		c.edit(d)
		err := standsStill(d)
		if c.kind == "" && err != nil || c.kind != "" && (errs.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q saying %q", name, err, c.kind, c.says)
		}
	}
}
