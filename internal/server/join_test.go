package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// joinToken makes a token as root and gives the word.
func (f *fixture) joinToken(name, spec string) string {
	f.t.Helper()
	var t api.JoinToken
	f.do(root(), "POST", "/v1/jointokens", `{"metadata":{"name":"`+name+`"},"spec":`+spec+`}`).want(201).json(&t)
	if t.Status.Secret == "" || t.Status.Hash != "" {
		f.t.Fatalf("%+v", t.Status)
	}
	return t.Status.Secret
}

// stranger asks without showing who it is.
func (f *fixture) stranger(path string, body any) reply {
	f.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		f.t.Fatal(err)
	}
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(string(b))))
	return reply{w, f.t}
}

// host is a machine with a key.
type machine struct{ csr, key string }

func newMachine(t testing.TB) machine {
	t.Helper()
	_, csr := nodeRequest(t)
	r, err := auth.ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	return machine{csr: string(csr), key: r.KeyHash}
}

func (f *fixture) join(token, node string, m machine) reply {
	f.t.Helper()
	return f.stranger("/v1/join", api.JoinRequest{Token: token, CSR: m.csr, Node: node, Version: "1", Arch: "amd64"})
}

func (f *fixture) known(node string, m machine) error {
	return f.Auth.Check(auth.Identity{Node: node, Key: m.key, Via: "certificate"})
}

func TestJoin(t *testing.T) {
	f := newFixture(t, Config{Advertise: []string{"https://10.0.0.1:7443"}, Pool: api.PoolSettings{Subnet: "10.88.0.0/16"}})
	f.put(&api.Member{Head: api.Head{K: api.KindMember, Meta: meta("isle3")}, Spec: api.MemberSpec{State: api.MemberVoter, API: "https://10.0.0.3:7443"}})
	word := f.joinToken("t", `{"uses":2,"zone":"room-a","labels":{"disk":"ssd"}}`)
	if strings.Contains(f.do(root(), "GET", "/v1/jointokens/t", "").Body.String()+f.do(root(), "GET", "/v1/jointokens", "").Body.String()+f.do(root(), "GET", "/v1/all", "").Body.String(), "hash") {
		t.Error("the hash is shown")
	}
	m := newMachine(t)
	var ans api.JoinAnswer
	f.join(word, "isle2", m).want(200).json(&ans)
	if ans.Node != "isle2" || ans.Role != api.RoleNode || ans.Pool.Subnet != "10.88.0.0/16" || strings.Join(ans.Endpoints, " ") != "https://10.0.0.1:7443 https://10.0.0.3:7443" || ans.Certificate == "" || ans.Authority == "" {
		t.Fatalf("%+v", ans)
	}
	if err := f.known("isle2", m); err != nil {
		t.Fatal(err)
	}
	n, err := store.Get[*api.Node](t.Context(), f.mem, api.Ref{Kind: api.KindNode, Name: "isle2"})
	if err != nil || n.Spec.Zone != "room-a" || n.Labels["disk"] != "ssd" || n.UID == "" || n.Ready() {
		t.Fatalf("%+v %v", n, err)
	}
	id, err := store.Get[*api.NodeIdentity](t.Context(), f.mem, api.Ref{Kind: api.KindNodeIdentity, Name: "isle2"})
	if err != nil || id.Spec.KeyHash != m.key || id.Spec.Token != "t" || id.Spec.Address != "192.0.2.1" || id.Spec.From != "192.0.2.1" {
		t.Fatalf("%+v %v", id, err)
	}
	// The answer was lost: the same again, and nothing is counted.
	f.join(word, "isle2", m).want(200)
	used := func() int {
		tok, err := store.Get[*api.JoinToken](t.Context(), f.mem, api.Ref{Kind: api.KindJoinToken, Name: "t"})
		if err != nil {
			t.Fatal(err)
		}
		return tok.Status.Used
	}
	if used() != 1 {
		t.Fatal(used())
	}
	// Another machine of that name is refused, and told the ways out.
	p := f.join(word, "isle2", newMachine(t)).problem(errs.Exists)
	if !strings.Contains(p.Hint, "atoll node token --node isle2") || !strings.Contains(p.Hint, "--node NAME") {
		t.Errorf("%+v", p)
	}
	// A copy of the machine under another name.
	if p := f.join(word, "isle4", m).problem(errs.Conflict); !strings.Contains(p.Hint, "node.key") {
		t.Errorf("%+v", p)
	}
	for _, name := range []string{"", "Isle", "a/b", strings.Repeat("a", 59), "localhost"} {
		if r := f.join(word, name, newMachine(t)); r.Code != 422 && r.Code != 409 {
			t.Errorf("%q: %d", name, r.Code)
		}
	}
	if r := f.stranger("/v1/join", api.JoinRequest{Token: word, CSR: newMachine(t).csr, Node: "isle5", Address: "a b"}); r.Code != 422 {
		t.Error(r.Code)
	}
	f.join(word, "isle5", newMachine(t)).want(200)
	if p := f.join(word, "isle6", newMachine(t)).problem(errs.Denied); !strings.Contains(p.Detail, "2 of 2") {
		t.Errorf("%+v", p)
	}
	if rec := f.audit.last(); rec.Ref.Name != "isle6" || rec.Source != "192.0.2.1" || rec.Kind != errs.Denied {
		t.Errorf("%+v", rec)
	}
}

