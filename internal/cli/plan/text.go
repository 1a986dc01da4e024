package plan

import (
	"fmt"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
)

// shown is how many lines of one sort are shown; -o wide shows all.
const shown = 20

// title is what was asked, in words.
func title(r api.PlanRequest) string {
	switch {
	case r.Add != nil:
		n := max(r.Add.Count, 1)
		s := fmt.Sprintf("With %s more (%s", render.Plural(n, "node"), render.Amounts(r.Add.Capacity))
		if n > 1 {
			s += " each"
		}
		return s + ")"
	case r.Fit != nil:
		return render.Amounts(r.Fit.Spec.Requests)
	}
	return ""
}

// page is the answer in lines.
type page struct {
	strings.Builder
	wide   bool
	reason string // the one told last
}

func (p *page) say(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// Text is the answer to a question about hosts, for people.
func Text(a *api.PlanAnswer, wide bool) string { return text(a, "", wide) }

// text is the answer for people.
func text(a *api.PlanAnswer, title string, wide bool) string {
	p := &page{wide: wide}
	switch a.Question {
	case "lose":
		p.lose(a)
	case "drain":
		p.drain(a)
	case "add":
		p.add(a, title)
	case "fit":
		p.fit(a, title)
	case "quota":
		p.quota(a, title)
	default:
		p.objects(a)
	}
	for _, n := range a.Notes {
		p.say("  %s", n)
	}
	return p.String()
}

func (p *page) lose(a *api.PlanAnswer) {
	stay := "stay"
	if a.Pending == 1 {
		stay = "stays"
	}
	p.say("If %s were lost now: %s, %d %s pending, %s. %s", names(a.Nodes), moves(a.Placed, "move"), a.Pending, stay, guaranteed(a), spare(a.Spare))
	p.places(a.Places, true)
	p.stopped(a)
	p.guarantees(a)
	p.worst(a.Spare)
}

func (p *page) drain(a *api.PlanAnswer) {
	now, rounds, halts := 0, 0, 0
	for _, x := range a.Places {
		if x.Round == 1 && x.Stays == "" {
			now++
		}
		if x.Halts {
			halts++
		}
		rounds = max(rounds, x.Round)
	}
	s := moves(a.Placed, "restart") + " elsewhere"
	if now < a.Placed {
		s += fmt.Sprintf(" (%d at once, the rest in %s)", now, render.Plural(rounds-1, "more round"))
	}
	stay := "stay"
	if a.Pending-halts == 1 {
		stay = "stays"
	}
	if halts > 0 {
		s += fmt.Sprintf(", %s there until it is restored", count(halts, "stops", "stop"))
	}
	p.say("Draining %s: %s, %d %s; %s. %s", names(a.Nodes), s, a.Pending-halts, stay, guaranteed(a), spare(a.Spare))
	p.places(a.Places, true)
	p.stopped(a)
	p.guarantees(a)
	p.worst(a.Spare)
}

func (p *page) objects(a *api.PlanAnswer) {
	all := a.Placed + a.Pending
	s := fmt.Sprintf("%d of %d instances would have a place", a.Placed, all)
	if n := len(a.Evicted) + a.EvictedOthers; n > 0 {
		s += fmt.Sprintf(", for which %s would have to go", render.Plural(n, "other"))
	}
	if a.Admission != nil {
		s += "; the server would refuse them"
	}
	p.say("%s; %s. %s", s, guaranteed(a), spare(a.Spare))
	p.places(a.Places, false)
	if len(a.Evicted) > 0 {
		p.say("  evicted:")
		p.places(a.Evicted, true)
	}
	p.best(a.Exact)
	p.refusal(a.Admission)
	p.guarantees(a)
	p.worst(a.Spare)
}

// best tells what the exact solver found.
func (p *page) best(e *api.PlanExact) {
	if e == nil {
		return
	}
	sure := "proven by the solver"
	if !e.Proven {
		sure = "the best the solver found in its time"
	}
	if e.Loose {
		sure += "; without what they ask of each other and of parts of a host, so it may be too high"
	}
	p.say("  at best %d of %d could have a place next to what runs (%s)", e.Placed, e.Of, sure)
}

func (p *page) add(a *api.PlanAnswer, title string) {
	s := "nothing is pending"
	if all := a.Placed + a.Pending; all > 0 {
		s = fmt.Sprintf("%d of %d pending instances fit", a.Placed, all)
	}
	p.say("%s: %s. %s", title, s, spare(a.Spare))
	p.places(a.Places, false)
	if h := a.Headroom; h != nil {
		t := &render.Table{}
		t.Row("  free", room(h.Now.Free), "->", room(h.Then.Free))
		t.Row("  most on one node", room(h.Now.Largest), "->", room(h.Then.Largest))
		p.WriteString(t.Text(false))
	}
	p.worst(a.Spare)
}

func (p *page) fit(a *api.PlanAnswer, title string) {
	f := a.Fit
	s := fmt.Sprintf("%d more of %s each fit", f.Count, title)
	switch {
	case f.AtLeast:
		s = "at least " + s
	case f.Count == 0:
		s = "none of " + title + " fits"
	case f.Count == 1:
		s = "1 more of " + title + " fits"
	}
	p.say("%s%s.", strings.ToUpper(s[:1])+s[1:], of(f.Wanted, f.Count))
	limit := shown
	if p.wide {
		limit = len(f.Nodes)
	}
	t := &render.Table{}
	for _, x := range f.Nodes[:min(limit, len(f.Nodes))] {
		t.Row("  "+x.Node, fmt.Sprint(x.Count))
	}
	p.WriteString(t.Text(false))
	if more := len(f.Nodes) - limit; more > 0 {
		p.say("  … and on %s more (-o wide lists them)", render.Plural(more, "node"))
	}
	if len(f.Bottleneck) > 0 {
		var words []string
		for _, r := range f.Bottleneck {
			words = append(words, word(r))
		}
		p.say("  short first: %s (with more of that alone, %s more would fit)", strings.Join(words, ", or "), most(f.More))
	}
	if f.Decision != nil {
		p.reasons(f.Decision, "  then ", "       ")
	}
	if f.Admitted != nil && f.Refusal != nil {
		p.say("  admitted: %d of them; then: %s", *f.Admitted, f.Refusal.Message)
		if f.Refusal.Hint != "" {
			p.say("  what would help: %s", f.Refusal.Hint)
		}
	}
}

func of(wanted, count int) string {
	if wanted == 0 {
		return ""
	}
	if count >= wanted {
		return fmt.Sprintf(", so the %d wanted do", wanted)
	}
	return fmt.Sprintf(", %d are wanted", wanted)
}

// most is a count that is not followed beyond a thousand.
func most(n int) string {
	if n >= 1000 {
		return "1000 or more"
	}
	return fmt.Sprint(n)
}

func (p *page) quota(a *api.PlanAnswer, title string) {
	s := "would be admitted"
	if a.Admission != nil {
		s = "would be refused"
	}
	p.say("%s %s. %s", title, s, spare(a.Spare))
	p.refusal(a.Admission)
	p.worst(a.Spare)
}

// places is a line for each instance: those without a place first.
func (p *page) places(list []api.PlanPlace, from bool) {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b api.PlanPlace) int { return rank(a) - rank(b) })
	limit := shown
	if p.wide {
		limit = len(list)
	}
	for _, x := range list[:min(limit, len(list))] {
		p.place(x, from)
	}
	if more := len(list) - limit; more > 0 {
		p.say("  … and %d more (-o wide lists them)", more)
	}
}

