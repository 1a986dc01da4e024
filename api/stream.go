package api

import "time"

// What travels beside objects: requests for live streams into instances, and
// what instances use now. Streams are framed by package tunnel on the node's side
// and by WebSocket messages on the caller's; both carry the same channels.

// HeaderNothingDone marks an answer of a server that turned a request away before it
// did anything: it may be sent to another server, whatever it asks for.
const HeaderNothingDone = "Atoll-Nothing-Done"

// HeaderRelease is the release of the program that calls.
const HeaderRelease = "Atoll-Release"

// The channels of a live stream: the first byte of every frame or message.
const (
	ChanStdin   byte = 0 // caller -> node; an empty payload closes it
	ChanStdout  byte = 1
	ChanStderr  byte = 2
	ChanResize  byte = 3 // caller -> node: TermSize as JSON
	ChanSignal  byte = 4 // caller -> node: signal name for the command
	ChanExit    byte = 5 // node -> caller: StreamExit as JSON; the last frame
	ChanMessage byte = 6 // node -> caller: Progress as JSON
)

// StreamExit ends a stream.
type StreamExit struct {
	Code    int    `json:"code"`              // exit code; 128 + signal when killed
	Kind    string `json:"kind,omitempty"`    // errs.Kind when the stream itself went wrong
	Message string `json:"message,omitempty"` // for people
	Hint    string `json:"hint,omitempty"`
}

// TermSize is a terminal's size.
type TermSize struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// ExecRequest asks for a command in a running instance.
type ExecRequest struct {
	Argv    []string `json:"argv"`
	Env     []string `json:"env,omitempty"` // NAME=value, added
	Workdir string   `json:"workdir,omitempty"`
	User    string   `json:"user,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	Stdin   bool     `json:"stdin,omitempty"`
	Size    TermSize `json:"size,omitzero"`
}

// LogRequest chooses output of an instance.
type LogRequest struct {
	Follow     bool      `json:"follow,omitempty"` // until all output of an instance that ended was sent
	Tail       int       `json:"tail,omitempty"`   // last so many lines; 0: all; <0: none of the past
	Since      time.Time `json:"since,omitzero"`
	Raw        bool      `json:"raw,omitempty"` // the bytes as written, no added line ends
	Timestamps bool      `json:"timestamps,omitempty"`
	// Wait is for attached runs: wait until the instance has been started (or failed),
	// follow its output from the first byte, and end with its exit code.
	Wait bool `json:"wait,omitempty"`
}

// AttachRequest connects to the first process: output as Logs chooses it, input and sizes to it.
type AttachRequest struct {
	Logs  LogRequest `json:"logs"`
	Stdin bool       `json:"stdin,omitempty"`
	TTY   bool       `json:"tty,omitempty"`
	Size  TermSize   `json:"size,omitzero"`
}

// CopyRequest moves files as a tar stream: on stdin into, on stdout out of the instance.
type CopyRequest struct {
	Path string `json:"path"`
	In   bool   `json:"in,omitempty"`
}

// ImageRequest is an operation on a node's images.
type ImageRequest struct {
	Verb      string `json:"verb"` // pull, import, export, push
	Tenant    string `json:"tenant"`
	Reference string `json:"reference"`
	// Destination is where a push goes, and the new name of a tag.
	Destination string `json:"destination,omitempty"`
	Platform    string `json:"platform,omitempty"` // os/arch; default: the node's
	// Auth is "user:password" or a bearer token for the registry, used once and never kept or logged.
	Auth   string   `json:"auth,omitempty"`
	Format string   `json:"format,omitempty"` // import: auto, rootfs, oci, docker; export: oci, docker
	Cmd    []string `json:"cmd,omitempty"`    // import of a rootfs: its default command
	Env    []string `json:"env,omitempty"`    // import of a rootfs
	Shared bool     `json:"shared,omitempty"` // for every tenant; administrators only
}

// Progress tells how far long work is.
type Progress struct {
	ID      string `json:"id"`      // what it is about, such as a layer's short digest
	Phase   string `json:"phase"`   // waiting, pulling, resuming, unpacking, done, exists
	Current int64  `json:"current"` // bytes
	Total   int64  `json:"total"`   // bytes; 0: not known
}

// Usage is what an instance, or a tenant's whole subtree on a node, has used and uses.
type Usage struct {
	At            time.Time     `json:"at"`
	CPU           time.Duration `json:"cpu"`        // since the start, in nanoseconds
	Throttled     time.Duration `json:"throttled"`  // time it was held at its ceiling
	Memory        int64         `json:"memory"`     // bytes, without cache that can be dropped
	MemoryPeak    int64         `json:"memoryPeak"` // bytes
	ReadBytes     int64         `json:"readBytes"`  // since the start, as all below
	WrittenBytes  int64         `json:"writtenBytes"`
	ReadOps       int64         `json:"readOps"`
	WriteOps      int64         `json:"writeOps"`
	ReceivedBytes int64         `json:"receivedBytes"`
	SentBytes     int64         `json:"sentBytes"`
	Pids          int64         `json:"pids"`
	OOMKills      int64         `json:"oomKills"`
	// Pressure is the share of the last 10 s in which something had to wait (PSI, some avg10), 0..1; -1: the host cannot tell.
	PressureCPU    float64 `json:"pressureCpu"`
	PressureMemory float64 `json:"pressureMemory"`
	PressureIO     float64 `json:"pressureIo"`
}

// UsageReport is the answer of GET /v1/usage.
type UsageReport struct {
	At        time.Time       `json:"at"`
	Nodes     []NodeUsage     `json:"nodes"`
	Tenants   []TenantUsage   `json:"tenants"`
	Instances []InstanceUsage `json:"instances"`
}

// NodeUsage is one host.
type NodeUsage struct {
	Node        string    `json:"node"`
	Capacity    Resources `json:"capacity"`
	Allocatable Resources `json:"allocatable"`
	Requested   Resources `json:"requested"`
	CPUMilli    int64     `json:"cpuMilli"` // used now
	Memory      int64     `json:"memory"`   // used now
	Usage       Usage     `json:"usage"`
	// Drops are what it does of the drop list.
	Drops []DropCount `json:"drops,omitempty"`
}

// DropCount is one rule of the drop list on one host.
type DropCount struct {
	Rule    string `json:"rule"`
	Packets uint64 `json:"packets"` // dropped since the host has the rule
	// Refused says why the host leaves the rule out.
	Refused string `json:"refused,omitempty"`
}

// TenantUsage is one tenant, the nested ones included.
type TenantUsage struct {
	Tenant    string    `json:"tenant"`
	Guarantee Resources `json:"guarantee"`
	Limit     Resources `json:"limit"`
	Requested Resources `json:"requested"`
	CPUMilli  int64     `json:"cpuMilli"` // used now
	Memory    int64     `json:"memory"`   // used now
	Instances int       `json:"instances"`
	Usage     Usage     `json:"usage"`
}

// InstanceUsage is one instance.
type InstanceUsage struct {
	Ref      Ref    `json:"ref"`
	Node     string `json:"node"`
	CPUMilli int64  `json:"cpuMilli"` // used now
	Usage    Usage  `json:"usage"`
}
