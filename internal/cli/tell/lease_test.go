package tell

import (
	"strings"
	"testing"
	"time"

	"atoll/api"
)

func TestLeaseLines(t *testing.T) {
	now := time.Date(2025, 5, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	day := api.Duration(24 * time.Hour)
	ready := func(ok bool, reason, msg string) []api.Condition {
		return []api.Condition{{Type: api.ConditionReady, Status: ok, Reason: reason, Message: msg}}
	}
	fences := api.Condition{Type: api.ConditionFences, Status: true}
	for name, c := range map[string]struct {
		lease api.LeaseSpec
		node  api.Node
		want  string
	}{
		"held": {api.LeaseSpec{State: api.LeaseHeld, Epoch: 3, Since: ago(2 * time.Hour), Duration: api.Duration(5 * time.Second), Losses: []time.Time{ago(4 * time.Hour), ago(3 * time.Hour)}},
			api.Node{Status: api.NodeStatus{Conditions: append(ready(true, "", ""), fences)}},
			"State: held for 2h (epoch 3)|Heard of: yes|Ends: 5s after the last heartbeat|Fences itself: yes: what must not run twice stops before the lease ends|Lost: 2 times, the last 3h ago"},
		"away": {api.LeaseSpec{State: api.LeaseHeld, Epoch: 1, Since: ago(2 * time.Hour), Duration: day},
			api.Node{Spec: api.NodeSpec{DisconnectAllowed: &day}, Status: api.NodeStatus{Conditions: append(ready(false, api.ReasonOutOfReach, "not heard of since 11:00:00"), fences)}},
			"State: held for 2h (epoch 1)|Heard of: no: not heard of since 11:00:00|Ends: 24h0m0s after the last heartbeat|Edge: may run on alone for 24h0m0s|Fences itself: yes: what must not run twice stops before the lease ends"},
		"changed": {api.LeaseSpec{State: api.LeaseHeld, Epoch: 1, Since: ago(2 * time.Hour), Duration: api.Duration(5 * time.Second)},
			api.Node{Spec: api.NodeSpec{DisconnectAllowed: &day}, Status: api.NodeStatus{Conditions: append(ready(true, "", ""), fences)}},
			"State: held for 2h (epoch 1)|Heard of: yes|Ends: 5s after the last heartbeat|Edge: may run on alone for 24h0m0s, from its next heartbeat on|Fences itself: yes: what must not run twice stops before the lease ends"},
		"lost": {api.LeaseSpec{State: api.LeaseExpired, Epoch: 2, Since: ago(time.Minute), Losses: []time.Time{ago(time.Minute)}},
			api.Node{Status: api.NodeStatus{Conditions: ready(false, "LeaseExpired", "not heard of since 11:59:00")}},
			"State: expired for 60s (epoch 2)|Heard of: no: not heard of since 11:59:00|Fences itself: no: the end of its lease proves nothing|Proof: none: what must not run twice waits; if the host is off: atoll node confirm-off isle2|Lost: 1 times, the last 60s ago"},
		"proven": {api.LeaseSpec{State: api.LeaseExpired, Epoch: 2, Since: ago(time.Minute), Proof: &api.FenceProof{By: "bmc", At: ago(30 * time.Second), Message: "switched off"}},
			api.Node{Status: api.NodeStatus{Conditions: ready(false, "LeaseExpired", "")}},
			"State: expired for 60s (epoch 2)|Heard of: no|Fences itself: no: the end of its lease proves nothing|Proof: by bmc, 30s ago: switched off"},
	} {
		c.node.Name = "isle2"
		var got []string
		for _, l := range leaseLines(&api.Lease{Spec: c.lease}, &c.node, now) {
			got = append(got, l[0]+": "+l[1])
		}
		if s := strings.Join(got, "|"); s != c.want {
			t.Errorf("%s:\n%s\n%s", name, s, c.want)
		}
	}
}
