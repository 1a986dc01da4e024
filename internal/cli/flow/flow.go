// Package flow holds the verbs about traffic on networks of tenants: atoll net why, flows,
// map, check, capture and hits.
//
// It starts goroutines only for the length of one verb and waits for them. It must never
// change anything.
package flow

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// Net is the group of verbs.
func Net() verb.Def {
	return verb.Def{
		Use: "net", Group: verb.GroupTell, Short: "Traffic on networks of tenants: why it passes or not, who talks to whom, captures",
		Example: "  atoll net why web db:5432\n  atoll net flows instance/web --follow\n  atoll net map -o dot | dot -Tsvg >map.svg\n  atoll net check web db:5432\n  atoll net capture web -w web.pcap",
		Sub:     []verb.Def{why(), flows(), netMap(), check(), capture(), hits()},
	}
}

// pathOptions are flags of verbs that are about two ends.
type pathOptions struct {
	render.Output
	network string
}

func (o *pathOptions) flags(fs *pflag.FlagSet) {
	o.Output.Flags(fs)
	fs.StringVar(&o.network, "network", "", "the network that is meant, where both are on several")
}

// question reads both ends from the arguments. "->" begins like a flag, so that flags behind the first argument
// are read here.
func (o *pathOptions) question(ctx context.Context, c *verb.Call) (url.Values, error) {
	args, err := rest(c)
	if err != nil {
		return nil, err
	}
	p, err := ParsePath(args)
	if err != nil {
		return nil, err
	}
	if err := o.Check(); err != nil {
		return nil, err
	}
	q := url.Values{"from": {p.From}, "to": {p.To}}
	if p.Port != 0 {
		q.Set("port", strconv.Itoa(int(p.Port)))
	}
	if p.Protocol != "" {
		q.Set("protocol", p.Protocol)
	}
	if o.network != "" {
		q.Set("network", o.network)
	}
	return q, withTenant(ctx, c, q, p.bare())
}

func rest(c *verb.Call) ([]string, error) {
	const arrow = "\x00->" // no flag begins so
	var args []string
	for _, a := range c.Args {
		if a == "->" {
			a = arrow
		}
		args = append(args, a)
	}
	c.Flags.SetInterspersed(true)
	if err := c.Flags.Parse(args); err != nil {
		return nil, errs.New(errs.Invalid, "%s", strings.ReplaceAll(err.Error(), "\x00", "")).WithHint("atoll net --help")
	}
	var out []string
	for _, a := range c.Flags.Args() {
		out = append(out, strings.TrimPrefix(a, "\x00"))
	}
	return out, nil
}

// withTenant names the tenant that is meant. Where every name comes with its own, none need be chosen.
func withTenant(ctx context.Context, c *verb.Call, q url.Values, needed bool) error {
	t, err := c.ChosenTenant()
	if err == nil && t == "" && needed {
		t, err = c.Tenant(ctx)
	}
	if err == nil && t != "" {
		q.Set("tenant", t)
	}
	return err
}

func ask[T any](ctx context.Context, c *verb.Call, question string, q url.Values) (out T, err error) {
	cl, err := c.Server()
	if err != nil {
		return out, err
	}
	return out, cl.Net(ctx, question, q, &out)
}

// missing says which hosts did not answer.
func missing(c *verb.Call, nodes []string) {
	if len(nodes) > 0 {
		c.Note("%s did not answer, and is left out: %s", render.Plural(len(nodes), "host"), strings.Join(nodes, ", "))
	}
}

func portText(f *api.NetFlow) string {
	if f.Port == 0 {
		return f.Protocol
	}
	return f.Protocol + "/" + strconv.Itoa(int(f.Port))
}

func completeEnds(ctx context.Context, c *verb.Call, typed string) []string {
	if len(c.Args) > 1 {
		return nil
	}
	return append(c.NamesOf(ctx, api.KindInstance), api.PlaceHost, api.PlaceOutside)
}
