package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Encryption tells hosts the keys of the others, and when all of them can, that they encrypt. A host has a
// HostKey while it belongs to the pool and no longer.
type Encryption struct{ clock clock.Clock }

// NewEncryption makes the controller.
func NewEncryption(clk clock.Clock) *Encryption { return &Encryption{clk} }

// Name is "encryption".
func (*Encryption) Name() string { return "encryption" }

// Watches what is wanted, what hosts say, and who belongs to the pool.
func (*Encryption) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindEncryption}, {Kind: api.KindNode}, {Kind: api.KindNodeIdentity}, {Kind: api.KindHostKey}}
}

// Owns the keys, and how far the hosts are.
func (*Encryption) Owns() []api.Kind { return []api.Kind{api.KindEncryption, api.KindHostKey} }

// Key is one name: all hosts are looked at together.
func (*Encryption) Key(api.Ref) api.Ref { return api.EncryptionRef() }

// Reconcile brings keys and status up to date.
func (c *Encryption) Reconcile(ctx context.Context, s store.Store, _ api.Ref) (reconcile.Result, error) {
	e, err := lookup[*api.Encryption](ctx, s, api.EncryptionRef())
	if err != nil {
		return reconcile.Result{}, err
	}
	have, err := store.All[*api.HostKey](ctx, s, api.KindHostKey, nil)
	if e == nil && len(have) == 0 { // as in most pools
		return reconcile.Result{}, err
	}
	nodes, err := store.All[*api.Node](ctx, s, api.KindNode, err)
	ids, err := store.All[*api.NodeIdentity](ctx, s, api.KindNodeIdentity, err)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("look at the hosts: %w", err)
	}
	var want map[string]api.HostKeySpec
	if e.Demanded() {
		want = hostKeys(nodes, ids, have)
	}
	for _, k := range have {
		if spec, ok := want[k.Name]; ok {
			if reflect.DeepEqual(spec, k.Spec) {
				delete(want, k.Name)
			}
			continue
		}
		if _, err := s.Commit(ctx, store.Remove(api.RefOf(k), k.Revision)); err != nil && !errors.Is(err, errs.NotFound) {
			return reconcile.Result{}, fmt.Errorf("remove %s: %w", api.RefOf(k), err)
		}
	}
	for name, spec := range want {
		now := c.clock.Now().UTC()
		k := &api.HostKey{Head: api.Head{K: api.KindHostKey, Meta: api.Meta{Name: name, CreatedAt: &now}}, Spec: spec}
		op := store.Create(k)
		if i := slices.IndexFunc(have, func(h *api.HostKey) bool { return h.Name == name }); i >= 0 {
			k = api.Clone(have[i])
			k.Spec = spec
			op = store.Update(k)
		}
		if _, err := s.Commit(ctx, op); err != nil {
			return reconcile.Result{}, fmt.Errorf("write %s: %w", api.RefOf(k), err)
		}
	}
	if e == nil {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, c.tell(ctx, s, e, slices.DeleteFunc(nodes, func(n *api.Node) bool {
		return slices.ContainsFunc(ids, func(id *api.NodeIdentity) bool { return id.Name == n.Name && id.Spec.Revoked != "" })
	}))
}

// hostKeys are those of the hosts that belong to the pool. What a host says is believed as far as it is about itself: its
// address follows from its name, and a key is that of whoever had it first.
func hostKeys(nodes []*api.Node, ids []*api.NodeIdentity, have []*api.HostKey) map[string]api.HostKeySpec {
	good, owner := map[string]bool{}, map[string]string{}
	for _, id := range ids {
		good[id.Name] = id.DeletedAt == nil && id.Spec.Revoked == "" && id.Spec.Role == api.RoleNode
	}
	for _, k := range have {
		if good[k.Name] {
			owner[k.Spec.Key] = k.Name
			if k.Spec.Next != "" {
				owner[k.Spec.Next] = k.Name
			}
		}
	}
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b *api.Node) int { return strings.Compare(a.Name, b.Name) })
	out, taken := map[string]api.HostKeySpec{}, map[string]bool{}
	for _, n := range nodes {
		e := n.Status.Encryption
		if e == nil || n.DeletedAt != nil || !good[n.Name] || !api.ValidPublicKey(e.Key) || e.Address != api.InnerAddress(n.Name).String() || taken[e.Address] {
			continue
		}
		if _, err := netip.ParseAddrPort(e.Endpoint); err != nil {
			continue
		}
		spec := api.HostKeySpec{Key: e.Key, Endpoint: e.Endpoint, Address: e.Address}
		if api.ValidPublicKey(e.Next) && e.Next != e.Key {
			spec.Next, spec.NextFrom = e.Next, e.NextFrom
		}
		mine := true
		for _, k := range []string{spec.Key, spec.Next} {
			by, known := owner[k]
			mine = mine && (k == "" || !known || by == n.Name)
		}
		if !mine {
			continue
		}
		for _, k := range []string{spec.Key, spec.Next} {
			if k != "" {
				owner[k] = n.Name
			}
		}
		out[n.Name], taken[e.Address] = spec, true
	}
	return out
}

