// Package twin is atolld sim: the door to the digital twin.
package twin

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"atoll/cmd/atolld/builtin"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/sim"
	"atoll/internal/sim/report"
	"atoll/internal/sim/scenario"
	"atoll/internal/trace"
	"atoll/internal/trace/azurellm"
	"atoll/internal/trace/prometheus"
)

const simUsage = `atolld sim - the digital twin: this build's scheduler, controllers and agent on
simulated hosts; nothing real is touched

Usage:
  atolld sim run SCENARIO [flags]             play it and report
  atolld sim compare SCENARIO SCENARIO [flags]  play both and show them side by side
  atolld sim replay --from BACKUP [flags]     play a pool's own state and history on
  atolld sim check SCENARIO...                look for mistakes only
  atolld sim import azure-llm FILE            make a trace of recorded requests
  atolld sim import prometheus [flags]        make a trace of a range query

Flags of run, compare and replay:
  -o table|json|html   what the report looks like (default table)
  --out FILE           write it there instead of to standard output
  --seed N             another seed than the scenario's
  --quiet              no progress

'atolld sim VERB --help' lists all flags. docs/twin.md tells how to write a scenario.
`

// Run is atolld sim. It needs no root, no daemon and no configuration.
func Run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
		fmt.Print(simUsage)
		return nil
	}
	switch args[0] {
	case "run":
		return simRun(ctx, args[1:])
	case "compare":
		return simCompare(ctx, args[1:])
	case "replay":
		return simReplay(ctx, args[1:])
	case "check":
		return simCheck(args[1:])
	case "import":
		return simImport(ctx, args[1:])
	}
	return errs.New(errs.Invalid, "sim: unknown verb %q", args[0]).WithHint("atolld sim --help")
}

// simFlags are those of everything that plays.
type simFlags struct {
	*flag.FlagSet
	format, out string
	seed        uint64
	quiet       bool
}

func newSimFlags(verb string) *simFlags {
	f := &simFlags{FlagSet: flag.NewFlagSet("atolld sim "+verb, flag.ContinueOnError)}
	f.StringVar(&f.format, "o", "table", "`format` of the report: table, json or html")
	f.StringVar(&f.out, "out", "", "write the report to this `file`")
	f.Uint64Var(&f.seed, "seed", 0, "another seed than the scenario's")
	f.BoolVar(&f.quiet, "quiet", false, "no progress on standard error")
	return f
}

// parse takes flags before, between and after the other arguments.
func parseAnywhere(fs *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, errs.New(errs.Invalid, "%w", err)
		}
		if fs.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, fs.Arg(0)), fs.Args()[1:]
	}
}

func (f *simFlags) parse(args []string, want int, usage string) ([]string, error) {
	rest, err := parseAnywhere(f.FlagSet, args)
	if err != nil {
		return nil, err
	}
	if len(rest) != want {
		return nil, errs.New(errs.Invalid, "%s: %d arguments", f.Name(), len(rest)).WithHint("usage: %s %s", f.Name(), usage)
	}
	if !slices.Contains([]string{"table", "json", "html"}, f.format) {
		return nil, errs.InvalidFields("flags", []errs.Field{{Field: "-o", Value: f.format, Rule: "must be one of table, json, html", Example: "html"}})
	}
	return rest, nil
}

