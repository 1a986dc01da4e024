package setup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// Sim is the group of verbs of the digital twin. The twin is made of the scheduler, the
// controllers and the agent, which this small program does not link: atolld plays it.
func Sim() verb.Def {
	sub := func(use, short, example string, n int, more func(fs *pflag.FlagSet), run func(context.Context, *verb.Call) error) verb.Def {
		return verb.Def{Use: use, Min: min(n, 1), Max: n, Short: short, Example: example, Flags: more, Run: run}
	}
	return verb.Def{
		Use: "sim", Group: verb.GroupTell, Short: "Play scenarios on simulated hosts: what if",
		Long: `The digital twin plays this pool's own scheduler, controllers and agent on simulated
hosts, much faster than time. Nothing real is touched. docs/twin.md tells how to write a
scenario and how to read a report; docs/examples/sim has some to start from.`,
		Example: "  atoll sim run docs/examples/sim/small-company.yaml\n  atoll sim replay --since 24h --with lose-a-room.yaml -o html --out week.html",
		Sub: []verb.Def{
			sub("run SCENARIO", "Play a scenario and report", "  atoll sim run small.yaml\n  atoll sim run small.yaml -o html --out small.html", 1, simReport, simPass("run")),
			withMin(2, sub("compare SCENARIO SCENARIO", "Play two scenarios and show them side by side", "  atoll sim compare today.yaml fewer-hosts.yaml", 2, simReport, simPass("compare"))),
			sub("replay", "Play a pool's own state and history again", "  atoll sim replay --since 12h\n  atoll sim replay --from pool.backup --with lose-a-room.yaml", 0, simReplayFlags, simReplay),
			withMin(1, sub("check SCENARIO...", "Look for mistakes in scenarios", "  atoll sim check small.yaml", -1, nil, simPass("check"))),
			sub("import azure-llm|prometheus [FILE]", "Make a trace of recorded load", "  atoll sim import azure-llm requests.csv.gz --out requests.json\n  atoll sim import prometheus --url http://prometheus:9090 --query 'rate(node_cpu_seconds_total[5m])' --from 24h --out cpu.json", 2, simImportFlags, simPass("import")),
		},
	}
}

func withMin(n int, d verb.Def) verb.Def {
	d.Min = n
	return d
}

func simReport(fs *pflag.FlagSet) {
	fs.StringP("output", "o", "table", "`format` of the report: table, json or html")
	fs.String("out", "", "write the report to this `file`")
	fs.Uint64("seed", 0, "another seed than the scenario's")
	fs.Bool("quiet", false, "no progress on standard error")
}

func simReplayFlags(fs *pflag.FlagSet) {
	simReport(fs)
	fs.String("from", "", "`file` of a backup; default: one of the pool, taken now")
	fs.String("since", "24h", "`when` the replay begins: a time, or a duration before the backup")
	fs.Duration("for", 0, "play so much longer than the record reaches")
	fs.String("with", "", "`file` with arrivals, faults, changes and policies to lay over it")
}

func simImportFlags(fs *pflag.FlagSet) {
	fs.String("out", "", "write the trace to this `file`")
	fs.Bool("quiet", false, "say nothing but the trace")
	fs.Float64("prefill", 8000, "azure-llm: context tokens read a second")
	fs.Float64("decode", 40, "azure-llm: tokens written a second")
	fs.String("url", "", "prometheus: `address` of the server; a bearer token comes from ATOLL_PROMETHEUS_TOKEN")
	fs.String("query", "", "prometheus: `query` in PromQL")
	fs.String("from", "", "prometheus: `time` of the beginning, or a duration before now")
	fs.String("to", "0s", "prometheus: `time` of the end, or a duration before now")
	fs.Duration("step", time.Minute, "prometheus: pause between two values")
}

// simWords are the flags of the sim verbs, which the daemon knows by the same names.
func simWords(c *verb.Call) []string {
	replay, load := pflag.NewFlagSet("replay", pflag.ContinueOnError), pflag.NewFlagSet("import", pflag.ContinueOnError)
	simReplayFlags(replay)
	simImportFlags(load)
	var out []string
	c.Flags.Visit(func(f *pflag.Flag) {
		if replay.Lookup(f.Name) != nil || load.Lookup(f.Name) != nil {
			name := f.Name
			if name == "output" {
				name = "o"
			}
			out = append(out, "--"+name+"="+f.Value.String())
		}
	})
	return append(out, c.Args...)
}

func simPass(name string) func(context.Context, *verb.Call) error {
	return func(ctx context.Context, c *verb.Call) error {
		return simExec(ctx, c, append([]string{"sim", name}, simWords(c)...))
	}
}

// simReplay takes a backup of the pool first, when none is given.
func simReplay(ctx context.Context, c *verb.Call) error {
	words := simWords(c)
	if c.Flags.Changed("from") {
		return simExec(ctx, c, append([]string{"sim", "replay"}, words...))
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "atoll-replay-*")
	if err != nil {
		return errs.New(errs.Unavailable, "%w", err)
	}
	err = cl.Backup(ctx, f)
	if err = errors.Join(err, f.Close()); err == nil {
		err = simExec(ctx, c, append([]string{"sim", "replay", "--from=" + f.Name()}, words...))
	}
	if rerr := os.Remove(f.Name()); rerr != nil {
		c.Note("the backup that was played is left at %s: %s", f.Name(), rerr)
	}
	return err
}

// simExec lets atolld do it: its output is the verb's, and so is its exit code.
func simExec(ctx context.Context, c *verb.Call, args []string) error {
	path, err := daemonPath()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.In, c.Out, c.Err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
			return verb.ExitCode(128 + int(st.Signal()))
		}
		return verb.ExitCode(exit.ExitCode())
	case err != nil:
		return errs.New(errs.Unavailable, "run %s: %w", path, err)
	}
	return nil
}
