package tell

import (
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/cli/verb"
)

func nodesNamed(verdicts ...api.NodeVerdict) []api.NodeVerdict { return verdicts }

// What is kept of a decision reads well in small and in large pools.
func TestVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		d    api.Decision
		want string
	}{
		"small": {api.Decision{Of: 3, Chosen: "isle1", Nodes: nodesNamed(api.NodeVerdict{Node: "isle1", Score: .81, Parts: map[string]float64{"fits": .9}}, api.NodeVerdict{Node: "isle2", Score: .5},
			api.NodeVerdict{Node: "isle3", Reason: "node is cordoned"}), Refusals: []api.Refusal{{Policy: "host", Reason: "node is cordoned", Nodes: 1}}},
			"isle1  chosen    score 0.81  (fits 0.9)\nisle2  possible  score 0.50\nisle3  refused   node is cordoned\n"},
		"large": {api.Decision{Of: 1000, Chosen: "n1", Nodes: nodesNamed(api.NodeVerdict{Node: "n1", Score: .9}, api.NodeVerdict{Node: "n2", Score: .8}, api.NodeVerdict{Node: "n3", Score: .7}),
			Refusals: []api.Refusal{{Policy: "resources", Reason: "not enough CPU", Nodes: 120}, {Policy: "host", Reason: "taint gpu=only:NoSchedule not tolerated", Nodes: 1}}},
			"n1  chosen    score 0.90\nn2  possible  score 0.80\nn3  possible  score 0.70\n…   possible  also 876 more nodes\n…   refused   120 nodes: not enough CPU\n…   refused   1 node: taint gpu=only:NoSchedule not tolerated\n"},
		"large and full": {api.Decision{Of: 1000, Nodes: nodesNamed(api.NodeVerdict{Node: "n1", Reason: "not enough CPU"}), Refusals: []api.Refusal{{Policy: "resources", Reason: "not enough CPU", Nodes: 1000}}}, ""},
		"by preemption":  {api.Decision{Of: 3, Chosen: "isle1", Hints: []string{"room was made"}}, ""},
	} {
		if got := verdicts(&c.d, ""); got != c.want {
			t.Errorf("%s: got\n%swant\n%s", name, got, c.want)
		}
	}
}

func TestPendingHeadlines(t *testing.T) {
	in := &api.Instance{Head: api.Head{Meta: api.Meta{Name: "db", Tenant: "acme"}}}
	at := time.Time{}.Local().Format(time.TimeOnly)
	for want, r := range map[string]api.Refusal{
		"db is pending: no node can run it; last tried " + at + ", 3 nodes looked at.":                            {Policy: "resources", Reason: "not enough CPU", Nodes: 3},
		"db is pending: it has a place as soon as others have left it; last tried " + at + ", 3 nodes looked at.": {Policy: "preemption", Reason: "waits for 2 instances of a lower priority to leave isle2", Nodes: 1, Best: "isle2"},
		"db is pending: its gang is placed as a whole; last tried " + at + ", 3 nodes looked at.":                 {Policy: "gang", Reason: "2 of 3 members of gang train are there", Nodes: 3},
		"db is pending: it left isle2 and is placed anew; last tried " + at + ", 3 nodes looked at.":              {Policy: "eviction", Reason: "makes room for acme/x of a higher priority", Nodes: 1, Best: "isle2"},
		"db is pending: the pool keeps what is free for others; last tried " + at + ", 3 nodes looked at.":        {Policy: "pool", Reason: "what is left of cpu is kept", Nodes: 3},
	} {
		d := &api.Decision{Of: 3, Refusals: []api.Refusal{r}}
		a := &api.Assignment{Spec: api.AssignmentSpec{Decision: d}}
		if got := headline(in, a); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if l := verb.Refusals(d); len(l) != 1 || verb.OfAll(r) && l[0] != r.Reason {
			t.Errorf("%v", l)
		}
	}
}

func TestTheClosestNodeIsNamed(t *testing.T) {
	d := &api.Decision{Of: 4, Refusals: []api.Refusal{{Policy: "resources", Reason: "not enough CPU", Nodes: 3, Best: "isle2: CPU 7.2 free of 8"}, {Policy: "host", Reason: "node is cordoned", Nodes: 1, Best: "isle4"}}}
	got := verb.Refusals(d)
	if len(got) != 2 || got[0] != "3 nodes: not enough CPU (closest isle2: CPU 7.2 free of 8)" || got[1] != "1 node: node is cordoned (isle4)" {
		t.Errorf("%q", got)
	}
}
