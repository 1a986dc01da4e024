// Package balance decides which instances of a running pool should move: away from
// where they must not be, off hosts that are short, off hosts that could be switched
// off, and out of the way of what would not fit otherwise. It proposes; it moves
// nothing. Plan is pure: no clock, no I/O, no randomness, no goroutine; the same
// pool gives the same moves. It must never propose a move that overbooks a host at
// any moment of the move, that wakes a host to save power, or that undoes one of
// its own within the rest.
//
// Load is measured use of CPU, in any unit that hosts and instances share (cores,
// MIPS), one value a round, so the unit of all times here is the round.
package balance

import (
	"fmt"
)

// Vector is what is booked, in the dimensions of the caller (memory, disk, GPUs, …);
// all vectors of a Pool have the same length.
type Vector []int64

// Host is a node.
type Host struct {
	Name     string
	Capacity Vector  // what can be booked
	CPU      float64 // load it can carry
	Core     float64 // load one instance can have here at most; 0: no limit but CPU
	// Watts at equal steps of load from none to all of CPU. Empty: not known, and
	// then nothing is done for power here.
	Watts []float64
	// Off: nothing runs there, and it draws nothing. It is only woken for pressure or repair.
	Off    bool
	Closed string // why it takes no newcomer; "" when it does
	// Drain is why everything should leave; "" when nothing has to.
	Drain string
}

// Instance is something that runs.
type Instance struct {
	Name    string
	Host    int // in Pool.Hosts
	Request Vector
	Size    float64   // load it was sold, a guess at its load as long as little is measured; 0: not known
	Load    []float64 // measured, newest last
	Fixed   string    // why it cannot move; "" when it can
	Cost    float64   // seconds of worse service a move brings
	// Rested is how many rounds ago it last moved or started; Never: not in memory.
	Rested int
	Came   int    // the host it last moved from; counts only as long as it rests
	Wrong  string // why it must not stay where it is; "" when it may
	// Leans is the host the last round proposed for it, plus one; 0: none. What stands
	// is kept unless something else is clearly better, so that proposals do not flicker.
	Leans int
}

// Never as Instance.Rested.
const Never = 1 << 30

// Rules is what the caller knows of who may stand where: taints, affinity, spread.
type Rules interface {
	// Admits tells whether the instance may run on the host as things stand in the plan.
	Admits(instance, host int) bool
	// Moved is told every step of the plan, and every step taken back.
	Moved(instance, from, to int)
}

// Free are the Rules of a pool without any.
type Free struct{}

// Admits everything.
func (Free) Admits(int, int) bool { return true }

// Moved is of no interest.
func (Free) Moved(int, int, int) {}

// Pool is the state to judge.
type Pool struct {
	Hosts     []Host
	Instances []Instance
	Rules     Rules // nil: Free
	// Shapes are sizes that should find room, most wanted first (for defragmentation).
	Shapes []Vector
}

// Goal is what a move is for.
type Goal string

// The goals, in the order they are looked at.
const (
	Repair     Goal = "repair"
	Pressure   Goal = "pressure"
	Power      Goal = "power"
	Defragment Goal = "defragment"
)

// Move is a proposal. Gain and Cost have one unit, watt-hours: what else a move
// brings is priced by Config.
type Move struct {
	Instance, From, To int
	Goal               Goal
	// Group: moves with the same number make sense only together.
	Group      int
	Gain, Cost float64
	Reason     string
}

// Config is how bold the plan is. The zero value of a field means its default.
type Config struct {
	Goals []Goal // default: all
	// MaxMoves bounds a plan; 0: no bound.
	MaxMoves int
	// Rest is how many rounds an instance stays where it is after a move, unless its
	// host is short or wrong. Default 12 (an hour of 5-minute rounds). Even then it
	// does not return to where it came from.
	Rest int
	// InTurn: each move ends before the next begins, so what left makes room for what
	// comes later. Otherwise all are taken to begin at once.
	InTurn bool
	// Horizon is how many hours a host is expected to stay off. Default 0.25.
	Horizon float64
	// High is the part of a host's CPU above which it is short. Default 1.
	High float64
	// Low is the part to which newcomers may fill it, uncertainty included. Default 0.92;
	// must be below High, or moves for power make pressure.
	Low float64
	// Sigma is how many standard deviations of load are kept free. Default 1.
	Sigma float64
	// Memory is the half-life of measured values, in rounds. Default 12.
	Memory float64
	// MovePrice is what a second of worse service costs, in Wh. Default 0.05.
	MovePrice float64
	// ShortPrice is what a round of a whole host's shortage costs, in Wh. Default 100.
	ShortPrice float64
	// ShapePrice is what room for one more of Pool.Shapes is worth, in Wh. Default 20.
	ShapePrice float64
	// WrongPrice is what one instance less in a wrong place is worth, in Wh. Default 1000.
	WrongPrice float64
}

func (c Config) filled() Config {
	if c.Goals == nil {
		c.Goals = []Goal{Repair, Pressure, Power, Defragment}
	}
	def := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	if c.Rest == 0 {
		c.Rest = 12
	}
	def(&c.Horizon, 0.25)
	def(&c.High, 1)
	def(&c.Low, 0.92)
	def(&c.Sigma, 1)
	def(&c.Memory, 12)
	def(&c.MovePrice, 0.05)
	def(&c.ShortPrice, 100)
	def(&c.ShapePrice, 20)
	def(&c.WrongPrice, 1000)
	return c
}

// Plan proposes moves, in the order they should be made. Without InTurn a target
// has room for what comes even before what leaves it is gone.
func Plan(p Pool, c Config) []Move {
	pl := newPlan(p, c.filled())
	for _, g := range pl.c.Goals {
		switch g {
		case Repair:
			pl.repair()
		case Pressure:
			pl.relieve()
		case Power:
			pl.empty()
		case Defragment:
			pl.defragment()
		}
	}
	return pl.moves
}

func percent(a, b float64) string {
	if b <= 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.0f %%", 100*a/b)
}
