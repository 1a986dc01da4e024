package tell

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

type topOptions struct {
	render.Output
	watch    bool
	interval time.Duration
	sort     string
}

// Top shows what is used now.
func Top() verb.Def {
	o := &topOptions{}
	return verb.Def{
		Use: "top [nodes|tenants|instances]", Group: verb.GroupTell, Max: 1,
		Short: "Show what is used now",
		Long: `Top shows use as it is measured. For tenants: what is guaranteed, used, borrowed
(used above the guarantee), the ceiling, and the pressure: the share of the last
10 seconds in which something had to wait for CPU, memory or I/O ("?": the host
cannot tell).`,
		Example: "  atoll top\n  atoll top tenants\n  atoll top instances --watch --sort-by memory",
		Flags:   o.flags, Run: o.run,
		Complete: func(context.Context, *verb.Call, string) []string { return []string{"nodes", "tenants", "instances"} },
	}
}

func (o *topOptions) flags(fs *pflag.FlagSet) {
	o.Output.Flags(fs)
	fs.BoolVarP(&o.watch, "watch", "w", false, "refresh until Ctrl-C")
	fs.DurationVar(&o.interval, "interval", 2*time.Second, "pause between refreshes")
	fs.StringVar(&o.sort, "sort-by", "", "column to sort by; a leading - turns it around")
}