// Of many that come at once no more get in than the token is for, and a name has one owner.
func TestJoinAtOnce(t *testing.T) {
	f := newFixture(t, Config{})
	word := f.joinToken("t", `{"uses":3}`)
	var in atomic.Int32
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if f.join(word, fmt.Sprintf("n%d", i), newMachine(t)).Code == 200 {
				in.Add(1)
			}
		})
	}
	wg.Wait()
	list, _, err := store.List[*api.NodeIdentity](t.Context(), f.mem, api.Selector{Kind: api.KindNodeIdentity})
	if err != nil || in.Load() != 3 || len(list) != 4 { // isle1 is there from the start
		t.Fatalf("%d joined, %d identities, %v", in.Load(), len(list), err)
	}
	word = f.joinToken("u", `{}`)
	in.Store(0)
	for range 8 {
		wg.Go(func() {
			if f.join(word, "one", newMachine(t)).Code == 200 {
				in.Add(1)
			}
		})
	}
	wg.Wait()
	if in.Load() != 1 {
		t.Fatalf("%d machines are one host", in.Load())
	}
}

func TestReplaceAndRevoke(t *testing.T) {
	f := newFixture(t, Config{})
	old, next, third := newMachine(t), newMachine(t), newMachine(t)
	f.join(f.joinToken("a", `{}`), "isle2", old).want(200)
	word := f.joinToken("b", `{"node":"isle2"}`)
	f.join(word, "isle3", next).problem(errs.Denied)
	f.join(word, "isle2", next).want(200)
	if err := f.known("isle2", old); err == nil || errs.KindOf(err) != errs.Unauthenticated {
		t.Errorf("the replaced machine is known: %v", err)
	}
	if err := f.known("isle2", next); err != nil {
		t.Error(err)
	}
	renew := func(m machine) reply {
		return f.stranger("/v1/join/renew", api.RenewRequest{CSR: m.csr, Node: "isle2"})
	}
	renew(old).problem(errs.Unauthenticated)
	var ans api.JoinAnswer
	renew(next).want(200).json(&ans)
	if ans.Node != "isle2" || ans.Certificate == "" {
		t.Fatalf("%+v", ans)
	}
	f.do(as("otto"), "POST", "/v1/nodes/isle2/revoke", `{}`).problem(errs.Denied) // an operator is no administrator
	f.do(as("node"), "POST", "/v1/nodes/isle2/revoke", `{}`).problem(errs.Denied)
	f.do(root(), "POST", "/v1/nodes/isle2/revoke", `{"why":"stolen"}`).want(200)
	if p := renew(next).problem(errs.Unauthenticated); !strings.Contains(p.Detail, "stolen") {
		t.Errorf("%+v", p)
	}
	if f.known("isle2", next) == nil {
		t.Error("a revoked key is good")
	}
	f.do(root(), "POST", "/v1/nodes/isle9/revoke", `{}`).problem(errs.NotFound)
	// A revoked name may be taken again by any token, also by the same machine.
	f.join(f.joinToken("c", `{}`), "isle2", third).want(200)
	if err := f.known("isle2", third); err != nil {
		t.Error(err)
	}
	if f.known("isle2", next) == nil {
		t.Error("the revoked key came back")
	}
}

