package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
)

func TestVerdict(t *testing.T) {
	three := []store.Peer{{Name: "r1", URL: "https://10.0.0.1:7444"}, {Name: "r2", URL: "https://10.0.0.2:7444"}, {Name: "r3", URL: "https://10.0.0.3:7444"}}
	learner := append(append([]store.Peer(nil), three[1:]...), store.Peer{Name: "r1", Learner: true})
	for _, c := range []struct {
		name    string
		members []store.Peer
		answers map[string]bool
		want    verdict
		says    string
	}{
		{"the only one", three[:1], nil, verdictSole, "nothing needs to be recovered"},
		{"one more answers", three, map[string]bool{"r2": true, "r3": false}, verdictWait, "2 of 3 members are there, and 2 are enough"},
		{"nobody answers", three, map[string]bool{"r2": false, "r3": false}, verdictLost, "--yes-i-lost-the-others"},
		{"of two the other is lost", three[:2], map[string]bool{"r2": false}, verdictLost, "Of 2 members 2 must agree"},
		{"a learner", learner, map[string]bool{"r2": false, "r3": false}, verdictVotes, "no vote"},
		{"another host's copy", three[1:], map[string]bool{"r2": false, "r3": false}, verdictVotes, "no vote"},
	} {
		s := surveyed{node: "r1", role: api.RoleNode, state: t.TempDir(), copy: etcdstore.Copy{Revision: 77, Members: c.members}, answers: c.answers}
		if got, _, _ := s.verdict(); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
		if text := s.text(time.Now()); !strings.Contains(text, c.says) || !strings.Contains(text, "revision 77") {
			t.Errorf("%s:\n%s", c.name, text)
		}
		// Nothing is given up where something else would help.
		err := makeOnly(t.Context(), config{State: t.TempDir(), Run: t.TempDir()}, s)
		switch c.want {
		case verdictSole:
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		case verdictLost:
			if errs.KindOf(err) != errs.Unsupported || !strings.Contains(errs.HintOf(err), "ca.key") {
				t.Errorf("%s, without the authority: %v", c.name, err)
			}
		default:
			if errs.KindOf(err) != errs.Conflict {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

func TestRoleFor(t *testing.T) {
	for _, c := range []struct {
		verb string
		role api.JoinRole
		ok   bool
	}{
		{"up", api.RoleNode, true}, {"up", api.RoleServer, true}, {"up", api.RoleWitness, true},
		{"server", api.RoleServer, true}, {"server", api.RoleNode, false}, {"server", api.RoleWitness, false},
		{"witness", api.RoleWitness, true}, {"witness", api.RoleNode, false},
	} {
		got, err := roleFor(c.verb, c.role, "isle1")
		if c.ok != (err == nil) || c.ok && got != c.role || !c.ok && !strings.Contains(errs.HintOf(err), "run: atolld") {
			t.Errorf("atolld %s on a %s: %v %v", c.verb, c.role, got, err)
		}
	}
}

func TestReachableWitness(t *testing.T) {
	for _, c := range []struct {
		listen, advertise, want string
	}{
		{"10.0.0.9:7444", "", "https://10.0.0.9:7444"},
		{"0.0.0.0:7500", "203.0.113.5:7600", "https://203.0.113.5:7600"},
		{"[fd00::9]:7444", "", "https://[fd00::9]:7444"},
		{"127.0.0.1:7444", "", ""},
		{"localhost:7444", "", ""},
		{"7444", "", ""},
		{"0.0.0.0:7444", "nowhere", ""},
	} {
		m, err := reachableWitness(config{PeerListen: c.listen, Advertise: c.advertise})
		if (err == nil) != (c.want != "") || err == nil && (m.Advertise != c.want || m.Listen != "https://"+c.listen) {
			t.Errorf("%+v: %+v %v", c, m, err)
		}
	}
}

// What is left of a host's identity is looked at before anything is written.
func TestRecoverFromRefusesHalfAnIdentity(t *testing.T) {
	c := config{State: t.TempDir(), Run: t.TempDir(), Node: "r1"}
	if err := os.WriteFile(filepath.Join(c.State, "join.json"), []byte(`{"node":"r1","role":"node","endpoints":["https://10.0.0.1:7443"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	err := recoverFrom(t.Context(), c, filepath.Join(t.TempDir(), "none"), "")
	if err == nil || !strings.Contains(errs.HintOf(err), "remove "+c.State+"/join.json") {
		t.Errorf("%v %s", err, errs.HintOf(err))
	}
	for _, p := range []string{"etcd", "etcd.new", "pki"} {
		if _, err := os.Lstat(filepath.Join(c.State, p)); err == nil {
			t.Errorf("%s was made", p)
		}
	}
}
