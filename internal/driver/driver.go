// Package driver is the contract between the agent and what really runs,
// connects and stores things on a node. A driver is one folder under
// runtime/, storage/ or network/ and one line in cmd/atolld/builtin/builtin.go.
//
// The life a driver leads: New with its config, no I/O yet. Probe once at start:
// what can this node do? errs.Unsupported, with what is missing and how to get
// it, when nothing. Observe: everything of ours that is there, also what an
// earlier life of the daemon started. Then, again and again and in any order,
// Ensure (converge to the spec; safe to call twice) and Remove (gone afterwards,
// also when it was half there or never there). The daemon may be killed between
// any two system calls; the next Observe, Ensure and Remove put it right.
//
// Drivers never read the store and never choose: everything they need is in Spec.
package driver

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/clock"
)

// Deps is what every driver is built with.
type Deps struct {
	Node  string       // name of this node
	State string       // directory of the driver's own, survives reboots
	Run   string       // directory of the driver's own, in memory, gone at boot
	Clock clock.Clock  //
	Log   *slog.Logger //
}

// Spec is an instance as a driver gets it: everything decided.
type Spec struct {
	// ID names the instance on the node: 1-64 of a-z 0-9 -, unique over time.
	ID       string
	Instance *api.Instance // read-only
	Cgroup   Cgroup
	IDs      IDRange
	Image    Image
	Network  NetworkSpec
	// Mounts are the tenant's volumes of this node, resolved by the storage driver. Host
	// paths, tmpfs and ephemeral directories are in Instance.Spec.Volumes and the runtime's own work.
	Mounts []Mount
	// CPUs and Mems are the cores and memory nodes it runs on, in the kernel's form
	// ("0-3,8"); "" for CPUs: Instance.Spec.CPUs, and then all. They may change while it runs.
	CPUs, Mems string
	// Generation is the assignment's. A driver refuses one older than it has seen for the ID.
	Generation int64
}

// Cgroup is where the instance is accounted.
type Cgroup struct {
	// Path is relative to every hierarchy's root, such as "atoll/acme.t/x1f3"; the
	// parent exists and is limited already.
	Path string
	// OOMScoreAdj is set for the first process: who dies first when memory is short (0..1000).
	OOMScoreAdj int
}

// IDRange is the tenant's own range of host user and group IDs: Base is root inside.
type IDRange struct{ Base, Count uint32 }

// Image is what to run, unpacked on this node already.
type Image struct {
	Digest string   // of the manifest
	Layers []string // directories, lowest first; shared, never written; owned by IDs 0..65535
	Config ImageConfig
}

// ImageConfig is the part of the OCI image config that says how to run it.
type ImageConfig struct {
	Entrypoint, Cmd, Env  []string
	WorkingDir, User      string
	StopSignal            string
	Volumes, ExposedPorts []string
}

// NetworkSpec is what the network driver will be asked for after the runtime has made the
// namespace; the runtime only needs to know whether there is one and what resolves names.
type NetworkSpec struct {
	Mode     string // "bridge", "overlay", "none", "host"
	Address  string // on the bridge, without prefix length
	Hostname string
	DNS      []string
	Search   []string // DNS domains in which names without a dot are looked for
	// Interfaces are the instance's on networks of its tenant; the first one's gateways lead to what is outside.
	Interfaces []Interface
	// Bands bound what comes to it and what it sends, over all interfaces; nil: as its spec says.
	Bands *[2]api.Band
}

// ResolvConf is the content of /etc/resolv.conf.
func (n NetworkSpec) ResolvConf() string {
	var b strings.Builder
	if len(n.Search) > 0 {
		b.WriteString("search " + strings.Join(n.Search, " ") + "\n")
	}
	for _, d := range n.DNS {
		b.WriteString("nameserver " + d + "\n")
	}
	return b.String()
}

// ModeOverlay is the NetworkSpec.Mode of instances on networks of their tenant.
const ModeOverlay = "overlay"

// Interface is a connection to a network of the tenant, which the host's Fabric knows already.
type Interface struct {
	Name  string // inside
	VNI   uint32
	MAC   [6]byte
	Addrs []netip.Prefix // at most one of each family
}

// Mount is a volume ready to be mounted.
type Mount struct {
	Source   string // directory, or an image file when FSType is set
	FSType   string // filesystem inside Source, to be loop-mounted in the instance's own namespace; "": bind it
	Target   string // absolute path inside
	ReadOnly bool
	Warning  string // what this host cannot enforce for it, such as its size
}

// Runtime runs instances of one isolation class.
type Runtime interface {
	// Probe tells what this node can do; errs.Unsupported when nothing. It must not disturb what runs.
	Probe(ctx context.Context) (api.Capability, error)
	// Ensure makes the instance exist and be prepared up to, but not including, its
	// first instruction, and returns what is there. Called again for one that runs it
	// applies changed limits and returns. After an exit it prepares a new start.
	Ensure(ctx context.Context, s Spec) (Observed, error)
	// Start lets a prepared instance run. Nil when it runs already.
	Start(ctx context.Context, id string) error
	// Stop ends it: signal, grace, kill. It returns when it has ended; its files stay.
	Stop(ctx context.Context, id string, signal string, grace time.Duration) error
	// Observe lists all that is ours, also from an earlier life of the daemon.
	Observe(ctx context.Context) ([]Observed, error)
	// Remove ends it at once and removes every trace: processes, mounts, cgroups, files. Nil when already gone.
	Remove(ctx context.Context, id string) error
	// Exits calls fn for every instance that ends, until ctx ends; also once for each
	// that ended while nobody listened and was not restarted or removed since.
	Exits(ctx context.Context, fn func(Observed)) error
}

