// Package exact states a pool's best arrangement as a mixed integer programme and
// has it solved by COIN-OR cbc: the yardstick for what package balance and the
// scheduler find by rules of thumb. It is for small pools (some dozens of hosts),
// tests and `plan --exact`; nothing that runs all the time may wait for it.
//
// Write and Read are pure. Solve runs the solver as a process in a directory of its
// own, waits for it and removes the directory; it starts no goroutine that outlives it.
package exact

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"atoll/internal/errs"
)

// Problem is what is to be arranged. All Capacity and Request have the same length.
type Problem struct {
	Hosts []Host
	Items []Item
	// InPlace: all moves are made at once, and what leaves still takes its room.
	InPlace bool
	// MaxMoves bounds the moves; 0: no bound.
	MaxMoves int
}

// Host is a node.
type Host struct {
	Capacity []int64
	Price    float64 // of having anything there at all
}

// Item is an instance.
type Item struct {
	Request []int64
	Host    int     // where it is; Nowhere when it is not placed yet
	Move    float64 // price of being elsewhere than Host
	Without float64 // price of having no place; 0: it must have one
	Deny    []int   // hosts it may not use
}

// Nowhere is not a host.
const Nowhere = -1

// Limits of what is written: a larger problem would not be solved in useful time.
const (
	maxPairs = 200_000
	maxBytes = 64 << 20
)

// Solution is an arrangement.
type Solution struct {
	At    []int // host of every item, or Nowhere
	Price float64
	// Proven: there is none better.
	Proven bool
}

// Check refuses what makes no sense, as errs.Invalid.
func (p *Problem) Check() error {
	if len(p.Hosts)*len(p.Items) > maxPairs {
		return errs.New(errs.Invalid, "%d hosts with %d instances are too many for an exact answer (at most %d pairs)", len(p.Hosts), len(p.Items), maxPairs)
	}
	dims := -1
	check := func(n int) bool {
		if dims < 0 {
			dims = n
		}
		return n == dims
	}
	for h := range p.Hosts {
		if !check(len(p.Hosts[h].Capacity)) || p.Hosts[h].Price < 0 {
			return errs.New(errs.Invalid, "host %d: another number of dimensions, or a price below zero", h)
		}
	}
	for i := range p.Items {
		it := &p.Items[i]
		if !check(len(it.Request)) || it.Host < Nowhere || it.Host >= len(p.Hosts) || it.Move < 0 || it.Without < 0 {
			return errs.New(errs.Invalid, "item %d: another number of dimensions, an unknown host, or a price below zero", i)
		}
	}
	return nil
}

// Price of an arrangement, and whether it is allowed.
func (p *Problem) Price(at []int) (float64, bool) {
	used := make([][]int64, len(p.Hosts))
	for h := range used {
		used[h] = make([]int64, len(p.Hosts[h].Capacity))
	}
	price, moves := 0.0, 0
	on := make([]bool, len(p.Hosts))
	for i, h := range at {
		it := &p.Items[i]
		if h == Nowhere {
			if it.Without == 0 {
				return 0, false
			}
			price += it.Without
			continue
		}
		if denied(it, h) {
			return 0, false
		}
		on[h] = true
		add(used[h], it.Request)
		if it.Host != Nowhere && it.Host != h {
			price += it.Move
			moves++
			if p.InPlace {
				add(used[it.Host], it.Request)
			}
		}
	}
	for h := range p.Hosts {
		for d, c := range p.Hosts[h].Capacity {
			if used[h][d] > c && p.before(h, d) != used[h][d] {
				return 0, false
			}
		}
		if on[h] {
			price += p.Hosts[h].Price
		}
	}
	return price, p.MaxMoves == 0 || moves <= p.MaxMoves
}

func add(to, v []int64) {
	for d := range v {
		to[d] += v[d]
	}
}

