package main

import (
	"context"
	"flag"

	"atoll/api"
	"atoll/cmd/atolld/change"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/join"
)

// changing is what the host's changer is told of the daemon.
func changing(c config) (change.Config, error) {
	log, err := newLogger(c)
	return change.Config{Version: version, State: c.State, Run: c.Run, LogLevel: c.LogLevel, LogFormat: c.LogFormat, Node: c.Node, Log: log, Clock: clock.Real{}}, err
}

// runGuard looks after the daemon while a version is on trial.
func runGuard(ctx context.Context, args []string) error {
	var t change.Trial
	c, err := load("guard", args, func(f *flag.FlagSet) {
		f.IntVar(&t.PID, "pid", 0, "`number` of the daemon's process")
		f.BoolVar(&t.Supervised, "supervised", false, "a service manager starts the daemon again")
		f.IntVar(&t.Args, "args", 0, "how many arguments the daemon had")
	})
	if err != nil {
		return err
	}
	cc, err := changing(c)
	if err != nil {
		return err
	}
	return change.Guard(ctx, cc, t)
}

// Identity is how others know this host; nil while nobody does.
func (h *daemon) Identity() *join.Identity { return h.id }

// HandOver makes another server lead, where this one does.
func (h *daemon) HandOver(ctx context.Context) error {
	if p := h.plane.Load(); p != nil {
		return p.base.HandOver(ctx)
	}
	return nil
}

// Publish has the pool told soon what became of the host.
func (h *daemon) Publish() {
	if n := h.works.Load(); n != nil {
		n.agent.Publish()
	}
}

// Well reports whether this process does its work: it holds its lease, and where it
// keeps the state it answers from it.
func (h *daemon) Well(ctx context.Context) error {
	n := h.works.Load()
	holder := h.beats.Load()
	if n != nil {
		holder = n.holder
	}
	if holder == nil {
		return errs.New(errs.Unavailable, "the host has not started")
	}
	if !holder.Held() {
		return errs.New(errs.Unavailable, "the host does not hold its lease")
	}
	ctx, cancel := context.WithTimeout(ctx, change.ClosePatience)
	defer cancel()
	mem, err := readMembership(h.c.State)
	if err != nil {
		return err
	}
	p := h.plane.Load()
	if h.role == api.RoleWitness {
		return h.witnesses(ctx, mem)
	}
	if p == nil && mem == nil && h.id != nil {
		if n == nil { // a server that is not wanted among those that keep the state
			return nil
		}
		_, err := n.st.Get(ctx, api.Ref{Kind: api.KindNode, Name: h.c.Node})
		return err
	}
	if p == nil || !p.srv.Ready() {
		return errs.New(errs.Unavailable, "the API does not answer")
	}
	_, err = p.shared.Sync(ctx)
	return err
}

// witnesses reports whether a witness that is to keep the state does so.
func (h *daemon) witnesses(ctx context.Context, mem *membership) error {
	if mem == nil {
		return nil
	}
	if s := h.copy.Load(); s != nil {
		_, err := s.Sync(ctx)
		return err
	}
	return errs.New(errs.Unavailable, "the copy of the state is not open")
}
