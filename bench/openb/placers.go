package main

import (
	"atoll/internal/policy/gpu"
)

type fgd struct{ typical []gpu.Typical }

func (f *fgd) score(n *gpu.Node, it *gpu.Item) (float64, gpu.Set) {
	g, set := gpu.Gradient(n, it, f.typical)
	return float64(g), set
}
func (*fgd) placed(int, *gpu.Node, *gpu.Item) {}
func (*fgd) epoch() uint64                    { return 0 }

type bestFit struct{}

// score is the sum of what stays free, of 128 cores and 8 devices, cut to 0..100.
func (bestFit) score(n *gpu.Node, it *gpu.Item) (float64, gpu.Set) {
	left := 0.5*float64(n.CPU-it.CPU)/128000 + 0.5*float64(n.Idle()-it.Demand())/8000
	return float64(int((1 - left) * 100)), n.Tightest(it, gpu.AllDevices)
}
func (bestFit) placed(int, *gpu.Node, *gpu.Item) {}
func (bestFit) epoch() uint64                    { return 0 }

// atoll is the pool's own policy.
type atoll struct {
	market *gpu.Market
	sizes  []gpu.Node
	items  [][]gpu.Item
}

func newAtoll(c *cluster, conf gpu.Config) *atoll {
	a := &atoll{market: gpu.NewMarket(conf), sizes: c.nodes, items: make([][]gpu.Item, len(c.nodes))}
	for i, n := range c.nodes {
		a.market.Set(i, n, n, nil)
	}
	return a
}

func (a *atoll) score(n *gpu.Node, it *gpu.Item) (float64, gpu.Set) {
	cost, set := a.market.Cost(n, it, gpu.AllDevices)
	return -cost, set
}

func (a *atoll) placed(id int, after *gpu.Node, it *gpu.Item) {
	a.items[id] = append(a.items[id], *it)
	a.market.Set(id, a.sizes[id], *after, a.items[id])
}

func (a *atoll) epoch() uint64 { return a.market.Epoch() }
