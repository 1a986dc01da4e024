package near

import "testing"

func TestOf(t *testing.T) {
	for s, want := range map[string]string{"isle": "isle1", "ISLE2": "isle2", "ilse1": "isle1", "island": "", "": ""} {
		if got := Of(s, []string{"isle2", "isle1", "web"}); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}
