package bpf

import "testing"

func TestProbe(t *testing.T) {
	if err := Probe(); err != nil {
		t.Fatalf("%+v", err)
	}
}
