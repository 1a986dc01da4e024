package parse

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
)

// Instance are the flags that describe an instance; run and create share them.
type Instance struct {
	name                                  string
	cpu, memory, cpuLimit, memoryLimit    string
	requests, limits                      []string
	isolation                             string
	env, envFiles                         []string
	workdir, user, hostname               string
	publish, volumes, tmpfs, networks     []string
	ip                                    string
	Restart                               string
	labels, annotations                   []string
	capAdd, capDrop                       []string
	readOnly                              bool
	entrypoint                            string
	pull                                  string
	healthCmd, healthHTTP, healthTCP      string
	healthEvery, healthTimeout, healthLag time.Duration
	healthFailures                        int
	stopTimeout                           time.Duration
	stopSignal                            string
	cpus                                  string
	node                                  string
	nodeLabels                            []string
	zone                                  string
	priority                              string
	spread, avoid, near, tolerate         []string
	maxPerNode                            int
	prefer                                []string
	gang                                  string
	queue                                 bool
	gpu                                   string
	gpuModels                             []string
	ownCPUs                               bool
	hugepages                             string
	net                                   shaping
	Interactive, TTY, Rm                  bool
}

// Flags adds them all.
func (o *Instance) Flags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.Rm, "rm", false, "remove the instance when it has ended")
	fs.BoolVarP(&o.Interactive, "interactive", "i", false, "keep standard input open")
	fs.BoolVarP(&o.TTY, "tty", "t", false, "give it a terminal")
	fs.StringVar(&o.name, "name", "", "name of the instance (default: a made-up one)")
	fs.StringVar(&o.cpu, "cpu", "", "CPU it is guaranteed, such as 500m or 2")
	fs.StringVar(&o.memory, "memory", "", "memory it is guaranteed, such as 512Mi")
	fs.StringVar(&o.cpuLimit, "cpu-limit", "", "most CPU it may use")
	fs.StringVar(&o.memoryLimit, "memory-limit", "", "most memory it may use")
	fs.StringArrayVar(&o.requests, "request", nil, "other guaranteed amounts: resource=amount,…")
	fs.StringArrayVar(&o.limits, "limit", nil, "other ceilings: resource=amount,…, such as iops=2000,pids=200")
	fs.StringVar(&o.isolation, "isolation", "", "how strong the wall is: container, sandbox, vm, wasm or auto")
	fs.StringArrayVarP(&o.env, "env", "e", nil, "NAME=value, or NAME to pass your own on")
	fs.StringArrayVar(&o.envFiles, "env-file", nil, "file of NAME=value lines")
	fs.StringVarP(&o.workdir, "workdir", "w", "", "directory it starts in")
	fs.StringVarP(&o.user, "user", "u", "", "user inside, with an optional :group")
	fs.StringVar(&o.hostname, "hostname", "", "host name inside (default: its name)")
	fs.StringArrayVarP(&o.publish, "publish", "p", nil, "[[IP:]HOST:]CONTAINER[/tcp|udp]: a port of the host that leads to it")
	fs.StringArrayVarP(&o.volumes, "volume", "v", nil, "NAME:/path[:ro], /host/path:/path[:ro], or /path for a fresh one")
	fs.StringArrayVar(&o.tmpfs, "tmpfs", nil, "/path[:SIZE] in memory")
	fs.StringArrayVar(&o.networks, "network", nil, "network; none: no network, host: the host's own")
	o.net.flags(fs)
	fs.StringVar(&o.ip, "ip", "", "fixed address on its first network")
	fs.StringVar(&o.Restart, "restart", "", "always, on-failure or never (default: always with -d, otherwise never)")
	fs.StringArrayVarP(&o.labels, "label", "l", nil, "key=value, for selecting")
	fs.StringArrayVar(&o.annotations, "annotation", nil, "key=value, a note")
	fs.StringSliceVar(&o.capAdd, "cap-add", nil, "kernel right to add; needs a role that grants it")
	fs.StringSliceVar(&o.capDrop, "cap-drop", nil, "kernel right to drop, or ALL")
	fs.BoolVar(&o.readOnly, "read-only", false, "its own files cannot be written")
	fs.StringVar(&o.entrypoint, "entrypoint", "", "program to run instead of the image's")
	fs.StringVar(&o.pull, "pull", "", "when to fetch the image: missing, always or never")
	fs.StringVar(&o.healthCmd, "health-cmd", "", "healthy when this shell command exits with 0")
	fs.StringVar(&o.healthHTTP, "health-http", "", "healthy when PORT/path answers 200 to 399")
	fs.StringVar(&o.healthTCP, "health-tcp", "", "healthy when this port accepts")
	fs.DurationVar(&o.healthEvery, "health-every", 0, "pause between checks (default 10s)")
	fs.DurationVar(&o.healthTimeout, "health-timeout", 0, "a check that takes longer has failed (default 3s)")
	fs.DurationVar(&o.healthLag, "health-start-period", 0, "failures do not count so soon after the start")
	fs.IntVar(&o.healthFailures, "health-failures", 0, "so many in a row and it is unhealthy (default 3)")
	fs.DurationVar(&o.stopTimeout, "stop-timeout", -1, "how long it may take to end before it is killed (default 10s)")
	fs.StringVar(&o.stopSignal, "stop-signal", "", "signal that asks it to end")
	fs.StringVar(&o.cpus, "cpuset", "", "only on these cores of the host, such as 0-3,8")
	fs.StringVar(&o.cpus, "cpus", "", "the same as --cpuset")
	fs.BoolVar(&o.ownCPUs, "exclusive-cpus", false, "whole cores nothing else runs on; --cpu and --memory become its limits, too")
	fs.StringVar(&o.hugepages, "hugepages", "", "part of --memory that comes from huge pages, such as 1Gi")
	fs.StringVar(&o.gpu, "gpu", "", "GPUs it is guaranteed: 1, 2 …, or a part of one such as 500m")
	fs.StringSliceVar(&o.gpuModels, "gpu-model", nil, "only on one of these models")
	fs.StringVar(&o.node, "node", "", "only on this node")
	fs.StringArrayVar(&o.nodeLabels, "node-label", nil, "only on nodes with key=value")
	fs.StringVar(&o.zone, "zone", "", "only in this zone")
	fs.StringVar(&o.priority, "priority", "", "priority class")
	fs.StringArrayVar(&o.spread, "spread", nil, "keep instances of the same labels apart: host, rack, zone or region[:MAXSKEW]")
	fs.StringArrayVar(&o.avoid, "avoid", nil, "not where instances with key=value[@host|rack|zone|region] run")
	fs.StringArrayVar(&o.near, "near", nil, "where instances with key=value[@host|rack|zone|region] run")
	fs.IntVar(&o.maxPerNode, "max-per-node", 0, "at most so many with the same labels on one node")
	fs.StringArrayVar(&o.prefer, "prefer-node-label", nil, "rather on nodes with key=value[,value…]")
	fs.BoolVar(&o.queue, "queue", false, "when the pool has no room, wait for it instead of being refused")
	fs.StringVar(&o.gang, "gang", "", "NAME:SIZE: start together with SIZE-1 others of that gang, or not at all")
	fs.StringArrayVar(&o.tolerate, "tolerate", nil, "taint that does not keep it away: key[=value][:Effect]")
	fs.Lookup("stop-timeout").DefValue = "0s" // so that help does not show the mark for "not given"
}

