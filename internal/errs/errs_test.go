package errs

import (
	"errors"
	"fmt"
	"testing"
)

func TestKindSurvivesWrapping(t *testing.T) {
	base := New(NotFound, "image %s", "busybox")
	err := fmt.Errorf("start web: %w", base)
	if !errors.Is(err, NotFound) || errors.Is(err, Denied) {
		t.Fatalf("kind lost: %v", err)
	}
	if KindOf(err) != NotFound || HTTPStatus(err) != 404 || ExitCode(err) != 3 {
		t.Fatalf("table: %v %d %d", KindOf(err), HTTPStatus(err), ExitCode(err))
	}
}

func TestOutermostKindWins(t *testing.T) {
	err := New(Unavailable, "pull: %w", New(NotFound, "layer"))
	if KindOf(err) != Unavailable {
		t.Fatalf("got %v", KindOf(err))
	}
	if !errors.Is(err, NotFound) {
		t.Fatal("the cause is no longer reachable")
	}
}

func TestHintIsFoundThroughTheChain(t *testing.T) {
	err := fmt.Errorf("x: %w", New(Internal, "y: %w", New(NotFound, "z").WithHint("do %d", 1)))
	if HintOf(err) != "do 1" {
		t.Fatalf("got %q", HintOf(err))
	}
}

func TestUnknownErrorsAreInternal(t *testing.T) {
	if KindOf(errors.New("x")) != Internal || HTTPStatus(errors.New("x")) != 500 || ExitCode(nil) != 0 {
		t.Fatal("defaults")
	}
}

func TestEveryKindHasARow(t *testing.T) {
	seen := map[Kind]bool{}
	for _, r := range table {
		if seen[r.kind] || r.http < 400 || r.exit < 1 || r.title == "" {
			t.Fatalf("row %+v", r)
		}
		seen[r.kind] = true
	}
}
