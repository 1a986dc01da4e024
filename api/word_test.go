package api

import (
	"regexp"
	"testing"

	"pgregory.net/rapid"
)

// The rules as regular expressions say the same as the written-out ones.
func TestWordsAreAsTheirRules(t *testing.T) {
	rules := []struct {
		is   func(string) bool
		rule *regexp.Regexp
	}{
		{ValidName, regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)},
		{validLabelKey, regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)},
		{validLabelValue, regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$`)},
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.StringMatching(`[a-zA-Z0-9._/-]{0,8}`), rapid.StringMatching(`[a-z0-9.-]{240,260}/[A-Za-z_]{0,3}`),
			rapid.StringMatching(`[a-z-]{58,66}`), rapid.String()).Draw(t, "s")
		for i, r := range rules {
			if r.is(s) != r.rule.MatchString(s) {
				t.Fatalf("rule %d on %q: %v", i, s, r.is(s))
			}
		}
	})
}
