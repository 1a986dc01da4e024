// Package safety checks what really happened to a pool: calls through several servers while
// hosts fail, written down with when they began and ended, are held against what a single
// store could have answered (porcupine), and what runs on the hosts against what may.
package safety

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Verbs of calls.
const (
	read   = "read"
	list   = "list"
	create = "create"
	update = "update"
	remove = "remove"
)

// Answers to calls.
const (
	fine     = "fine"
	conflict = "conflict" // exists, is gone, or was changed: nothing was done
	unknown  = "unknown"  // done or not
	nothing  = "nothing"  // a read without an answer
)

// Call is one call as it was made and answered. Every write has a text of its own, so that
// texts tell revisions apart. A list is a read of every object it could have shown.
type Call struct {
	Worker int    `json:"worker"`
	Server string `json:"server"`
	Verb   string `json:"verb"`
	Name   string `json:"name"`
	From   string `json:"from,omitempty"` // what an update or removal was based on
	Text   string `json:"text,omitempty"` // what is written; of a read what was seen, "" nothing
	Begin  int64  `json:"begin"`          // nanoseconds
	End    int64  `json:"end"`
	Answer string `json:"answer"`
	Error  string `json:"error,omitempty"`
}

// model is one object that is made, changed by who has seen it last, and removed. A state is its text, "" while it
// is not there.
func model() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{""} },
		Step: func(state, input, _ any) []any {
			is, c := state.(string), input.(Call)
			could, next := false, c.Text
			switch c.Verb {
			case read, list:
				if is == c.Text {
					return []any{is}
				}
				return nil
			case create:
				could = is == ""
			case update:
				could = is != "" && is == c.From
			case remove:
				could, next = is != "" && is == c.From, ""
			}
			switch {
			case c.Answer == unknown && could:
				return []any{is, next}
			case c.Answer == unknown:
				return []any{is}
			case c.Answer == fine && could:
				return []any{next}
			case c.Answer == conflict && !could:
				return []any{is}
			}
			return nil
		},
		DescribeOperation: func(input, _ any) string {
			c := input.(Call)
			return fmt.Sprintf("%s by %s: %s → %s %s", c.Verb, c.Server, c.From, c.Text, c.Answer)
		},
		DescribeState: func(s any) string { return fmt.Sprint(s) },
	}
	return m.ToModel()
}

// operations of one object, as porcupine wants them: what nobody knows the outcome of may
// still happen until the end.
func operations(calls []Call) []porcupine.Operation {
	end := int64(0)
	for _, c := range calls {
		end = max(end, c.End)
	}
	var out []porcupine.Operation
	for _, c := range calls {
		if c.Answer == nothing {
			continue
		}
		op := porcupine.Operation{ClientId: c.Worker, Input: c, Call: c.Begin, Return: c.End}
		if c.Answer == unknown {
			op.Return = end + 1
		}
		out = append(out, op)
	}
	return out
}

// Judge holds the calls of every object against the model. On a mistake it keeps the
// history and a picture of it in dir, and says where.
func Judge(calls []Call, dir string, patience time.Duration) error {
	byName := map[string][]Call{}
	for _, c := range calls {
		byName[c.Name] = append(byName[c.Name], c)
	}
	names := make([]string, 0, len(byName))
	for n := range byName {
		names = append(names, n)
	}
	sort.Strings(names)
	var wrong []error
	for _, n := range names {
		res, info := porcupine.CheckOperationsVerbose(model(), operations(byName[n]), patience)
		switch res {
		case porcupine.Ok:
			continue
		case porcupine.Unknown:
			wrong = append(wrong, errs.New(errs.Timeout, "%s: whether its %d calls could have been answered so is not known after %s", n, len(byName[n]), patience))
			continue
		}
		picture := filepath.Join(dir, n+".html")
		err := porcupine.VisualizePath(model(), info, picture)
		wrong = append(wrong, errors.Join(errs.New(errs.Internal, "%s: no single store could have answered its %d calls so; see %s", n, len(byName[n]), picture), err))
	}
	if len(wrong) == 0 {
		return nil
	}
	file := filepath.Join(dir, "history.json")
	b, err := json.MarshalIndent(calls, "", " ")
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	return errors.Join(append(wrong, err, errs.New(errs.Internal, "the history is in %s", file))...)
}

// Pool is one server as users reach it.
type Pool interface {
	Get(ctx context.Context, ref api.Ref) (api.Object, error)
	List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error)
	Create(ctx context.Context, o api.Object, key string) (api.Object, error)
	Replace(ctx context.Context, o api.Object) (api.Object, error)
	Delete(ctx context.Context, ref api.Ref, rev int64) (api.Object, error)
}

// Users make random calls.
type Users struct {
	Seed    uint64
	Workers int
	Objects int
	Servers []string
	Reach   func(server string) (Pool, error)
	Pace    time.Duration // between calls of a worker, at most
	Limit   time.Duration // of a call

	mu    sync.Mutex
	calls []Call
	begin time.Time
}

