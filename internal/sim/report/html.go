package report

import (
	_ "embed"
	"fmt"
	"html"
	"io"
	"strings"
	"time"

	"atoll/api"
)

//go:embed page.css
var style string //nolint:gochecknoglobals // embed needs a variable

// script switches language and colours; without it the page is in English and
// follows the system's colours.
const script = `(function(){var r=document.documentElement;
function keep(k,v){try{localStorage.setItem("atoll-"+k,v)}catch(e){}}
function kept(k){try{return localStorage.getItem("atoll-"+k)}catch(e){return null}}
function lang(l){r.dataset.lang=l;r.lang=l==="zh"?"zh-CN":"en";document.querySelectorAll("[data-set-lang]").forEach(function(b){b.setAttribute("aria-pressed",b.dataset.setLang===l)})}
function theme(t){if(t){r.dataset.theme=t}else{delete r.dataset.theme}}
lang(kept("lang")||((navigator.language||"").toLowerCase().indexOf("zh")===0?"zh":"en"));theme(kept("theme"));
document.querySelectorAll("[data-set-lang]").forEach(function(b){b.addEventListener("click",function(){lang(b.dataset.setLang);keep("lang",b.dataset.setLang)})});
document.querySelector("[data-theme-switch]").addEventListener("click",function(){var dark=r.dataset.theme?r.dataset.theme==="dark":matchMedia("(prefers-color-scheme: dark)").matches;var t=dark?"light":"dark";theme(t);keep("theme",t)});
})();`

