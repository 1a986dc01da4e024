package vm

import "testing"

func TestStands(t *testing.T) {
	for console, want := range map[string]bool{
		"": false,
		"watchdog: BUG: soft lockup - CPU#0 stuck for 164s! [a:1]\n":                                                                       false, // the other one goes on
		"watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [a:1]\nwatchdog: BUG: soft lockup - CPU#1 stuck for 23s! [b:2]\n":               false, // not for long
		"watchdog: BUG: soft lockup - CPU#0 stuck for 60s! [a:1]\nrcu: stall\n[1] watchdog: BUG: soft lockup - CPU#1 stuck for 75s! [b:2]": true,
	} {
		if got := stands(console); got != want {
			t.Errorf("%q: %v", console, got)
		}
	}
}