// readScenario reads and checks a file; traces are looked for beside it.
func readScenario(path string) (*scenario.Scenario, error) {
	b, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	sc, err := scenario.Decode(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return sc, nil
}

const maxScenario = 4 << 20

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.New(errs.NotFound, "%w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxScenario+1))
	if err != nil {
		return nil, errs.New(errs.Unavailable, "read %s: %w", path, err)
	}
	if len(b) > maxScenario {
		return nil, errs.New(errs.Invalid, "%s is larger than %d bytes", path, maxScenario)
	}
	return b, nil
}

func openBeside(path string) func(string) (io.ReadCloser, error) {
	return func(name string) (io.ReadCloser, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		f, err := os.Open(name)
		if err != nil {
			return nil, errs.New(errs.NotFound, "%w", err)
		}
		return f, nil
	}
}

// simChain is this build's chain, changed as the scenario says.
func simChain(p scenario.Policies) (policy.Chain, error) {
	c := builtin.Policies()
	var fields []errs.Field
	known := map[string]bool{}
	var names []string
	for _, s := range c.Scorers {
		known[s.Name()] = true
		names = append(names, s.Name())
	}
	for n := range p.Scorers {
		if !known[n] {
			fields = append(fields, errs.Field{Field: "policies.scorers", Value: n, Rule: "must be one of " + strings.Join(names, ", "), Example: names[0]})
		}
	}
	scorers := c.Scorers[:0]
	for _, s := range c.Scorers {
		w, given := p.Scorers[s.Name()]
		if given {
			s.Weight = w
		}
		if s.Weight > 0 && (given || !p.Only) {
			scorers = append(scorers, s)
		}
	}
	c.Scorers, names = scorers, nil
	for _, f := range c.Filters {
		names = append(names, f.Name())
	}
	for _, n := range p.Without {
		if !slices.Contains(names, n) {
			fields = append(fields, errs.Field{Field: "policies.without", Value: n, Rule: "must be one of " + strings.Join(names, ", "), Example: names[0]})
		}
	}
	c.Filters = slices.DeleteFunc(c.Filters, func(f policy.Filter) bool { return slices.Contains(p.Without, f.Name()) })
	return c, errs.InvalidFields("scenario", fields)
}

// playOne plays a scenario and shows how far it is.
func (f *simFlags) playOne(ctx context.Context, sc *scenario.Scenario, opt sim.Options) (*report.Report, error) {
	if f.seed != 0 {
		sc.Seed = f.seed
	}
	opt.Chain = simChain
	bar := newSimBar(os.Stderr, sc.Name, f.quiet)
	opt.Progress = bar.show
	began := time.Now()
	w, err := sim.New(ctx, sc, opt)
	if err != nil {
		bar.end()
		return nil, err
	}
	built := time.Since(began)
	rep, err := w.Run(ctx)
	bar.end()
	if !f.quiet && err == nil {
		fmt.Fprintf(os.Stderr, "%s: %s of pool time in %.1f s (built in %.1f s), %d calls, %d commits, %s\n", sc.Name, sc.Duration.D(),
			time.Since(began).Seconds(), built.Seconds(), rep.Totals.Calls, rep.Totals.Commits, memoryUsed())
	}
	return rep, err
}

func simRun(ctx context.Context, args []string) error {
	f := newSimFlags("run")
	rest, err := f.parse(args, 1, "SCENARIO")
	if err != nil {
		return err
	}
	sc, err := readScenario(rest[0])
	if err != nil {
		return err
	}
	rep, err := f.playOne(ctx, sc, sim.Options{Open: openBeside(rest[0])})
	if err != nil {
		return err
	}
	return f.tell(rep)
}

func simCompare(ctx context.Context, args []string) error {
	f := newSimFlags("compare")
	rest, err := f.parse(args, 2, "SCENARIO SCENARIO")
	if err != nil {
		return err
	}
	var reps [2]*report.Report
	for i, path := range rest {
		sc, err := readScenario(path)
		if err != nil {
			return err
		}
		if reps[i], err = f.playOne(ctx, sc, sim.Options{Open: openBeside(path)}); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return f.write(func(w io.Writer) error {
		switch f.format {
		case "json":
			return report.JSON(w, report.Compare(reps[0], reps[1]))
		case "html":
			return report.HTML(w, reps[0], reps[1])
		}
		return report.Table(w, reps[0], reps[1])
	})
}

// tell writes a report in the form that was asked for.
func (f *simFlags) tell(rep *report.Report) error {
	return f.write(func(w io.Writer) error {
		switch f.format {
		case "json":
			return report.JSON(w, rep)
		case "html":
			return report.HTML(w, rep)
		}
		return report.Table(w, rep)
	})
}

// write puts the report where it was asked for; a file appears whole or not at all.
func (f *simFlags) write(to func(io.Writer) error) error {
	var b bytes.Buffer
	if err := to(&b); err != nil {
		return err
	}
	if f.out == "" {
		_, err := os.Stdout.Write(b.Bytes())
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(f.out), ".atoll-report-*")
	if err != nil {
		return errs.New(errs.Unavailable, "%w", err)
	}
	_, err = tmp.Write(b.Bytes())
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), f.out)
	}
	if err != nil {
		return errors.Join(errs.New(errs.Unavailable, "write %s: %w", f.out, err), os.Remove(tmp.Name()))
	}
	if !f.quiet {
		fmt.Fprintln(os.Stderr, "wrote", f.out)
	}
	return nil
}

