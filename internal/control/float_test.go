package control

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/store"
)

func (w *world) pool(name string, tenants []string, prefixes ...string) {
	w.put(&api.AddressPool{Head: api.Head{K: api.KindAddressPool, Meta: api.Meta{Name: name}}, Spec: api.AddressPoolSpec{Prefixes: prefixes, Tenants: tenants}})
}

func (w *world) float(name string, spec api.AddressSpec) {
	w.put(&api.Address{Head: api.Head{K: api.KindAddress, Meta: api.Meta{Name: name, Tenant: "t", UID: name}}, Spec: spec})
}

func (w *world) remove(k api.Kind, tenant, name string) {
	w.t.Helper()
	if _, err := w.mem.Commit(context.Background(), store.Remove(api.Ref{Kind: k, Tenant: tenant, Name: name}, store.Any)); err != nil {
		w.t.Fatal(err)
	}
}

// floats is what an Address is and why: ADDRESS@NODE/VNI->INSIDE, or the reason.
func (w *world) floats(name, want string) {
	w.t.Helper()
	st := of[*api.Address](w, api.KindAddress, name).Status
	got := fmt.Sprintf("%s@%s/%d->%s", st.Address, st.Node, st.VNI, st.Inside)
	for _, c := range st.Conditions {
		if !c.Status {
			got = st.Address + " " + c.Reason
		}
	}
	if got != want {
		w.t.Errorf("%s: %s, want %s (%v)", name, got, want, st.Conditions)
	}
}

func TestAnAddressGoesWithItsInstance(t *testing.T) {
	w := newWorld(t, "10.0.0.0/24")
	w.spanning("n1")
	w.float("f", api.AddressSpec{Instance: "db"})
	w.settle()
	w.floats("f", " NoPool")
	w.pool("other", []string{"else"}, "203.0.113.0/29")
	w.pool("public", []string{"t"}, "192.0.2.0/31", "198.51.100.8/31") // the first two: 192.0.2.1 is the host's
	n, err := store.Get[*api.Node](context.Background(), w.mem, api.Ref{Kind: api.KindNode, Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []string{"192.0.2.1"}
	w.put(n)
	w.settle()
	w.floats("f", "192.0.2.0 NoInstance")
	w.network("main", nil)
	w.instance("db", 100, onMain)
	w.settle()
	w.floats("f", "192.0.2.0@n1/65536->10.1.0.2")
	w.float("g", api.AddressSpec{Instance: "db", Network: "other"})
	w.float("h", api.AddressSpec{Address: "192.0.2.0"})
	w.float("i", api.AddressSpec{Address: "192.0.2.1"})
	w.float("j", api.AddressSpec{Address: "203.0.113.1"})
	w.settle()
	w.floats("g", "198.51.100.8 NotOnNetwork")
	w.floats("h", " Taken")
	w.floats("i", " Taken")
	w.floats("j", " NotInPool")
	w.float("k", api.AddressSpec{})
	w.float("l", api.AddressSpec{})
	w.settle()
	w.floats("k", "198.51.100.9 Unbound")
	w.floats("l", " NoneFree")
	w.remove(api.KindAddress, "t", "k")
	w.settle()
	w.floats("l", "198.51.100.9 Unbound")

	w.spanning("n2")
	a := w.assignment("db")
	a.Spec.Node = "n2" // as failover and drains do it
	w.put(a)
	w.settle()
	w.floats("f", "192.0.2.0@n2/65536->10.1.0.2")
	w.remove(api.KindAssignment, "t", "db")
	w.settle()
	if st := of[*api.Address](w, api.KindAddress, "f").Status; strings.Contains(st.Node, "n2") && st.Address != "192.0.2.0" {
		t.Errorf("%+v", st)
	}
}

// However it is made, bound and removed, also over changes of the leader: no address is given twice.
func TestNoAddressIsGivenTwice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	w := newWorld(t, "10.0.0.0/24")
	w.pool("a", nil, "192.0.2.0/29")
	w.pool("b", nil, "192.0.2.4/30", "198.51.100.0/30")
	for i := range 400 {
		name := fmt.Sprintf("f%d", r.IntN(16))
		switch ref := (api.Ref{Kind: api.KindAddress, Tenant: "t", Name: name}); r.IntN(5) {
		case 0:
			if _, err := w.mem.Get(t.Context(), ref); err == nil {
				w.remove(ref.Kind, ref.Tenant, ref.Name)
			}
		case 1:
			w.lead("10.0.0.0/24")
		default:
			spec := api.AddressSpec{}
			if r.IntN(2) == 0 {
				spec.Address = fmt.Sprintf("192.0.2.%d", r.IntN(9))
			}
			if _, err := w.mem.Get(t.Context(), ref); err != nil {
				w.float(name, spec)
			}
		}
		w.settle()
		all, _, err := store.List[*api.Address](t.Context(), w.mem, api.Selector{Kind: api.KindAddress})
		if err != nil {
			t.Fatal(err)
		}
		by := map[string]string{}
		for _, a := range all {
			if x := a.Status.Address; x != "" && by[x] != "" {
				t.Fatalf("step %d: %s is given to %s and %s", i, x, by[x], a.Name)
			} else if x != "" {
				by[x] = a.Name
			}
		}
	}
}
