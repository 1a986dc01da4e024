// Command atoll is the command line of a pool: a thin client that starts in a few
// milliseconds. Everything it can do is in package cli.
package main

import (
	"context"
	"os"
	"os/signal"

	"atoll/internal/cli"
)

// version is set by the build.
var version = "dev" //nolint:gochecknoglobals // the linker's way to tell a binary what it is

func main() {
	os.Exit(cli.Main(context.Background(), cli.Process(version, signals), os.Args[1:]))
}

// signals delivers signals until stop is called; the rest of the time they have
// their usual effect, so that Ctrl-C ends a command that does not ask for it.
func signals(sig ...os.Signal) (<-chan os.Signal, func()) {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, sig...)
	return ch, func() { signal.Stop(ch) }
}
