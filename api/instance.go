package api

import (
	"fmt"
	"net/netip"
	"path"
	"reflect"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindInstance is one running unit.
const KindInstance Kind = "Instance"

// Instance is one running unit of some isolation. Spec is the user's, Status is
// written by the agent of the node it is assigned to.
type Instance struct {
	Head
	Spec   InstanceSpec   `json:"spec"`
	Status InstanceStatus `json:"status,omitzero"`
}

// InstanceSpec is what should run, and with how much.
type InstanceSpec struct {
	Image     string    `json:"image" doc:"OCI image, by name or digest" example:"debian:12"`
	Pull      string    `json:"pull,omitempty" doc:"when to fetch the image" enum:"missing|always|never" default:"missing"`
	Command   []string  `json:"command,omitempty" doc:"program and arguments; default: the image's" example:"[db-server, --port, \"5432\"]"`
	Entry     []string  `json:"entrypoint,omitempty" doc:"replaces the image's entrypoint; command becomes its arguments"`
	Env       []EnvVar  `json:"env,omitempty" doc:"environment; added to the image's"`
	Workdir   string    `json:"workdir,omitempty" doc:"directory it starts in; default: the image's" example:"/srv"`
	User      string    `json:"user,omitempty" doc:"user inside, name or number, with an optional :group; default: the image's" example:"1000:1000"`
	Hostname  string    `json:"hostname,omitempty" doc:"default: the instance's name"`
	Isolation Isolation `json:"isolation,omitempty" doc:"how strong the wall is; never weakened silently" enum:"container|sandbox|vm|wasm|auto" default:"container"`
	Requests  Resources `json:"requests,omitempty" doc:"placed by it, and guaranteed" example:"{cpu: 500m, memory: 512Mi}"`
	Limits    Resources `json:"limits,omitempty" doc:"ceiling on what is actually used" example:"{memory: 1Gi, iops: 2000}"`
	CPUs      string    `json:"cpus,omitempty" doc:"run only on these cores of the host" example:"0-3,8"`

	ExclusiveCPUs bool     `json:"exclusiveCpus,omitempty" doc:"whole cores of one NUMA cell that nothing else of the pool uses; needs whole cores in requests and the class guaranteed"`
	Hugepages     string   `json:"hugepages,omitempty" doc:"memory of that size from huge pages, part of requests.memory" example:"1Gi"`
	GPUModels     []string `json:"gpuModels,omitempty" doc:"only on one of these models" example:"[A100, H100]"`

	Queue bool `json:"queue,omitempty" doc:"when the pool has no room, wait for it instead of being refused; implied by a gang, and by a priorityClass that preempts"`

	Restart   string     `json:"restart,omitempty" doc:"what to do when it ends" enum:"always|on-failure|never" default:"always"`
	Stopped   bool       `json:"stopped,omitempty" doc:"keep it, but do not run it"`
	Restarts  int64      `json:"restartRequests,omitempty" doc:"grows by one with every 'atoll restart'"`
	AutoRm    bool       `json:"autoRemove,omitempty" doc:"remove it when it has ended"`
	Placement *Placement `json:"placement,omitempty" doc:"where it may and should run"`
	Exclusive bool       `json:"exclusive,omitempty" doc:"never runs twice, not even when its host is cut off: it is stopped there before it is started elsewhere; implied by a fixed address and by a named volume"`
	Priority  string     `json:"priorityClass,omitempty" doc:"rank; default: the pool's default class" example:"batch"`
	Networks  []Attach   `json:"networks,omitempty" doc:"networks it is on; none: no network, host: the host's own (needs a right)" example:"[{name: main}]"`
	Shaping   *Shaping   `json:"shaping,omitempty" doc:"how much of the network it may use, finer than limits.netBandwidth"`
	Ports     []Port     `json:"ports,omitempty" doc:"ports it listens on, and where they are published"`
	Volumes   []Mount    `json:"volumes,omitempty" doc:"what is mounted into it"`
	Health    *Health    `json:"health,omitempty" doc:"how to know that it works"`

	Stdin        bool          `json:"stdin,omitempty" doc:"keep standard input open"`
	TTY          bool          `json:"tty,omitempty" doc:"give it a terminal"`
	Capabilities *Capabilities `json:"capabilities,omitempty" doc:"kernel rights of root inside; adding needs a right"`
	ReadOnlyRoot bool          `json:"readOnlyRoot,omitempty" doc:"its own files cannot be written; volumes can"`
	StopSignal   string        `json:"stopSignal,omitempty" doc:"asks it to end; default: the image's, or TERM" example:"INT"`
	StopTimeout  *Duration     `json:"stopTimeout,omitempty" doc:"how long it may take before it is killed" default:"10s"`
	Logs         *LogPolicy    `json:"logs,omitempty" doc:"how much of its output is kept"`
}

// EnvVar is one variable.
type EnvVar struct {
	Name  string `json:"name" doc:"name" example:"LANG"`
	Value string `json:"value" doc:"value" example:"C.UTF-8"`
}

// Isolation is how strong the wall around an instance is.
type Isolation string

// The walls.
const (
	IsolationContainer Isolation = "container" // shares the host's kernel
	IsolationSandbox   Isolation = "sandbox"   // a kernel in user space
	IsolationVM        Isolation = "vm"        // a kernel of its own
	IsolationWasm      Isolation = "wasm"
	IsolationAuto      Isolation = "auto"
)

// Attach puts an instance on a network.
type Attach struct {
	Name     string `json:"name" doc:"network of the tenant; 'default' is the node's bridge, 'none' no network, 'host' the host's own" example:"main"`
	Address  string `json:"address,omitempty" doc:"fixed IPv4 address; default: the next free one" example:"10.88.0.9"`
	Address6 string `json:"address6,omitempty" doc:"fixed IPv6 address; default: the next free one of a network that has any" example:"fd00:1::9"`
}

// AnnotationAttached is put on an instance that removes itself by a caller that will
// read its output; the agent waits a while for that reader, so that no output is lost.
const AnnotationAttached = "atoll/attached"

// The networks that always exist.
const (
	NetworkDefault = "default"
	NetworkNone    = "none"
	NetworkHost    = "host"
)

// Port is a port an instance listens on.
type Port struct {
	Name     string `json:"name,omitempty" doc:"for use elsewhere, such as in health" example:"sql"`
	Port     uint16 `json:"port" doc:"port inside" example:"5432"`
	Protocol string `json:"protocol,omitempty" doc:"transport" enum:"tcp|udp" default:"tcp"`
	Publish  uint16 `json:"publish,omitempty" doc:"port of the host that leads here" example:"8080"`
	HostIP   string `json:"hostIP,omitempty" doc:"address of the host that leads here; default: all" example:"127.0.0.1"`
}

// Mount is something mounted into an instance: exactly one of Volume, HostPath, Tmpfs or (none of them) an
// ephemeral directory that goes with the instance.
type Mount struct {
	Name     string `json:"name,omitempty" doc:"volume of the tenant on this node; without it, ephemeral" example:"data"`
	HostPath string `json:"hostPath,omitempty" doc:"directory or file of the host; needs a right for that path" example:"/srv/data"`
	Tmpfs    bool   `json:"tmpfs,omitempty" doc:"in memory"`
	Path     string `json:"mount" doc:"where it appears inside; absolute" example:"/var/lib/db"`
	Size     string `json:"size,omitempty" doc:"at most so much" example:"1Gi"`
	ReadOnly bool   `json:"readOnly,omitempty" doc:"cannot be written"`
}

// Capabilities changes the kernel rights of root inside.
type Capabilities struct {
	Add  []string `json:"add,omitempty" doc:"needs the right capability:NAME" example:"[NET_ADMIN]"`
	Drop []string `json:"drop,omitempty" doc:"ALL drops the default ones" example:"[ALL]"`
}

// Health is a check: exactly one of Exec, HTTP and TCP.
type Health struct {
	Exec        []string  `json:"exec,omitempty" doc:"healthy when it exits with 0" example:"[pg_isready]"`
	HTTP        string    `json:"http,omitempty" doc:"port (name or number) and path; healthy on 200 to 399" example:"8080/healthz"`
	TCP         string    `json:"tcp,omitempty" doc:"port (name or number); healthy when it accepts" example:"sql"`
	Every       *Duration `json:"every,omitempty" doc:"pause between checks" default:"10s"`
	Timeout     *Duration `json:"timeout,omitempty" doc:"a check that takes longer has failed" default:"3s"`
	StartPeriod *Duration `json:"startPeriod,omitempty" doc:"failures do not count so soon after the start" default:"0s"`
	Failures    int       `json:"failures,omitempty" doc:"so many in a row and it is unhealthy, and restarted as 'restart' says" default:"3"`
}

// LogPolicy bounds the log.
type LogPolicy struct {
	MaxSize string `json:"maxSize,omitempty" doc:"a file is rotated at this size" default:"10Mi"`
	Files   int    `json:"files,omitempty" doc:"how many files are kept; 1 to 100" default:"3"`
}

// State is where an instance is in its life.
type State string

// pending -> creating -> running -> stopping -> stopped | failed; removing from anywhere.
// backoff is a running instance that ended and will be started again.
const (
	StatePending  State = "pending"  // no node yet
	StateCreating State = "creating" // the node prepares it: image, network, files
	StateRunning  State = "running"
	StateStopping State = "stopping"
	StateStopped  State = "stopped" // ended by itself with 0, or on request
	StateFailed   State = "failed"  // ended with an error, or could not start
	StateBackoff  State = "backoff" // will be started again at NextStart
	StateRemoving State = "removing"
	StateUnknown  State = "unknown" // its host is lost; what it does there, if anything, is not known
)

// Reasons that more than one component acts on.
const (
	ReasonEvicted     = "Evicted"     // stopped to be placed anew; the assignment said why
	ReasonMaintenance = "Maintenance" // stopped as long as its host is being worked on; it starts there again
	ReasonGangTimeout = "GangTimeout" // its gang was not placed in time
	ReasonHostLost    = "HostLost"    // its host is not heard of
	ReasonFenced      = "Fenced"      // stopped by its own host, which had lost its lease
)

// InstanceStatus is what the agent sees.
type InstanceStatus struct {
	State       State       `json:"state,omitempty" doc:"where it is in its life" enum:"pending|creating|running|stopping|stopped|failed|backoff|removing|unknown"`
	Reason      string      `json:"reason,omitempty" doc:"one word, for programs" example:"OOMKilled"`
	Message     string      `json:"message,omitempty" doc:"a sentence, for people"`
	Node        string      `json:"node,omitempty" doc:"where it is"`
	Generation  int64       `json:"generation,omitempty" doc:"the spec's generation that is in force"`
	Assigned    int64       `json:"assigned,omitempty" doc:"the assignment's generation that is in force"`
	RuntimeID   string      `json:"runtimeId,omitempty" doc:"its name on the node"`
	Pid         int         `json:"pid,omitempty" doc:"its first process, as the host sees it"`
	Address     string      `json:"address,omitempty" doc:"address on its network"`
	ImageDigest string      `json:"imageDigest,omitempty" doc:"the content that runs"`
	StartedAt   *time.Time  `json:"startedAt,omitempty" doc:"when it last started"`
	FinishedAt  *time.Time  `json:"finishedAt,omitempty" doc:"when it last ended"`
	NextStart   *time.Time  `json:"nextStart,omitempty" doc:"when it will be started again"`
	ExitCode    *int        `json:"exitCode,omitempty" doc:"how it last ended; 128 + signal when killed"`
	OOMKilled   bool        `json:"oomKilled,omitempty" doc:"the kernel killed it for memory"`
	Starts      int64       `json:"starts,omitempty" doc:"how often it was started"`
	RestartsIn  int64       `json:"restartRequests,omitempty" doc:"the restart request that is in force"`
	QuickExits  int64       `json:"quickExits,omitempty" doc:"ends in a row soon after a start; the pause before the next start grows with it"`
	Launched    string      `json:"launched,omitempty" doc:"fingerprint of the parts of the spec that need a restart to change, as it runs"`
	Healthy     *bool       `json:"healthy,omitempty" doc:"what the check said last"`
	Conditions  []Condition `json:"conditions,omitempty" doc:"what is true of it now, such as limits this host cannot enforce"`
}

// Class is what an instance may count on.
type Class string

// The classes follow from requests and limits.
const (
	ClassGuaranteed Class = "guaranteed"  // cpu and memory: requests given and equal to limits
	ClassBurstable  Class = "burstable"   // something requested
	ClassBestEffort Class = "best-effort" // nothing requested: gets what is idle, goes first
)

// Class derives the class from requests and limits.
func (s *InstanceSpec) Class() Class {
	if s.Requests[CPU] == 0 && s.Requests[Memory] == 0 {
		return ClassBestEffort
	}
	for _, r := range []Resource{CPU, Memory} {
		if s.Requests[r] == 0 || s.Requests[r] != s.Limits[r] {
			return ClassBurstable
		}
	}
	return ClassGuaranteed
}

// EffectiveIsolation is the isolation with its default.
func (s *InstanceSpec) EffectiveIsolation() Isolation {
	if s.Isolation == "" || s.Isolation == IsolationAuto {
		return IsolationContainer
	}
	return s.Isolation
}

// Network is the name of the instance's first network; "default" when none is named.
func (s *InstanceSpec) Network() string {
	if len(s.Networks) == 0 {
		return NetworkDefault
	}
	return s.Networks[0].Name
}

// RestartPolicy is restart with its default.
func (s *InstanceSpec) RestartPolicy() string {
	if s.Restart == "" {
		return "always"
	}
	return s.Restart
}

// StopGrace is the time between the stop signal and the kill.
func (s *InstanceSpec) StopGrace() time.Duration {
	if s.StopTimeout == nil {
		return 10 * time.Second
	}
	return s.StopTimeout.D()
}

// StateOf is the state to show: removing and pending are not the agent's to write.
func (i *Instance) StateOf() State {
	switch {
	case i.DeletedAt != nil:
		return StateRemoving
	case i.Status.State == "" || i.Status.State == StateStopped && i.Status.Reason == ReasonEvicted:
		return StatePending
	}
	return i.Status.State
}

// RunsOnce reports whether two running copies of it must never exist, not even for a moment.
func (s *InstanceSpec) RunsOnce() bool {
	if s.Exclusive || s.Local() {
		return true
	}
	for _, n := range s.Networks {
		if n.Address != "" || n.Address6 != "" {
			return true
		}
	}
	return false
}

// MaxInterfaces bounds the networks of one instance.
const MaxInterfaces = 8

// Standing reports whether a name is that of a network that always exists, and that none can be beside.
func Standing(network string) bool {
	return network == NetworkDefault || network == NetworkNone || network == NetworkHost
}

// OnNetworks reports whether the instance is on networks of its tenant.
func (s *InstanceSpec) OnNetworks() bool { return !Standing(s.Network()) }

// Local reports whether it keeps data on its host: a named volume is there and
// nowhere else, so it is not started elsewhere when the host is lost.
func (s *InstanceSpec) Local() bool {
	for _, v := range s.Volumes {
		if v.Name != "" {
			return true
		}
	}
	return false
}

// Waits reports whether the instance may be created though the pool has no room for it.
func (s *InstanceSpec) Waits() bool {
	return s.Queue || s.Placement != nil && s.Placement.Gang != nil
}

// Grants lists the dangerous rights the spec needs, in the form roles grant them.
func (s *InstanceSpec) Grants() []string {
	var out []string
	if s.Capabilities != nil {
		for _, c := range s.Capabilities.Add {
			out = append(out, "capability:"+capName(c))
		}
	}
	for _, v := range s.Volumes {
		if v.HostPath != "" {
			out = append(out, "hostpath:"+path.Clean(v.HostPath))
		}
	}
	for _, n := range s.Networks {
		if n.Name == NetworkHost {
			out = append(out, "network:host")
		}
	}
	return out
}

func capName(c string) string { return strings.TrimPrefix(strings.ToUpper(c), "CAP_") }

// largestAmount of a resource for one instance: sums over a pool stay countable.
const largestAmount = 1 << 50

// Validate checks everything that can be judged from the spec alone.
func (i *Instance) Validate() []errs.Field {
	s := &i.Spec
	var f []errs.Field
	if s.Image == "" || len(s.Image) > 512 || strings.ContainsAny(s.Image, " \t\n") {
		f = append(f, errs.Field{Field: "spec.image", Value: clip(s.Image), Rule: "must be an image reference", Example: "busybox"})
	}
	f = append(f, optional("spec.pull", s.Pull, "missing", "always", "never")...)
	f = append(f, optional("spec.isolation", string(s.Isolation), "container", "sandbox", "vm", "wasm", "auto")...)
	f = append(f, optional("spec.restart", s.Restart, "always", "on-failure", "never")...)
	for n, e := range s.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00\n") || strings.ContainsRune(e.Value, 0) {
			f = append(f, errs.Field{Field: fmt.Sprintf("spec.env[%d].name", n), Value: clip(e.Name), Rule: "must be a name without = or line break", Example: "LANG"})
		}
	}
	for field, list := range map[string][]string{"spec.command": s.Command, "spec.entrypoint": s.Entry} {
		for _, a := range list {
			if strings.ContainsRune(a, 0) {
				f = append(f, errs.Field{Field: field, Rule: "must not contain a zero byte"})
			}
		}
	}
	if s.Workdir != "" && !strings.HasPrefix(s.Workdir, "/") {
		f = append(f, errs.Field{Field: "spec.workdir", Value: clip(s.Workdir), Rule: "must be absolute", Example: "/srv"})
	}
	if s.Hostname != "" && !ValidName(s.Hostname) {
		f = append(f, errs.Field{Field: "spec.hostname", Value: clip(s.Hostname), Rule: nameRule, Example: "web"})
	}
	for _, r := range s.Requests.Over(s.Limits) {
		f = append(f, errs.Field{Field: "spec.requests." + string(r), Value: FormatQuantity(r, s.Requests[r]), Rule: "must not be more than spec.limits." + string(r) + ", " + FormatQuantity(r, s.Limits[r]), Example: FormatQuantity(r, s.Limits[r])})
	}
	for field, amounts := range map[string]Resources{"spec.requests.": s.Requests, "spec.limits.": s.Limits} {
		for r, v := range amounts {
			if v > largestAmount {
				f = append(f, errs.Field{Field: field + string(r), Value: FormatQuantity(r, v), Rule: "must be at most " + FormatQuantity(r, largestAmount), Example: "1"})
			}
		}
	}
	if m, ok := s.Limits[Memory]; ok && m < 1<<20 {
		f = append(f, errs.Field{Field: "spec.limits.memory", Value: FormatQuantity(Memory, m), Rule: "must be at least 1Mi", Example: "64Mi"})
	}
	if c, ok := s.Limits[CPU]; ok && c < 10 {
		f = append(f, errs.Field{Field: "spec.limits.cpu", Value: FormatQuantity(CPU, c), Rule: "must be at least 10m", Example: "250m"})
	}
	if s.CPUs != "" {
		if _, err := ParseCPUSet(s.CPUs); err != nil {
			f = append(f, errs.Field{Field: "spec.cpus", Value: clip(s.CPUs), Rule: err.Error(), Example: "0-3,8"})
		}
	}
	if s.StopTimeout != nil && (s.StopTimeout.D() < 0 || s.StopTimeout.D() > time.Hour) {
		f = append(f, errs.Field{Field: "spec.stopTimeout", Value: s.StopTimeout.D().String(), Rule: "must be 0s to 1h", Example: "10s"})
	}
	f = append(f, s.validateNetwork()...)
	f = append(f, s.validateShaping()...)
	f = append(f, s.validateMounts()...)
	f = append(f, s.validateHealth()...)
	f = append(f, s.validatePlacement()...)
	f = append(f, s.validateDevices()...)
	if l := s.Logs; l != nil {
		if l.MaxSize != "" {
			if v, err := ParseQuantity(Disk, l.MaxSize); err != nil || v < 64<<10 {
				f = append(f, errs.Field{Field: "spec.logs.maxSize", Value: clip(l.MaxSize), Rule: "must be an amount of at least 64Ki", Example: "10Mi"})
			}
		}
		if l.Files < 0 || l.Files > 100 {
			f = append(f, errs.Field{Field: "spec.logs.files", Value: fmt.Sprint(l.Files), Rule: "must be 1 to 100", Example: "3"})
		}
	}
	return f
}

