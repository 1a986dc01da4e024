// Package plan holds the verbs that ask what would be: where objects would land, what
// becomes of what runs on a host that is lost or drained, how many more fit, what
// more hosts or another share would change.
//
// It starts no goroutine. It must never change anything.
package plan

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

const long = `Plan answers from the pool as it is now, by the policies that place in it, and
changes nothing. It ends with 0 when everything asked about fits and holds, and
with 5 when something would have no place, would be refused, or would break a
guarantee. N+1 tells whether any one node could be lost: whether all that requests
something would find room on the others. -o wide lists everything, -o json and
-o yaml give the whole answer with its reasons.`

// options are what every question has.
type options struct {
	render.Output
	files     []string
	recursive bool
	exact     bool
	hosts     api.PlanHosts
}

func (o *options) flags(fs *pflag.FlagSet) { o.Output.Flags(fs) }

// Plan is the group of questions; by itself it takes files.
func Plan() verb.Def {
	o := &options{}
	return verb.Def{
		Use: "plan -f FILE|DIR|- | lose | drain | add | fit | quota", Group: verb.GroupTell, Max: -1,
		Short: "Say what would be, and change nothing",
		Long:  "Plan -f says where the objects of files would land, what they would evict, and what\nstands in the way.\n\n" + long,
		Example: `  atoll plan -f web.yaml
  atoll plan lose isle2
  atoll plan lose --zone room-a
  atoll plan drain isle2
  atoll plan add --cpu 16 --memory 64Gi --count 2
  atoll plan fit --cpu 2 --memory 4Gi
  atoll plan quota acme --guarantee cpu=4`,
		Flags: func(fs *pflag.FlagSet) {
			fs.StringArrayVarP(&o.files, "filename", "f", nil, "file or directory of objects; - reads standard input")
			fs.BoolVarP(&o.recursive, "recursive", "R", false, "also the directories inside")
			fs.BoolVar(&o.exact, "exact", false, "also say how many could be placed at best, by an exact solver (cbc); for small pools")
			o.flags(fs)
		},
		Run: o.file,
		Sub: []verb.Def{lose(), drain(), add(), fit(), quota()},
	}
}

func (o *options) file(ctx context.Context, c *verb.Call) error {
	if len(c.Args) > 0 {
		e := errs.New(errs.Invalid, "atoll plan has no command %q", c.Args[0]).WithHint("atoll plan --help lists them; files are named with -f")
		if near := api.Nearest(c.Args[0], []string{"lose", "drain", "add", "fit", "quota"}); near != "" {
			e.Hint = "did you mean atoll plan " + near + "?"
		}
		return e
	}
	if len(o.files) == 0 {
		return errs.New(errs.Invalid, "plan: what would be if what?").WithHint("atoll plan -f FILE, or atoll plan lose, drain, add, fit or quota; atoll plan --help shows examples")
	}
	docs, err := c.Docs(ctx, o.files, o.recursive)
	if err != nil {
		return err
	}
	req := api.PlanRequest{Exact: o.exact}
	for _, d := range docs {
		raw, err := api.Encode(d.Object)
		if err != nil {
			return errs.New(errs.Internal, "%s: %w", d.Source, err)
		}
		req.Objects = append(req.Objects, json.RawMessage(raw))
	}
	return o.ask(ctx, c, "", req)
}

func lose() verb.Def {
	o := &options{}
	return verb.Def{
		Use: "lose NODE… | --zone Z | --rack R", Max: -1, Short: "Say what becomes of the instances when nodes are lost at once",
		Long:    "Lose says what would start where if the nodes failed now, what would stay pending and\nwhy, and which guarantees would be broken. What is more important is placed first.\nDisruption budgets do not bind: they are about what is done on purpose.\n\n" + long,
		Example: "  atoll plan lose isle2\n  atoll plan lose --zone room-a\n  atoll plan lose --zone room-a --rack r12 -o wide",
		Flags:   o.hostFlags, Complete: verb.CompleteNodes,
		Run: func(ctx context.Context, c *verb.Call) error {
			h, err := o.which(c)
			if err != nil {
				return err
			}
			return o.ask(ctx, c, "", api.PlanRequest{Lose: h})
		},
	}
}

