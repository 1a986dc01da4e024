package api

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"atoll/internal/errs"
	"atoll/internal/release"
)

// KindPool is what is true of the pool as a whole.
const KindPool Kind = "Pool"

// PoolName is the name of the only object of its kind; also that of the Upgrade.
const PoolName = "pool"

// Pool says how the pool stores what it knows. Only the control plane writes it.
type Pool struct {
	Head
	Spec PoolSpec `json:"spec"`
}

// PoolSpec is the level and how it came.
type PoolSpec struct {
	Level int       `json:"level" doc:"the release whose formats are written; grows when an upgrade is finalised"`
	Since time.Time `json:"since" doc:"since when"`
}

// PoolRef names the pool's only Pool.
func PoolRef() Ref { return Ref{Kind: KindPool, Name: PoolName} }

// Validate has nothing to check: users cannot write it.
func (p *Pool) Validate() []errs.Field { return nil }

// LevelOf is the level of a pool; that of a pool which is older than levels where there is none.
func LevelOf(p *Pool) int {
	if p == nil {
		return release.First
	}
	return release.Or(p.Spec.Level)
}

func poolDefinition() *Definition {
	return &Definition{
		Kind: KindPool, Plural: "pools", ReadOnly: true,
		Doc: "How the pool stores what it knows: the release that all its hosts have.",
		New: func() Object { return &Pool{Head: Head{K: KindPool}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "RELEASE", Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*Pool).Spec.Level) }},
			{Name: "SINCE", Value: func(o Object, now time.Time) string { return Age(&o.(*Pool).Spec.Since, now) }},
		},
		Fields: map[string]func(Object) string{},
	}
}

// KindUpgrade is the way of a pool to another version.
const KindUpgrade Kind = "Upgrade"

// Upgrade takes the hosts of the pool to another version, one after the other, and back
// again until it is finalised. There is one, named pool, and it stays when it is over.
// Its spec follows from what administrators ask for (POST /v1/upgrade), its status is
// the upgrade controller's; each host follows its own line of that.
type Upgrade struct {
	Head
	Spec   UpgradeSpec   `json:"spec"`
	Status UpgradeStatus `json:"status,omitzero"`
}

// UpgradeRef names the pool's only Upgrade.
func UpgradeRef() Ref { return Ref{Kind: KindUpgrade, Name: PoolName} }

// UpgradePhase is how far an upgrade is wanted.
type UpgradePhase string

// prepare -> activate -> finalise; abort leads back from prepare and activate.
const (
	UpgradePrepare  UpgradePhase = "prepare"  // the programs on every host; nothing runs them
	UpgradeActivate UpgradePhase = "activate" // host by host
	UpgradeFinalise UpgradePhase = "finalise" // new formats are written: there is no way back
	UpgradeAbort    UpgradePhase = "abort"    // host by host back to what was before
)

// UpgradeSpec is what is wanted.
type UpgradeSpec struct {
	Version string        `json:"version" doc:"where to" example:"v1.3.0"`
	Release int           `json:"release" doc:"its release"`
	Files   []UpgradeFile `json:"files" doc:"its programs"`
	Source  string        `json:"source" doc:"the host that was given them; others fetch them there and from each other"`
	Backup  string        `json:"backup,omitempty" doc:"the state from before, a file on the source host"`
	Phase   UpgradePhase  `json:"phase" doc:"how far it is wanted" enum:"prepare|activate|finalise|abort"`
	Paused  bool          `json:"paused,omitempty" doc:"no further host begins"`
	Pause   Duration      `json:"pause,omitempty" doc:"between one host and the next" example:"10s"`
	Hosts   []string      `json:"hosts,omitempty" doc:"only these hosts, in this order; empty: all, the leader last"`
	Absent  []string      `json:"absent,omitempty" doc:"hosts that are left behind at its end; they follow when they return"`
	Try     int64         `json:"try" doc:"grows when it is asked for again; what failed in an earlier try is tried anew"`
	By      string        `json:"by" doc:"who asked for it last"`
	Since   time.Time     `json:"since" doc:"when that was"`
}

// UpgradeFile is one program of a version.
type UpgradeFile struct {
	OS     string `json:"os" doc:"operating system" example:"linux"`
	Arch   string `json:"arch" doc:"CPU architecture" example:"amd64"`
	Binary string `json:"binary" doc:"name of the program" example:"atolld"`
	SHA256 string `json:"sha256" doc:"of its content, in hexadecimal"`
	Size   int64  `json:"size" doc:"bytes"`
}