// rank puts what needs attention first.
func rank(x api.PlanPlace) int {
	switch {
	case x.To == "" && x.Stays == "":
		return 0
	case x.Stays != "":
		return 1
	case len(x.Evicts)+x.EvictsOthers > 0:
		return 2
	case len(x.Notes) > 0:
		return 3
	}
	return 4
}

func (p *page) place(x api.PlanPlace, from bool) {
	name := x.Instance.Tenant + "/" + x.Instance.Name
	line := "  " + name
	switch {
	case x.Halts:
		line += " stops there: " + x.Stays
	case x.Stays != "":
		line += " stays: " + x.Stays
	case x.To == "":
		line += " -> nowhere"
	case x.Unchanged:
		line += " is on " + x.To + " and changes nothing there"
	case x.From == x.To:
		line += " stays on " + x.To + " and changes there"
	default:
		line += " -> " + x.To
	}
	if p.wide && from && x.From != "" && x.From != x.To {
		line += " (from " + x.From + ")"
	}
	var facts []string
	if e := evicts(x); e != "" {
		facts = append(facts, e)
	}
	if facts = append(facts, x.Notes...); len(facts) > 0 {
		line += "  (" + strings.Join(facts, "; ") + ")"
	}
	p.say("%s", line)
	if x.To == "" || x.Stays != "" {
		if x.Decision != nil {
			p.reasons(x.Decision, "      ", "      ")
		}
	}
}