func optional(field, v string, allowed ...string) []errs.Field {
	if v == "" {
		return nil
	}
	return oneOf(field, v, allowed)
}

func (s *InstanceSpec) validateNetwork() []errs.Field {
	var f []errs.Field
	if len(s.Networks) > 1 {
		for _, n := range s.Networks {
			if Standing(n.Name) {
				f = append(f, errs.Field{Field: "spec.networks", Value: n.Name, Rule: "default, none and host stand alone"})
			}
		}
	}
	if len(s.Networks) > MaxInterfaces {
		f = append(f, errs.Field{Field: "spec.networks", Value: fmt.Sprint(len(s.Networks)), Rule: fmt.Sprintf("must be at most %d", MaxInterfaces)})
	}
	on := map[string]bool{}
	for i, n := range s.Networks {
		at := fmt.Sprintf("spec.networks[%d]", i)
		switch {
		case !ValidName(n.Name):
			f = append(f, errs.Field{Field: at + ".name", Value: clip(n.Name), Rule: nameRule, Example: "main"})
		case on[n.Name]:
			f = append(f, errs.Field{Field: at + ".name", Value: n.Name, Rule: "is there twice"})
		}
		on[n.Name] = true
		if a, err := netip.ParseAddr(n.Address); n.Address != "" && (err != nil || !a.Is4()) {
			f = append(f, errs.Field{Field: at + ".address", Value: clip(n.Address), Rule: "must be an IPv4 address", Example: "10.88.0.9"})
		}
		if a, err := netip.ParseAddr(n.Address6); n.Address6 != "" && (err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" || Standing(n.Name)) {
			f = append(f, errs.Field{Field: at + ".address6", Value: clip(n.Address6), Rule: "must be an IPv6 address, on a network of the tenant", Example: "fd00:1::9"})
		}
	}
	names, published := map[string]bool{}, map[string]bool{}
	for i, p := range s.Ports {
		path := fmt.Sprintf("spec.ports[%d]", i)
		if p.Port == 0 {
			f = append(f, errs.Field{Field: path + ".port", Rule: "must be 1 to 65535", Example: "8080"})
		}
		f = append(f, optional(path+".protocol", p.Protocol, "tcp", "udp")...)
		if p.Name != "" && (!ValidName(p.Name) || names[p.Name]) {
			f = append(f, errs.Field{Field: path + ".name", Value: clip(p.Name), Rule: "must be a name, used once", Example: "http"})
		}
		names[p.Name] = true
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				f = append(f, errs.Field{Field: path + ".hostIP", Value: clip(p.HostIP), Rule: "must be an IP address of the host", Example: "127.0.0.1"})
			}
		}
		if p.Publish != 0 {
			k := p.PublishKey()
			if published[k] {
				f = append(f, errs.Field{Field: path + ".publish", Value: fmt.Sprint(p.Publish), Rule: "is published twice"})
			}
			published[k] = true
			if n := s.Network(); n == NetworkNone || n == NetworkHost {
				f = append(f, errs.Field{Field: path + ".publish", Value: fmt.Sprint(p.Publish), Rule: "cannot be published on network " + n})
			}
		}
	}
	return f
}

