package parse

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestPlacementFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", `{"image":"x"}`},
		{"--node-label disk=ssd", `{"image":"x","placement":{"nodeLabels":{"disk":"ssd"}}}`},
		{"--max-per-node 1 --spread region:2", `{"image":"x","placement":{"spread":[{"topology":"region","maxSkew":2}],"maxPerNode":1}}`},
		{"--prefer-node-label disk=ssd,nvme", `{"image":"x","placement":{"nodes":[{"key":"disk","values":["ssd","nvme"],"weight":1}]}}`},
		{"--gang train:8", `{"image":"x","placement":{"gang":{"name":"train","size":8}}}`},
		{"--gpu 500m --gpu-model A100,H100", `{"image":"x","requests":{"gpu":"500m"},"gpuModels":["A100","H100"]}`},
		{"--exclusive-cpus --cpu 2 --memory 1Gi --hugepages 512Mi", `{"image":"x","requests":{"cpu":"2","memory":"1Gi"},"limits":{"cpu":"2","memory":"1Gi"},"exclusiveCpus":true,"hugepages":"512Mi"}`},
		{"--gang train", "error: --gang"},
		{"--gang train:many", "error: --gang"},
		{"--prefer-node-label disk", "error: --prefer-node-label"},
	} {
		var o Instance
		fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
		o.Flags(fs)
		if err := fs.Parse(strings.Fields(c.args)); err != nil {
			t.Fatal(err)
		}
		in, err := o.Object(func(string) string { return "" }, "x", nil)
		if err != nil {
			if !strings.HasPrefix(c.want, "error: ") || !strings.Contains(err.Error(), strings.TrimPrefix(c.want, "error: --")) {
				t.Errorf("%q: %v", c.args, err)
			}
			continue
		}
		b, err := json.Marshal(in.Spec)
		if err != nil || string(b) != c.want {
			t.Errorf("%q: %s %v, want %s", c.args, b, err, c.want)
		}
	}
}
