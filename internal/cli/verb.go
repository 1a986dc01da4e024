package cli

import (
	"context"

	"github.com/spf13/pflag"

	"atoll/internal/clock"
)

// IO is the world around a call: its streams, its clock, and how to reach a server.
type IO struct {
	Streams
	Version string // of this program
	Clock   clock.Clock
	Home    string // where ~/.config is
	Dial    func(Settings) (Client, error)
}

// Verb is one command, or a group of them.
type Verb struct {
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
	Run     func(ctx context.Context, c *call) error
	// Complete lists what an argument could be.
	Complete func(ctx context.Context, c *call, typed string) []string
	Sub      []Verb
}

const (
	groupRun    = "run"
	groupObject = "objects"
	groupTell   = "tell"
	groupPool   = "pool"
	groupSetup  = "setup"
)

// call is one call of one verb.
type call struct {
	IO
	global globalOptions
	args   []string
	dash   int // how many arguments came before "--"; -1 when it was not given

	flags      *pflag.FlagSet
	client     Client
	file       *settingsFile
	completing bool     // a shell asks for completions
	words      []string // the command line; nil: not known
}
