package reach

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sys/host"
)

func node(name, tunnel, mtu string) *api.Node {
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}}
	if tunnel != "" {
		n.Status.Drivers = []api.Capability{{Type: "network", Name: api.DriverOverlay, Features: map[string]string{"tunnel": tunnel}}}
		if mtu != "" {
			n.Status.Drivers[0].Features["mtu"] = mtu
		}
	}
	return n
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		own    *api.Node
		others []*api.Node
		none   bool
		want   host.Check
	}{
		{name: "alone", own: node("a", "192.0.2.1", ""), none: true},
		{name: "no tunnels here", own: node("a", "", ""), others: []*api.Node{node("b", "192.0.2.2", "")}, none: true},
		{name: "nobody else has tunnels", own: node("a", "192.0.2.1", ""), others: []*api.Node{node("b", "", "")}, none: true},
		{name: "one host", own: node("a", "127.0.0.1", ""), others: []*api.Node{node("b", "127.0.0.2", "")}, none: true},
		{name: "all pass", own: node("a", "192.0.2.1", ""), others: []*api.Node{node("b", "192.0.2.2", ""), node("c", "192.0.2.3", "")},
			want: host.Check{OK: true, Detail: "packets of 1500 bytes pass to all 2 other hosts"}},
		{name: "one is too small", own: node("a", "192.0.2.1", ""), others: []*api.Node{node("b", "192.0.2.2", ""), node("d", "192.0.2.140", "")},
			want: host.Check{Severity: host.Failure, Detail: "from a to d (192.0.2.140): packets of 1400 bytes pass, 1500 are needed", Fix: "mtu: 1350"}},
		{name: "the setting fits", own: node("a", "192.0.2.1", "1350"), others: []*api.Node{node("d", "192.0.2.140", "")},
			want: host.Check{OK: true, Detail: "packets of 1400 bytes"}},
		{name: "over IPv6", own: node("a", "2001:db8::1", ""), others: []*api.Node{node("d", "2001:db8::140", "")},
			want: host.Check{Severity: host.Failure, Detail: "1400 bytes pass, 1500", Fix: "mtu: 1330"}},
		{name: "silent", own: node("a", "192.0.2.1", ""), others: []*api.Node{node("e", "192.0.2.66", "")},
			want: host.Check{Severity: host.Note, Detail: "from a to e (192.0.2.66): not known", Fix: "ping"}},
		{name: "not this host's", own: node("a", "192.0.2.9", ""), others: []*api.Node{node("b", "192.0.2.2", "")},
			want: host.Check{Severity: host.Warning, Detail: "on no link", Fix: "tunnel"}},
	} {
		got, found := Check(t.Context(), Deps{Node: "a", Nodes: append(c.others, c.own),
			Link: func(a netip.Addr) (int, error) {
				if strings.HasSuffix(a.String(), "9") {
					return 0, errs.New(errs.NotFound, "nobody has it")
				}
				return 1500, nil
			},
			Probe: func(_ context.Context, to netip.Addr, size int) (int, error) {
				switch {
				case strings.HasSuffix(to.String(), "66"):
					return 0, errs.New(errs.Unavailable, "silence")
				case strings.HasSuffix(to.String(), "140"):
					return min(size, 1400), nil
				}
				return size, nil
			}})
		if found == c.none {
			t.Errorf("%s: found: %v", c.name, found)
		}
		if c.none || !found {
			continue
		}
		if got.Name != "tunnels" || got.OK != c.want.OK || got.Severity != c.want.Severity || !strings.Contains(got.Detail, c.want.Detail) || !strings.Contains(got.Fix, c.want.Fix) || got.OK != (got.Fix == "") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
