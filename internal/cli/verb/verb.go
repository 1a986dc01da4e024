// Package verb is what verbs are made of: their definition, the call of one, the
// objects its arguments name, waiting, changing and completing.
//
// It starts goroutines only for the length of one wait and waits for them. It must
// never know a particular verb.
package verb

import (
	"context"

	"github.com/spf13/pflag"

	"atoll/internal/cli/conn"
	"atoll/internal/cli/term"
	"atoll/internal/clock"
)

// IO is the world around a call: its streams, its clock, and how to reach a server.
type IO struct {
	term.Streams
	Version string // of this program
	Clock   clock.Clock
	Home    string // where ~/.config is
	Dial    func(conn.Settings) (conn.Client, error)
}

// Def is one command, or a group of them.
type Def struct {
	Use     string // name and arguments, as help shows them
	Short   string
	Long    string
	Example string
	Group   string
	Aliases []string
	Min     int  // fewest arguments
	Max     int  // most; -1: any number
	Raw     bool // what follows the first argument is not ours to parse
	Flags   func(fs *pflag.FlagSet)
	Run     func(ctx context.Context, c *Call) error
	// Complete lists what an argument could be.
	Complete func(ctx context.Context, c *Call, typed string) []string
	Sub      []Def
}

const (
	GroupRun    = "run"
	GroupObject = "objects"
	GroupTell   = "tell"
	GroupPool   = "pool"
	GroupSetup  = "setup"
)

// Call is one call of one verb.
type Call struct {
	IO
	Global conn.Options
	Args   []string
	Dash   int // how many arguments came before "--"; -1 when it was not given

	Flags      *pflag.FlagSet
	client     conn.Client
	file       *conn.File
	Completing bool     // a shell asks for completions
	Words      []string // the command line; nil: not known
}