// PublishKey names the host's side of a published port; two instances on a node cannot have the same.
func (p Port) PublishKey() string { return fmt.Sprintf("%s/%d", p.EffectiveProtocol(), p.Publish) }

// EffectiveProtocol is the protocol with its default.
func (p Port) EffectiveProtocol() string {
	if p.Protocol == "" {
		return "tcp"
	}
	return p.Protocol
}

func (s *InstanceSpec) validateMounts() []errs.Field {
	var f []errs.Field
	seen := map[string]bool{}
	for i, v := range s.Volumes {
		at := fmt.Sprintf("spec.volumes[%d]", i)
		if !path.IsAbs(v.Path) || path.Clean(v.Path) == "/" || strings.ContainsAny(v.Path, "\x00\n") {
			f = append(f, errs.Field{Field: at + ".mount", Value: clip(v.Path), Rule: "must be an absolute path other than /", Example: "/var/lib/db"})
		}
		if c := path.Clean(v.Path); seen[c] {
			f = append(f, errs.Field{Field: at + ".mount", Value: clip(v.Path), Rule: "is mounted on twice"})
		} else {
			seen[c] = true
		}
		sources := 0
		for _, has := range []bool{v.Name != "", v.HostPath != "", v.Tmpfs} {
			if has {
				sources++
			}
		}
		if sources > 1 {
			f = append(f, errs.Field{Field: at, Rule: "must have at most one of name, hostPath and tmpfs"})
		}
		if v.Name != "" && !ValidName(v.Name) {
			f = append(f, errs.Field{Field: at + ".name", Value: clip(v.Name), Rule: nameRule, Example: "data"})
		}
		if v.HostPath != "" && (!path.IsAbs(v.HostPath) || strings.ContainsAny(v.HostPath, "\x00\n")) {
			f = append(f, errs.Field{Field: at + ".hostPath", Value: clip(v.HostPath), Rule: "must be absolute", Example: "/srv/data"})
		}
		if v.Size != "" {
			if q, err := ParseQuantity(Disk, v.Size); err != nil || q == 0 {
				f = append(f, errs.Field{Field: at + ".size", Value: clip(v.Size), Rule: "must be an amount above zero", Example: "1Gi"})
			}
		}
	}
	return f
}

