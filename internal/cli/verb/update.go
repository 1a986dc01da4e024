package verb

import (
	"context"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

const MaxConflicts = 10

// Update changes an object, reading it anew when somebody else was faster, and
// gives the object as it was written. A change of nothing writes nothing.
func Update[T api.Object](ctx context.Context, c *Call, o T, change func(T)) (T, error) {
	cl, err := c.Server()
	if err != nil {
		return o, err
	}
	for try := 0; ; try++ {
		n := api.Clone(o)
		change(n)
		if Same(o, n) {
			return n, nil
		}
		if err := api.Check(n); err != nil {
			return o, err
		}
		rev, err := cl.Commit(ctx, store.Update(n))
		if err == nil {
			n.Metadata().Revision = rev
			return n, nil
		}
		if errs.KindOf(err) != errs.Conflict || try >= MaxConflicts {
			return o, err
		}
		if o, err = store.Get[T](ctx, cl, api.RefOf(o)); err != nil {
			return o, err
		}
	}
}

// Same compares objects by what is written of them.
func Same(a, b api.Object) bool {
	x, err1 := api.Encode(a)
	y, err2 := api.Encode(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

// With is a copy of a map with one more entry.
func With(m map[string]string, k, v string) map[string]string {
	out := map[string]string{k: v}
	for key, val := range m {
		if key != k {
			out[key] = val
		}
	}
	return out
}