// Object makes the object the flags describe.
func (o *Instance) Object(getenv func(string) string, image string, command []string) (*api.Instance, error) {
	in := &api.Instance{Head: api.Head{K: api.KindInstance}}
	in.Name = o.name
	s := &in.Spec
	s.Image, s.Command = image, command
	s.Isolation, s.Workdir, s.User, s.Hostname = api.Isolation(o.isolation), o.workdir, o.user, o.hostname
	s.Restart, s.Pull, s.StopSignal, s.CPUs, s.Priority = o.Restart, o.pull, o.stopSignal, o.cpus, o.priority
	s.Queue = o.queue
	s.ExclusiveCPUs, s.Hugepages, s.GPUModels = o.ownCPUs, o.hugepages, o.gpuModels
	s.Stdin, s.TTY, s.AutoRm, s.ReadOnlyRoot = o.Interactive, o.TTY, o.Rm, o.readOnly
	if o.entrypoint != "" {
		s.Entry = []string{o.entrypoint}
	}
	if o.stopTimeout >= 0 {
		d := api.Duration(o.stopTimeout)
		s.StopTimeout = &d
	}
	if len(o.capAdd)+len(o.capDrop) > 0 {
		s.Capabilities = &api.Capabilities{Add: o.capAdd, Drop: o.capDrop}
	}
	if err := o.setEnv(getenv, in); err != nil {
		return nil, err
	}
	for _, step := range []func(*api.Instance) error{o.setMeta, o.setResources, o.setNetwork, o.setMounts, o.setHealth, o.setPlacement} {
		if err := step(in); err != nil {
			return nil, err
		}
	}
	return in, nil
}