// HTML writes one run, or two side by side, as a page that needs nothing else.
func HTML(w io.Writer, reps ...*Report) error {
	b := &strings.Builder{}
	title := reps[0].Scenario
	if len(reps) == 2 {
		title += " | " + reps[1].Scenario
	}
	fmt.Fprintf(b, `<!doctype html>
<html lang="en" data-lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="atolld sim"><title>%s - Atoll</title><style>%s</style></head><body>
<header><h1>%s</h1><nav aria-label="settings"><button type="button" data-set-lang="en" aria-pressed="true">English</button><button type="button" data-set-lang="zh" aria-pressed="false" lang="zh">中文</button><button type="button" data-theme-switch>%s</button></nav></header><main>`,
		html.EscapeString(title), style, html.EscapeString(title), both("light or dark", "明暗"))
	heads(b, reps)
	summary(b, reps)
	broken(b, reps)
	b.WriteString(`<section aria-label="charts" class="charts">`)
	charts(b, reps)
	b.WriteString(`</section>`)
	for i, r := range reps {
		tenants(b, r, name(i, reps))
		happened(b, r, name(i, reps))
	}
	b.WriteString(`</main><script>` + script + `</script></body></html>` + "\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func name(i int, reps []*Report) string {
	if len(reps) == 1 {
		return ""
	}
	return string(rune('A' + i))
}

func heads(b *strings.Builder, reps []*Report) {
	b.WriteString(`<section class="about">`)
	for i, r := range reps {
		n := name(i, reps)
		if n != "" {
			n = `<strong class="tag c` + fmt.Sprint(i) + `">` + n + `</strong> `
		}
		fmt.Fprintf(b, `<p>%s<b>%s</b> %s</p><p class="small">%s %d, %s %s, %s %s; %s %s</p>`, n, html.EscapeString(r.Scenario), html.EscapeString(r.Description),
			both("seed", "随机种子"), r.Seed, r.Duration.D(), both("of pool time", "池内时间"), both("from", "自"), r.Start.Format(time.RFC3339),
			both("placement by", "调度策略"), html.EscapeString(strings.Join(r.Policies, ", ")))
	}
	b.WriteString(`</section>`)
}

// summary is tiles for one run and a table for two.
func summary(b *strings.Builder, reps []*Report) {
	all := make([][]fact, len(reps))
	for i, r := range reps {
		all[i] = facts(r)
	}
	if len(reps) == 1 {
		b.WriteString(`<section aria-label="summary"><dl class="tiles">`)
		for k, f := range all[0] {
			if !skip(all, k) {
				fmt.Fprintf(b, `<div><dt>%s</dt><dd>%s</dd></div>`, both(f.en, f.zh), html.EscapeString(f.show(f.v)))
			}
		}
		b.WriteString(`</dl></section>`)
		return
	}
	fmt.Fprintf(b, `<section><div class="scroll"><table><thead><tr><th scope="col">%s</th><th scope="col">A</th><th scope="col">B</th><th scope="col">%s</th></tr></thead><tbody>`,
		both("summary", "概要"), both("better", "更优"))
	for k, f := range all[0] {
		if skip(all, k) {
			continue
		}
		g := all[1][k]
		fmt.Fprintf(b, `<tr><th scope="row">%s</th><td>%s</td><td>%s</td><td>%s</td></tr>`, both(f.en, f.zh), html.EscapeString(f.show(f.v)), html.EscapeString(g.show(g.v)),
			strings.TrimSuffix(verdict(f, g), " better"))
	}
	b.WriteString(`</tbody></table></div></section>`)
}

func broken(b *strings.Builder, reps []*Report) {
	for i, r := range reps {
		if len(r.Broken) == 0 {
			fmt.Fprintf(b, `<p class="well">%s %s: %d</p>`, name(i, reps), both("every rule held at every step; checks", "每一步所有规则均成立;检查次数"), r.Totals.Checks)
			continue
		}
		fmt.Fprintf(b, `<section class="broken" role="alert"><h2>%s %s</h2><ul>`, name(i, reps), both("rules that were broken", "被违反的规则"))
		for _, v := range r.Broken {
			fmt.Fprintf(b, `<li>%s: %s</li>`, v.At.D(), html.EscapeString(v.What))
		}
		b.WriteString(`</ul></section>`)
	}
}

// resourceWords are the resources' names on the page.
func resourceWords(r string) (en, zh string) {
	switch api.Resource(r) {
	case api.CPU:
		return "CPU", "CPU"
	case api.Memory:
		return "memory", "内存"
	case api.GPU:
		return "GPU", "GPU"
	}
	return r, r
}

// line names a line of the series for a chart.
func line(series, en, zh string, color int) curve {
	return curve{series: series, en: en, zh: zh, color: color}
}

// lined makes a chart of lines of the series, of all runs.
func lined(id, en, zh string, reps []*Report, lines ...curve) *plotted {
	p := &plotted{id: id, en: en, zh: zh, x: reps[0].Series.Seconds}
	if len(reps) == 2 && len(reps[1].Series.Seconds) > len(p.x) {
		p.x = reps[1].Series.Seconds
	}
	for i, r := range reps {
		for _, l := range lines {
			v := r.Series.Line(l.series)
			if v == nil {
				continue
			}
			c := curve{en: l.en, zh: l.zh, values: v, color: l.color, dashed: i == 1}
			if len(reps) == 2 {
				c.en, c.zh = name(i, reps)+" "+l.en, name(i, reps)+" "+l.zh
				if len(lines) == 1 {
					c.color = i
				}
			}
			p.curves = append(p.curves, c)
		}
	}
	return p
}

func charts(b *strings.Builder, reps []*Report) {
	var all []*plotted
	seen := map[string]bool{}
	for _, r := range reps {
		for _, u := range r.Use {
			if seen[u.Name] {
				continue
			}
			seen[u.Name] = true
			en, zh := resourceWords(u.Name)
			p := lined("use-"+u.Name, en+": share of what the hosts have", zh+":占主机容量的比例", reps, line(u.Name+".requested", "requested", "已请求", 0),
				line(u.Name+".used", "used", "已使用", 1), line(u.Name+".fragmented", "free, but in fragments", "空闲但为碎片", 2))
			p.percent = true
			all = append(all, p)
		}
	}
	all = append(all, lined("instances", "instances", "实例", reps, line("running", "running", "运行中", 0), line("waiting", "waiting", "等待中", 3)))
	for _, p := range all {
		p.svg(b)
	}
	dists := make([]Dist, len(reps))
	for i, r := range reps {
		dists[i] = r.Pending
	}
	bars(b, "pending", "pending time: from the first ask to the first start, share of instances", "等待时间:从首次请求到首次启动,实例占比", dists...)
	rest := []*plotted{
		lined("short", "tenants with less than they were guaranteed", "保障未满足的租户数", reps, line("short", "tenants", "租户", 3)),
		lined("up", "hosts that are up", "在线主机", reps, line("up", "hosts", "主机", 0)),
		lined("moves", "moves in each interval", "每个区间的迁移次数", reps, line("moves", "moves", "迁移", 4)),
	}
	if known(reps) {
		rest = append(rest, lined("power", "power, kW", "功率,千瓦", reps, line("kW", "kW", "千瓦", 2)))
	}
	if reps[0].Cost > 0 || reps[len(reps)-1].Cost > 0 {
		rest = append(rest, lined("cost", "cost so far", "累计成本", reps, line("cost", "cost", "成本", 5)))
	}
	for _, p := range rest {
		p.steps = p.id != "cost"
		p.svg(b)
	}
}

func known(reps []*Report) bool {
	for _, r := range reps {
		if r.Power.Known {
			return true
		}
	}
	return false
}

func tenants(b *strings.Builder, r *Report, tag string) {
	if len(r.Tenants) == 0 {
		return
	}
	fmt.Fprintf(b, `<section><h2>%s %s</h2><div class="scroll"><table><thead><tr>`, tag, both("tenants", "租户"))
	for _, h := range [][2]string{{"tenant", "租户"}, {"guarantee", "保障"}, {"created", "创建"}, {"refused", "拒绝"}, {"most at once", "同时最多"}, {"CPU share, mean", "CPU 占比,平均"},
		{"guarantee not met", "保障未满足"}, {"core hours short", "缺少的核时"}, {"pending, half", "等待,中位数"}, {"pending, 99 %", "等待,99 %"}} {
		b.WriteString(`<th scope="col">` + both(h[0], h[1]) + `</th>`)
	}
	b.WriteString(`</tr></thead><tbody>`)
	for _, t := range r.Tenants {
		fmt.Fprintf(b, `<tr><th scope="row">%s</th><td>%s</td><td>%d</td><td>%d</td><td>%d</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td></tr>`, html.EscapeString(t.Name),
			html.EscapeString(t.Guarantee.String()), t.Created, t.Refused, t.Peak, percent(t.MeanShare), seconds(t.Short), two(t.ShortCPU), seconds(t.PendingP50), seconds(t.PendingP99))
	}
	b.WriteString(`</tbody></table></div></section>`)
}

func happened(b *strings.Builder, r *Report, tag string) {
	if len(r.Faults)+len(r.Refusals) == 0 {
		return
	}
	fmt.Fprintf(b, `<section><h2>%s %s</h2><ul>`, tag, both("what happened", "发生的事件"))
	for _, c := range r.Faults {
		fmt.Fprintf(b, `<li>%s %s: %d</li>`, both("fault", "故障"), html.EscapeString(c.What), c.N)
	}
	for _, c := range r.Refusals {
		fmt.Fprintf(b, `<li>%s %s: %d</li>`, both("refused,", "拒绝,"), html.EscapeString(c.What), c.N)
	}
	b.WriteString(`</ul></section>`)
}
