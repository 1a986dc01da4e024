// Command atolld is the daemon: the control plane and the node agent, in one
// process on one host. It also looks the host over (doctor) and takes everything
// of Atoll's off it again (down). What a host is told by hand and what is a kind
// in the store is kept apart: flags say where this process lives, nothing else.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"atoll/cmd/atolld/twin"
	"atoll/internal/encrypt"
	"atoll/internal/errs"
	"atoll/internal/release"
	"atoll/internal/stage"
)

// version is set by the build.
var version = "dev" //nolint:gochecknoglobals // the linker's way to tell a binary what it is

type verb struct {
	name, help string // help "": not shown, the daemon uses it
	run        func(ctx context.Context, args []string) error
}

func verbs() []verb {
	return []verb{
		{"up", "run the pool on this host: API, controllers and agent in one process", runUp},
		{"server", "run a server on this host: API and a copy of the state, or with --etcd-endpoints the API only; no instances", runServer},
		{"witness", "run a witness on this host: a copy of the state that votes, and nothing else; needs no root", runWitness},
		{"join", "join this host to a pool (atolld join URL --token TOKEN)", runJoin},
		{"recover", "when most hosts that keep the state are lost: look at this host's copy, make it the only one, or start from a backup", runRecover},
		{"doctor", "look the host over and say what to do", runDoctor},
		{"down", "take every trace of Atoll off this host; the data stays unless --data is given", runDown},
		{"watchdog", "stop what must not run twice when this host's lease ends; the daemon starts it (--status: how it stands)", runWatchdog},
		{"sim", "the digital twin: play scenarios on simulated hosts (atolld sim --help)", twin.Run},
		{"guard", "", runGuard},
		{encrypt.Verb, "", encrypt.Main},
		{"version", "print the version", runVersion},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := dispatch(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		if h := errs.HintOf(err); h != "" {
			fmt.Fprintln(os.Stderr, "  what would help:", h)
		}
		os.Exit(errs.ExitCode(err))
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
		usage(os.Stdout)
		return nil
	}
	for _, v := range verbs() {
		if v.name == args[0] {
			return v.run(ctx, args[1:])
		}
	}
	usage(os.Stderr)
	return errs.New(errs.Invalid, "unknown verb %q", args[0])
}

// runVersion is also how other programs ask, so -o json stays as it is.
func runVersion(_ context.Context, args []string) error {
	fs := flag.NewFlagSet("atolld version", flag.ContinueOnError)
	form := fs.String("o", "text", "text or json")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *form != "json" {
		fmt.Println("atolld", version)
		return nil
	}
	return json.NewEncoder(os.Stdout).Encode(stage.Told{Version: version, Release: release.Number()})
}

func usage(w io.Writer) {
	var b strings.Builder
	b.WriteString("atolld - the daemon of Atoll\n\nUsage: atolld VERB [flags]\n\n")
	for _, v := range verbs() {
		if v.help == "" {
			continue
		}
		fmt.Fprintf(&b, "  %-9s %s\n", v.name, v.help)
	}
	b.WriteString("\n'atolld VERB --help' lists the flags. Users talk to the pool with 'atoll'.\n")
	fmt.Fprint(w, b.String())
}