func evicts(x api.PlanPlace) string {
	var names []string
	for _, r := range x.Evicts {
		names = append(names, r.Tenant+"/"+r.Name)
	}
	if x.EvictsOthers > 0 {
		names = append(names, fmt.Sprintf("%d of other tenants", x.EvictsOthers))
	}
	if len(names) == 0 {
		return ""
	}
	return "evicts " + strings.Join(names, ", ")
}

// reasons tells why nowhere, but not twice in a row.
func (p *page) reasons(d *api.Decision, first, indent string) {
	lines := verb.Refusals(d)
	for _, h := range d.Hints {
		lines = append(lines, "what would help: "+h)
	}
	all := strings.Join(lines, "\n")
	if all == p.reason {
		lines = []string{"for the same reasons"}
	}
	p.reason = all
	for _, l := range lines {
		p.say("%s%s", first, l)
		first = indent
	}
}

func (p *page) stopped(a *api.PlanAnswer) {
	switch {
	case a.Stopped == 1:
		p.say("  1 that does not run stays as it is")
	case a.Stopped > 1:
		p.say("  %d that do not run stay as they are", a.Stopped)
	}
}

func (p *page) refusal(r *api.PlanRefusal) {
	if r == nil {
		return
	}
	p.say("  refused: %s", r.Message)
	if r.Hint != "" {
		p.say("  what would help: %s", r.Hint)
	}
}

func (p *page) guarantees(a *api.PlanAnswer) {
	for _, g := range a.Guarantees {
		if g.Tenant == "" {
			p.say("  guarantees: %s in all, the nodes left have %s", render.Amounts(g.Guaranteed), render.Amounts(g.Placed))
			continue
		}
		p.say("  guarantee of %s: %s; of %s requested, %s would have a place", g.Tenant, render.Amounts(g.Guaranteed), render.Amounts(g.Requested), render.Amounts(g.Placed))
	}
}

// worst names the nodes that must not be lost.
func (p *page) worst(s *api.PlanSpare) {
	if s == nil || s.Holds {
		return
	}
	if s.Reason != "" {
		p.say("  N+1: %s", s.Reason)
	}
	for _, w := range s.Worst {
		p.say("  N+1: without %s, %s would have no room", w.Node, render.Plural(w.Pending, "instance"))
	}
	if more := s.Failing - len(s.Worst); len(s.Worst) > 0 && more > 0 {
		least := ""
		if s.AtLeast {
			least = "at least "
		}
		p.say("  N+1: and the same of %s%s", least, render.Plural(more, "other node"))
	}
}

func spare(s *api.PlanSpare) string {
	switch {
	case s == nil:
		return ""
	case s.Before == nil && s.Holds:
		return "N+1 holds."
	case s.Before == nil:
		return "N+1 does not hold then."
	case *s.Before && s.Holds:
		return "N+1 still holds."
	case *s.Before:
		return "N+1 would no longer hold."
	case s.Holds:
		return "N+1 would hold; it does not now."
	}
	return "N+1 does not hold, now or then."
}

func guaranteed(a *api.PlanAnswer) string {
	n := len(a.Guarantees)
	if n > 0 && a.Guarantees[n-1].Tenant == "" {
		if n--; n == 0 {
			return "more is guaranteed than the nodes left have"
		}
	}
	switch n {
	case 0:
		return "every guarantee holds"
	case 1:
		return "1 guarantee is broken"
	default:
		return fmt.Sprintf("%d guarantees are broken", n)
	}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func moves(n int, verb string) string {
	if n == 1 {
		return "1 instance " + verb + "s"
	}
	return fmt.Sprintf("%d instances %s", n, verb)
}

// names lists nodes; many are counted.
func names(list []string) string {
	switch n := len(list); {
	case n == 0:
		return "nothing"
	case n == 1:
		return list[0]
	case n > 5:
		return fmt.Sprintf("%s and %d other nodes", strings.Join(list[:3], ", "), n-3)
	}
	return strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}

// room is CPU, memory and GPUs of what is free.
func room(r api.Resources) string {
	out := []string{render.Cores(r[api.CPU]) + " CPU", render.Size(r[api.Memory])}
	if g := r[api.GPU]; g > 0 {
		out = append(out, render.Amount(api.GPU, g))
	}
	return strings.Join(out, " ")
}

func word(r api.Resource) string {
	if r == api.CPU {
		return "CPU"
	}
	return string(r)
}