func (o *topOptions) run(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	what := "tenants"
	if len(c.Args) > 0 {
		what = c.Args[0]
	}
	show := map[string]func(api.UsageReport) *render.Table{"nodes": topNodes, "node": topNodes, "tenants": topTenants, "tenant": topTenants,
		"instances": topInstances, "instance": topInstances}[what]
	if show == nil {
		return errs.New(errs.Invalid, "top: unknown %q", what).WithHint("atoll top nodes, tenants or instances")
	}
	if o.interval < 100*time.Millisecond {
		return parse.BadFlag("interval", o.interval.String(), "must be at least 100ms", "2s")
	}
	tenant := ""
	if strings.HasPrefix(what, "instance") {
		var err error
		if tenant, err = c.ChosenTenant(); err != nil {
			return err
		}
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	for {
		rep, err := cl.Usage(ctx, tenant)
		if err != nil {
			return err
		}
		if err := o.print(c, rep, what, show(rep)); err != nil || !o.watch {
			return err
		}
		if err := c.Clock.Sleep(ctx, o.interval); err != nil {
			return err
		}
	}
}

func (o *topOptions) print(c *verb.Call, rep api.UsageReport, what string, t *render.Table) error {
	if err := t.Sort(o.sort); err != nil {
		return err
	}
	switch o.Format {
	case "json", "yaml":
		var part any = rep.Tenants
		switch what[0] {
		case 'n':
			part = rep.Nodes
		case 'i':
			part = rep.Instances
		}
		return render.Value(c.Out, part, o.Format)
	case "name":
		for _, r := range t.Rows {
			c.Say("%s", r[0])
		}
		return nil
	}
	text := t.Text(!o.NoHeaders)
	if what[0] == 't' { // behind the table: it must not widen a column
		text += fmt.Sprintf("%-*s  %s\n", t.Width[0], "(idle)", idle(rep))
	}
	if o.watch && c.Term.OutIs() {
		// Home, each line cleared to its end, then the rest of the screen: nothing flickers.
		text = "\x1b[H" + fmt.Sprintf("%s  every %s, Ctrl-C ends\x1b[K\n", rep.At.Local().Format(time.TimeOnly), o.interval) +
			strings.ReplaceAll(text, "\n", "\x1b[K\n") + "\x1b[J"
	}
	_, err := fmt.Fprint(c.Out, text)
	return err
}

func pressure(u api.Usage) string {
	one := func(f float64) string {
		if f < 0 {
			return "?"
		}
		return fmt.Sprintf("%.2f", f)
	}
	return one(u.PressureCPU) + " " + one(u.PressureMemory) + " " + one(u.PressureIO)
}

func topTenants(rep api.UsageReport) *render.Table {
	t := &render.Table{Head: []string{"TENANT", "GUARANTEE", "USED", "BORROWED", "CEILING", "PRESSURE (cpu mem io)", "INSTANCES"}}
	list := slices.Clone(rep.Tenants)
	slices.SortFunc(list, func(a, b api.TenantUsage) int { return cmp.Compare(a.Tenant, b.Tenant) })
	for _, u := range list {
		t.Row(u.Tenant, render.Brief(u.Guarantee), render.Cores(u.CPUMilli)+" CPU "+render.Size(u.Memory), borrowed(u), render.Brief(u.Limit), pressure(u.Usage), fmt.Sprint(u.Instances))
	}
	return t
}

// borrowed is what is used above the guarantee.
func borrowed(u api.TenantUsage) string {
	var out []string
	if over := u.CPUMilli - u.Guarantee[api.CPU]; over > 0 {
		out = append(out, render.Cores(over)+" CPU")
	}
	if over := u.Memory - u.Guarantee[api.Memory]; over > 0 {
		out = append(out, render.Size(over))
	}
	return render.Dash(strings.Join(out, " "))
}

// idle is what nobody uses now, and what the hosts keep for themselves.
func idle(rep api.UsageReport) string {
	var free, kept, freeMem, keptMem int64
	for _, n := range rep.Nodes {
		free += max(n.Allocatable[api.CPU]-n.CPUMilli, 0)
		kept += max(n.Capacity[api.CPU]-n.Allocatable[api.CPU], 0)
		freeMem += max(n.Allocatable[api.Memory]-n.Memory, 0)
		keptMem += max(n.Capacity[api.Memory]-n.Allocatable[api.Memory], 0)
	}
	return fmt.Sprintf("%s CPU %s free, %s CPU %s reserved for hosts", render.Cores(free), render.Size(freeMem), render.Cores(kept), render.Size(keptMem))
}

func topNodes(rep api.UsageReport) *render.Table {
	t := &render.Table{Head: []string{"NODE", "CPU USED", "REQUESTED", "OF", "MEMORY USED", "REQUESTED", "OF", "PRESSURE (cpu mem io)"}}
	list := slices.Clone(rep.Nodes)
	slices.SortFunc(list, func(a, b api.NodeUsage) int { return cmp.Compare(a.Node, b.Node) })
	for _, u := range list {
		t.Row(u.Node, render.Cores(u.CPUMilli), render.Cores(u.Requested[api.CPU]), limitOf(u.Allocatable, api.CPU),
			render.Size(u.Memory), render.Size(u.Requested[api.Memory]), limitOf(u.Allocatable, api.Memory), pressure(u.Usage))
	}
	return t
}

func topInstances(rep api.UsageReport) *render.Table {
	t := &render.Table{Head: []string{"INSTANCE", "NODE", "CPU", "MEMORY", "PEAK", "THROTTLED", "READ", "WRITTEN", "RECEIVED", "SENT", "PIDS", "PRESSURE (cpu mem io)"}}
	list := slices.Clone(rep.Instances)
	slices.SortFunc(list, func(a, b api.InstanceUsage) int { return cmp.Compare(api.SortKey(a.Ref), api.SortKey(b.Ref)) })
	for _, u := range list {
		t.Row(u.Ref.Tenant+"/"+u.Ref.Name, u.Node, render.Cores(u.CPUMilli), render.Size(u.Usage.Memory), render.Size(u.Usage.MemoryPeak),
			u.Usage.Throttled.Round(time.Millisecond).String(), render.Size(u.Usage.ReadBytes), render.Size(u.Usage.WrittenBytes),
			render.Size(u.Usage.ReceivedBytes), render.Size(u.Usage.SentBytes), fmt.Sprint(u.Usage.Pids), pressure(u.Usage))
	}
	return t
}

func limitOf(r api.Resources, name api.Resource) string {
	if v, ok := r[name]; ok {
		return api.HumanQuantity(name, v)
	}
	return "-"
}