// UpgradeBinaries are the programs a version may have; atolld must be there.
func UpgradeBinaries() []string { return []string{"atoll", "atoll-init", "atoll-watchdog", "atolld"} }

// UpgradeState is where an upgrade is.
type UpgradeState string

// preparing -> prepared -> activating -> activated -> finalised; aborting -> aborted.
// stopped: a host failed, and nothing goes on before somebody says so.
const (
	UpgradePreparing  UpgradeState = "preparing"
	UpgradePrepared   UpgradeState = "prepared"
	UpgradeActivating UpgradeState = "activating"
	UpgradeActivated  UpgradeState = "activated"
	UpgradeStopped    UpgradeState = "stopped"
	UpgradeAborting   UpgradeState = "aborting"
	UpgradeAborted    UpgradeState = "aborted"
	UpgradeFinalised  UpgradeState = "finalised"
)

// UpgradeStatus is how far it is.
type UpgradeStatus struct {
	State   UpgradeState  `json:"state,omitempty" doc:"where it is" enum:"preparing|prepared|activating|activated|stopped|aborting|aborted|finalised"`
	Message string        `json:"message,omitempty" doc:"what it waits for, or why it stopped"`
	Hosts   []UpgradeHost `json:"hosts,omitempty" doc:"the hosts of the pool"`
	EndedAt *time.Time    `json:"endedAt,omitempty" doc:"when it was over"`
}

// UpgradeTask is what a host is told to do.
type UpgradeTask string

// The tasks of a host.
const (
	TaskNone     UpgradeTask = ""
	TaskStage    UpgradeTask = "stage"    // have the programs
	TaskActivate UpgradeTask = "activate" // run them
	TaskBack     UpgradeTask = "back"     // run what ran before
)

// UpgradeHost is one host's line.
type UpgradeHost struct {
	Name    string      `json:"name" doc:"the host"`
	Task    UpgradeTask `json:"task,omitempty" doc:"what it is told to do" enum:"stage|activate|back"`
	Try     int64       `json:"try,omitempty" doc:"of the task: what the host answers to"`
	State   string      `json:"state" doc:"how far it is" enum:"waiting|staging|staged|activating|active|returning|back|absent|failed"`
	From    string      `json:"from,omitempty" doc:"the version it had before"`
	Version string      `json:"version,omitempty" doc:"the version it has"`
	Release int         `json:"release,omitempty" doc:"the release it has"`
	Member  bool        `json:"member,omitempty" doc:"it keeps the pool's state"`
	Runs    int         `json:"runs,omitempty" doc:"instances that ran there when its turn was over"`
	Since   time.Time   `json:"since,omitzero" doc:"when it came into this state"`
	Error   string      `json:"error,omitempty" doc:"why it failed"`
}

