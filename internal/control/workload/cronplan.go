package workload

import (
	"time"

	"github.com/robfig/cron/v3"
)

// timetable is everything that is decided from whether a job is due.
type timetable struct {
	now      time.Time
	since    time.Time // nothing from before, or at it, is due
	schedule cron.Schedule
	starting time.Duration // a run may be so late; 0: any time
}

// due is what follows.
type due struct {
	at     time.Time // the latest time that has passed and was not seen to; zero: none
	late   bool      // too late for it to be made up for
	passed int64     // times before it that nobody saw to: an outage makes up for one at most
	next   time.Time // the time after; zero: none
}

// mostPassed bounds how far missed times are counted.
const mostPassed = 1000

// nextRun looks at the clock. It is pure.
func nextRun(t timetable) due {
	d := due{next: t.schedule.Next(t.now)}
	d.at = latest(t.schedule, t.since, t.now)
	if d.at.IsZero() {
		return d
	}
	d.late = t.starting > 0 && t.now.Sub(d.at) > t.starting
	for at := t.schedule.Next(t.since); !at.IsZero() && at.Before(d.at) && d.passed < mostPassed; at = t.schedule.Next(at) {
		d.passed++
	}
	return d
}

// latest finds the last time of a schedule after since and not after now. It looks at
// ever longer spans before now, so that an outage of years costs no more than one of a day.
func latest(s cron.Schedule, since, now time.Time) time.Time {
	for span := time.Minute; ; span *= 2 {
		from := now.Add(-span)
		if from.Before(since) {
			from = since
		}
		at := s.Next(from)
		if !at.IsZero() && !at.After(now) {
			for n := s.Next(at); !n.IsZero() && !n.After(now); n = s.Next(n) {
				at = n
			}
			return at
		}
		if !from.After(since) {
			return time.Time{}
		}
	}
}
