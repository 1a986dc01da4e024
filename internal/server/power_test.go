package server

import (
	"context"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/fence/bmc"
)

// lever is a host's switch without a host.
type lever struct {
	state bmc.State
	err   error
}

func (l *lever) Off(context.Context) error                { return l.to(bmc.Off) }
func (l *lever) On(context.Context) error                 { return l.to(bmc.On) }
func (l *lever) State(context.Context) (bmc.State, error) { return l.state, l.err }

func (l *lever) to(s bmc.State) error {
	if l.err == nil {
		l.state = s
	}
	return l.err
}

func TestPower(t *testing.T) {
	f := newFixture(t, Config{})
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle1")}, Spec: api.NodeSpec{BMC: &api.BMC{Protocol: "redfish", Address: "https://10.0.9.2", Credentials: "isle1"}}}
	f.put(n, &api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle2")}})
	const path = "/v1/nodes/isle1/power"
	f.do(as("otto"), "POST", path, `{"state":"off"}`).problem(errs.Unsupported)
	l := &lever{state: bmc.On}
	f.Power = func(b api.BMC) (bmc.Power, error) {
		if b != *n.Spec.BMC {
			t.Errorf("%+v", b)
		}
		return l, nil
	}
	for _, who := range []string{"ann", "vera", "nora"} {
		f.do(as(who), "POST", path, `{"state":"off"}`).problem(errs.Denied)
		f.do(as(who), "POST", path, `{"state":"status"}`).problem(errs.Denied)
	}
	if l.state != bmc.On {
		t.Fatal("switched off without the right to")
	}
	var a api.PowerAnswer
	for _, c := range [][2]string{{"status", "on"}, {"off", "off"}, {"status", "off"}, {"on", "on"}} {
		f.do(as("otto"), "POST", path, `{"state":"`+c[0]+`"}`).want(200).json(&a)
		if a.Node != "isle1" || a.State != c[1] {
			t.Errorf("%v: %+v", c, a)
		}
	}
	f.do(as("otto"), "POST", path, `{"state":"reset"}`).problem(errs.Invalid)
	f.do(as("otto"), "POST", path, `{"status":"off"}`).problem(errs.Invalid)
	f.do(as("otto"), "POST", "/v1/nodes/isle2/power", `{"state":"off"}`).problem(errs.Conflict)
	f.do(as("otto"), "POST", "/v1/nodes/isle9/power", `{"state":"off"}`).problem(errs.NotFound)
	l.err = errs.New(errs.Timeout, "it reads on").WithHint("look at it")
	if p := f.do(as("otto"), "POST", path, `{"state":"off"}`).problem(errs.Timeout); p.Hint != "look at it" {
		t.Errorf("%+v", p)
	}
	cl, _ := f.served(root(), false)
	l.err = nil
	if a, err := cl.Power(t.Context(), "isle1", api.PowerRequest{State: "off"}); err != nil || a.State != "off" {
		t.Errorf("%+v %v", a, err)
	}
}
