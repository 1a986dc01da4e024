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
	const most = 1024 - 2 - 4 // network, gateway, and what ends with .255
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
