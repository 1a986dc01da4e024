package driver

import "testing"

func TestResolvConf(t *testing.T) {
	for want, s := range map[string]NetworkSpec{
		"nameserver 192.0.2.53\n":                          {DNS: []string{"192.0.2.53"}},
		"search a.example b.example\nnameserver fd00::1\n": {DNS: []string{"fd00::1"}, Search: []string{"a.example", "b.example"}},
		"": {},
	} {
		if got := s.ResolvConf(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