func drain() verb.Def {
	o := &options{}
	return verb.Def{
		Use: "drain NODE… | --zone Z | --rack R", Max: -1, Short: "Say what would move where when nodes are emptied on purpose, and what must stay",
		Long:    "Drain says what would restart where, in how many rounds the disruption budgets allow\nit, and what would have to stay.\n\n" + long,
		Example: "  atoll plan drain isle2\n  atoll plan drain isle2 -o wide\n  atoll plan drain isle2 --evacuate",
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&o.hosts.Evacuate, "evacuate", false, "as atoll evacuate does it: budgets are passed over")
			fs.BoolVar(&o.hosts.Leave, "leave", false, "what cannot move stays and runs on")
			o.hostFlags(fs)
		}, Complete: verb.CompleteNodes,
		Run: func(ctx context.Context, c *verb.Call) error {
			h, err := o.which(c)
			if err != nil {
				return err
			}
			return o.ask(ctx, c, "", api.PlanRequest{Drain: h})
		},
	}
}

func (o *options) hostFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.hosts.Zone, "zone", "", "all nodes of this zone")
	fs.StringVar(&o.hosts.Rack, "rack", "", "all nodes of this rack; with --zone only of that zone")
	fs.StringVar(&o.hosts.Region, "region", "", "all nodes of this region")
	o.flags(fs)
}

func (o *options) which(c *verb.Call) (*api.PlanHosts, error) {
	for _, a := range c.Args {
		o.hosts.Nodes = append(o.hosts.Nodes, strings.TrimPrefix(a, "node/"))
	}
	if places := o.hosts.Region+o.hosts.Zone+o.hosts.Rack != ""; places == (len(c.Args) > 0) {
		return nil, errs.New(errs.Invalid, "which nodes? name them, or give --zone, --rack or --region").WithHint("atoll get nodes -o wide lists them")
	}
	return &o.hosts, nil
}

type addOptions struct {
	options
	capacity capacity
	add      api.PlanAdd
	labels   []string
}

// capacity is amounts by flags of their own, and others.
type capacity struct {
	cpu, memory, gpu string
	more             []string
}

func (a *capacity) flags(fs *pflag.FlagSet, of string) {
	fs.StringVar(&a.cpu, "cpu", "", "CPU "+of)
	fs.StringVar(&a.memory, "memory", "", "memory "+of)
	fs.StringVar(&a.gpu, "gpu", "", "GPUs "+of+"; 500m is half of one")
	fs.StringArrayVar(&a.more, "request", nil, "other amounts: resource=amount,…")
}

func (a *capacity) read() (api.Resources, error) {
	out, err := parse.Amounts("request", nil, a.more)
	if err != nil {
		return nil, err
	}
	if out == nil {
		out = api.Resources{}
	}
	for _, x := range []struct {
		flag, value string
		r           api.Resource
	}{{"cpu", a.cpu, api.CPU}, {"memory", a.memory, api.Memory}, {"gpu", a.gpu, api.GPU}} {
		if x.value == "" {
			continue
		}
		if out[x.r], err = api.ParseQuantity(x.r, x.value); err != nil {
			return nil, parse.BadFlag(x.flag, x.value, err.Error(), "")
		}
	}
	return out, nil
}

func add() verb.Def {
	o := &addOptions{}
	return verb.Def{
		Use: "add --cpu N --memory M [--count N]", Short: "Say what more nodes would change: what waits and would fit then, headroom, N+1",
		Long:    "Add says which of the pending instances would have a place with more nodes like those\nthere are. Of the amounts a node would keep its usual reserve.\n\n" + long,
		Example: "  atoll plan add --cpu 16 --memory 64Gi --count 2\n  atoll plan add --cpu 64 --memory 256Gi --gpu 8 --gpu-model A100 --zone room-b",
		Flags: func(fs *pflag.FlagSet) {
			o.capacity.flags(fs, "of each node")
			fs.IntVar(&o.add.Count, "count", 1, "how many nodes")
			fs.StringVar(&o.add.Zone, "zone", "", "zone they would be in")
			fs.StringVar(&o.add.Rack, "rack", "", "rack they would be in")
			fs.StringVar(&o.add.Region, "region", "", "region they would be in")
			fs.StringVar(&o.add.GPUModel, "gpu-model", "", "model of their GPUs")
			fs.StringArrayVarP(&o.labels, "label", "l", nil, "key=value they would have")
			o.flags(fs)
		},
		Run: o.run,
	}
}

