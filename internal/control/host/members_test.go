package host

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// group is an etcd of the mind: it follows the rules of membership and keeps count of votes.
type group struct {
	peers   []store.Peer
	next    uint64
	up      map[string]bool // by URL: runs
	caught  map[uint64]bool // a learner that has everything
	reached bool
	broken  string // a step that would have cost the majority
}

func (g *group) Peers(context.Context) ([]store.Peer, error) { return slices.Clone(g.peers), nil }
func (g *group) Self() uint64                                { return 1 }

func (g *group) Reach(context.Context) (string, string, error) {
	g.reached = true
	g.peers[0].URL = "https://h0:7444"
	return "https://h0:7444", "https://h0:7443", nil
}

func (g *group) AddLearner(_ context.Context, url string) (store.Peer, error) {
	for _, p := range g.peers {
		if p.URL == url {
			return p, nil
		}
		if p.Learner {
			return p, errs.New(errs.Conflict, "one at a time")
		}
	}
	g.next++
	p := store.Peer{ID: g.next, URL: url, Learner: true}
	g.peers = append(g.peers, p)
	return p, nil
}

func (g *group) Promote(_ context.Context, id uint64) error {
	for i := range g.peers {
		if g.peers[i].ID == id {
			if !g.caught[id] {
				return errs.New(errs.Conflict, "not caught up")
			}
			g.peers[i].Learner = false
			return nil
		}
	}
	return errs.New(errs.NotFound, "no such peer")
}

func (g *group) RemovePeer(_ context.Context, id uint64) error {
	g.peers = slices.DeleteFunc(g.peers, func(p store.Peer) bool { return p.ID == id })
	g.check("remove")
	return nil
}

// check notes a group whose running voters are no majority of it.
func (g *group) check(after string) {
	voters, up := 0, 0
	for _, p := range g.peers {
		if !p.Learner {
			voters++
			if g.up[p.URL] || p.ID == 1 {
				up++
			}
		}
	}
	if up*2 <= voters && g.broken == "" {
		g.broken = fmt.Sprintf("after %s %d of %d voters run", after, up, voters)
	}
}

// fleet is hosts around the controller.
type fleet struct {
	t     rapid.TB
	mem   *store.Mem
	clk   *clock.Manual
	eng   *reconcile.Engine
	g     *group
	alive map[string]bool
}

func newFleet(t rapid.TB, want int) *fleet {
	f := &fleet{t: t, mem: store.NewMem(), clk: clock.NewManual(time.Unix(1000, 0)), alive: map[string]bool{},
		g: &group{peers: []store.Peer{{ID: 1, Name: "h0", URL: "http://alone"}}, next: 1, up: map[string]bool{}, caught: map[uint64]bool{}}}
	f.eng = reconcile.New(f.mem, f.clk, nil, reconcile.Events{})
	f.eng.Add(NewMembers(MembersDeps{Clock: f.clk, Group: f.g, Self: "h0", Want: want}), 1)
	return f
}

func (f *fleet) put(o api.Object) {
	if _, err := f.mem.Commit(context.Background(), store.Set(o)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) host(name, zone string, role api.JoinRole) {
	f.put(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}, Spec: api.NodeSpec{Zone: zone}})
	f.put(&api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: name}}, Spec: api.NodeIdentitySpec{Role: role}})
	f.live(name, true)
}

func (f *fleet) live(name string, up bool) {
	f.alive[name] = up
	f.g.up["https://"+name+":7444"] = up
	state := api.LeaseHeld
	if !up {
		state = api.LeaseExpired
	}
	f.put(&api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: "node-" + name}}, Spec: api.LeaseSpec{Holder: name, State: state, Since: f.clk.Now()}})
}

// turn lets the controller work and the living hosts do what is asked of them.
func (f *fleet) turn(d time.Duration) {
	ctx := context.Background()
	for end := f.clk.Now().Add(d); f.clk.Now().Before(end); f.clk.Advance(time.Second) {
		if _, err := f.eng.Settle(ctx, f.mem, 1000); err != nil {
			f.t.Fatal(err)
		}
		members, _, _ := store.List[*api.Member](ctx, f.mem, api.Selector{Kind: api.KindMember})
		for _, m := range members {
			if !f.alive[m.Name] {
				continue
			}
			url := "https://" + m.Name + ":7444"
			if m.Spec.State == api.MemberWanted {
				p, err := f.g.AddLearner(ctx, url)
				if err != nil {
					continue
				}
				n := api.Clone(m)
				n.Spec.State, n.Spec.ID, n.Spec.Peer, n.Spec.API, n.Spec.Since = api.MemberLearner, fmt.Sprintf("%x", p.ID), url, "https://"+m.Name+":7443", f.clk.Now()
				f.put(n)
			}
			for i, p := range f.g.peers {
				if p.URL == url {
					f.g.peers[i].Name, f.g.caught[p.ID] = m.Name, true
				}
			}
		}
	}
}

