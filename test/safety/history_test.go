package safety

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// shaky is a server whose answers get lost, before or after what was asked for was done;
// stale, one that reads what was.
type shaky struct {
	store.Store
	stale bool

	mu  sync.Mutex
	rng *rand.Rand
	old map[api.Ref]api.Object
}

func (s *shaky) dice(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(n)
}

func (s *shaky) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	lost := errs.New(errs.Unavailable, "no answer; whether the change was made is not known")
	switch s.dice(20) {
	case 0:
		return 0, lost
	case 1:
		_, _ = s.Store.Commit(ctx, ops...) // nobody hears
		return 0, lost
	case 2: // it arrives late
		go func() {
			time.Sleep(time.Duration(s.dice(5)) * time.Millisecond)
			_, _ = s.Store.Commit(context.WithoutCancel(ctx), ops...)
		}()
		return 0, lost
	}
	time.Sleep(time.Duration(s.dice(300)) * time.Microsecond)
	return s.Store.Commit(ctx, ops...)
}

func (s *shaky) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	o, err := s.Store.Get(ctx, ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := s.old[ref]; s.stale && was != nil && s.rng.IntN(4) == 0 {
		return was, nil
	}
	if err == nil {
		s.old[ref] = o
	}
	return o, err
}

func history(t *testing.T, seed uint64, stale bool) []Call {
	t.Helper()
	mem := store.NewMem()
	s := &shaky{Store: mem, stale: stale, rng: rand.New(rand.NewPCG(seed, 1)), old: map[api.Ref]api.Object{}}
	u := &Users{Seed: seed, Workers: 4, Objects: 3, Servers: []string{"a", "b"}, Pace: time.Millisecond, Limit: time.Second,
		Reach: func(string) (Pool, error) { return Direct{s}, nil }}
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	return u.Run(ctx)
}

// The model takes what a store answers although answers are lost, and not what a server
// answers that reads what was.
func TestTheModelKnowsRightFromWrong(t *testing.T) {
	dir := t.TempDir()
	for seed := range uint64(4) {
		calls := history(t, seed, false)
		if len(calls) < 50 {
			t.Fatalf("only %d calls", len(calls))
		}
		if err := Judge(calls, dir, 20*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	err := Judge(history(t, 9, true), dir, 20*time.Second)
	if err == nil || !strings.Contains(err.Error(), "no single store") {
		t.Fatal("stale reads were not noticed:", err)
	}
	for _, pat := range []string{"history.json", "*.html"} {
		if found, _ := filepath.Glob(filepath.Join(dir, pat)); len(found) == 0 {
			t.Errorf("nothing was kept: %s", pat)
		}
	}
	_ = os.Remove(dir)
}

// A write that was acknowledged and is gone is noticed.
func TestALostWriteIsNoticed(t *testing.T) {
	calls := []Call{
		{Verb: create, Name: "x", Text: "1", Begin: 1, End: 2, Answer: fine},
		{Verb: update, Name: "x", From: "1", Text: "2", Begin: 3, End: 4, Answer: fine},
		{Verb: read, Name: "x", Text: "1", Begin: 5, End: 6, Answer: fine},
	}
	if Judge(calls, t.TempDir(), time.Second) == nil {
		t.Error("an acknowledged write was lost")
	}
	calls[1].Answer = unknown
	if err := Judge(calls, t.TempDir(), time.Second); err != nil {
		t.Error("it may not have happened:", err)
	}
}