func (s *InstanceSpec) validateHealth() []errs.Field {
	h := s.Health
	if h == nil {
		return nil
	}
	var f []errs.Field
	ways := 0
	for _, has := range []bool{len(h.Exec) > 0, h.HTTP != "", h.TCP != ""} {
		if has {
			ways++
		}
	}
	if ways != 1 {
		f = append(f, errs.Field{Field: "spec.health", Rule: "must have exactly one of exec, http and tcp", Example: "{tcp: \"8080\", every: 5s}"})
	}
	for field, target := range map[string]string{"http": h.HTTP, "tcp": h.TCP} {
		if target == "" {
			continue
		}
		if _, _, err := s.HealthPort(target); err != nil {
			f = append(f, errs.Field{Field: "spec.health." + field, Value: clip(target), Rule: err.Error(), Example: "8080/healthz"})
		}
	}
	for field, d := range map[string]*Duration{"every": h.Every, "timeout": h.Timeout, "startPeriod": h.StartPeriod} {
		if d != nil && (d.D() < 0 || d.D() > time.Hour || field != "startPeriod" && d.D() < 100*time.Millisecond) {
			f = append(f, errs.Field{Field: "spec.health." + field, Value: d.D().String(), Rule: "must be 100ms to 1h", Example: "5s"})
		}
	}
	if h.Failures < 0 || h.Failures > 1000 {
		f = append(f, errs.Field{Field: "spec.health.failures", Value: fmt.Sprint(h.Failures), Rule: "must be 1 to 1000", Example: "3"})
	}
	return f
}

