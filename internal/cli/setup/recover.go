package setup

import (
	"context"
	"errors"

	"atoll/api"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// steps is what to do when no server can help, in order.
const recoverSteps = `what to do, in this order:
  1. Start atolld on every host that keeps the state (atoll get members named them) and still has its disk. As
     soon as a majority answers (2 of 3, 3 of 5), all is as it was.
  2. If that cannot be: on each of them that is left, with atolld stopped, as root: atolld recover
     It shows what that host's copy has. On the one with the highest revision: atolld recover --yes-i-lost-the-others
  3. If no copy is left: on any host, as root: atolld recover --from pool.backup
Instances run on meanwhile, except for what must not run twice.`

// Recover says how to get a pool back that has lost most of those that keep its state.
func Recover() verb.Def {
	return verb.Def{
		Use: "recover", Group: verb.GroupSetup, Max: 0, Short: "Say what to do when the pool's state cannot be read or changed any more",
		Long: `Recover asks a server how it stands with the hosts that keep the pool's state, and says
what to do. It changes nothing: what has to be decided is decided on a host, by atolld recover.`,
		Example: "  atoll recover",
		Run:     runRecover,
	}
}

func runRecover(ctx context.Context, c *verb.Call) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	members, _, err := store.List[*api.Member](ctx, cl, api.Selector{Kind: api.KindMember})
	switch k := errs.KindOf(err); {
	case err == nil:
		c.Say("nothing has to be recovered: the pool's state can be read and changed")
		for _, m := range members {
			c.Say("  %s  %s", m.Name, m.Spec.State)
		}
		return nil
	case errors.Is(err, context.Canceled), k != errs.Unavailable && k != errs.Timeout:
		return err
	}
	c.Say("%s", recoverSteps)
	return c.Explain(err)
}