const prefix = "safety-"

func ref(name string) api.Ref { return api.Ref{Kind: api.KindPriorityClass, Name: name} }

// Run makes calls until ctx ends, and gives them. What a worker asks, and of whom, follows
// from the seed alone.
func (u *Users) Run(ctx context.Context) []Call {
	u.begin = time.Now()
	var wg sync.WaitGroup
	for w := range u.Workers {
		wg.Go(func() { u.work(ctx, w, rand.New(rand.NewPCG(u.Seed, uint64(w)))) }) //nolint:gosec // repeatable by intent
	}
	wg.Wait()
	return u.calls
}

func (u *Users) work(ctx context.Context, w int, r *rand.Rand) {
	known := map[string]*api.PriorityClass{}
	for n := 0; ctx.Err() == nil; n++ {
		name, server, dice := prefix+strconv.Itoa(r.IntN(u.Objects)), u.Servers[r.IntN(len(u.Servers))], r.IntN(100)
		pause := time.Duration(r.Int64N(int64(u.Pace) + 1))
		c := Call{Worker: w, Server: server, Name: name, Text: fmt.Sprintf("%d.%d", w, n)}
		p, err := u.Reach(server)
		if err == nil {
			u.call(context.WithoutCancel(ctx), p, &c, dice, known)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// call makes one and notes it.
func (u *Users) call(ctx context.Context, p Pool, c *Call, dice int, known map[string]*api.PriorityClass) {
	ctx, cancel := context.WithTimeout(ctx, u.Limit)
	defer cancel()
	have := known[c.Name]
	var got api.Object
	var err error
	c.Begin = int64(time.Since(u.begin))
	switch {
	case dice < 10:
		c.Verb = list
		u.list(ctx, p, c)
		return
	case dice < 40 || have == nil && dice < 60:
		c.Verb, c.Text = read, ""
		got, err = p.Get(ctx, ref(c.Name))
	case have == nil:
		c.Verb = create
		got, err = p.Create(ctx, with(&api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: c.Name}}}, c.Text), "")
	case dice < 85:
		c.Verb, c.From = update, have.Annotations["text"]
		got, err = p.Replace(ctx, with(api.Clone(have), c.Text))
	default:
		c.Verb, c.From, c.Text = remove, have.Annotations["text"], ""
		_, err = p.Delete(ctx, ref(c.Name), have.Revision)
	}
	c.End = int64(time.Since(u.begin))
	delete(known, c.Name)
	answer(c, err)
	if o, ok := got.(*api.PriorityClass); ok && err == nil {
		known[c.Name] = o
		if c.Verb == read {
			c.Text = o.Annotations["text"]
		}
	}
	u.note(*c)
}

func with(o *api.PriorityClass, text string) *api.PriorityClass {
	o.Annotations = map[string]string{"text": text}
	return o
}

// answer says what an error means.
func answer(c *Call, err error) {
	c.Answer = fine
	if err == nil {
		return
	}
	c.Error = err.Error()
	kind := errs.KindOf(err)
	switch {
	case c.Verb == read && kind == errs.NotFound:
	case c.Verb == read || c.Verb == list:
		c.Answer = nothing
	case kind == errs.Conflict || kind == errs.Exists || kind == errs.NotFound:
		c.Answer = conflict
	default:
		c.Answer = unknown
	}
}

func (u *Users) list(ctx context.Context, p Pool, c *Call) {
	all, _, err := p.List(ctx, api.Selector{Kind: api.KindPriorityClass})
	c.End = int64(time.Since(u.begin))
	answer(c, err)
	seen := map[string]string{}
	for _, o := range all {
		seen[o.Metadata().Name] = o.Metadata().Annotations["text"]
	}
	for i := range u.Objects {
		x := *c
		x.Name = prefix + strconv.Itoa(i)
		x.Text = seen[x.Name]
		u.note(x)
	}
}

func (u *Users) note(c Call) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls = append(u.calls, c)
}

// Direct is a store as users would reach it.
type Direct struct{ store.Store }

// Create makes an object.
func (d Direct) Create(ctx context.Context, o api.Object, _ string) (api.Object, error) {
	return d.put(ctx, store.Create(o), o)
}

// Replace changes one that must still be at its revision.
func (d Direct) Replace(ctx context.Context, o api.Object) (api.Object, error) {
	return d.put(ctx, store.Update(o), o)
}

// Delete removes one.
func (d Direct) Delete(ctx context.Context, ref api.Ref, rev int64) (api.Object, error) {
	_, err := d.Commit(ctx, store.Remove(ref, rev))
	return nil, err
}

func (d Direct) put(ctx context.Context, op store.Op, o api.Object) (api.Object, error) {
	rev, err := d.Commit(ctx, op)
	if err != nil {
		return nil, err
	}
	o.Metadata().Revision = rev
	return o, nil
}
