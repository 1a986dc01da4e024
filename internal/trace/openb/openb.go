// Package openb reads the node and pod lists of the openb GPU cluster trace
// (Weng et al., USENIX ATC'23) and makes the arrival sequence of the published
// experiment from them; plain or gzip. It reads what it is given and starts no goroutine; it
// must never open a file by itself, nor believe a number without a bound.
package openb

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/trace"
)

// Node is a host of the trace.
type Node struct {
	Name   string
	CPU    int64 // milli
	Memory int64 // MiB
	GPUs   int
	Model  string // "" without GPUs
}

// Pod is one request of the trace.
type Pod struct {
	Name   string
	CPU    int64    // milli
	Memory int64    // MiB
	GPUs   int      // devices on one node; 0: none
	Milli  int64    // of each device; 1000 is a whole one
	Models []string // allowed ones; empty: any
	From   int64    // seconds; when it was created
	To     int64    // seconds; when it was deleted, 0: not known
}

// Demand is the GPU milli asked on all devices together.
func (p *Pod) Demand() int64 { return int64(p.GPUs) * p.Milli }

// Bounds on what is read; the published lists stay below a tenth of each.
const (
	maxRows   = 1_000_000
	maxCPU    = 10_000_000 // milli: ten thousand cores
	maxTime   = int64(trace.MaxTime / time.Second)
	maxMemory = 1 << 30 // MiB: a pebibyte
	maxGPUs   = 64      // of one host
	whole     = 1000    // milli of a whole device
	maxField  = 4096    // bytes
	maxModels = 64      // of one pod
)

// Nodes reads a node list: sn, cpu_milli, memory_mib, gpu, model.
func Nodes(r io.Reader) ([]Node, error) {
	var out []Node
	err := rows(r, []string{"sn", "cpu_milli", "memory_mib", "gpu", "model"}, func(f []string) error {
		n := Node{Name: f[0], Model: strings.TrimSpace(f[4])}
		var gpus int64
		if err := numbers(f[1:4], []*int64{&n.CPU, &n.Memory, &gpus}, []int64{maxCPU, maxMemory, maxGPUs}); err != nil {
			return err
		}
		n.GPUs = int(gpus)
		if n.Name == "" {
			return errs.New(errs.Invalid, "a node without a name")
		}
		out = append(out, n)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read node list: %w", err)
	}
	return out, nil
}

// Pods reads a pod list: name, cpu_milli, memory_mib, num_gpu, gpu_milli, gpu_spec, and more that is ignored.
func Pods(r io.Reader) ([]Pod, error) {
	var out []Pod
	err := rows(r, []string{"name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec?", "creation_time?", "deletion_time?"}, func(f []string) error {
		p := Pod{Name: f[0]}
		for _, i := range []int{4, 6, 7} {
			if f[i] == "" {
				f[i] = "0"
			}
		}
		var gpus int64
		if err := numbers(f[1:5], []*int64{&p.CPU, &p.Memory, &gpus, &p.Milli}, []int64{maxCPU, maxMemory, maxGPUs, whole}); err != nil {
			return err
		}
		if err := numbers(f[6:8], []*int64{&p.From, &p.To}, []int64{maxTime, maxTime}); err != nil {
			return err
		}
		p.GPUs = int(gpus)
		for _, m := range strings.Split(f[5], "|") {
			if m = strings.TrimSpace(m); m != "" {
				p.Models = append(p.Models, m)
			}
		}
		switch {
		case p.Name == "":
			return errs.New(errs.Invalid, "a pod without a name")
		case len(p.Models) > maxModels:
			return errs.New(errs.Invalid, "more than %d models", maxModels)
		case p.GPUs == 0:
			p.Milli = 0
		case p.Milli == 0:
			return errs.New(errs.Invalid, "%d GPUs of 0 milli", p.GPUs)
		case p.GPUs > 1 && p.Milli != whole:
			return errs.New(errs.Invalid, "%d GPUs of %d milli: only one device can be shared", p.GPUs, p.Milli)
		}
		out = append(out, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read pod list: %w", err)
	}
	return out, nil
}

// Read gives the pods as arrivals with what they ask and how long they lasted. What
// models a pod allows is not kept.
func Read(r io.Reader) (*trace.Trace, error) {
	pods, err := Pods(r)
	if err != nil {
		return nil, err
	}
	t := &trace.Trace{Arrivals: make([]trace.Arrival, len(pods))}
	for i, p := range pods {
		a := trace.Arrival{At: trace.Seconds(p.From), Requests: api.Resources{api.CPU: p.CPU, api.Memory: p.Memory << 20}}
		if p.To > p.From {
			a.Lasts = trace.Seconds(p.To - p.From)
		}
		if p.GPUs > 0 {
			a.Requests[api.GPU] = p.Demand()
		}
		t.Arrivals[i] = a
	}
	return t, t.Check()
}

// rows reads a table with a header, gives fn the wanted columns of each row; one
// whose name ends in "?" may be missing and is then empty.
func rows(r io.Reader, want []string, fn func([]string) error) error {
	in, err := trace.Reader(r)
	if err != nil {
		return err
	}
	c := csv.NewReader(in)
	c.ReuseRecord = true
	head, err := c.Read()
	if err != nil {
		return errs.New(errs.Invalid, "no header: %v", err)
	}
	at := make([]int, len(want))
	for i, w := range want {
		name, optional := strings.CutSuffix(w, "?")
		at[i] = slices.IndexFunc(head, func(h string) bool { return strings.TrimSpace(h) == name })
		if at[i] < 0 && !optional {
			return errs.New(errs.Invalid, "no column %s", w)
		}
	}
	fields := make([]string, len(want))
	for line := 2; ; line++ {
		rec, err := c.Read()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return errs.New(errs.Invalid, "%v", err)
		case line > maxRows:
			return errs.New(errs.Invalid, "more than %d rows", maxRows)
		}
		for i, j := range at {
			if j < 0 {
				fields[i] = ""
				continue
			}
			if len(rec[j]) > maxField {
				return errs.New(errs.Invalid, "line %d: a field of %d bytes", line, len(rec[j]))
			}
			fields[i] = strings.Clone(rec[j])
		}
		if err := fn(fields); err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
	}
}

func numbers(f []string, into []*int64, top []int64) error {
	for i, s := range f {
		v, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		if err != nil || v < 0 || v > top[i] {
			return errs.New(errs.Invalid, "%.40q is not a number of 0 to %d", s, top[i])
		}
		*into[i] = v
	}
	return nil
}