func (f *fleet) voters() []string {
	var out []string
	for _, p := range f.g.peers {
		if !p.Learner {
			out = append(out, p.Name)
		}
	}
	slices.Sort(out)
	return out
}

// want is who has a vote now.
func (f *fleet) want(when string, names ...string) {
	f.t.Helper()
	if got := f.voters(); !slices.Equal(got, names) {
		f.t.Fatalf("%s: %v, not %v", when, got, names)
	}
}

func TestGrowsWithTheHosts(t *testing.T) {
	f := newFleet(t, 0)
	f.host("h0", "a", api.RoleNode)
	f.turn(5 * time.Second)
	if got := f.voters(); len(got) != 1 || f.g.reached {
		t.Fatalf("one host: %v, reached %v", got, f.g.reached)
	}
	f.host("h1", "a", api.RoleNode)
	f.turn(5 * time.Second)
	if got := f.voters(); len(got) != 1 {
		t.Fatalf("two hosts: %v", got)
	}
	f.host("h2", "b", api.RoleNode)
	f.turn(20 * time.Second)
	if got := f.voters(); len(got) != 3 || !f.g.reached {
		t.Fatalf("three hosts: %v", got)
	}
	f.host("h3", "c", api.RoleNode)
	f.turn(20 * time.Second)
	if got := f.voters(); len(got) != 3 {
		t.Fatalf("four hosts: %v", got)
	}
	f.host("h4", "c", api.RoleNode)
	f.turn(30 * time.Second)
	if got := f.voters(); len(got) != 5 {
		t.Fatalf("five hosts: %v", got)
	}
}

func TestZonesAndWitness(t *testing.T) {
	f := newFleet(t, 0)
	f.host("h0", "a", api.RoleNode)
	f.host("h1", "a", api.RoleNode)
	f.host("h2", "b", api.RoleNode)
	f.host("h3", "c", api.RoleNode)
	f.turn(20 * time.Second)
	f.want("not one in each zone", "h0", "h2", "h3")
	f = newFleet(t, 0)
	f.host("h0", "", api.RoleNode)
	f.host("h1", "", api.RoleNode)
	f.host("w", "", api.RoleWitness)
	f.turn(20 * time.Second)
	f.want("two hosts and a witness", "h0", "h1", "w")
}

func TestLostMemberIsReplaced(t *testing.T) {
	f := newFleet(t, 3)
	for i := range 4 {
		f.host(fmt.Sprint("h", i), "", api.RoleNode)
	}
	f.turn(20 * time.Second)
	f.want("voters", "h0", "h1", "h2")
	f.live("h1", false)
	f.turn(time.Minute)
	f.want("replaced at once", "h0", "h1", "h2")
	f.live("h1", true)
	f.turn(10 * time.Second)
	f.live("h1", false)
	f.turn(6 * time.Minute)
	f.want("replaced", "h0", "h2", "h3")
	f.live("h1", true)
	f.turn(10 * time.Second)
	f.want("it came back", "h0", "h2", "h3")
	if f.g.broken != "" {
		t.Fatal(f.g.broken)
	}
}

