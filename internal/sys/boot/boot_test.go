package boot

import (
	"errors"
	"os"
	"testing"
	"time"
)

func TestNowMoves(t *testing.T) {
	a := Now()
	time.Sleep(10 * time.Millisecond)
	if d := Now() - a; a <= 0 || d < 10*time.Millisecond || d > 10*time.Second {
		t.Errorf("%v passed as %v", 10*time.Millisecond, d)
	}
}

func TestTimer(t *testing.T) {
	tm, err := NewTimer()
	if err != nil {
		t.Fatal(err)
	}
	set := func(at time.Duration) {
		t.Helper()
		if err := tm.Set(at); err != nil {
			t.Fatal(err)
		}
	}
	set(Now() - time.Second) // passed already
	if err := tm.Wait(); err != nil {
		t.Fatal(err)
	}
	at := Now() + 50*time.Millisecond
	set(at)
	if err := tm.Wait(); err != nil || Now() < at {
		t.Error("woke early", err)
	}
	// One who waits for a far moment is woken by a nearer one.
	set(Now() + time.Hour)
	woke := make(chan error, 1)
	go func() { woke <- tm.Wait() }()
	time.Sleep(20 * time.Millisecond)
	set(Now() + 20*time.Millisecond)
	if err := <-woke; err != nil {
		t.Error(err)
	}
	set(0)
	go func() { woke <- tm.Wait() }()
	time.Sleep(20 * time.Millisecond)
	if err := tm.Close(); err != nil {
		t.Error(err)
	}
	if err := <-woke; !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}