func TestJoinRefusals(t *testing.T) {
	f, other := newFixture(t, Config{}), newFixture(t, Config{})
	m := newMachine(t)
	good := f.joinToken("t", `{}`)
	f.join(other.joinToken("t", `{}`), "isle2", m).problem(errs.Unauthenticated)
	f.join("atoll-join_x", "isle2", m).problem(errs.Unauthenticated)
	f.join(strings.Replace(good, "_t_", "_u_", 1), "isle2", m).problem(errs.Unauthenticated)
	f.stranger("/v1/join", api.JoinRequest{Token: good, CSR: "x", Node: "isle2"}).problem(errs.Invalid)
	f.do(root(), "DELETE", "/v1/jointokens/t", "").want(200)
	if p := f.join(good, "isle2", m).problem(errs.Unauthenticated); strings.Contains(p.Detail+p.Hint, good[20:60]) {
		t.Error("the token is in the answer")
	}
	for range 12 {
		f.join(strings.Replace(good, "_t_", "_u_", 1), "isle2", m)
	}
	f.join(strings.Replace(good, "_t_", "_u_", 1), "isle2", m).problem(errs.Unavailable)
	f.join(f.joinToken("v", `{}`), "isle2", m).want(200) // who has a good token is not locked out

	for _, who := range []string{"otto", "ann", "nora", "node"} {
		f.do(as(who), "POST", "/v1/jointokens", `{"metadata":{"name":"x"},"spec":{}}`).problem(errs.Denied)
		f.do(as(who), "GET", "/v1/jointokens", "").problem(errs.Denied)
		f.do(as(who), "GET", "/v1/join", "").problem(errs.Denied)
	}
	f.do(as("adam"), "POST", "/v1/jointokens", `{"metadata":{"name":"x"},"spec":{}}`).want(201)
	for _, end := range []time.Time{time.Now().Add(-time.Minute), time.Now().Add(31 * 24 * time.Hour)} {
		body := fmt.Sprintf(`{"metadata":{"name":"y"},"spec":{"expiresAt":%q}}`, end.Format(time.RFC3339))
		if p := f.do(root(), "POST", "/v1/jointokens", body).problem(errs.Invalid); p.Fields[0].Field != "spec.expiresAt" {
			t.Errorf("%+v", p)
		}
		f.do(root(), "PATCH", "/v1/jointokens/x", fmt.Sprintf(`{"spec":{"expiresAt":%q}}`, end.Format(time.RFC3339))).problem(errs.Invalid)
	}
	f.do(root(), "POST", "/v1/commit", `{"full":true,"ops":[{"verb":"put","rev":-1,"object":{"kind":"JoinToken","metadata":{"name":"x"}}}]}`).problem(errs.Unsupported)
	// A change keeps the secret and shows none.
	word := f.joinToken("z", `{"uses":1}`)
	if r := f.do(root(), "PATCH", "/v1/jointokens/z", `{"spec":{"uses":5}}`).want(200); strings.Contains(r.Body.String(), "secret") {
		t.Error(r.Body)
	}
	f.join(word, "isle7", newMachine(t)).want(200)
	// Nobody reaches this server from elsewhere.
	if p := f.do(root(), "GET", "/v1/join", "").problem(errs.Conflict); !strings.Contains(p.Hint, "--listen 0.0.0.0:7443") {
		t.Errorf("%+v", p)
	}
}