// Whatever hosts come, go, die and return: no step costs the majority, and when all is
// quiet there are as many voters as there should be.
func TestMembershipNeverCostsTheMajority(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFleet(t, 0)
		f.host("h0", "", api.RoleNode)
		n := 1
		for range rapid.IntRange(1, 25).Draw(t, "events") {
			switch rapid.SampledFrom([]string{"join", "die", "return", "leave", "wait"}).Draw(t, "event") {
			case "join":
				if n < 7 {
					f.host(fmt.Sprint("h", n), rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone"), api.RoleNode)
					n++
				}
			case "die":
				// More than a minority at once is a disaster no membership can mend.
				voters := f.voters()
				down := 0
				for _, v := range voters {
					if !f.alive[v] {
						down++
					}
				}
				if name := fmt.Sprint("h", rapid.IntRange(1, 7).Draw(t, "who")); f.alive[name] && (down+1)*2 < len(voters) {
					f.live(name, false)
				}
			case "return":
				if name := fmt.Sprint("h", rapid.IntRange(1, 7).Draw(t, "who")); !f.alive[name] {
					if _, err := f.mem.Get(context.Background(), api.NodeLease(name)); err == nil {
						f.live(name, true)
					}
				}
			}
			f.turn(time.Duration(rapid.IntRange(1, 200).Draw(t, "seconds")) * time.Second)
			if f.g.broken != "" {
				t.Fatal(f.g.broken)
			}
		}
		f.turn(20 * time.Minute)
		live := 0
		for _, up := range f.alive {
			if up {
				live++
			}
		}
		want := 1
		if live >= 5 {
			want = 5
		} else if live >= 3 {
			want = 3
		}
		up := 0
		for _, v := range f.voters() {
			if f.alive[v] {
				up++
			}
		}
		if up < want {
			t.Fatalf("%d hosts are there, of the voters %v only %d", live, f.voters(), up)
		}
	})
}

// Witnesses alone are no pool: whoever else is lost, one that answers the API is left.
func TestWitnessesAreFewerThanHalf(t *testing.T) {
	f := newFleet(t, 0)
	f.host("h0", "", api.RoleNode)
	f.host("w1", "", api.RoleWitness)
	f.host("w2", "", api.RoleWitness)
	f.turn(20 * time.Second)
	f.want("one host and two witnesses", "h0")
	f.host("h1", "", api.RoleNode)
	f.turn(20 * time.Second)
	if got := f.voters(); len(got) != 3 || slices.Contains(got, "w2") || !slices.Contains(got, "h1") {
		t.Fatalf("two hosts and two witnesses: %v", got)
	}
	// A lost witness is replaced by the other one; a server goes before a host that runs instances.
	f.live("w1", false)
	f.turn(7 * time.Minute)
	f.want("the witness was lost", "h0", "h1", "w2")
	f = newFleet(t, 3)
	f.host("h0", "", api.RoleNode)
	f.host("h1", "", api.RoleNode)
	f.host("s1", "", api.RoleServer)
	f.host("s2", "", api.RoleServer)
	f.turn(20 * time.Second)
	f.want("two servers", "h0", "s1", "s2")
	f.live("s1", false)
	f.turn(7 * time.Minute)
	f.want("a server was lost", "h0", "h1", "s2")
	if f.g.broken != "" {
		t.Fatal(f.g.broken)
	}
}

// With an external etcd nobody is chosen; members whose hosts are gone go.
func TestExternalMembers(t *testing.T) {
	ctx := t.Context()
	f := &fleet{t: t, mem: store.NewMem(), clk: clock.NewManual(time.Unix(1000, 0)), alive: map[string]bool{}, g: &group{up: map[string]bool{}}}
	eng := reconcile.New(f.mem, f.clk, nil, reconcile.Events{})
	eng.Add(NewMembers(MembersDeps{Clock: f.clk, External: true, Self: "s0"}), 1)
	member := func(name string) {
		f.put(&api.Member{Head: api.Head{K: api.KindMember, Meta: api.Meta{Name: name}}, Spec: api.MemberSpec{State: api.MemberVoter, API: "https://" + name + ":7443", Since: f.clk.Now()}})
	}
	for _, n := range []string{"s0", "s1", "s2"} {
		f.put(&api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: n}}, Spec: api.NodeIdentitySpec{Role: api.RoleServer}})
		member(n)
	}
	member("stranger")
	f.live("s1", true)
	f.live("s2", true)
	left := func() (names []string) {
		if _, err := eng.Settle(ctx, f.mem, 1000); err != nil {
			t.Fatal(err)
		}
		list, _, err := store.List[*api.Member](ctx, f.mem, api.Selector{Kind: api.KindMember})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			names = append(names, m.Name)
		}
		return names
	}
	if got := left(); !slices.Equal(got, []string{"s0", "s1", "s2"}) {
		t.Fatal(got)
	}
	f.live("s2", false)
	f.clk.Advance(time.Minute)
	f.put(&api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: "s1"}}, Spec: api.NodeIdentitySpec{Role: api.RoleServer}})
	if got := left(); !slices.Equal(got, []string{"s0", "s1"}) {
		t.Fatal(got)
	}
	f.live("s2", true)
	member("s2")
	if got := left(); !slices.Equal(got, []string{"s0", "s1", "s2"}) {
		t.Fatal("it came back:", got)
	}
}
