package report

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// The charts are SVG inside the page. Colours come from the page's style (classes c0
// to c5), so they follow light and dark; the second of two runs is dashed as well.

const (
	chartW, chartH = 640.0, 240.0
	padL, padR     = 52.0, 12.0
	padT, padB     = 12.0, 28.0
)

// curve is one line of a chart.
type curve struct {
	series string // its name in the report
	en, zh string
	values []float64
	color  int
	dashed bool
}

// plotted is a chart over time.
type plotted struct {
	id      string
	en, zh  string
	x       []float64 // seconds
	curves  []curve
	percent bool
	steps   bool // values hold until the next
}

func both(en, zh string) string {
	return `<span data-l="en">` + html.EscapeString(en) + `</span><span data-l="zh" lang="zh">` + html.EscapeString(zh) + `</span>`
}

// nice gives a step of 1, 2 or 5 times a power of ten that cuts span into about n parts.
func nice(span float64, n int) float64 {
	if span <= 0 {
		return 1
	}
	raw := span / float64(n)
	mag := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, f := range []float64{1, 2, 5, 10} {
		if raw <= f*mag*1.0001 {
			return f * mag
		}
	}
	return 10 * mag
}

// niceTime does the same for times.
func niceTime(span float64) float64 {
	for _, s := range []float64{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 14 * 86400, 30 * 86400, 90 * 86400} {
		if span/s <= 8 {
			return s
		}
	}
	return 365 * 86400
}

func clock(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d >= 24*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", int(d/(24*time.Hour)))
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", int(d/time.Hour))
	case d >= time.Minute && d%time.Minute == 0:
		if d > time.Hour {
			return fmt.Sprintf("%dh%02d", int(d/time.Hour), int(d/time.Minute)%60)
		}
		return fmt.Sprintf("%dm", int(d/time.Minute))
	}
	return fmt.Sprintf("%gs", s)
}

func number(v float64, pct bool) string {
	if pct {
		return fmt.Sprintf("%g%%", math.Round(v*1000)/10)
	}
	switch {
	case math.Abs(v) >= 1e6:
		return fmt.Sprintf("%gM", math.Round(v/1e4)/100)
	case math.Abs(v) >= 1e4:
		return fmt.Sprintf("%gk", math.Round(v/100)/10)
	}
	return fmt.Sprintf("%g", math.Round(v*1000)/1000)
}

func (p *plotted) top() float64 {
	top := 0.0
	for _, c := range p.curves {
		for _, v := range c.values {
			top = max(top, v)
		}
	}
	switch {
	case p.percent && top <= 1:
		return 1
	case top == 0:
		return 1
	}
	step := nice(top, 4)
	return math.Ceil(top/step-1e-9) * step
}

// svg draws the chart.
func (p *plotted) svg(b *strings.Builder) {
	fmt.Fprintf(b, `<figure class="chart"><figcaption id="%s">%s</figcaption><p class="legend">`, p.id, both(p.en, p.zh))
	for _, c := range p.curves {
		dash := ""
		if c.dashed {
			dash = " dashed"
		}
		fmt.Fprintf(b, `<span class="key c%d%s" aria-hidden="true"></span>%s `, c.color, dash, both(c.en, c.zh))
	}
	fmt.Fprintf(b, `</p><svg viewBox="0 0 %g %g" role="img" aria-labelledby="%s" preserveAspectRatio="xMidYMid meet">`, chartW, chartH, p.id)
	end := 1.0
	if n := len(p.x); n > 0 {
		end = max(p.x[n-1], 1e-9)
	}
	top := p.top()
	px := func(v float64) float64 { return padL + v/end*(chartW-padL-padR) }
	py := func(v float64) float64 { return chartH - padB - v/top*(chartH-padT-padB) }
	for step, v := nice(top, 4), 0.0; v <= top*1.0001; v += step {
		fmt.Fprintf(b, `<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/><text class="tick" x="%g" y="%.1f" text-anchor="end">%s</text>`,
			padL, chartW-padR, py(v), py(v), padL-6, py(v)+4, number(v, p.percent))
	}
	for step, v := niceTime(end), 0.0; v <= end*1.0001; v += step {
		fmt.Fprintf(b, `<text class="tick" x="%.1f" y="%g" text-anchor="middle">%s</text>`, px(v), chartH-8, clock(v))
	}
	for _, c := range p.curves {
		dash := ""
		if c.dashed {
			dash = ` stroke-dasharray="6 4"`
		}
		fmt.Fprintf(b, `<path class="line c%d"%s d="`, c.color, dash)
		last := ""
		for i, v := range thin(c.values) {
			if v < 0 || i >= len(p.x) {
				continue
			}
			verb := "L"
			if last == "" {
				verb = "M"
			} else if p.steps {
				fmt.Fprintf(b, "H%.1f", px(p.x[i]))
			}
			last = fmt.Sprintf("%s%.1f %.1f", verb, px(p.x[i]), py(v))
			b.WriteString(last)
		}
		b.WriteString(`"/>`)
	}
	b.WriteString(`</svg>`)
	p.data(b)
	b.WriteString(`</figure>`)
}