// What votes only, and what answers the API only, may do nothing with objects.
func TestWitnessMayNothing(t *testing.T) {
	f := newFixture(t, Config{})
	m := newMachine(t)
	f.join(f.joinToken("w", `{"role":"witness"}`), "vote1", m).want(200)
	if _, err := f.mem.Get(t.Context(), api.Ref{Kind: api.KindNode, Name: "vote1"}); errs.KindOf(err) != errs.NotFound {
		t.Error("a witness is a node")
	}
	who := auth.Identity{Node: "vote1", Key: m.key, Via: "certificate"}
	for _, rt := range f.routes {
		if rt.Public || rt.Known {
			continue
		}
		for _, tenant := range []string{"", "acme"} {
			f.do(who, rt.Method, urlOf(rt, tenant), "{}").problem(errs.Denied)
		}
	}
	f.do(who, "POST", "/v1/commit", `{"full":true,"ops":[{"verb":"check","rev":0,"ref":{"kind":"User","name":"x"}}]}`).problem(errs.Denied)
	f.do(who, "POST", "/v1/commit", `{"ops":[{"verb":"check","rev":0,"ref":{"kind":"User","name":"x"}}]}`).problem(errs.Denied)
	f.do(who, "GET", "/v1/whoami", "").want(200)
	// Whether it is wanted among the members, it may know; of nobody else.
	f.do(who, "GET", "/v1/members/vote1", "").problem(errs.NotFound)
	f.do(who, "GET", "/v1/members/isle1", "").problem(errs.Denied)
	f.do(who, "GET", "/v1/members", "").problem(errs.Denied)
	f.do(who, "POST", "/v1/members/isle1/part", "{}").problem(errs.Denied)
	f.do(who, "GET", "/v1/servers", "").want(200)
	// It tells its own version only, and nobody tells it for it; here, upgrades are not on offer.
	tell := "/v1/nodeidentities/vote1/version"
	f.do(who, "POST", "/v1/nodeidentities/isle1/version", "{}").problem(errs.Denied)
	f.do(root(), "POST", tell, `{"version":"v1"}`).problem(errs.Denied)
	f.do(who, "POST", tell, `{"version":"../x"}`).problem(errs.Invalid)
	f.do(who, "POST", tell, `{"version":"v1","release":-1}`).problem(errs.Invalid)
	f.do(who, "POST", tell, `{"version":"v1","upgrade":{"staged":["v1","../v2"]}}`).problem(errs.Invalid)
	f.do(who, "POST", tell, `{"version":"v1","upgrade":{"error":"`+strings.Repeat("x", 5000)+`"}}`).problem(errs.Invalid)
	f.do(who, "POST", tell, `{"version":"v1","release":1}`).problem(errs.Unsupported)
	// It leaves although it is no node.
	f.do(root(), "DELETE", "/v1/nodes/vote1", "").want(200)
	if f.known("vote1", m) == nil {
		t.Error("it is still known")
	}
	f.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle4")}})
	f.join(f.joinToken("s", `{"role":"server"}`), "isle4", newMachine(t)).problem(errs.Exists)
	f.join(f.joinToken("n", `{}`), "isle4", newMachine(t)).want(200) // made by hand before it joined
}

func assignedTo(node, name string, once bool) []api.Object {
	in := instance("acme", name)
	in.UID, in.Spec.Exclusive = "u-"+name, once
	return []api.Object{in, &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: "acme", Name: name}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: node, Generation: 1}}}
}

