package clock

import (
	"context"
	"testing"
	"time"
)

func TestManualFiresInOrder(t *testing.T) {
	m := NewManual(time.Unix(0, 0))
	b, a := m.NewTimer(2*time.Second), m.NewTimer(time.Second)
	if at, ok := m.Next(); !ok || at != time.Unix(1, 0) {
		t.Fatalf("next %v %v", at, ok)
	}
	m.Advance(1500 * time.Millisecond)
	select {
	case at := <-a.C:
		if at != time.Unix(1, 0) {
			t.Fatalf("fired at %v", at)
		}
	default:
		t.Fatal("a did not fire")
	}
	select {
	case <-b.C:
		t.Fatal("b fired early")
	default:
	}
	if !b.Stop() || b.Stop() {
		t.Fatal("stop")
	}
	if got := m.Now(); got != time.Unix(1, 500e6) {
		t.Fatalf("now %v", got)
	}
}

func TestSleepEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []Clock{Real{}, NewManual(time.Unix(0, 0))} {
		if err := c.Sleep(ctx, time.Hour); err != context.Canceled {
			t.Fatalf("%T: %v", c, err)
		}
	}
}