func (o *Instance) setMeta(in *api.Instance) (err error) {
	if in.Labels, err = Pairs("label", o.labels); err != nil {
		return err
	}
	in.Annotations, err = Pairs("annotation", o.annotations)
	return err
}

func (o *Instance) setResources(in *api.Instance) error {
	read := func(kind, flag, single string, r api.Resource, into *api.Resources) error {
		if single == "" {
			return nil
		}
		v, err := api.ParseQuantity(r, single)
		if err != nil {
			return BadFlag(flag, single, err.Error(), "")
		}
		if _, twice := (*into)[r]; twice {
			return BadFlag(flag, single, fmt.Sprintf("%s is given by --%s, too", r, kind), "")
		}
		if *into == nil {
			*into = api.Resources{}
		}
		(*into)[r] = v
		return nil
	}
	for _, part := range []struct {
		flag string
		list []string
		into *api.Resources
	}{{"request", o.requests, &in.Spec.Requests}, {"limit", o.limits, &in.Spec.Limits}} {
		for _, l := range part.list {
			m, err := api.ParseResources(l)
			if err != nil {
				return BadFlag(part.flag, l, err.Error(), "iops=2000")
			}
			*part.into = part.into.Add(m)
		}
	}
	for _, err := range []error{
		read("request", "cpu", o.cpu, api.CPU, &in.Spec.Requests), read("request", "memory", o.memory, api.Memory, &in.Spec.Requests),
		read("request", "gpu", o.gpu, api.GPU, &in.Spec.Requests), read("request", "net-guarantee", o.net.guarantee, api.NetBandwidth, &in.Spec.Requests),
		read("limit", "cpu-limit", o.cpuLimit, api.CPU, &in.Spec.Limits), read("limit", "memory-limit", o.memoryLimit, api.Memory, &in.Spec.Limits),
		read("limit", "net-limit", o.net.limit, api.NetBandwidth, &in.Spec.Limits),
	} {
		if err != nil {
			return err
		}
	}
	if o.ownCPUs { // such an instance is of class guaranteed: what it asks for is what it may use
		for _, r := range []api.Resource{api.CPU, api.Memory} {
			if v, ok := in.Spec.Requests[r]; ok && in.Spec.Limits[r] == 0 {
				in.Spec.Limits = in.Spec.Limits.Add(api.Resources{r: v})
			}
		}
	}
	return nil
}

// setEnv: files first, so that a flag outranks them.
func (o *Instance) setEnv(getenv func(string) string, in *api.Instance) error {
	var all []api.EnvVar
	for _, f := range o.envFiles {
		b, err := ReadFile(f, maxEnvFile)
		if err != nil {
			return BadFlag("env-file", f, err.Error(), "")
		}
		vars, err := EnvFile(b, getenv)
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, vars...)
	}
	for _, e := range o.env {
		v, set, err := Env(e, getenv)
		if err != nil {
			return err
		}
		if set {
			all = append(all, v)
		}
	}
	at := map[string]int{}
	for _, v := range all {
		if i, twice := at[v.Name]; twice {
			in.Spec.Env[i] = v
			continue
		}
		at[v.Name] = len(in.Spec.Env)
		in.Spec.Env = append(in.Spec.Env, v)
	}
	return nil
}