// Phase is how far an instance is on the node.
type Phase string

// The phases.
const (
	PhasePrepared Phase = "prepared" // exists, first instruction not run
	PhaseRunning  Phase = "running"
	PhaseExited   Phase = "exited"
	PhaseBroken   Phase = "broken" // half there, for instance after a kill -9; Remove cleans it
)

// Observed is what is there.
type Observed struct {
	ID          string
	Ref         api.Ref // the instance it was made for
	UID         string  // its metadata.uid
	Generation  int64   // of the assignment it was made for
	Phase       Phase
	Pid         int    // first process on the host, 0 when none
	NetNS       string // path of its network namespace while Pid lives, such as /proc/812/ns/net
	ImageDigest string
	ExitCode    int // when exited: code, or 128 + signal
	OOMKilled   bool
	StartedAt   time.Time
	FinishedAt  time.Time
	// Warnings are limits of the spec that this host cannot enforce.
	Warnings []string
}

// Stream is a live connection into an instance. Out and Err are written in
// order; Err is nil with a terminal. Resize delivers terminal sizes.
type Stream struct {
	In       io.Reader // nil: none
	Out, Err io.Writer
	Resize   <-chan api.TermSize
}

// Execer runs commands in running instances. Abilities like this are optional
// and found by assertion.
type Execer interface {
	// Exec returns the command's exit code (128 + signal when killed). When ctx ends or the
	// stream's Out fails, the command is killed.
	Exec(ctx context.Context, id string, req api.ExecRequest, st Stream) (code int, err error)
}

// Attacher connects to the first process.
type Attacher interface {
	// Attach feeds st.In to standard input and forwards Resize; output is read with
	// Logs. It returns when In ends or the instance does.
	Attach(ctx context.Context, id string, st Stream) error
}

// Signaler sends a signal to the first process.
type Signaler interface {
	// Signal takes a name without SIG, such as INT. Nil when it has ended already.
	Signal(ctx context.Context, id, signal string) error
}

// Logger gives the output of the first process.
type Logger interface {
	// Logs writes stdout to st.Out and stderr to st.Err. With Follow it ends after all
	// output of an instance that ended, or with ctx.
	Logs(ctx context.Context, id string, req api.LogRequest, st Stream) error
}

// Copier moves files as tar streams; it must not be possible to leave the instance's root.
type Copier interface {
	// CopyOut writes path (file or directory) as a tar.
	CopyOut(ctx context.Context, id, path string, w io.Writer) error
	// CopyIn unpacks a tar into the directory path, owned by root inside.
	CopyIn(ctx context.Context, id, path string, r io.Reader) error
}

// Dialer connects to a port inside, for health checks and forwarding.
type Dialer interface {
	Dial(ctx context.Context, id, network, port string) (net.Conn, error)
}

// Measurer reads what instances use now.
type Measurer interface {
	// Usage is cheap enough to be called every second for every instance.
	Usage(ctx context.Context, id string) (api.Usage, error)
}

// Grouper names the resource groups that hold every process of an instance, so that a
// watchdog can end it when nobody else does.
type Grouper interface {
	// Groups gives paths as in Cgroup.Path; they are known from Ensure on. None: it is not here.
	Groups(id string) []string
}

// Renamer is a runtime or storage that keeps names of tenants: it is told that they have
// others from now on, such as when a host brings what it runs into another pool. What runs
// runs on.
type Renamer interface {
	// Rename maps old paths of tenants to new ones; no old one is a new one, too. Called
	// again it finishes what a call before began. It comes before every other call: what was
	// read already is not looked at again.
	Rename(ctx context.Context, tenants map[string]string) error
}

// Network connects instances.
type Network interface {
	Probe(ctx context.Context) (api.Capability, error)
	// Attach gives the instance in the network namespace netns its interface, address,
	// routes and published ports. Converges; safe to call again, also for a new namespace.
	Attach(ctx context.Context, netns string, s Spec) error
	// Observe lists the IDs of instances that have something here (rules, interfaces).
	Observe(ctx context.Context) ([]string, error)
	// Detach removes all of an instance. Nil when already gone.
	Detach(ctx context.Context, id string) error
	// Teardown removes everything this driver ever made on the host.
	Teardown(ctx context.Context) error
}

// Reconciler puts back what others removed of the part that all instances share, such as
// rules after "nft flush ruleset". An optional ability of a Network; cheap enough for every minute.
type Reconciler interface {
	Reconcile(ctx context.Context) error
}

// Storage keeps volumes on this node. A volume outlives the instances that use it.
type Storage interface {
	Probe(ctx context.Context) (api.Capability, error)
	// Ensure makes the volume exist with at least the size (0: no limit) and says how to mount it (Target and ReadOnly are the caller's).
	Ensure(ctx context.Context, tenant, name string, size int64, ids IDRange) (Mount, error)
	// Observe lists what is there, as tenant/name.
	Observe(ctx context.Context) ([]string, error)
	// Remove deletes a volume and its content. Nil when already gone.
	Remove(ctx context.Context, tenant, name string) error
}