// However a node is removed, its identity and its lease go with it, and never while
// something is assigned to it.
func TestRemoveNode(t *testing.T) {
	f := newFixture(t, Config{Node: "own"})
	lease := func() *api.Lease {
		return &api.Lease{Head: api.Head{K: api.KindLease, Meta: meta("node-isle2")}, Spec: api.LeaseSpec{Holder: "isle2", Epoch: 3, State: api.LeaseHeld}}
	}
	ways := map[string]func() reply{
		"delete": func() reply { return f.do(as("otto"), "DELETE", "/v1/nodes/isle2", "") },
		"commit": func() reply {
			return f.do(as("otto"), "POST", "/v1/commit", `{"ops":[{"verb":"delete","rev":-1,"ref":{"kind":"Node","name":"isle2"}}]}`)
		},
	}
	for name, way := range ways {
		m := newMachine(t)
		f.join(f.joinToken(name, `{}`), "isle2", m).want(200)
		f.put(lease())
		f.put(assignedTo("isle2", "web", false)...)
		if p := way().problem(errs.Conflict); !strings.Contains(p.Hint, "atoll drain isle2") || !strings.Contains(p.Detail, "acme/web") {
			t.Errorf("%s: %+v", name, p)
		}
		if err := f.known("isle2", m); err != nil {
			t.Errorf("%s: a refused removal did something: %v", name, err)
		}
		if _, err := f.mem.Commit(t.Context(), store.Remove(api.Ref{Kind: api.KindAssignment, Tenant: "acme", Name: "web"}, store.Any)); err != nil {
			t.Fatal(err)
		}
		way().want(200)
		for _, ref := range []api.Ref{{Kind: api.KindNode, Name: "isle2"}, {Kind: api.KindNodeIdentity, Name: "isle2"}, api.NodeLease("isle2")} {
			if _, err := f.mem.Get(t.Context(), ref); errs.KindOf(err) != errs.NotFound {
				t.Errorf("%s: %s is still there: %v", name, ref, err)
			}
		}
		if f.known("isle2", m) == nil {
			t.Errorf("%s: the host is still known", name)
		}
		way().problem(errs.NotFound)
	}
	f.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: meta("own")}})
	f.do(root(), "DELETE", "/v1/nodes/own", "").problem(errs.Conflict)
	f.do(root(), "DELETE", "/v1/nodes/own?force=true&off=true", "").problem(errs.Conflict)
	f.do(root(), "DELETE", "/v1/nodes/isle2?off=true", "").problem(errs.Invalid)
	f.do(as("ann"), "DELETE", "/v1/nodes/isle1?force=true", "").problem(errs.Denied)
	f.do(as("node"), "DELETE", "/v1/nodes/isle1?force=true", "").problem(errs.Denied)
}

func TestRemoveByForce(t *testing.T) {
	evicted := func(f *fixture, name string) bool {
		a, err := store.Get[*api.Assignment](t.Context(), f.mem, api.Ref{Kind: api.KindAssignment, Tenant: "acme", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return a.Spec.Evict != nil && a.Spec.Evict.Lost
	}
	for what, c := range map[string]struct {
		query  string
		lease  api.LeaseState
		fences bool // the host stops by itself what must not run twice
		proof  bool
		ok     bool
	}{
		"still held":                     {"?force=true", api.LeaseHeld, true, false, false},
		"no lease":                       {"?force=true", "", true, false, false},
		"ended, and the host fences":     {"?force=true", api.LeaseExpired, true, false, true},
		"ended, and the host does not":   {"?force=true", api.LeaseExpired, false, false, false},
		"ended, and there is a proof":    {"?force=true", api.LeaseExpired, false, true, true},
		"it left in good order":          {"?force=true", api.LeaseReleased, false, false, true},
		"said to be off":                 {"?force=true&off=true", api.LeaseHeld, false, false, true},
		"ended, and said to be off":      {"?force=true&off=true", api.LeaseExpired, false, false, true},
		"no lease, but said to be off":   {"?force=true&off=true", "", false, false, true},
		"the proof is of another's time": {"?force=true", api.LeaseHeld, false, true, false},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t, Config{})
			m := newMachine(t)
			f.join(f.joinToken("t", `{}`), "isle2", m).want(200)
			if c.lease != "" {
				l := &api.Lease{Head: api.Head{K: api.KindLease, Meta: meta("node-isle2")}, Spec: api.LeaseSpec{Holder: "isle2", State: c.lease}}
				if c.proof {
					l.Spec.Proof = &api.FenceProof{By: "bmc"}
				}
				f.put(l)
			}
			n := &api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle2")}}
			n.Status.Conditions = []api.Condition{{Type: api.ConditionFences, Status: c.fences}}
			f.put(n)
			for i := range 150 { // more than one commit takes
				f.put(assignedTo("isle2", fmt.Sprintf("w%d", i), false)...)
			}
			f.put(assignedTo("isle2", "db", true)...)
			f.put(assignedTo("isle1", "else", true)...)
			r := f.do(root(), "DELETE", "/v1/nodes/isle2"+c.query, "")
			if !c.ok {
				if p := r.problem(errs.Conflict); !strings.Contains(p.Hint, "--force --off") || !strings.Contains(p.Detail, "acme/db") {
					t.Errorf("%+v", p)
				}
				if evicted(f, "w0") || f.known("isle2", m) != nil {
					t.Error("a refused removal did something")
				}
				return
			}
			r.want(200)
			if !evicted(f, "db") || !evicted(f, "w0") || !evicted(f, "w149") || evicted(f, "else") {
				t.Error("what was on it is not given up, or too much")
			}
			if f.known("isle2", m) == nil {
				t.Error("it is still known")
			}
			if _, err := f.mem.Get(t.Context(), api.Ref{Kind: api.KindNode, Name: "isle2"}); errs.KindOf(err) != errs.NotFound {
				t.Error(err)
			}
		})
	}
	// A lease without a host is in nobody's way.
	o := newFixture(t, Config{})
	o.put(&api.Lease{Head: api.Head{K: api.KindLease, Meta: meta("node-isle2")}, Spec: api.LeaseSpec{Holder: "isle2", State: api.LeaseExpired}})
	o.put(assignedTo("isle2", "db", true)...)
	o.do(root(), "DELETE", "/v1/nodes/isle2?force=true", "").problem(errs.Conflict)
	o.do(root(), "DELETE", "/v1/nodes/isle2?force=true&off=true", "").want(200)
	if !evicted(o, "db") {
		t.Error("db waits for a host that is gone")
	}
	o.do(root(), "DELETE", "/v1/nodes/isle2?force=true", "").problem(errs.NotFound)
	// Without anything exclusive force is enough.
	f := newFixture(t, Config{})
	f.join(f.joinToken("t", `{}`), "isle2", newMachine(t)).want(200)
	f.put(assignedTo("isle2", "web", false)...)
	f.do(root(), "DELETE", "/v1/nodes/isle2?force=true", "").want(200)
	if !evicted(f, "web") {
		t.Error("web waits for a host that is gone")
	}
}