func (o *Instance) setNetwork(in *api.Instance) error {
	for _, n := range o.networks {
		in.Spec.Networks = append(in.Spec.Networks, api.Attach{Name: n})
	}
	if o.ip != "" {
		if len(in.Spec.Networks) == 0 {
			in.Spec.Networks = []api.Attach{{Name: api.NetworkDefault}}
		}
		in.Spec.Networks[0].Address = o.ip
	}
	in.Spec.Shaping = o.net.spec()
	for _, s := range o.publish {
		p, err := Port(s)
		if err != nil {
			return err
		}
		in.Spec.Ports = append(in.Spec.Ports, p)
	}
	return nil
}

func (o *Instance) setMounts(in *api.Instance) error {
	for _, s := range o.volumes {
		m, err := Volume(s)
		if err != nil {
			return err
		}
		in.Spec.Volumes = append(in.Spec.Volumes, m)
	}
	for _, s := range o.tmpfs {
		m, err := Tmpfs(s)
		if err != nil {
			return err
		}
		in.Spec.Volumes = append(in.Spec.Volumes, m)
	}
	return nil
}

func (o *Instance) setHealth(in *api.Instance) error {
	h := &api.Health{HTTP: o.healthHTTP, TCP: o.healthTCP, Failures: o.healthFailures,
		Every: duration(o.healthEvery), Timeout: duration(o.healthTimeout), StartPeriod: duration(o.healthLag)}
	if o.healthCmd != "" {
		h.Exec = []string{"sh", "-c", o.healthCmd}
	}
	checked := len(h.Exec) > 0 || h.HTTP != "" || h.TCP != ""
	if tuned := h.Failures != 0 || h.Every != nil || h.Timeout != nil || h.StartPeriod != nil; tuned && !checked {
		return BadFlag("health-every", "", "there is no check to tune: give --health-cmd, --health-http or --health-tcp", "")
	}
	if checked {
		in.Spec.Health = h
	}
	return nil
}

func duration(d time.Duration) *api.Duration {
	if d == 0 {
		return nil
	}
	v := api.Duration(d)
	return &v
}

func (o *Instance) setPlacement(in *api.Instance) (err error) {
	p := &api.Placement{Node: o.node, Zone: o.zone, MaxPerNode: o.maxPerNode}
	if p.NodeLabels, err = Pairs("node-label", o.nodeLabels); err != nil {
		return err
	}
	for _, s := range o.spread {
		t, err := Spread(s)
		if err != nil {
			return err
		}
		p.Spread = append(p.Spread, t)
	}
	for _, s := range o.tolerate {
		t, err := Taint("tolerate", s)
		if err != nil {
			return err
		}
		p.Tolerate = append(p.Tolerate, t)
	}
	for _, list := range []struct {
		flag string
		in   []string
		out  *[]api.AffinityTerm
	}{{"avoid", o.avoid, &p.Avoid}, {"near", o.near, &p.Near}} {
		for _, s := range list.in {
			t, err := Affinity(list.flag, s)
			if err != nil {
				return err
			}
			*list.out = append(*list.out, t)
		}
	}
	for _, s := range o.prefer {
		key, values, ok := strings.Cut(s, "=")
		if !ok || key == "" || values == "" {
			return BadFlag("prefer-node-label", s, "must be key=value[,value…]", "disk=ssd,nvme")
		}
		p.Nodes = append(p.Nodes, api.NodeTerm{Key: key, Values: strings.Split(values, ","), Weight: 1})
	}
	if o.gang != "" {
		name, size, ok := strings.Cut(o.gang, ":")
		n, err := strconv.Atoi(size)
		if !ok || name == "" || err != nil {
			return BadFlag("gang", o.gang, "must be NAME:SIZE", "train-7:8")
		}
		p.Gang = &api.Gang{Name: name, Size: n}
	}
	if !reflect.DeepEqual(*p, api.Placement{NodeLabels: p.NodeLabels}) || len(p.NodeLabels) > 0 {
		in.Spec.Placement = p
	}
	return nil
}
