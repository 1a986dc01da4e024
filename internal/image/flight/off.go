package flight

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"atoll/api"
)

// CalledOff is the error of work that was called off; nil while it was not.
func CalledOff(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("called off: %w", err)
	}
	return nil
}

// Canceled tells whether an error says that work was called off.
func Canceled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// Serial makes a progress function safe to be told by many.
func Serial(fn func(api.Progress)) func(api.Progress) {
	if fn == nil {
		return func(api.Progress) {}
	}
	var mu sync.Mutex
	return func(p api.Progress) {
		mu.Lock()
		defer mu.Unlock()
		fn(p)
	}
}