// HealthPort resolves "sql", "8080" or "8080/healthz" to a port and a path.
func (s *InstanceSpec) HealthPort(target string) (port uint16, urlPath string, err error) {
	name, rest, _ := strings.Cut(target, "/")
	for _, p := range s.Ports {
		if p.Name != "" && p.Name == name {
			return p.Port, "/" + rest, nil
		}
	}
	var n int
	if _, err := fmt.Sscanf(name, "%d", &n); err != nil || n < 1 || n > 65535 || fmt.Sprint(n) != name {
		return 0, "", fmt.Errorf("must be a port number or the name of one of spec.ports")
	}
	return uint16(n), "/" + rest, nil
}

// maxCPUSet holds every second core of the largest host there is.
const maxCPUSet = 16 << 10

// ParseCPUSet reads "0-3,8" into core numbers.
func ParseCPUSet(s string) ([]int, error) {
	var out []int
	if len(s) > maxCPUSet {
		return nil, fmt.Errorf("must be at most %d characters", maxCPUSet)
	}
	for _, part := range strings.Split(s, ",") {
		lo, hi := 0, 0
		if n, err := fmt.Sscanf(part, "%d-%d", &lo, &hi); n < 1 || err != nil && n != 1 {
			return nil, fmt.Errorf("must be core numbers and ranges")
		} else if n == 1 {
			hi = lo
		}
		want := fmt.Sprint(lo)
		if hi != lo {
			want = fmt.Sprintf("%d-%d", lo, hi)
		}
		if part != want || lo < 0 || hi < lo || hi > 4095 {
			return nil, fmt.Errorf("must be core numbers and ranges")
		}
		if len(out) > 0 && lo <= out[len(out)-1] {
			return nil, fmt.Errorf("must be in ascending order, each core once")
		}
		for c := lo; c <= hi; c++ {
			out = append(out, c)
		}
	}
	return out, nil
}

