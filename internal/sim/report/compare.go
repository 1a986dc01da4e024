package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"atoll/api"
)

// Comparison is two runs side by side.
type Comparison struct {
	A     *Report `json:"a"`
	B     *Report `json:"b"`
	Facts []Pair  `json:"facts"`
}

// Pair is one number of both.
type Pair struct {
	What string  `json:"what"`
	A    float64 `json:"a"`
	B    float64 `json:"b"`
}

// Compare puts two runs side by side.
func Compare(a, b *Report) *Comparison {
	c := &Comparison{A: a, B: b}
	fa, fb := facts(a), facts(b)
	for i, f := range fa {
		c.Facts = append(c.Facts, Pair{What: f.key, A: f.v, B: fb[i].v})
	}
	return c
}

// fact is a number of the summary with its names and how it is written.
type fact struct {
	key    string
	en, zh string
	v      float64
	show   func(float64) string
	better int // 1: more is better, -1: less is, 0: neither
}

func whole(v float64) string   { return fmt.Sprintf("%.0f", v) }
func percent(v float64) string { return fmt.Sprintf("%.1f %%", v*100) }
func two(v float64) string     { return fmt.Sprintf("%.2f", v) }

// seconds writes a time for eyes: 0.35 s, 12 s, 3m 20s.
func seconds(v float64) string {
	switch {
	case v < 10:
		return strings.TrimSuffix(fmt.Sprintf("%.2f", v), ".00") + " s"
	case v < 100:
		return fmt.Sprintf("%.0f s", v)
	}
	s := time.Duration(v * float64(time.Second)).Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	return s
}

func (r *Report) resource(name string) Resource {
	for _, u := range r.Use {
		if u.Name == name {
			return u
		}
	}
	return Resource{Name: name}
}

// facts are the numbers of the summary, the same ones in the same order for every run.
func facts(r *Report) []fact {
	short, inner := 0.0, 0.0
	for _, t := range r.Tenants {
		short += t.Short
		inner += float64(t.RefusedInner)
	}
	cpu, mem, gpu := r.resource(string(api.CPU)), r.resource(string(api.Memory)), r.resource(string(api.GPU))
	return []fact{
		{"hosts", "hosts at the end", "结束时主机数", float64(r.Totals.Hosts), whole, 0},
		{"created", "instances created", "创建的实例", float64(r.Totals.Created), whole, 1},
		{"refused", "refused at admission", "准入时被拒绝", float64(r.Totals.Refused), whole, -1},
		{"refusedWithinGuarantee", "of them within a guarantee", "其中在保障额度内", inner, whole, -1},
		{"peakRunning", "running at most", "同时运行最多", float64(r.Totals.Peak), whole, 1},
		{"waiting", "waiting at the end", "结束时等待中", float64(r.Totals.Waiting), whole, -1},
		{"pendingP50", "pending time, half", "等待时间,中位数", r.Pending.P50, seconds, -1},
		{"pendingP99", "pending time, 99 %", "等待时间,99 %", r.Pending.P99, seconds, -1},
		{"never", "never started", "从未启动", float64(r.Pending.Never), whole, -1},
		{"cpuRequested", "CPU requested, mean", "CPU 请求率,平均", cpu.Requested, percent, 1},
		{"cpuUsed", "CPU used, mean", "CPU 使用率,平均", cpu.Used, percent, 0},
		{"memoryRequested", "memory requested, mean", "内存请求率,平均", mem.Requested, percent, 1},
		{"gpuRequested", "GPUs requested, mean", "GPU 请求率,平均", gpu.Requested, percent, 1},
		{"cpuFragmented", "free CPU in fragments", "空闲 CPU 碎片率", cpu.Fragmented, percent, -1},
		{"gpuFragmented", "free GPUs in fragments", "空闲 GPU 碎片率", gpu.Fragmented, percent, -1},
		{"shortSeconds", "guarantees not met, tenant time", "保障未满足,租户时间", short, seconds, -1},
		{"overload", "hosts asked for more CPU than they have", "CPU 超载的主机时间", r.Overload.HostShare, percent, -1},
		{"moves", "moves", "迁移次数", float64(r.Totals.Moves), whole, -1},
		{"ends", "runs that ended by themselves", "自行结束的运行", float64(r.Totals.Ends), whole, -1},
		{"kWh", "energy, kWh", "能耗,千瓦时", r.Power.KWh, two, -1},
		{"cost", "cost", "成本", r.Cost, two, -1},
	}
}

// Table writes the summary of one or two runs for a terminal.
func Table(w io.Writer, reps ...*Report) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for i, r := range reps {
		label := ""
		if len(reps) > 1 {
			label = string(rune('A'+i)) + ": "
		}
		fmt.Fprintf(t, "%s%s, seed %d, %s from %s\t\n", label, r.Scenario, r.Seed, r.Duration.D(), r.Start.Format(time.RFC3339))
	}
	fmt.Fprint(t, "\n")
	if len(reps) == 2 {
		fmt.Fprint(t, "\tA\tB\t\n")
	}
	all := make([][]fact, len(reps))
	for i, r := range reps {
		all[i] = facts(r)
	}
	for k, f := range all[0] {
		if skip(all, k) {
			continue
		}
		fmt.Fprintf(t, "%s\t%s", f.en, f.show(f.v))
		if len(reps) == 2 {
			fmt.Fprintf(t, "\t%s\t%s", f.show(all[1][k].v), verdict(f, all[1][k]))
		}
		fmt.Fprint(t, "\n")
	}
	if len(reps) == 1 {
		tenantTable(t, reps[0])
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// skip leaves out what is zero everywhere and has nothing to say.
func skip(all [][]fact, k int) bool {
	switch all[0][k].key {
	case "gpuRequested", "gpuFragmented", "kWh", "cost", "refusedWithinGuarantee", "never", "overload":
		for _, f := range all {
			if f[k].v != 0 {
				return false
			}
		}
		return true
	}
	return false
}

// verdict says which of two is better.
func verdict(a, b fact) string {
	d := b.v - a.v
	switch {
	case d == 0 || a.better == 0:
		return ""
	case (d > 0) == (a.better > 0):
		return "B better"
	}
	return "A better"
}

func tenantTable(w io.Writer, r *Report) {
	if len(r.Tenants) == 0 {
		return
	}
	fmt.Fprint(w, "\nTENANT\tGUARANTEE\tCREATED\tREFUSED\tPEAK\tSHORT\tPENDING 99 %\n")
	for _, t := range r.Tenants {
		g := t.Guarantee.String()
		if g == "" {
			g = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\t%s\n", t.Name, g, t.Created, t.Refused, t.Peak, seconds(t.Short), seconds(t.PendingP99))
	}
}