func simCheck(args []string) error {
	fs := flag.NewFlagSet("atolld sim check", flag.ContinueOnError)
	files, err := parseAnywhere(fs, args)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errs.New(errs.Invalid, "which scenario?").WithHint("usage: atolld sim check SCENARIO...")
	}
	for _, path := range files {
		sc, err := readScenario(path)
		if err != nil {
			return err
		}
		if _, err := simChain(sc.Policies); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, t := range sc.Traces() {
			r, err := openBeside(path)(t.File)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			r.Close()
		}
		hosts := 0
		for _, g := range sc.Hosts {
			hosts += g.Count
		}
		fmt.Printf("%s: well: %d hosts, about %.0f instances, %s\n", path, hosts, sc.Expected(), sc.Duration.D())
	}
	return nil
}

func simImport(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] != "azure-llm" && args[0] != "prometheus" {
		return errs.New(errs.Invalid, "import what?").WithHint("atolld sim import azure-llm FILE, or atolld sim import prometheus --help")
	}
	f := newSimFlags("import " + args[0])
	prefill := f.Float64("prefill", 8000, "azure-llm: context tokens read a second")
	decode := f.Float64("decode", 40, "azure-llm: tokens written a second")
	q := prometheus.Query{Token: os.Getenv("ATOLL_PROMETHEUS_TOKEN")}
	f.StringVar(&q.URL, "url", "", "prometheus: `address` of the server; a bearer token comes from ATOLL_PROMETHEUS_TOKEN")
	f.StringVar(&q.Expr, "query", "", "prometheus: `query` in PromQL")
	from := f.String("from", "", "prometheus: `time` of the beginning, such as 2026-01-05T00:00:00Z, or a duration before now")
	to := f.String("to", "0s", "prometheus: `time` of the end, or a duration before now")
	f.DurationVar(&q.Step, "step", time.Minute, "prometheus: pause between two values")
	rest, err := parseAnywhere(f.FlagSet, args[1:])
	if err != nil {
		return err
	}
	var t *trace.Trace
	if args[0] == "prometheus" && q.URL != "" {
		if q.From, err = whenever(*from, "from"); err != nil {
			return err
		}
		if q.To, err = whenever(*to, "to"); err != nil {
			return err
		}
		t, err = prometheus.Fetch(ctx, &http.Client{Timeout: 2 * time.Minute}, q)
	} else {
		if len(rest) != 1 {
			return errs.New(errs.Invalid, "which file?").WithHint("atolld sim import %s FILE", args[0])
		}
		in, oerr := openBeside("")(rest[0])
		if oerr != nil {
			return oerr
		}
		defer in.Close()
		if args[0] == "prometheus" {
			t, err = prometheus.Read(in)
		} else {
			t, err = azurellm.Read(in, azurellm.Speed{Prefill: *prefill, Decode: *decode})
		}
	}
	if err != nil {
		return err
	}
	if !f.quiet {
		fmt.Fprintf(os.Stderr, "%d arrivals, %d series, %s\n", len(t.Arrivals), len(t.Series), t.Length())
	}
	return f.write(func(w io.Writer) error { return trace.Encode(w, t) })
}

// whenever reads a time, or a duration before now.
func whenever(s, flag string) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, errs.InvalidFields("flags", []errs.Field{{Field: "--" + flag, Value: s, Rule: "must be a time, or a duration before now", Example: "24h"}})
	}
	return t, nil
}
