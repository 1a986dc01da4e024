// Package conn is the way to a server: which one is meant and as whom, and what can
// be asked of it.
//
// It starts no goroutine of its own. It must never put a token in an error, a trace or
// a file others can read.
package conn

import (
	"context"
	"io"
	"net/url"

	"atoll/api"
	"atoll/internal/store"
)

// Client is the API as verbs need it.
type Client interface {
	store.Store
	Writer
	Streamer
	Reporter
	Keeper
	Hosts
	Upgrader
	Traffic
	io.Closer
}

// Writer changes one object the way a user does: through the server's rules.
type Writer interface {
	// Create answers with what was made, including what is shown only once, such as a token's secret.
	Create(ctx context.Context, o api.Object) (api.Object, error)
	// Delete asks for removal at a revision (store.Any: whatever is there); who has to clean up first does so.
	Delete(ctx context.Context, ref api.Ref, rev int64) error
}

// Traffic tells of networks of tenants.
type Traffic interface {
	// Net asks one of the questions: why, check, flows, map, hits. Parameters are those of the API.
	Net(ctx context.Context, question string, q url.Values, out any) error
	// FollowFlows streams new and refused flows: an api.NetFlow in each message of api.ChanStdout.
	FollowFlows(ctx context.Context, q url.Values) (Stream, error)
}

// Streamer opens live streams.
type Streamer interface {
	Stream(ctx context.Context, r StreamRequest) (Stream, error)
}

// StreamRequest says what a stream is about.
type StreamRequest struct {
	Verb     string  // tunnel.Verb…
	Instance api.Ref // for what concerns an instance
	Node     string  // for images: on which node; "": the server chooses
	Params   any     // the api type that belongs to Verb
}

// Stream is a live stream: frames of one channel byte and a payload. Writes may
// come from many goroutines, reads from one.
type Stream interface {
	Read() (ch byte, p []byte, err error)
	Write(ch byte, p []byte) error
	Close() error
}

// Reporter tells what is not an object.
type Reporter interface {
	Usage(ctx context.Context, tenant string) (api.UsageReport, error)
	// Plan asks what would be; tenant is that of objects which name none.
	Plan(ctx context.Context, tenant string, req api.PlanRequest) (api.PlanAnswer, error)
	// Power switches a host by its management controller.
	Power(ctx context.Context, node string, req api.PowerRequest) (api.PowerAnswer, error)
	WhoAmI(ctx context.Context) (Identity, error)
	ServerVersion(ctx context.Context) (string, error)
}

// Keeper saves and replaces the whole state of the control plane.
type Keeper interface {
	Backup(ctx context.Context, w io.Writer) error
	Restore(ctx context.Context, r io.Reader) error
}

// Hosts lets hosts in and out.
type Hosts interface {
	// JoinInfo is where a host that joins finds the server; errs.Conflict when nowhere.
	JoinInfo(ctx context.Context) (api.JoinInfo, error)
	// RemoveNode takes a host out; force gives up what is assigned to it, off says that it is switched off.
	RemoveNode(ctx context.Context, name string, force, off bool) error
	RevokeNode(ctx context.Context, name, why string) error
}

// Upgrader brings the pool to another version.
type Upgrader interface {
	Upgrade(ctx context.Context, req api.UpgradeRequest) (*api.Upgrade, error)
	// SendVersion gives a server programs, as a tar; version "" is whatever they say.
	SendVersion(ctx context.Context, version string, r io.Reader) (api.UpgradeUpload, error)
}

// Identity is who the server takes the caller for.
type Identity struct {
	User    string   `json:"user"`
	Admin   bool     `json:"admin,omitempty"`
	Tenants []string `json:"tenants,omitempty"` // where roles are bound; empty for an administrator
}

// DryRunner is a Client whose server can judge a commit without doing it.
type DryRunner interface {
	DryRun(ctx context.Context, ops ...store.Op) error
}
