package workload

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/api"
)

// errand is everything a step of a job is decided from.
type errand struct {
	now      time.Time
	spec     *api.JobSpec
	last     api.JobStatus
	finished string // how it ended: a condition; "": it has not
	tries    []try
}

// try is one instance of a job.
type try struct {
	name    string
	index   int
	number  int // 0 is the first for its index
	state   tryState
	counted bool
	ended   time.Time
	starts  int64 // again, in place
	stopped bool  // its spec says so
}

type tryState int

const (
	tryActive    tryState = iota
	trySucceeded          // ended with 0
	tryFailed             // ended with another code, or could not start
)

// errandPlan is what follows.
type errandPlan struct {
	count  []string // names of those whose end is counted now
	create []try
	stop   []string
	status api.JobStatus
	end    string // the condition that now holds: it is over
	reason string
	expire bool // it has been over for long enough
	again  time.Duration
}

const (
	retryFirst = 5 * time.Second
	retryMost  = 5 * time.Minute
)

// retryPause grows with every failure of an index.
func retryPause(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	return min(retryFirst<<min(failures-1, 16), retryMost)
}

// nextErrand decides one step of a job. It is pure. An end is counted once, in the commit
// that marks the instance as counted, so that neither a kill nor a hand that removes
// instances makes the count wrong.
func nextErrand(e errand) errandPlan {
	p := errandPlan{status: e.last}
	done := parseIndexes(e.last.Done)
	st := &p.status
	st.Active = 0
	failures, again := st.Failed, 0
	for _, t := range e.tries {
		switch {
		case t.counted:
		case t.state == tryActive:
			if !t.stopped {
				st.Active++
			}
			again += int(t.starts)
		case len(p.count) < atOnce:
			p.count = append(p.count, t.name)
			if t.state == trySucceeded {
				done[t.index] = true
			} else {
				failures++
			}
		}
	}
	st.Failed, st.Done, st.Succeeded = failures, formatIndexes(done), len(done)
	if e.finished != "" {
		p.stop = e.running()
		p.outlived(e)
		return p
	}
	switch {
	case len(done) >= e.spec.Wants():
		p.end, p.reason = api.ConditionComplete, "Completed"
	case failures+again > e.spec.Retries():
		p.end, p.reason = api.ConditionFailed, api.ReasonBackoffLimit
	case e.overdue():
		p.end, p.reason = api.ConditionFailed, api.ReasonJobDeadline
	}
	if p.end != "" {
		p.stop = e.running()
		return p
	}
	if !e.spec.Suspended && len(p.count) == 0 { // what has ended is counted first
		p.more(e, done)
	}
	if d := e.spec.Deadline; d != nil && st.StartedAt != nil {
		p.again = soonest(p.again, st.StartedAt.Add(d.D()).Sub(e.now))
	}
	return p
}

func (e *errand) overdue() bool {
	d := e.spec.Deadline
	return d != nil && e.last.StartedAt != nil && !e.now.Before(e.last.StartedAt.Add(d.D()))
}

// running lists what is neither at its end nor stopped.
func (e *errand) running() []string {
	var out []string
	for _, t := range e.tries {
		if t.state == tryActive && !t.stopped {
			out = append(out, t.name)
		}
	}
	return out
}

// outlived notes when the job has been over for long enough to go.
func (p *errandPlan) outlived(e errand) {
	if e.spec.TTL == nil || e.last.FinishedAt == nil {
		return
	}
	left := e.last.FinishedAt.Add(e.spec.TTL.D()).Sub(e.now)
	if p.expire = left <= 0; !p.expire {
		p.again = left
	}
}

// more starts the indexes that are not done and not under way, lowest first; those that
// failed wait for their pause.
func (p *errandPlan) more(e errand, done map[int]bool) {
	type history struct {
		next   int
		active bool
		ended  time.Time
	}
	past := map[int]*history{}
	active := 0
	for _, t := range e.tries {
		h := past[t.index]
		if h == nil {
			h = &history{}
			past[t.index] = h
		}
		h.next = max(h.next, t.number+1)
		if t.state == tryActive {
			h.active = true
			active++
		}
		if t.ended.After(h.ended) {
			h.ended = t.ended
		}
	}
	for i := 0; i < e.spec.Wants() && active < e.spec.AtOnce(); i++ {
		if done[i] {
			continue
		}
		t := try{index: i}
		if h := past[i]; h != nil {
			if h.active {
				continue
			}
			if left := h.ended.Add(retryPause(h.next)).Sub(e.now); left > 0 {
				p.again = soonest(p.again, left)
				continue
			}
			t.number = h.next
		}
		p.create = append(p.create, t)
		active++
	}
}

// parseIndexes reads "0-3,7". What is not an index is passed over: only we write it.
func parseIndexes(s string) map[int]bool {
	out := map[int]bool{}
	for part := range strings.SplitSeq(s, ",") {
		a, b, isRange := strings.Cut(part, "-")
		lo, err := strconv.Atoi(a)
		hi := lo
		if err == nil && isRange {
			hi, err = strconv.Atoi(b)
		}
		if err != nil || hi-lo > 100_000 {
			continue
		}
		for i := lo; i <= hi; i++ {
			out[i] = true
		}
	}
	return out
}

// formatIndexes writes "0-3,7".
func formatIndexes(set map[int]bool) string {
	all := make([]int, 0, len(set))
	for i := range set {
		all = append(all, i)
	}
	slices.Sort(all)
	var parts []string
	for i := 0; i < len(all); {
		j := i
		for j+1 < len(all) && all[j+1] == all[j]+1 {
			j++
		}
		if parts = append(parts, strconv.Itoa(all[i])); j > i {
			parts[len(parts)-1] = fmt.Sprintf("%d-%d", all[i], all[j])
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// tryName is the instance's name: NAME-INDEX, and for a later try NAME-INDEX-rNUMBER.
func tryName(job string, index, number int) string {
	if number == 0 {
		return fmt.Sprintf("%s-%d", job, index)
	}
	return fmt.Sprintf("%s-%d-r%d", job, index, number)
}