// maxPoints is what a line shows; a chart is not wider.
const maxPoints = 1280

// thin marks with -1 the points that are left out of a long line.
func thin(v []float64) []float64 {
	if len(v) <= maxPoints {
		return v
	}
	out := make([]float64, len(v))
	every := (len(v) + maxPoints - 1) / maxPoints
	for i := range v {
		out[i] = -1
		if i%every == 0 || i == len(v)-1 {
			out[i] = v[i]
		}
	}
	return out
}

// data is the chart as a table, for who cannot see it.
func (p *plotted) data(b *strings.Builder) {
	b.WriteString(`<details><summary>` + both("as a table", "表格") + `</summary><div class="scroll"><table><thead><tr><th scope="col">` + both("time", "时间") + `</th>`)
	for _, c := range p.curves {
		b.WriteString(`<th scope="col">` + both(c.en, c.zh) + `</th>`)
	}
	b.WriteString(`</tr></thead><tbody>`)
	every := max(len(p.x)/24, 1)
	for i := 0; i < len(p.x); i += every {
		fmt.Fprintf(b, `<tr><th scope="row">%s</th>`, time.Duration(p.x[i]*float64(time.Second)).Round(time.Second))
		for _, c := range p.curves {
			v := ""
			if i < len(c.values) {
				v = number(c.values[i], p.percent)
			}
			fmt.Fprintf(b, `<td>%s</td>`, v)
		}
		b.WriteString(`</tr>`)
	}
	b.WriteString(`</tbody></table></div></details>`)
}

// bars draws the distributions of one or two runs.
func bars(b *strings.Builder, id, en, zh string, dists ...Dist) {
	from, to := len(dists[0].Buckets), 0
	for _, d := range dists {
		for i, k := range d.Buckets {
			if k.N > 0 {
				from, to = min(from, i), max(to, i)
			}
		}
	}
	fmt.Fprintf(b, `<figure class="chart"><figcaption id="%s">%s</figcaption><svg viewBox="0 0 %g %g" role="img" aria-labelledby="%s">`, id, both(en, zh), chartW, chartH, id)
	if from <= to {
		slot := (chartW - padL - padR) / float64(to-from+1)
		py := func(v float64) float64 { return chartH - padB - v*(chartH-padT-padB) }
		top := 0.0
		for _, d := range dists {
			for _, k := range d.Buckets {
				top = max(top, float64(k.N)/math.Max(float64(d.N), 1))
			}
		}
		step := nice(top, 4)
		top = math.Ceil(top/step-1e-9) * step
		for v := 0.0; v <= top*1.0001; v += step {
			fmt.Fprintf(b, `<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/><text class="tick" x="%g" y="%.1f" text-anchor="end">%s</text>`,
				padL, chartW-padR, py(v/top), py(v/top), padL-6, py(v/top)+4, number(v, true))
		}
		width := slot * 0.8 / float64(len(dists))
		for k, d := range dists {
			for i := from; i <= to; i++ {
				n := d.Buckets[i].N
				if n == 0 {
					continue
				}
				h := float64(n) / float64(d.N) / top * (chartH - padT - padB)
				fmt.Fprintf(b, `<rect class="bar c%d" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>%s: %d</title></rect>`,
					k, padL+float64(i-from)*slot+slot*0.1+float64(k)*width, chartH-padB-h, width, h, bucketName(d.Buckets, i), n)
			}
		}
		for i := from; i <= to; i++ {
			fmt.Fprintf(b, `<text class="tick" x="%.1f" y="%g" text-anchor="middle">%s</text>`, padL+(float64(i-from)+0.5)*slot, chartH-8, bucketName(dists[0].Buckets, i))
		}
	}
	b.WriteString(`</svg></figure>`)
}

func bucketName(bs []Bucket, i int) string {
	if i == len(bs)-1 {
		return "&gt; " + clock(bs[i-1].Le)
	}
	if bs[i].Le == 0 {
		return "0"
	}
	return "≤ " + clock(bs[i].Le)
}