// tell writes how far the hosts are. Hosts begin to encrypt together: one that does and one that does not do not
// reach each other.
func (c *Encryption) tell(ctx context.Context, s store.Store, e *api.Encryption, nodes []*api.Node) error {
	next := api.Clone(e)
	sum := survey(nodes)
	st := &next.Status
	done := api.Condition{Type: api.ConditionComplete, Reason: "Hosts", Since: c.clock.Now().UTC()}
	switch {
	case e.Demanded():
		st.Ready, st.Hosts = sum.ready, sum.hosts
		if st.Mode != api.EncryptionWireguard && len(sum.waiting) == 0 && sum.hosts > 0 {
			st.Mode = api.EncryptionWireguard
		}
		if st.Mode == "" {
			st.Mode = api.EncryptionNone
		}
		switch {
		case st.Mode != api.EncryptionWireguard && sum.hosts == 0:
			done.Message = "no host takes part in networks of tenants yet"
		case st.Mode != api.EncryptionWireguard:
			done.Message = "hosts make themselves ready; waiting for " + few(sum.waiting)
		case len(sum.open) > 0:
			done.Message = "these may send in the clear yet: " + few(sum.open)
		default:
			done.Status = true
			if len(sum.failed) > 0 {
				done.Message = "these cannot encrypt, and have no part in networks of tenants: " + few(sum.failed)
			}
		}
	default:
		st.Mode, st.Ready, st.Hosts = api.EncryptionNone, 0, sum.hosts
		if done.Status = len(sum.still) == 0; !done.Status {
			done.Message = "these encrypt yet: " + few(sum.still)
		}
	}
	st.Conditions = api.SetCondition(e.Status.Conditions, done)
	if reflect.DeepEqual(e.Status, next.Status) {
		return nil
	}
	if _, err := s.Commit(ctx, store.Update(next)); err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("status of %s: %w", api.EncryptionRef(), err)
	}
	return nil
}

// surveyed is how hosts stand to encryption.
type surveyed struct {
	hosts, ready int
	waiting      []string // heard of, and neither ready nor known to be unable
	open         []string // may send in the clear
	failed       []string // cannot
	still        []string // encrypt, or could
}

func survey(nodes []*api.Node) surveyed {
	var s surveyed
	for _, n := range nodes {
		e, cond := n.Status.Encryption, n.Condition(api.ConditionEncryption)
		if n.DeletedAt != nil || e == nil && n.Tunnel() == "" {
			continue // it takes no part in networks of tenants
		}
		s.hosts++
		if e != nil {
			s.still = append(s.still, n.Name)
		}
		failed := cond != nil && !cond.Status
		switch {
		case failed:
			s.failed = append(s.failed, n.Name)
		case e != nil && e.Key != "":
			s.ready++
		case n.Ready():
			s.waiting = append(s.waiting, n.Name)
		}
		if e == nil || !e.Active {
			s.open = append(s.open, n.Name)
		}
	}
	return s
}

// few names some of many.
func few(names []string) string {
	slices.Sort(names)
	if len(names) > 5 {
		return strings.Join(names[:5], ", ") + fmt.Sprintf(" and %d more", len(names)-5)
	}
	return strings.Join(names, ", ")
}
