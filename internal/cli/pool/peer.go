package pool

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

func peerVerbs() []verb.Def {
	return []verb.Def{
		{Use: "peer NETWORK OTHER", Min: 2, Max: 2, Short: "Join two networks: their instances can reach each other",
			Long:    "OTHER is a network of the tenant, or TENANT/NETWORK. Between two tenants both sides have to say it; until then nothing is\njoined, and nothing is told of the other side. What another tenant's instances may begin is up to security groups: without\none that allows it, nothing. Networks with addresses in common cannot be joined.",
			Example: "  atoll network peer main back\n  atoll network peer main lab/main\n  atoll get peerings -o wide", Run: peer, Complete: completeNetwork},
		{Use: "unpeer NETWORK OTHER", Min: 2, Max: 2, Short: "Part two networks, at once", Long: "What goes on between them ends, too. Between two tenants either side can do it.",
			Example: "  atoll network unpeer main lab/main", Run: unpeer, Complete: completeNetwork},
	}
}

func completeNetwork(ctx context.Context, c *verb.Call, _ string) []string {
	return c.NamesOf(ctx, api.KindNetwork)
}

func peeringOf(ctx context.Context, c *verb.Call) (*api.Peering, error) {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return nil, err
	}
	other := strings.TrimPrefix(c.Args[1], tenant+"/")
	return &api.Peering{Head: api.Head{K: api.KindPeering, Meta: api.Meta{Name: peeringName(c.Args[0], other), Tenant: tenant}}, Spec: api.PeeringSpec{Network: c.Args[0], Peer: other}}, nil
}

// peeringName says the two networks, as far as a name can hold them.
func peeringName(network, other string) string {
	name := network + "--" + strings.ReplaceAll(other, "/", "-")
	if len(name) > 63 {
		h := sha256.Sum256([]byte(name))
		name = name[:46] + "-" + hex.EncodeToString(h[:8])
	}
	return name
}

func peer(ctx context.Context, c *verb.Call) error {
	p, err := peeringOf(ctx, c)
	if err != nil {
		return err
	}
	if err := createAndSay(ctx, c, p); err != nil {
		return err
	}
	// What becomes of it is the pool's to say, and for two tenants depends on what the other one has said.
	err = c.Within(ctx, settled, "the pool to look at it", func(ctx context.Context) error {
		return c.WaitFor(ctx, api.RefOf(p), func(o api.Object, gone bool) (bool, error) {
			if gone {
				return true, nil
			}
			now := o.(*api.Peering)
			if now.Ready() {
				c.Say("the two networks are joined")
				return true, nil
			}
			i := slices.IndexFunc(now.Status.Conditions, func(x api.Condition) bool { return x.Type == api.ConditionReady && x.Message != "" })
			if i >= 0 {
				c.Say("%s", now.Status.Conditions[i].Message)
			}
			return i >= 0, nil
		})
	})
	if errors.Is(err, errs.Timeout) {
		c.Note("the pool has not looked at it yet; see: atoll get peerings")
		return nil
	}
	return err
}

func unpeer(ctx context.Context, c *verb.Call) error {
	want, err := peeringOf(ctx, c)
	if err != nil {
		return err
	}
	own, other := want.Ends()
	all, err := verb.List[*api.Peering](ctx, c, api.Selector{Kind: api.KindPeering, Tenant: want.Tenant})
	if err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	found := false
	for _, p := range all {
		a, b := p.Ends()
		// Between networks of one tenant either may have been named first.
		if a != own || b != other {
			if a != other || b != own {
				continue
			}
		}
		if err := cl.Delete(ctx, api.RefOf(p), store.Any); err != nil && errs.KindOf(err) != errs.NotFound {
			return err
		}
		found = true
		c.Say("%s deleted", render.ShortRef(p))
	}
	if !found {
		return errs.New(errs.NotFound, "network %s of tenant %s is not peered with %s", want.Spec.Network, want.Tenant, want.Spec.Peer).WithHint("atoll get peerings --tenant %s lists those there are", want.Tenant)
	}
	return nil
}
