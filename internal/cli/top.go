package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/errs"
)

type topOptions struct {
	output
	watch    bool
	interval time.Duration
	sort     string
}

func topVerb() Verb {
	o := &topOptions{}
	return Verb{
		Use: "top [nodes|tenants|instances]", Group: groupTell, Max: 1,
		Short: "Show what is used now",
		Long: `Top shows use as it is measured. For tenants: what is guaranteed, used, borrowed
(used above the guarantee), the ceiling, and the pressure: the share of the last
10 seconds in which something had to wait for CPU, memory or I/O ("?": the host
cannot tell).`,
		Example: "  atoll top\n  atoll top tenants\n  atoll top instances --watch --sort-by memory",
		Flags:   o.flags, Run: o.run,
		Complete: func(context.Context, *call, string) []string { return []string{"nodes", "tenants", "instances"} },
	}
}

func (o *topOptions) flags(fs *pflag.FlagSet) {
	o.output.flags(fs)
	fs.BoolVarP(&o.watch, "watch", "w", false, "refresh until Ctrl-C")
	fs.DurationVar(&o.interval, "interval", 2*time.Second, "pause between refreshes")
	fs.StringVar(&o.sort, "sort-by", "", "column to sort by; a leading - turns it around")
}

func (o *topOptions) run(ctx context.Context, c *call) error {
	if err := o.check(); err != nil {
		return err
	}
	what := "tenants"
	if len(c.args) > 0 {
		what = c.args[0]
	}
	show := map[string]func(api.UsageReport) *table{"nodes": topNodes, "node": topNodes, "tenants": topTenants, "tenant": topTenants,
		"instances": topInstances, "instance": topInstances}[what]
	if show == nil {
		return errs.New(errs.Invalid, "top: unknown %q", what).WithHint("atoll top nodes, tenants or instances")
	}
	if o.interval < 100*time.Millisecond {
		return badFlag("interval", o.interval.String(), "must be at least 100ms", "2s")
	}
	tenant := ""
	if strings.HasPrefix(what, "instance") {
		var err error
		if tenant, err = c.chosenTenant(); err != nil {
			return err
		}
	}
	cl, err := c.server()
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

func (o *topOptions) print(c *call, rep api.UsageReport, what string, t *table) error {
	if err := t.sort(o.sort); err != nil {
		return err
	}
	switch o.format {
	case "json", "yaml":
		var part any = rep.Tenants
		switch what[0] {
		case 'n':
			part = rep.Nodes
		case 'i':
			part = rep.Instances
		}
		return printValue(c.Out, part, o.format)
	case "name":
		for _, r := range t.rows {
			c.say("%s", r[0])
		}
		return nil
	}
	text := t.render(!o.noHeaders)
	if what[0] == 't' { // behind the table: it must not widen a column
		text += fmt.Sprintf("%-*s  %s\n", t.width[0], "(idle)", idle(rep))
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

func topTenants(rep api.UsageReport) *table {
	t := &table{head: []string{"TENANT", "GUARANTEE", "USED", "BORROWED", "CEILING", "PRESSURE (cpu mem io)", "INSTANCES"}}
	list := slices.Clone(rep.Tenants)
	slices.SortFunc(list, func(a, b api.TenantUsage) int { return cmp.Compare(a.Tenant, b.Tenant) })
	for _, u := range list {
		t.row(u.Tenant, both(u.Guarantee), cores(u.CPUMilli)+" CPU "+size(u.Memory), borrowed(u), both(u.Limit), pressure(u.Usage), fmt.Sprint(u.Instances))
	}
	return t
}

// borrowed is what is used above the guarantee.
func borrowed(u api.TenantUsage) string {
	var out []string
	if over := u.CPUMilli - u.Guarantee[api.CPU]; over > 0 {
		out = append(out, cores(over)+" CPU")
	}
	if over := u.Memory - u.Guarantee[api.Memory]; over > 0 {
		out = append(out, size(over))
	}
	return dash(strings.Join(out, " "))
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
	return fmt.Sprintf("%s CPU %s free, %s CPU %s reserved for hosts", cores(free), size(freeMem), cores(kept), size(keptMem))
}

func topNodes(rep api.UsageReport) *table {
	t := &table{head: []string{"NODE", "CPU USED", "REQUESTED", "OF", "MEMORY USED", "REQUESTED", "OF", "PRESSURE (cpu mem io)"}}
	list := slices.Clone(rep.Nodes)
	slices.SortFunc(list, func(a, b api.NodeUsage) int { return cmp.Compare(a.Node, b.Node) })
	for _, u := range list {
		t.row(u.Node, cores(u.CPUMilli), cores(u.Requested[api.CPU]), limitOf(u.Allocatable, api.CPU),
			size(u.Memory), size(u.Requested[api.Memory]), limitOf(u.Allocatable, api.Memory), pressure(u.Usage))
	}
	return t
}

func topInstances(rep api.UsageReport) *table {
	t := &table{head: []string{"INSTANCE", "NODE", "CPU", "MEMORY", "PEAK", "THROTTLED", "READ", "WRITTEN", "RECEIVED", "SENT", "PIDS", "PRESSURE (cpu mem io)"}}
	list := slices.Clone(rep.Instances)
	slices.SortFunc(list, func(a, b api.InstanceUsage) int { return cmp.Compare(api.SortKey(a.Ref), api.SortKey(b.Ref)) })
	for _, u := range list {
		t.row(u.Ref.Tenant+"/"+u.Ref.Name, u.Node, cores(u.CPUMilli), size(u.Usage.Memory), size(u.Usage.MemoryPeak),
			u.Usage.Throttled.Round(time.Millisecond).String(), size(u.Usage.ReadBytes), size(u.Usage.WrittenBytes),
			size(u.Usage.ReceivedBytes), size(u.Usage.SentBytes), fmt.Sprint(u.Usage.Pids), pressure(u.Usage))
	}
	return t
}

func limitOf(r api.Resources, name api.Resource) string {
	if v, ok := r[name]; ok {
		return api.HumanQuantity(name, v)
	}
	return "-"
}