// between does something right before a commit that matches, once.
type between struct {
	store.Store
	match func(store.Op) bool
	do    func()
}

func (b *between) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if b.do != nil && slices.ContainsFunc(ops, b.match) {
		do := b.do
		b.do = nil
		do()
	}
	return b.Store.Commit(ctx, ops...)
}

// What is known of a host holds for the lease it was found with: one that takes its
// lease anew meanwhile is not given up.
func TestRemoveByForceOfOneThatComesBack(t *testing.T) {
	for what, match := range map[string]func(store.Op) bool{
		"before it is turned away": func(op store.Op) bool { _, ok := op.Object.(*api.NodeIdentity); return ok },
		"before the last step":     func(op store.Op) bool { _, ok := op.Object.(*api.Assignment); return ok },
	} {
		f := newFixture(t, Config{})
		f.join(f.joinToken("t", `{}`), "isle2", newMachine(t)).want(200)
		lease := &api.Lease{Head: api.Head{K: api.KindLease, Meta: meta("node-isle2")}, Spec: api.LeaseSpec{Holder: "isle2", Epoch: 1, State: api.LeaseExpired}}
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: meta("isle2")}}
		n.Status.Conditions = []api.Condition{{Type: api.ConditionFences, Status: true}}
		f.put(lease, n)
		f.put(assignedTo("isle2", "db", true)...)
		f.desk.Store = &between{Store: f.desk.Store, match: match, do: func() {
			lease.Spec.Epoch, lease.Spec.State = 2, api.LeaseHeld
			f.put(lease)
		}}
		f.do(root(), "DELETE", "/v1/nodes/isle2?force=true", "").problem(errs.Conflict)
		a, err := store.Get[*api.Assignment](t.Context(), f.mem, api.Ref{Kind: api.KindAssignment, Tenant: "acme", Name: "db"})
		if err != nil || a.Spec.Evict != nil {
			t.Errorf("%s: given up while it may run: %+v %v", what, a, err)
		}
	}
}

