package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"atoll/internal/policy/gpu"
	"atoll/internal/trace/openb"
)

// cluster is the nodes as the policies see them, and how models are numbered.
type cluster struct {
	nodes    []gpu.Node
	models   []string
	capacity int64 // milli of all devices
}

func open[T any](path string, read func(io.Reader) (T, error)) (T, error) {
	var none T
	f, err := os.Open(path)
	if err != nil {
		return none, err
	}
	defer f.Close()
	return read(f)
}

func loadCluster(dir string) (*cluster, error) {
	list, err := open(filepath.Join(dir, "nodes", "openb_node_list_gpu_node.csv.gz"), openb.Nodes)
	if err != nil {
		return nil, err
	}
	c := &cluster{}
	classes := gpu.NewMarket(gpu.Defaults())
	for _, x := range list {
		n := gpu.Node{CPU: x.CPU, Memory: x.Memory, Devices: int8(x.GPUs), Model: int8(c.model(x.Model))}
		for d := range n.Free[:x.GPUs] {
			n.Free[d] = gpu.Whole
		}
		n.Class = classes.Set(len(c.nodes), n, n, nil)
		c.capacity += n.Idle()
		c.nodes = append(c.nodes, n)
	}
	return c, nil
}

func (c *cluster) model(name string) int {
	if i := slices.Index(c.models, name); i >= 0 {
		return i
	}
	c.models = append(c.models, name)
	return len(c.models) - 1
}

func (c *cluster) items(pods []openb.Pod) []gpu.Item {
	out := make([]gpu.Item, len(pods))
	for i, p := range pods {
		out[i] = gpu.Item{CPU: p.CPU, Memory: p.Memory, Count: int8(p.GPUs), Milli: int16(p.Milli)}
		for _, m := range p.Models {
			out[i].Models |= 1 << c.model(m)
		}
	}
	return out
}

// lists names the pod lists of the folder.
func lists(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "pods", "openb_pod_list_*.csv.gz"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		out = append(out, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "openb_pod_list_"), ".csv.gz"))
	}
	return out, nil
}

func loadPods(dir, list string) ([]openb.Pod, error) {
	return open(filepath.Join(dir, "pods", "openb_pod_list_"+list+".csv.gz"), openb.Pods)
}
