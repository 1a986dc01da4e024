package workload

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
)

func TestNextErrand(t *testing.T) {
	done := func(name string, i int) try { return try{name: name, index: i, state: trySucceeded, ended: t0} }
	failed := func(name string, i, n int) try {
		return try{name: name, index: i, number: n, state: tryFailed, ended: t0}
	}
	counted := func(x try) try { x.counted, x.stopped = true, true; return x }
	run := func(name string, i int) try { return try{name: name, index: i} }
	two := 2
	hour := api.Duration(time.Hour)
	for name, c := range map[string]struct {
		edit  func(*errand)
		tries []try
		want  string // create, count, stop, end
	}{
		"nothing there":              {nil, nil, "[0 1] [] [] "},
		"as many as at once":         {nil, []try{run("j-0", 0), run("j-1", 1)}, "[] [] [] "},
		"an end is counted first":    {nil, []try{done("j-0", 0), run("j-1", 1)}, "[] [j-0] [] "},
		"then the next begins":       {func(e *errand) { e.last.Done = "0" }, []try{counted(done("j-0", 0)), run("j-1", 1)}, "[2] [] [] "},
		"what is done is not redone": {func(e *errand) { e.last.Done = "0-2" }, nil, "[3] [] [] "},
		"a failed one waits":         {func(e *errand) { e.last.Failed = 1 }, []try{counted(failed("j-0", 0, 0))}, "[1 2] [] [] "},
		"and comes again":            {func(e *errand) { e.last.Failed = 1; e.now = t0.Add(5 * time.Second) }, []try{counted(failed("j-0", 0, 0))}, "[0 1] [] [] "},
		"the last one":               {func(e *errand) { e.last.Done = "0-2" }, []try{done("j-3", 3)}, "[] [j-3] [] Complete"},
		"too many failures":          {func(e *errand) { e.last.Failed = 2 }, []try{failed("j-0-r2", 0, 2), run("j-1", 1)}, "[] [j-0-r2] [j-1] Failed"},
		"too many starts in place":   {nil, []try{{name: "j-0", starts: 3}}, "[] [] [j-0] Failed"},
		"some starts in place":       {nil, []try{{name: "j-0", starts: 2}, run("j-1", 1)}, "[] [] [] "},
		"suspended":                  {func(e *errand) { e.spec.Suspended = true }, []try{run("j-0", 0)}, "[] [] [] "},
		"the deadline":               {func(e *errand) { e.spec.Deadline = &hour; e.last.StartedAt = &t0; e.now = t0.Add(time.Hour) }, []try{run("j-0", 0)}, "[] [] [j-0] Failed"},
		"done in the last moment": {func(e *errand) {
			e.spec.Deadline = &hour
			e.last.StartedAt = &t0
			e.now = t0.Add(time.Hour)
			e.last.Done = "0-2"
		}, []try{done("j-3", 3)}, "[] [j-3] [] Complete"},
		"over: what runs is stopped":  {func(e *errand) { e.finished = api.ConditionFailed }, []try{run("j-0", 0), counted(failed("j-1", 1, 0))}, "[] [] [j-0] "},
		"what leaves keeps its index": {nil, []try{{name: "j-0", index: 0, stopped: true}, run("j-1", 1)}, "[] [] [] "},
	} {
		t.Run(name, func(t *testing.T) {
			e := errand{now: t0, spec: &api.JobSpec{Completions: 4, Parallelism: 2, BackoffLimit: &two}, tries: c.tries}
			if c.edit != nil {
				c.edit(&e)
			}
			p := nextErrand(e)
			create := []int{}
			for _, x := range p.create {
				create = append(create, x.index)
			}
			if got := fmt.Sprint(create, " ", p.count, " ", p.stop, " ", p.end); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestIndexesAreWrittenAndRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := map[int]bool{}
		for _, i := range rapid.SliceOf(rapid.IntRange(0, 40)).Draw(t, "indexes") {
			set[i] = true
		}
		text := formatIndexes(set)
		back := parseIndexes(text)
		if len(back) != len(set) {
			t.Fatalf("%q: %v became %v", text, set, back)
		}
		for i := range set {
			if !back[i] {
				t.Fatalf("%q has no %d", text, i)
			}
		}
	})
	if len(parseIndexes("x,3-,-,9999999999999999999,0-9999999999")) != 0 {
		t.Error("nonsense was read")
	}
}

// The latest time is found without walking through all the times of an outage.
func TestTheLatestTimeOfASchedule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := rapid.SampledFrom([]string{"* * * * *", "*/7 * * * *", "30 2 * * *", "0 0 1 * *", "15 3 * * MON", "30 2 29 2 *"}).Draw(t, "schedule")
		zone := rapid.SampledFrom([]string{"", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"}).Draw(t, "zone")
		sched, err := api.ParseSchedule(spec, zone)
		if err != nil {
			t.Fatal(err)
		}
		since := time.Unix(rapid.Int64Range(1.6e9, 1.8e9).Draw(t, "since"), 0).UTC()
		span := time.Duration(rapid.IntRange(-100, 4000).Draw(t, "minutes")) * time.Minute
		if spec == "0 0 1 * *" || spec == "30 2 29 2 *" {
			span *= 1000
		}
		now := since.Add(span)
		var want time.Time
		var passed int64
		for at := sched.Next(since); !at.IsZero() && !at.After(now); at = sched.Next(at) {
			if !want.IsZero() {
				passed++
			}
			want = at
		}
		d := nextRun(timetable{now: now, since: since, schedule: sched})
		if !d.at.Equal(want) || d.passed != min(passed, mostPassed) {
			t.Fatalf("%s in %q from %s to %s: %s and %d before it, want %s and %d", spec, zone, since, now, d.at, d.passed, want, passed)
		}
	})
	sched, err := api.ParseSchedule("* * * * *", "")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	nextRun(timetable{now: t0, since: t0.Add(-10 * 365 * 24 * time.Hour), schedule: sched})
	if took := time.Since(began); took > time.Second {
		t.Errorf("ten years of minutes took %s", took)
	}
}