// UpgradeHosts are the hosts that an upgrade walks: the nodes, and in the shape of one
// each host that runs no instances.
func UpgradeHosts(nodes []*Node, ids []*NodeIdentity) []*Node {
	out := slices.Clone(nodes)
	for _, id := range ids {
		if id.Spec.Role == RoleNode || id.Spec.Revoked != "" || slices.ContainsFunc(nodes, func(n *Node) bool { return n.Name == id.Name }) {
			continue
		}
		st := &id.Status
		out = append(out, &Node{Head: Head{K: KindNode, Meta: Meta{Name: id.Name}}, Status: NodeStatus{Version: st.Version, Release: st.Release, Arch: st.Arch, Upgrade: st.Upgrade,
			Conditions: []Condition{{Type: ConditionReady, Status: true}}}})
	}
	slices.SortFunc(out, func(a, b *Node) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Host finds the line of a host; nil when there is none.
func (s *UpgradeStatus) Host(name string) *UpgradeHost {
	for i := range s.Hosts {
		if s.Hosts[i].Name == name {
			return &s.Hosts[i]
		}
	}
	return nil
}

// Over reports whether another upgrade may begin.
func (u *Upgrade) Over() bool {
	return u.Status.State == UpgradeFinalised || u.Status.State == UpgradeAborted
}

// For are the programs for one sort of host.
func (s *UpgradeSpec) For(os, arch string) []UpgradeFile {
	var out []UpgradeFile
	for _, f := range s.Files {
		if f.OS == os && f.Arch == arch {
			out = append(out, f)
		}
	}
	return out
}

// NodeUpgrade is what a host says of its versions.
type NodeUpgrade struct {
	Active string   `json:"active,omitempty" doc:"the version that runs and has proved itself"`
	Staged []string `json:"staged,omitempty" doc:"versions it has the programs of"`
	Try    int64    `json:"try,omitempty" doc:"the task it answers to"`
	Error  string   `json:"error,omitempty" doc:"why that task failed"`
}

// UpgradeRequest is the body of POST /v1/upgrade.
type UpgradeRequest struct {
	Action  string    `json:"action" doc:"what is asked for" enum:"prepare|activate|pause|resume|finalise|abort"`
	Version string    `json:"version,omitempty" doc:"prepare: the version; its files were sent before"`
	Pause   *Duration `json:"pause,omitempty" doc:"activate: between one host and the next" example:"10s"`
	Hosts   []string  `json:"hosts,omitempty" doc:"activate: only these hosts, in this order"`
	Absent  []string  `json:"absent,omitempty" doc:"finalise: hosts that may be left behind"`
}

// UpgradeUpload is the answer to files that were sent.
type UpgradeUpload struct {
	Version string        `json:"version" doc:"the version, as its atolld says"`
	Release int           `json:"release" doc:"its release"`
	Files   []UpgradeFile `json:"files" doc:"what was kept"`
}

// UpgradeActions are what can be asked for.
func UpgradeActions() []string {
	return []string{"prepare", "activate", "pause", "resume", "finalise", "abort"}
}

// maxUpgradePause bounds the pause between hosts.
const maxUpgradePause = time.Hour

// Validate checks a request by itself.
func (r *UpgradeRequest) Validate() error {
	var f []errs.Field
	if !slices.Contains(UpgradeActions(), r.Action) {
		f = append(f, errs.Field{Field: "action", Value: clip(r.Action), Rule: "must be one of " + strings.Join(UpgradeActions(), ", "), Example: "prepare"})
	}
	if (r.Action == "prepare") != (r.Version != "") || r.Version != "" && !ValidVersion(r.Version) {
		f = append(f, errs.Field{Field: "version", Value: clip(r.Version), Rule: "is for prepare, and " + versionRule, Example: "v1.3.0"})
	}
	if p := r.Pause; p != nil && (r.Action != "activate" || p.D() < 0 || p.D() > maxUpgradePause) {
		f = append(f, errs.Field{Field: "pause", Value: p.D().String(), Rule: "is for activate, and must be 0s to 1h", Example: "10s"})
	}
	for field, names := range map[string][]string{"hosts": r.Hosts, "absent": r.Absent} {
		if len(names) > 0 && r.Action != map[string]string{"hosts": "activate", "absent": "finalise"}[field] || len(names) > 10_000 {
			f = append(f, errs.Field{Field: field, Rule: "goes with " + map[string]string{"hosts": "activate", "absent": "finalise"}[field] + " only", Example: "isle2"})
		}
		for i, n := range names {
			f = append(f, NodeNameFields(fmt.Sprintf("%s[%d]", field, i), n)...)
		}
	}
	return errs.InvalidFields("upgrade", f)
}

// VersionFields says what is wrong with the name of a version.
func VersionFields(field, v string) []errs.Field {
	if ValidVersion(v) {
		return nil
	}
	return []errs.Field{{Field: field, Value: clip(v), Rule: versionRule, Example: "v1.3.0"}}
}

// Validate has nothing to check: users cannot write it but by POST /v1/upgrade.
func (u *Upgrade) Validate() []errs.Field { return nil }

func upgradeDefinition() *Definition {
	up := func(o Object) *Upgrade { return o.(*Upgrade) }
	return &Definition{
		Kind: KindUpgrade, Plural: "upgrades", ReadOnly: true,
		Doc: "The way of the pool to another version, host by host.",
		New: func() Object { return &Upgrade{Head: Head{K: KindUpgrade}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "VERSION", Value: func(o Object, _ time.Time) string { return dash(up(o).Spec.Version) }},
			{Name: "STATE", Value: func(o Object, _ time.Time) string {
				if up(o).Spec.Paused {
					return dash(string(up(o).Status.State)) + ",paused"
				}
				return dash(string(up(o).Status.State))
			}},
			{Name: "HOSTS", Value: func(o Object, _ time.Time) string {
				n := 0
				for _, h := range up(o).Status.Hosts {
					if h.Version == up(o).Spec.Version {
						n++
					}
				}
				return fmt.Sprintf("%d of %d", n, len(up(o).Status.Hosts))
			}},
			{Name: "MESSAGE", Value: func(o Object, _ time.Time) string { return dash(up(o).Status.Message) }},
			{Name: "SINCE", Value: func(o Object, now time.Time) string { return Age(&up(o).Spec.Since, now) }},
		},
		Fields: map[string]func(Object) string{},
	}
}
