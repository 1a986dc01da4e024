package host

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/store"
)

// public is a key as WireGuard writes one.
func public(n int) string { return fmt.Sprintf("%042dA=", n) }

func encrypting(name string, key int) *api.Node {
	return &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}, Status: api.NodeStatus{
		Conditions: []api.Condition{{Type: api.ConditionReady, Status: true}},
		Drivers:    []api.Capability{{Type: "network", Name: api.DriverOverlay, Features: map[string]string{"tunnel": "192.0.2.7"}}},
		Encryption: &api.NodeEncryption{Key: public(key), Endpoint: "192.0.2.7:4799", Address: api.InnerAddress(name).String()}}}
}

func identity(name, revoked string) *api.NodeIdentity {
	return &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: name}}, Spec: api.NodeIdentitySpec{Role: api.RoleNode, Revoked: revoked}}
}

// TestNobodyRemovedStaysAPeer has hosts join, be revoked, be removed and say what is not true.
func TestNobodyRemovedStaysAPeer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := store.NewMem()
		ctx := context.Background()
		commit := func(op store.Op) {
			if _, err := s.Commit(ctx, op); err != nil {
				t.Fatal(err)
			}
		}
		commit(store.Create(&api.Encryption{Head: api.Head{K: api.KindEncryption, Meta: api.Meta{Name: api.PoolName}}, Spec: api.EncryptionSpec{Mode: api.EncryptionWireguard}}))
		c := NewEncryption(clock.NewManual(time.Unix(1000, 0)))
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			name := fmt.Sprintf("isle%d", rapid.IntRange(1, 4).Draw(t, "host"))
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				commit(store.Set(identity(name, "")))
				commit(store.Set(encrypting(name, rapid.IntRange(1, 6).Draw(t, "key"))))
			case 2:
				commit(store.Set(identity(name, "stolen")))
			case 3:
				_, _ = s.Commit(ctx, store.Remove(api.Ref{Kind: api.KindNode, Name: name}, store.Any)) // it may not be there
			case 4:
				_, _ = s.Commit(ctx, store.Remove(api.Ref{Kind: api.KindNodeIdentity, Name: name}, store.Any))
			case 5:
				n := encrypting(name, 7)
				n.Status.Encryption.Address = api.InnerAddress("isle1").String()
				commit(store.Set(n))
			}
			if _, err := c.Reconcile(ctx, s, api.EncryptionRef()); err != nil {
				t.Fatal(err)
			}
			keys, err := store.All[*api.HostKey](ctx, s, api.KindHostKey, nil)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, k := range keys {
				n, err1 := store.Get[*api.Node](ctx, s, api.Ref{Kind: api.KindNode, Name: k.Name})
				id, err2 := store.Get[*api.NodeIdentity](ctx, s, api.Ref{Kind: api.KindNodeIdentity, Name: k.Name})
				if err1 != nil || err2 != nil || id.Spec.Revoked != "" {
					t.Fatalf("%s is a peer: %v, %v", k.Name, err1, err2)
				}
				if k.Spec.Address != api.InnerAddress(k.Name).String() || k.Spec.Key != n.Status.Encryption.Key || seen[k.Spec.Key] {
					t.Fatalf("%s is a peer as %+v", k.Name, k.Spec)
				}
				seen[k.Spec.Key] = true
			}
		}
	})
}

// A key that is another host's by now is not this one's, however often it says so.
func TestKeysHaveOneOwner(t *testing.T) {
	have := []*api.HostKey{{Head: api.Head{Meta: api.Meta{Name: "isle2"}}, Spec: api.HostKeySpec{Key: public(1)}}}
	got := hostKeys([]*api.Node{encrypting("isle1", 1), encrypting("isle2", 1)}, []*api.NodeIdentity{identity("isle1", ""), identity("isle2", "")}, have)
	if _, ok := got["isle1"]; ok || len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func TestHostsChangeOverTogether(t *testing.T) {
	s, ctx := store.NewMem(), context.Background()
	set := func(o api.Object) {
		t.Helper()
		if _, err := s.Commit(ctx, store.Set(o)); err != nil {
			t.Fatal(err)
		}
	}
	c := NewEncryption(clock.NewManual(time.Unix(1000, 0)))
	look := func(what, mode string, complete bool) {
		t.Helper()
		if _, err := c.Reconcile(ctx, s, api.EncryptionRef()); err != nil {
			t.Fatal(err)
		}
		e, err := store.Get[*api.Encryption](ctx, s, api.EncryptionRef())
		if err != nil {
			t.Fatal(err)
		}
		if e.Status.Mode != mode || len(e.Status.Conditions) != 1 || e.Status.Conditions[0].Status != complete {
			t.Fatalf("%s: %+v", what, e.Status)
		}
	}
	one, two := encrypting("isle1", 1), encrypting("isle2", 2)
	two.Status.Encryption = nil
	for _, o := range []api.Object{identity("isle1", ""), identity("isle2", ""), one, two} {
		set(o)
	}
	set(&api.Encryption{Head: api.Head{K: api.KindEncryption, Meta: api.Meta{Name: api.PoolName}}, Spec: api.EncryptionSpec{Mode: api.EncryptionWireguard}})
	look("one is not ready", api.EncryptionNone, false)
	// One that cannot is not waited for; that it may send in the clear is not passed over.
	two.Status.Encryption, two.Status.Drivers = &api.NodeEncryption{}, nil
	two.Status.Conditions = append(two.Status.Conditions, api.Condition{Type: api.ConditionEncryption, Message: "no tun"})
	set(two)
	look("one cannot", api.EncryptionWireguard, false)
	one.Status.Encryption.Active = true
	set(one)
	look("one may send in the clear", api.EncryptionWireguard, false)
	two.Status.Encryption.Active = true
	set(two)
	look("all", api.EncryptionWireguard, true)
	// A host that comes later, or one that is not heard of.
	three := encrypting("isle3", 3)
	three.Status.Encryption, three.Status.Conditions = nil, nil
	set(three)
	look("one that is not heard of may send in the clear", api.EncryptionWireguard, false)
}
