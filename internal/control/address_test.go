package control

import (
	"fmt"
	"testing"
)

func TestAddressesGoOnBeyondWhatIsLeftOut(t *testing.T) {
	a, err := newAddresses("10.0.0.0/22")
	if err != nil {
		t.Fatal(err)
	}
	const most = 1024 - 2 - 4 + 1 - 64 // network, gateway, what ends with .255, and the last sixteenth, which holds one of those
	seen := map[string]bool{}
	for i := range most {
		got, err := a.give(fmt.Sprint("u", i), "")
		if err != nil || seen[got] {
			t.Fatalf("the %dth address: %q %v", i, got, err)
		}
		seen[got] = true
	}
	if got, err := a.give("more", ""); err == nil {
		t.Fatalf("%s was free", got)
	}
	a.free("u7")
	if got, err := a.give("more", ""); err != nil || got != "10.0.0.9" {
		t.Fatalf("%q %v", got, err)
	}
}

// Two instances of different hosts may have the same address from before their pools were
// one; nobody gets it anew until both have given it back, and who moves gets another.
func TestAddressOfTwo(t *testing.T) {
	a, err := newAddresses("10.88.0.0/29")
	if err != nil {
		t.Fatal(err)
	}
	a.take("10.88.0.2", "here")
	a.take("10.88.0.2", "adopted")
	a.take("10.88.0.2", "adopted")
	for range 4 {
		got, err := a.give("new", "")
		if err != nil || got == "10.88.0.2" {
			t.Fatal(got, err)
		}
		a.free("new")
	}
	if _, err := a.give("fixed", "10.88.0.2"); err == nil {
		t.Fatal("an address in use was given")
	}
	a.free("here")
	if got, err := a.give("new", "10.88.0.2"); err == nil {
		t.Fatal("still the adopted one's", got)
	}
	if got, err := a.give("adopted", ""); err != nil || got != "10.88.0.2" {
		t.Fatal("it has it alone now", got, err)
	}
	a.take("10.88.0.2", "here")
	if got, err := a.give("here", ""); err != nil || got == "10.88.0.2" {
		t.Fatal("who moves gets another", got, err)
	}
	if got, err := a.give("adopted", ""); err != nil || got != "10.88.0.2" {
		t.Fatal(got, err)
	}
	a.free("adopted")
	if got, err := a.give("new", "10.88.0.2"); err != nil {
		t.Fatal(got, err)
	}
}
