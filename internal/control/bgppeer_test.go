package control

import (
	"context"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/store"
)

// What hosts say of their sessions is gathered in the peer they are with, and what they say no more is not.
func TestSessionsAreGathered(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.put(&api.BGPPeer{Head: api.Head{K: api.KindBGPPeer, Meta: api.Meta{Name: "tor"}}, Spec: api.BGPPeerSpec{Address: "192.0.2.1", ASN: 65001, LocalASN: 64512}})
	since := time.Unix(1000, 0).UTC()
	say := func(node string, s ...api.BGPSession) {
		t.Helper()
		w.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: node}}, Status: api.NodeStatus{BGP: s}})
	}
	peer := func() *api.BGPPeer {
		t.Helper()
		w.settle()
		p, err := store.Get[*api.BGPPeer](context.Background(), w.mem, api.Ref{Kind: api.KindBGPPeer, Name: "tor"})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	say("n1", api.BGPSession{Peer: "tor", State: api.BGPEstablished, Since: &since, Sent: 5, Received: 2})
	say("n2", api.BGPSession{Peer: "other", State: "Active"})
	say("n3", api.BGPSession{Peer: "tor", State: "Active", Error: "192.0.2.1:179 does not answer"})
	p := peer()
	if st := p.Status; st.Hosts != 2 || st.Established != 1 || len(st.Sessions) != 2 || st.Sessions[0].Node != "n3" || st.Sessions[0].Peer != "" || st.Sessions[1].Sent != 5 || !st.Sessions[1].Since.Equal(since) {
		t.Errorf("%+v", st)
	}
	var row []string
	d, _ := api.Lookup("bgppeers")
	for _, c := range d.Columns {
		row = append(row, c.Value(p, since))
	}
	if s := strings.Join(row, "|"); !strings.HasPrefix(s, "tor|192.0.2.1|65001|64512|ipv4,ipv6|1/2|5 out, 2 in|n3: 192.0.2.1:179 does not answer|") {
		t.Error(s)
	}
	rev := p.Revision
	say("n2", api.BGPSession{Peer: "other", State: "Idle"})
	if got := peer().Revision; got != rev {
		t.Error("it is written though nothing is new")
	}
	say("n3")
	if st := peer().Status; st.Hosts != 1 || len(st.Sessions) != 1 {
		t.Errorf("%+v", st)
	}
	if _, err := w.mem.Commit(t.Context(), store.Remove(api.Ref{Kind: api.KindNode, Name: "n1"}, store.Any)); err != nil {
		t.Fatal(err)
	}
	if st := peer().Status; st.Hosts != 0 || len(st.Sessions) != 0 {
		t.Errorf("%+v", st)
	}
}