// before is what a host carries now.
func (p *Problem) before(h, d int) int64 {
	n := int64(0)
	for i := range p.Items {
		if p.Items[i].Host == h {
			n += p.Items[i].Request[d]
		}
	}
	return n
}

func denied(it *Item, h int) bool {
	for _, d := range it.Deny {
		if d == h {
			return true
		}
	}
	return false
}

// lp writes sums in lines of bounded length, as the format wants them.
type lp struct {
	w     *bufio.Writer
	terms int
}

func (l *lp) begin(name string) {
	fmt.Fprintf(l.w, " %s:", name)
	l.terms = 0
}

func (l *lp) term(c float64, name string) {
	if c == 0 {
		return
	}
	if l.terms++; l.terms%8 == 0 {
		l.w.WriteString("\n ")
	}
	sign := "+"
	if c < 0 {
		sign, c = "-", -c
	}
	fmt.Fprintf(l.w, " %s %s %s", sign, strconv.FormatFloat(c, 'g', 15, 64), name)
}

func (l *lp) end(rest string) { fmt.Fprintf(l.w, " %s\n", rest) }

func x(i, h int) string { return "x" + strconv.Itoa(i) + "_" + strconv.Itoa(h) }
func y(h int) string    { return "y" + strconv.Itoa(h) }
func u(i int) string    { return "u" + strconv.Itoa(i) }

// Write writes the problem in CPLEX's LP format. Errors are those of w, or errs.Invalid.
func Write(w io.Writer, p *Problem) error {
	if err := p.Check(); err != nil {
		return err
	}
	l := &lp{w: bufio.NewWriter(w)}
	l.w.WriteString("Minimize\n")
	l.objective(p)
	l.w.WriteString("Subject To\n")
	l.places(p)
	l.capacities(p)
	l.names(p)
	return l.w.Flush()
}

func (l *lp) objective(p *Problem) {
	l.begin("price")
	for h := range p.Hosts {
		l.term(p.Hosts[h].Price, y(h))
	}
	for i := range p.Items {
		it := &p.Items[i]
		l.term(it.Without, u(i))
		for h := range p.Hosts {
			if it.Host != Nowhere && it.Host != h && !denied(it, h) {
				l.term(it.Move, x(i, h))
			}
		}
	}
	l.term(1, "one") // so that there is always a term
	l.end("")
}

// places: every item is on one host, or on none where that is allowed; a host with
// anything on it is paid for.
func (l *lp) places(p *Problem) {
	for i := range p.Items {
		it := &p.Items[i]
		l.begin("p" + strconv.Itoa(i))
		for h := range p.Hosts {
			if !denied(it, h) {
				l.term(1, x(i, h))
			}
		}
		l.term(1, u(i))
		l.end("= 1")
		for h := range p.Hosts {
			if !denied(it, h) && p.Hosts[h].Price > 0 {
				l.begin("o" + strconv.Itoa(i) + "_" + strconv.Itoa(h))
				l.term(1, x(i, h))
				l.term(-1, y(h))
				l.end("<= 0")
			}
		}
	}
}

func (l *lp) capacities(p *Problem) {
	for h := range p.Hosts {
		for d, c := range p.Hosts[h].Capacity {
			room, terms := p.room(h, d, c)
			l.begin("c" + strconv.Itoa(h) + "_" + strconv.Itoa(d))
			for _, i := range terms {
				l.term(float64(p.Items[i].Request[d]), x(i, h))
			}
			l.term(1, "zero")
			l.end("<= " + strconv.FormatInt(room, 10))
		}
	}
	if p.MaxMoves > 0 {
		l.begin("moves")
		for i := range p.Items {
			for h := range p.Hosts {
				if it := &p.Items[i]; it.Host != Nowhere && it.Host != h && !denied(it, h) {
					l.term(1, x(i, h))
				}
			}
		}
		l.term(1, "zero")
		l.end("<= " + strconv.Itoa(p.MaxMoves))
	}
}

