package cli

import (
	"context"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

const maxConflicts = 10

// update changes an object, reading it anew when somebody else was faster, and
// gives the object as it was written. A change of nothing writes nothing.
func update[T api.Object](ctx context.Context, c *call, o T, change func(T)) (T, error) {
	cl, err := c.server()
	if err != nil {
		return o, err
	}
	for try := 0; ; try++ {
		n := api.Clone(o)
		change(n)
		if same(o, n) {
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
		if errs.KindOf(err) != errs.Conflict || try >= maxConflicts {
			return o, err
		}
		if o, err = store.Get[T](ctx, cl, api.RefOf(o)); err != nil {
			return o, err
		}
	}
}

// same compares objects by what is written of them.
func same(a, b api.Object) bool {
	x, err1 := api.Encode(a)
	y, err2 := api.Encode(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

func with(m map[string]string, k, v string) map[string]string {
	out := map[string]string{k: v}
	for key, val := range m {
		if key != k {
			out[key] = val
		}
	}
	return out
}