// A lease that is taken from a host without a proof goes on until the host must have
// noticed: it ends by the keeper of the leases, not by the removal.
func TestRemoveByForceLeavesTime(t *testing.T) {
	f := newFixture(t, Config{})
	f.join(f.joinToken("t", `{}`), "isle2", newMachine(t)).want(200)
	f.put(&api.Lease{Head: api.Head{K: api.KindLease, Meta: meta("node-isle2")}, Spec: api.LeaseSpec{Holder: "isle2", Epoch: 1, State: api.LeaseHeld}})
	f.put(assignedTo("isle2", "web", false)...)
	f.desk.Store = &between{Store: f.desk.Store, match: func(op store.Op) bool { _, ok := op.Object.(*api.Assignment); return ok },
		do: func() { f.put(assignedTo("isle2", "db", true)...) }} // placed there at the last moment
	f.do(root(), "DELETE", "/v1/nodes/isle2?force=true", "").problem(errs.Conflict)
	for range 2 { // to ask again changes nothing
		l, err := store.Get[*api.Lease](t.Context(), f.mem, api.NodeLease("isle2"))
		if err != nil || !l.Held() || l.Spec.Epoch != 2 || l.Spec.Proof != nil {
			t.Fatalf("%+v %v", l, err)
		}
		f.do(root(), "DELETE", "/v1/nodes/isle2?force=true", "").problem(errs.Conflict)
	}
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	for _, b := range []string{"atoll", "atolld", "secret"} {
		if err := os.WriteFile(filepath.Join(dir, b), []byte("program "+b), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f := newFixture(t, Config{Binaries: dir, TLSAddr: "127.0.0.1:0"})
	if _, err := f.CA.ServerTLS([]string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	pin, err := f.CA.Pin()
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) reply {
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return reply{w, t}
	}
	script := get("/install").want(200).Body.String()
	packages, err := os.ReadFile("../../deploy/packages.sh")
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("../../deploy/atolld.service")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(script, "pin='"+pin+"'") || !strings.Contains(script, string(packages)) || !strings.Contains(script, string(unit)) || strings.Contains(script, "@PIN@") || strings.Contains(script, "\n@") {
		t.Fatal("the script is not filled in")
	}
	for _, sh := range []string{"sh", "dash", "busybox"} {
		args := []string{"-n"}
		if sh == "busybox" {
			args = []string{"sh", "-n"}
		}
		path, err := exec.LookPath(sh)
		if err != nil {
			continue
		}
		cmd := exec.Command(path, args...)
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", sh, err, out)
		}
	}
	base := "/install/" + runtime.GOOS + "/" + runtime.GOARCH + "/"
	if got := get(base + "atolld").want(200); got.Body.String() != "program atolld" || got.Header().Get("Content-Length") != "14" {
		t.Error(got.Body)
	}
	get(base + "atoll-init").problem(errs.NotFound)
	get(base + "secret").problem(errs.NotFound)
	get(base + "..%2Fsecret").problem(errs.NotFound)
	if p := get("/install/linux/riscv64/atolld").problem(errs.Unsupported); !strings.Contains(p.Hint, "GOARCH=riscv64") {
		t.Errorf("%+v", p)
	}
	get("/install/linux/%27%3Brm%20-rf/atolld").problem(errs.Unsupported)
}

// Whatever a stranger sends, the answer is a problem, and nothing is written.
func FuzzJoin(f *testing.F) {
	fx := newFixture(f, Config{})
	word := fx.joinToken("t", `{}`)
	_, csr := nodeRequest(f)
	good, err := json.Marshal(api.JoinRequest{Token: word[:len(word)-1], CSR: string(csr), Node: "isle2"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good), false)
	f.Add(`{"csr":"x","node":"isle1"}`, true)
	f.Add(`{"token":1}`, false)
	f.Fuzz(func(t *testing.T, body string, renew bool) {
		path := "/v1/join"
		if renew {
			path += "/renew"
		}
		before := fx.mem.Revision()
		w := httptest.NewRecorder()
		fx.Handler().ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(body)))
		if w.Code < 400 || w.Code >= 500 && w.Code != 503 || !json.Valid(w.Body.Bytes()) || fx.mem.Revision() != before {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}

// cluster is the servers of a pool as package enroll changes them.
type cluster struct{ removed, added []string }

func (c *cluster) Peers(context.Context) ([]store.Peer, error) {
	return []store.Peer{{ID: 1, Name: "isle1", URL: "https://10.0.0.1:7444"}, {ID: 7, URL: "https://10.0.0.7:7444", Learner: true}}, nil
}
func (c *cluster) AddLearner(_ context.Context, url string) (store.Peer, error) {
	c.added = append(c.added, url)
	return store.Peer{ID: 7, URL: url, Learner: true}, nil
}
func (c *cluster) Promote(context.Context, uint64) error { return nil }
func (c *cluster) RemovePeer(_ context.Context, id uint64) error {
	c.removed = append(c.removed, fmt.Sprint(id))
	return nil
}

// A host takes part for itself, when it is wanted; what it gets is what its part needs.
func TestTakePart(t *testing.T) {
	f := newFixture(t, Config{})
	wit, srv := newMachine(t), newMachine(t)
	f.join(f.joinToken("w", `{"role":"witness"}`), "vote1", wit).want(200)
	f.join(f.joinToken("s", `{"role":"server"}`), "srv1", srv).want(200)
	who := func(node string, m machine) auth.Identity {
		return auth.Identity{Node: node, Key: m.key, Via: "certificate"}
	}
	member := func(name string, spec api.MemberSpec) {
		f.put(&api.Member{Head: api.Head{K: api.KindMember, Meta: meta(name)}, Spec: spec})
	}
	part := func(node string, m machine, req api.TakePartRequest) reply {
		req.CSR = m.csr
		b, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		return f.do(who(node, m), "POST", "/v1/members/"+node+"/part", string(b))
	}
	var ans api.TakePartAnswer
	url := "https://10.0.0.7:7443"

	// On an external etcd: whoever wrote itself among the members there, and only then.
	part("srv1", srv, api.TakePartRequest{API: url}).problem(errs.Denied)
	member("srv1", api.MemberSpec{State: api.MemberWanted})
	part("srv1", srv, api.TakePartRequest{}).problem(errs.Invalid)
	part("srv1", srv, api.TakePartRequest{API: url}).want(200).json(&ans)
	if !strings.Contains(ans.Authority, "EC PRIVATE KEY") {
		t.Error("a server without the authority")
	}
	part("srv1", newMachine(t), api.TakePartRequest{API: url}).problem(errs.Unauthenticated)
	member("vote1", api.MemberSpec{State: api.MemberWanted, Witness: true})
	part("vote1", wit, api.TakePartRequest{}).problem(errs.Unsupported)

	// Among the pool's own servers.
	g := &cluster{}
	f.desk.Group = g
	peer := "https://10.0.0.7:7444"
	part("vote1", wit, api.TakePartRequest{Peer: "https://127.0.0.1:7444"}).problem(errs.Invalid)
	ans = api.TakePartAnswer{}
	part("vote1", wit, api.TakePartRequest{Peer: peer}).want(200).json(&ans)
	if ans.Authority != "" || ans.Certificate == "" || ans.Cluster["vote1"] != peer || ans.Cluster["isle1"] == "" || len(g.added) != 1 || len(g.removed) != 0 {
		t.Errorf("a new witness: %+v %+v", ans, g)
	}
	// With a vote it gets a new certificate, and begins anew only when it says that its copy is gone.
	member("vote1", api.MemberSpec{State: api.MemberVoter, Witness: true, ID: "a", Peer: peer})
	part("vote1", wit, api.TakePartRequest{Peer: peer}).want(200).json(&ans)
	if ans.Certificate == "" || len(g.added) != 1 || len(g.removed) != 0 {
		t.Errorf("a certificate only: %+v", g)
	}
	part("vote1", wit, api.TakePartRequest{Peer: peer, Fresh: true}).want(200)
	m, err := store.Get[*api.Member](t.Context(), f.mem, api.Ref{Kind: api.KindMember, Name: "vote1"})
	if err != nil || m.Spec.State != api.MemberLearner || m.Spec.ID != "7" || len(g.added) != 2 || !slices.Equal(g.removed, []string{"10"}) {
		t.Errorf("it begins anew: %+v %v %+v", m, err, g)
	}
}