// room is what a dimension has for the items that count for it. With InPlace what is
// there stays there, and a host that is too full already just takes nobody.
func (p *Problem) room(h, d int, capacity int64) (int64, []int) {
	var terms []int
	room := capacity
	for i := range p.Items {
		it := &p.Items[i]
		switch {
		case p.InPlace && it.Host == h:
			room -= it.Request[d]
		case it.Request[d] != 0 && !denied(it, h):
			terms = append(terms, i)
		}
	}
	return max(room, 0), terms
}

func (l *lp) names(p *Problem) {
	l.w.WriteString("Bounds\n one = 1\n zero = 0\n")
	for i := range p.Items {
		if p.Items[i].Without == 0 {
			fmt.Fprintf(l.w, " %s = 0\n", u(i))
		}
	}
	l.w.WriteString("Binaries\n")
	for h := range p.Hosts {
		if p.Hosts[h].Price > 0 {
			fmt.Fprintf(l.w, " %s\n", y(h))
		}
	}
	for i := range p.Items {
		fmt.Fprintf(l.w, " %s\n", u(i))
		for h := range p.Hosts {
			if !denied(&p.Items[i], h) {
				fmt.Fprintf(l.w, " %s\n", x(i, h))
			}
		}
	}
	l.w.WriteString("End\n")
}

// Read reads what the solver wrote. errs.NoCapacity: there is no arrangement at all;
// errs.Timeout: none was found in time; errs.Invalid: it cannot be read.
func Read(r io.Reader, p *Problem) (Solution, error) {
	sc := bufio.NewScanner(io.LimitReader(r, maxBytes))
	if !sc.Scan() {
		return Solution{}, errs.New(errs.Invalid, "the solver's answer is empty")
	}
	s := Solution{At: make([]int, len(p.Items))}
	for i := range s.At {
		s.At[i] = Nowhere
	}
	switch head := strings.ToLower(sc.Text()); {
	case strings.HasPrefix(head, "optimal"):
		s.Proven = true
	case strings.Contains(head, "infeasible"):
		return Solution{}, errs.New(errs.NoCapacity, "the instances do not fit on the hosts, however they are arranged")
	case strings.HasPrefix(head, "stopped") && !strings.Contains(head, "no integer solution"):
	default:
		return Solution{}, errs.New(errs.Timeout, "the solver found no arrangement in time: %q", clip(sc.Text()))
	}
	for sc.Scan() {
		if err := s.line(sc.Text(), p); err != nil {
			return Solution{}, err
		}
	}
	if err := sc.Err(); err != nil {
		return Solution{}, errs.New(errs.Invalid, "the solver's answer: %v", err)
	}
	price, ok := p.Price(s.At)
	if !ok {
		return Solution{}, errs.New(errs.Invalid, "the solver's answer breaks a rule of the problem")
	}
	s.Price = price
	return s, nil
}

// line takes one "index name value reduced-cost".
func (s *Solution) line(text string, p *Problem) error {
	f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(text), "**"))
	if len(f) < 3 || !strings.HasPrefix(f[1], "x") {
		return nil
	}
	a, b, ok := strings.Cut(f[1][1:], "_")
	i, err1 := strconv.Atoi(a)
	h, err2 := strconv.Atoi(b)
	v, err3 := strconv.ParseFloat(f[2], 64)
	if !ok || err1 != nil || err2 != nil || err3 != nil || i < 0 || i >= len(p.Items) || h < 0 || h >= len(p.Hosts) {
		return errs.New(errs.Invalid, "the solver's answer has the line %q", clip(text))
	}
	if v > 0.5 {
		if s.At[i] != Nowhere {
			return errs.New(errs.Invalid, "the solver's answer has item %d on two hosts", i)
		}
		s.At[i] = h
	}
	return nil
}

func clip(s string) string { return s[:min(len(s), 80)] }