func instanceDefinition() *Definition {
	in := func(fn func(*Instance) string) func(Object, time.Time) string {
		return func(o Object, _ time.Time) string { return fn(o.(*Instance)) }
	}
	return &Definition{
		Kind: KindInstance, Plural: "instances", Aliases: []string{"in", "i", "ps"}, Tenanted: true,
		Doc:        "One running unit: a container, sandbox, VM or function.",
		Finalizers: []string{"node"},
		New:        func() Object { return &Instance{Head: Head{K: KindInstance}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "STATE", Value: in(func(i *Instance) string {
				s := string(i.StateOf())
				if i.Status.Healthy != nil && !*i.Status.Healthy && i.StateOf() == StateRunning {
					s += " (unhealthy)"
				}
				if i.StateOf() == StateFailed && i.Status.ExitCode != nil {
					s += fmt.Sprintf(" (%d)", *i.Status.ExitCode)
				}
				return s
			})},
			{Name: "ISOLATION", Wide: true, Value: in(func(i *Instance) string { return string(i.Spec.EffectiveIsolation()) })},
			{Name: "CLASS", Wide: true, Value: in(func(i *Instance) string { return string(i.Spec.Class()) })},
			{Name: "IMAGE", Value: in(func(i *Instance) string { return i.Spec.Image })},
			{Name: "NODE", Value: in(func(i *Instance) string { return dash(i.Status.Node) })},
			{Name: "ADDRESS", Value: in(func(i *Instance) string { return dash(i.Status.Address) })},
			{Name: "STARTS", Wide: true, Value: in(func(i *Instance) string { return fmt.Sprint(i.Status.Starts) })},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{
			"status.node":  func(o Object) string { return o.(*Instance).Status.Node },
			"status.state": func(o Object) string { return string(o.(*Instance).StateOf()) },
			"spec.image":   func(o Object) string { return o.(*Instance).Spec.Image },
		},
	}
}

// SameUse reports whether two specs run the same program with the same rights: who
// stops it, starts it or gives it more memory does not use them, who changes it does.
func SameUse(a, b *InstanceSpec) bool {
	x, y := *a, *b
	for _, s := range []*InstanceSpec{&x, &y} {
		s.Stopped, s.Restarts, s.AutoRm, s.Restart, s.Priority, s.CPUs = false, 0, false, "", "", ""
		s.Requests, s.Limits, s.Placement, s.Health, s.Logs, s.StopTimeout, s.Shaping = nil, nil, nil, nil, nil, nil, nil
	}
	return reflect.DeepEqual(x, y) && healthIsPassive(a, b)
}

// healthIsPassive: a check that runs a program uses the instance's rights.
func healthIsPassive(a, b *InstanceSpec) bool {
	var x, y []string
	if a.Health != nil {
		x = a.Health.Exec
	}
	if b.Health != nil {
		y = b.Health.Exec
	}
	return reflect.DeepEqual(x, y)
}
