package main

import (
	"context"
	"fmt"

	"atoll/bench/lib"
)

// crypt measures two instances of two hosts with encryption between the hosts and without, in turns: the ratio is
// encrypted to plain. By what it is done, the kernel or a process, is said beside it.
func (b *bench) crypt(ctx context.Context, cross *pair, m map[string]any) error {
	kinds := []struct {
		key, unit string
		run       func(ctx context.Context, p *pair) (float64, error)
	}{{"tput", "Gbit/s", b.throughput}, {"rr", "trips/s", b.trips}}
	plain, encrypted := map[string][]float64{}, map[string][]float64{}
	for i := range b.rounds {
		for j := range 2 { // who is first takes turns, too
			mode, list := "on", encrypted
			if (i+j)%2 == 1 {
				mode, list = "off", plain
			}
			if _, err := b.l.Do("encryption", mode); err != nil {
				return err
			}
			for _, k := range kinds {
				v, err := k.run(ctx, cross)
				if err != nil {
					return fmt.Errorf("encryption %s, %s: %w", mode, k.key, err)
				}
				list[k.key] = append(list[k.key], v)
			}
		}
	}
	if _, err := b.l.Do("encryption", "on"); err != nil {
		return err
	}
	out, err := b.l.Do("encryption", "status")
	if err != nil {
		return err
	}
	fmt.Printf("\n%s\n%-12s %16s %16s %8s\n", out, "", "encrypted", "plain", "ratio")
	for _, k := range kinds {
		x, y := lib.Middle(encrypted[k.key]), lib.Middle(plain[k.key])
		m["crypt_"+k.key] = lib.Ratio(x, y)
		fmt.Printf("%-12s %9.2f %-7s %8.2f %-7s %7.3f\n", "crypt_"+k.key, x, k.unit, y, k.unit, lib.Ratio(x, y))
	}
	return nil
}
