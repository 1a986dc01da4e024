package change

import (
	"slices"
	"testing"
)

func FuzzGuardArgs(f *testing.F) {
	f.Add("up", "--config", "/dev/null")
	f.Add("", " ", "a\"b\\c\n\x7f\xff")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		want := []string{a, b, c}
		got, err := splitArgs(joinArgs(want))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q became %q %v", want, got, err)
		}
		_, _ = splitArgs(a) // whatever it is, it ends
	})
}