func (o *addOptions) run(ctx context.Context, c *verb.Call) (err error) {
	if o.add.Capacity, err = o.capacity.read(); err != nil {
		return err
	}
	if o.add.Capacity[api.CPU] == 0 || o.add.Capacity[api.Memory] == 0 {
		return errs.New(errs.Invalid, "how large would a node be? give --cpu and --memory").WithHint("atoll plan add --cpu 16 --memory 64Gi --count 2")
	}
	if o.add.Labels, err = parse.Pairs("label", o.labels); err != nil {
		return err
	}
	return o.ask(ctx, c, "", api.PlanRequest{Add: &o.add})
}

type fitOptions struct {
	options
	capacity                  capacity
	count                     int
	isolation, priority       string
	zone, node                string
	nodeLabels, labels, avoid []string
	spread, near, tolerate    []string
	models                    []string
	guaranteed                bool
}

func fit() verb.Def {
	o := &fitOptions{}
	return verb.Def{
		Use: "fit --cpu N --memory M [--count N]", Short: "Say how many more of an instance fit, where, and what runs out first",
		Long:    "Fit counts how many more instances of a kind have room, on which nodes, and which\nresource is short first. With a tenant (--tenant, atoll use) its limits count, too.\n\n" + long,
		Example: "  atoll plan fit --cpu 2 --memory 4Gi\n  atoll plan fit --cpu 2 --memory 4Gi --count 10\n  atoll plan fit --gpu 1 --gpu-model A100 --zone room-b",
		Flags: func(fs *pflag.FlagSet) {
			o.capacity.flags(fs, "of each instance")
			fs.IntVar(&o.count, "count", 0, "how many are wanted; ends with 5 when fewer fit")
			fs.StringSliceVar(&o.models, "gpu-model", nil, "models of GPU that will do")
			fs.BoolVar(&o.guaranteed, "guaranteed", false, "limits equal to the requests: class guaranteed")
			fs.StringVar(&o.isolation, "isolation", "", "container, sandbox, vm or wasm")
			fs.StringVar(&o.priority, "priority", "", "priority class")
			fs.StringVar(&o.node, "node", "", "only on this node")
			fs.StringVar(&o.zone, "zone", "", "only in this zone")
			fs.StringArrayVar(&o.nodeLabels, "node-label", nil, "only on nodes with key=value")
			fs.StringArrayVarP(&o.labels, "label", "l", nil, "key=value of the instances, for spread and the like")
			fs.StringArrayVar(&o.spread, "spread", nil, "keep them apart: host, rack or zone[:MAXSKEW]")
			fs.StringArrayVar(&o.avoid, "avoid", nil, "not where instances with key=value[@host|rack|zone] run")
			fs.StringArrayVar(&o.near, "near", nil, "where instances with key=value[@host|rack|zone] run")
			fs.StringArrayVar(&o.tolerate, "tolerate", nil, "taint that does not keep them away: key[=value][:Effect]")
			o.flags(fs)
		},
		Run: o.run,
	}
}

func (o *fitOptions) run(ctx context.Context, c *verb.Call) (err error) {
	q := &api.PlanFit{Count: o.count}
	s := &q.Spec
	if s.Requests, err = o.capacity.read(); err != nil {
		return err
	}
	if len(s.Requests) == 0 {
		return errs.New(errs.Invalid, "how large is one? give --cpu, --memory or --gpu").WithHint("atoll plan fit --cpu 2 --memory 4Gi")
	}
	if o.guaranteed {
		s.Limits = s.Requests.Clone()
	}
	s.Isolation, s.Priority, s.GPUModels = api.Isolation(o.isolation), o.priority, o.models
	if q.Labels, err = parse.Pairs("label", o.labels); err != nil {
		return err
	}
	if s.Placement, err = o.placement(); err != nil {
		return err
	}
	if q.Tenant, err = c.ChosenTenant(); err != nil {
		return err
	}
	return o.ask(ctx, c, q.Tenant, api.PlanRequest{Fit: q})
}

