// Command openb plays the published GPU sharing experiment (Weng et al., USENIX
// ATC'23: 1,213 nodes, 6,212 GPUs): the pods of a list, shuffled and inflated to
// 130 % of the GPUs, come one by one; what fits nowhere is dropped, what fits
// somewhere is placed at once. Best fit and the fragmentation gradient (FGD) are
// played as published, to show that the experiment is the same, then the product's
// policy, on the same sequences and counted by the same code.
//
// A(k) is the part of all GPUs in use when so many percent of them have been asked
// for. The product's policy learns from what is placed only; FGD is given the mix of
// the whole list beforehand, as in the paper.
//
// Two numbers guard against winning by starving some: how many more instances of two
// or more GPUs were dropped than by FGD up to 90 % arrivals, and how many more without
// GPU over the run. Each is the largest difference of any list and seed.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"atoll/bench/lib"
	"atoll/internal/policy/gpu"
)

const firstSeed = 42 // of the published ten

// options are what to play.
type options struct {
	data     string
	lists    []string
	seeds    int
	policies []string
	conf     gpu.Config
}

func main() {
	o := options{conf: gpu.Defaults()}
	flag.StringVar(&o.data, "data", "../shared/data/openb-gpu-2023", "folder of the lists")
	names := flag.String("lists", "", "lists to play, such as default,cpu200; all when empty")
	policies := flag.String("policies", "bestfit,fgd,atoll", "policies to play")
	flag.IntVar(&o.seeds, "seeds", 10, "seeds to play, from 42 on")
	config := flag.String("config", "", `other settings of atoll, such as {"Horizon": 2}`)
	flag.Parse()
	if *names != "" {
		o.lists = strings.Split(*names, ",")
	}
	o.policies = strings.Split(*policies, ",")
	if *config != "" {
		d := json.NewDecoder(strings.NewReader(*config))
		d.DisallowUnknownFields()
		if err := d.Decode(&o.conf); err != nil {
			lib.Fatal(fmt.Errorf("-config: %w", err))
		}
	}
	if err := bench(o); err != nil {
		lib.Fatal(err)
	}
}

func bench(o options) error {
	for _, p := range o.policies {
		if !slices.Contains([]string{"bestfit", "fgd", "atoll"}, p) {
			return fmt.Errorf("no policy %s: bestfit, fgd and atoll are known", p)
		}
	}
	if o.seeds < 1 {
		return fmt.Errorf("%d seeds: at least one is needed", o.seeds)
	}
	c, err := loadCluster(o.data)
	if errors.Is(err, os.ErrNotExist) {
		fmt.Printf("the lists are not here (%s); see -data\n", o.data)
		lib.JSON(map[string]any{"bench": "openb", "skipped": "openb-gpu-2023 is absent"})
		return nil
	}
	if err != nil {
		return err
	}
	if len(o.lists) == 0 {
		if o.lists, err = lists(o.data); err != nil {
			return err
		}
	}
	fmt.Printf("%d nodes, %d GPUs, seeds %d to %d\n\n%-12s %-8s %7s %7s %8s %8s %8s %9s\n", len(c.nodes), c.capacity/gpu.Whole, firstSeed, firstSeed+o.seeds-1,
		"list", "policy", "A(130)", "A(100)", "dropped", "multi<90", "no GPU", "µs/each")
	var all []*report
	for _, l := range o.lists {
		r, err := play(c, o, l)
		if err != nil {
			return fmt.Errorf("list %s: %w", l, err)
		}
		r.print(o.policies)
		all = append(all, r)
	}
	lib.JSON(summary(o, all))
	return nil
}
