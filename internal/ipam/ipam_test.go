package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
)

func newNetwork(tenant, name, four, six string, vni uint32) *api.Network {
	n := &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: name, Tenant: tenant}}, Spec: api.NetworkSpec{CIDR: four, CIDR6: six}}
	n.Status = api.NetworkStatus{VNI: vni, Conditions: []api.Condition{{Type: api.ConditionReady, Status: true}}}
	return n
}

func instance(tenant, uid string, labels map[string]string, on ...api.Attach) *api.Instance {
	return &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, Tenant: tenant, UID: uid, Labels: labels}}, Spec: api.InstanceSpec{Networks: on}}
}

func give(t *testing.T, b *Book, in *api.Instance) []api.Interface {
	t.Helper()
	out, err := b.Give(in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBothFamiliesAndSeveralNetworks(t *testing.T) {
	b := New()
	b.SetNetwork(newNetwork("a", "main", "10.1.0.0/16", "fd00:1::/64", 7))
	b.SetNetwork(newNetwork("a", "six", "", "fd00:2::/64", 8))
	got := give(t, b, instance("a", "x", nil, api.Attach{Name: "main"}, api.Attach{Name: "six"}))
	want := []api.Interface{
		{Network: "main", VNI: 7, Name: "eth0", MAC: "0a:58:0a:01:00:02", Address: "10.1.0.2/16", Address6: "fd00:1::2/64", Identity: 256},
		{Network: "six", VNI: 8, Name: "eth1", MAC: "0a:59:00:00:00:02", Address6: "fd00:2::2/64", Identity: 256},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got\n%v\nwant\n%v", got, want)
	}
	// Another tenant's network of the same addresses is another network.
	b.SetNetwork(newNetwork("b", "main", "10.1.0.0/16", "", 9))
	if other := give(t, b, instance("b", "y", nil, api.Attach{Name: "main"})); other[0].Address != "10.1.0.2/16" || other[0].VNI != 9 {
		t.Fatalf("%+v", other)
	}
}

func TestAnAddressStaysAndGoesRound(t *testing.T) {
	b := New()
	b.SetNetwork(newNetwork("a", "main", "10.1.0.0/29", "", 7))
	main := api.Attach{Name: "main"}
	first := give(t, b, instance("a", "x", nil, main))
	if again := give(t, b, instance("a", "x", nil, main)); fmt.Sprint(again) != fmt.Sprint(first) {
		t.Fatalf("%v became %v", first, again)
	}
	b.Free("x")
	if y := give(t, b, instance("a", "y", nil, main)); y[0].Address != "10.1.0.3/29" {
		t.Fatalf("%s was given again at once", y[0].Address)
	}
	for _, uid := range []string{"p", "q", "r", "s"} {
		give(t, b, instance("a", uid, nil, main))
	}
	if _, err := b.Give(instance("a", "late", nil, main)); !errors.Is(err, errs.Unavailable) {
		t.Fatal("of eight addresses five are instances':", err)
	}
	b.Free("q")
	give(t, b, instance("a", "late", nil, main))
}

func TestWhatCannotBeGivenChangesNothing(t *testing.T) {
	b := New()
	b.SetNetwork(newNetwork("a", "main", "10.1.0.0/24", "", 7))
	had := give(t, b, instance("a", "x", nil, api.Attach{Name: "main"}))
	for name, c := range map[string]struct {
		at   api.Attach
		kind *errs.Kind
	}{
		"no such network": {api.Attach{Name: "mian"}, kind(errs.NotFound)},
		"gateway":         {api.Attach{Name: "main", Address: "10.1.0.1"}, kind(errs.Invalid)},
		"broadcast":       {api.Attach{Name: "main", Address: "10.1.0.255"}, kind(errs.Invalid)},
		"elsewhere":       {api.Attach{Name: "main", Address: "10.2.0.7"}, kind(errs.Invalid)},
		"other family":    {api.Attach{Name: "main", Address6: "fd00::7"}, kind(errs.Invalid)},
		"in use":          {api.Attach{Name: "main", Address: "10.1.0.2"}, kind(errs.Conflict)},
	} {
		if _, err := b.Give(instance("a", "y", nil, c.at)); errs.KindOf(err) != *c.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.Give(instance("a", "x", nil, api.Attach{Name: "main"}, api.Attach{Name: "mian"})); err == nil || fmt.Sprint(b.Has("x")) != fmt.Sprint(had) {
		t.Errorf("%v; has %v, had %v", err, b.Has("x"), had)
	}
	if b.Has("y") != nil || b.Users("a", "main") != 1 {
		t.Error("y has something")
	}
}

func kind(k errs.Kind) *errs.Kind { return &k }

func TestIdentitiesFollowLabels(t *testing.T) {
	b := New()
	b.SetNetwork(newNetwork("a", "main", "10.1.0.0/16", "", 7))
	main := api.Attach{Name: "main"}
	web, db := map[string]string{"app": "web"}, map[string]string{"app": "db"}
	one, two, three := give(t, b, instance("a", "1", web, main)), give(t, b, instance("a", "2", web, main)), give(t, b, instance("a", "3", db, main))
	if one[0].Identity != two[0].Identity || one[0].Identity == three[0].Identity {
		t.Fatalf("%v %v %v", one, two, three)
	}
	changed := give(t, b, instance("a", "1", db, main))
	if changed[0].Identity != three[0].Identity || changed[0].Address != one[0].Address {
		t.Fatalf("%v", changed)
	}
	b.Free("2") // the last of its labels: the number is free, and not used again at once
	if four := give(t, b, instance("a", "4", map[string]string{"app": "x"}, main)); four[0].Identity == one[0].Identity {
		t.Fatal("a number was given again at once")
	}
}

// A new book that reads what the old one gave gives what the old one would have kept apart.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		nets := []*api.Network{newNetwork("a", "n0", "10.1.0.0/26", "fd00::/112", 5), newNetwork("a", "n1", "", "fd01::/64", 6), newNetwork("b", "n0", "10.1.0.0/26", "", 7)}
		b, now := New(), map[string][]api.Interface{}
		labels := map[string]map[string]string{}
		load := func() {
			for _, n := range nets {
				b.SetNetwork(n)
			}
		}
		load()
		for range 600 {
			uid := fmt.Sprint(r.IntN(80))
			switch x := r.IntN(10); {
			case x < 5:
				tenant := []string{"a", "b"}[len(uid)%2]
				in := instance(tenant, uid, map[string]string{"l": fmt.Sprint(r.IntN(6))}, api.Attach{Name: "n0"})
				if tenant == "a" && r.IntN(2) == 0 {
					in.Spec.Networks = append(in.Spec.Networks, api.Attach{Name: "n1"})
				}
				if got, err := b.Give(in); err == nil {
					now[uid], labels[uid] = got, in.Labels
				}
			case x < 8:
				b.Free(uid)
				delete(now, uid)
			case x == 8: // the leader changes
				b = New()
				load()
				for uid, has := range now {
					b.Take([]string{"a", "b"}[len(uid)%2], uid, labels[uid], has)
				}
			}
			apart(t, now, labels)
			if t.Failed() {
				t.Fatal("seed", seed)
			}
		}
	}
}

func apart(t *testing.T, now map[string][]api.Interface, labels map[string]map[string]string) {
	t.Helper()
	seen := map[string]string{}
	meaning := map[string]string{}
	for uid, has := range now {
		for _, i := range has {
			for _, what := range append(i.Addresses(), i.MAC) {
				k := fmt.Sprint(i.VNI, what)
				if o := seen[k]; o != "" && o != uid {
					t.Errorf("%s is on %d both of %s and %s", what, i.VNI, o, uid)
				}
				seen[k] = uid
			}
			k := fmt.Sprint(i.VNI, i.Identity)
			if m, ok := meaning[k]; ok && m != flat(labels[uid]) {
				t.Errorf("identity %d on %d means both %q and %q", i.Identity, i.VNI, m, flat(labels[uid]))
			}
			meaning[k] = flat(labels[uid])
		}
	}
}

func FuzzOffset(f *testing.F) {
	f.Add("10.0.0.0/8", uint64(9))
	f.Add("fd00::/64", uint64(1<<31))
	f.Add("10.0.0.0/29", uint64(7))
	f.Fuzz(func(t *testing.T, prefix string, o uint64) {
		x, err := netip.ParsePrefix(prefix)
		if err != nil || x.Addr().Is4In6() || x.Addr().Zone() != "" {
			return
		}
		p := newPool()
		p.prefix = x.Masked()
		if o %= p.room(); p.offset(p.at(o)) != o {
			t.Errorf("%d of %s is %s, and that is %d", o, p.prefix, p.at(o), p.offset(p.at(o)))
		}
	})
}