func (o *fitOptions) placement() (p *api.Placement, err error) {
	p = &api.Placement{Node: o.node, Zone: o.zone}
	if p.NodeLabels, err = parse.Pairs("node-label", o.nodeLabels); err != nil {
		return nil, err
	}
	for _, s := range o.spread {
		t, err := parse.Spread(s)
		if err != nil {
			return nil, err
		}
		p.Spread = append(p.Spread, t)
	}
	for _, s := range o.tolerate {
		t, err := parse.Taint("tolerate", s)
		if err != nil {
			return nil, err
		}
		p.Tolerate = append(p.Tolerate, t)
	}
	for _, s := range o.avoid {
		t, err := parse.Affinity("avoid", s)
		if err != nil {
			return nil, err
		}
		p.Avoid = append(p.Avoid, t)
	}
	for _, s := range o.near {
		t, err := parse.Affinity("near", s)
		if err != nil {
			return nil, err
		}
		p.Near = append(p.Near, t)
	}
	if p.Node+p.Zone == "" && len(p.NodeLabels)+len(p.Spread)+len(p.Tolerate)+len(p.Avoid)+len(p.Near) == 0 {
		return nil, nil
	}
	return p, nil
}

type quotaOptions struct {
	options
	guarantee, limit []string
}

func quota() verb.Def {
	o := &quotaOptions{}
	return verb.Def{
		Use: "quota TENANT --limit …|--guarantee …", Min: 1, Max: 1, Short: "Say whether a tenant could have another share, and what it would break",
		Long:    "Quota plays 'atoll tenant set' or, for a tenant that is not there, 'atoll tenant create'.\nThe amounts named change, the others stay; - takes one away.\n\n" + long,
		Example: "  atoll plan quota acme --guarantee cpu=4,memory=8Gi\n  atoll plan quota acme --limit cpu=2\n  atoll plan quota acme/research --limit memory=-",
		Flags: func(fs *pflag.FlagSet) {
			fs.StringArrayVar(&o.guarantee, "guarantee", nil, "what would always be there for it: cpu=1,memory=2Gi")
			fs.StringArrayVar(&o.limit, "limit", nil, "what would be its ceiling: cpu=4,memory=8Gi,instances=50")
			o.flags(fs)
		},
		Run: o.run, Complete: verb.CompleteTenants,
	}
}

func (o *quotaOptions) run(ctx context.Context, c *verb.Call) error {
	q := &api.PlanQuota{Tenant: strings.Trim(strings.TrimPrefix(c.Args[0], "tenant/"), "/")}
	if len(o.guarantee)+len(o.limit) == 0 {
		return errs.New(errs.Invalid, "which share? give --guarantee or --limit").WithHint("atoll plan quota %s --guarantee cpu=4,memory=8Gi", q.Tenant)
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	var have api.TenantSpec
	t, err := store.Get[*api.Tenant](ctx, cl, api.Ref{Kind: api.KindTenant, Name: q.Tenant})
	switch {
	case err == nil:
		have = t.Spec
	case errs.KindOf(err) != errs.NotFound:
		return err
	}
	if q.Guarantee, err = parse.Amounts("guarantee", have.Guarantee, o.guarantee); err != nil {
		return err
	}
	if q.Limit, err = parse.Amounts("limit", have.Limit, o.limit); err != nil {
		return err
	}
	return o.askTitled(ctx, c, "", api.PlanRequest{Quota: q}, fmt.Sprintf("%s with guarantee %s and limit %s", q.Tenant, render.Dash(q.Guarantee.String()), render.Dash(q.Limit.String())))
}

func (o *options) ask(ctx context.Context, c *verb.Call, tenant string, req api.PlanRequest) error {
	return o.askTitled(ctx, c, tenant, req, title(req))
}

// askTitled asks, shows the answer, and ends with what it means.
func (o *options) askTitled(ctx context.Context, c *verb.Call, tenant string, req api.PlanRequest, title string) error {
	if err := o.Check(); err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	a, err := cl.Plan(ctx, tenant, req)
	if err != nil {
		return err
	}
	switch o.Format {
	case "json", "yaml":
		err = render.Value(c.Out, a, o.Format)
	case "name":
		for _, p := range a.Places {
			c.Say("%s", p.Instance)
		}
	default:
		_, err = fmt.Fprint(c.Out, text(&a, title, o.Wide()))
	}
	if err == nil && !a.Holds {
		err = verb.ExitCode(errs.ExitCode(errs.NoCapacity))
	}
	return err
}
