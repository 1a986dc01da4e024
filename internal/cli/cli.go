// Package cli is the command line: the list of all verbs, the tree made of them, and
// the exit code. The verbs are in packages by subject (live, workload, object, tell, pool,
// plan, setup), one file per verb, each an options struct with its flags and its run. They
// speak to a pool only through conn.Client and know nothing of how things are stored,
// placed or run, so that the program starts in a few milliseconds; what a verb needs
// is made when the verb runs.
//
// It starts no goroutine. It must never put a secret on a command line, in a log or in
// an error.
package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/drop"
	"atoll/internal/cli/flow"
	"atoll/internal/cli/live"
	"atoll/internal/cli/object"
	"atoll/internal/cli/plan"
	"atoll/internal/cli/pool"
	"atoll/internal/cli/render"
	"atoll/internal/cli/setup"
	"atoll/internal/cli/tell"
	"atoll/internal/cli/verb"
	"atoll/internal/cli/workload"
	"atoll/internal/errs"
)

// Commands lists every verb.
func Commands() []verb.Def {
	return append([]verb.Def{
		live.Run(), create(), live.Exec(), live.Attach(), tell.Logs(), live.Cp(),
		live.Start(), live.Stop(), live.Restart(), workload.Scale(), workload.Rollout(),
		object.Get(), tell.Describe(), object.Apply(), object.Edit(), object.Delete(), object.Wait(),
		tell.Why(), tell.Explain(), tell.Events(), tell.Top(), network(), plan.Plan(), tell.Resources(),
		pool.Tenant(), pool.Network(), pool.Address(), pool.Node(), pool.Image(), pool.User(), pool.Token(), pool.Role(), pool.Encryption(),
		setup.Use(), setup.Login(), setup.Backup(), setup.Recover(), setup.Upgrade(), setup.Sim(), setup.Doctor(), setup.Version(), completionVerb(),
	}, pool.Maintenance()...)
}

// network is what passes networks, and what must not.
func network() verb.Def {
	d := flow.Net()
	x := drop.Drop()
	x.Group = ""
	d.Sub = append(d.Sub, x)
	return d
}

// create makes an instance, or what makes instances.
func create() verb.Def {
	d := live.Create()
	d.Sub = workload.Creates()
	return d
}

// Main runs one command line and returns its exit code.
func Main(ctx context.Context, w verb.IO, args []string) int {
	c := &verb.Call{IO: w, Words: args, Completing: len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd)}
	root := tree(c)
	root.SetArgs(args)
	root.SetIn(w.In)
	root.SetOut(w.Out)
	root.SetErr(w.Err)
	err := root.ExecuteContext(ctx)
	c.Close()
	return report(c, err)
}

// tree makes the commands of all verbs.
func tree(c *verb.Call) *cobra.Command {
	root := &cobra.Command{
		Use:   "atoll",
		Short: "Run and share a pool of servers",
		Long: `Atoll makes one or many Linux servers a shared pool: tenants get guaranteed
shares of it and run containers and stronger isolated instances in it.`,
		Example: `  atoll run --rm -it busybox sh        a shell in a fresh container
  atoll get instances -o wide          what runs, and what it uses
  atoll why instance/web               why it runs where it runs
  atoll top tenants                    who uses what share`,
		SilenceErrors: true, SilenceUsage: true, TraverseChildren: true,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownVerb(cmd, args[0])
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	c.Global.Flags(root.Flags())
	root.SetFlagErrorFunc(flagError)
	for _, g := range []cobra.Group{
		{ID: verb.GroupRun, Title: "Run things:"}, {ID: verb.GroupObject, Title: "Objects:"}, {ID: verb.GroupTell, Title: "See and understand:"},
		{ID: verb.GroupPool, Title: "The pool:"}, {ID: verb.GroupSetup, Title: "Setup:"},
	} {
		root.AddGroup(&g)
	}
	for _, v := range Commands() {
		if !mayBeMeant(c, v) {
			v = outline(v)
		}
		root.AddCommand(command(c, v))
	}
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "Exit codes of atoll", Long: exitCodesText()})
	return root
}

// mayBeMeant reports whether a verb's name is among the words of the command line.
// Only then its flags are made: all flags of all verbs take a noticeable part of a
// start. What shows or completes any verb needs them all.
func mayBeMeant(c *verb.Call, v verb.Def) bool {
	if c.Words == nil || c.Completing {
		return true
	}
	names := append([]string{strings.Fields(v.Use)[0]}, v.Aliases...)
	return slices.ContainsFunc(c.Words, func(w string) bool { return slices.Contains(names, w) })
}

func command(c *verb.Call, v verb.Def) *cobra.Command {
	cmd := &cobra.Command{Use: v.Use, Short: v.Short, Long: v.Long, Example: v.Example, Aliases: v.Aliases, GroupID: v.Group,
		DisableFlagsInUseLine: true}
	for _, s := range v.Sub {
		cmd.AddCommand(command(c, s))
	}
	if v.Run == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownVerb(cmd, args[0])
		}
		return cmd
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.SetInterspersed(!v.Raw)
	if v.Flags != nil {
		v.Flags(fs)
	}
	c.Global.Flags(fs)
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) < v.Min || v.Max >= 0 && len(args) > v.Max {
			return errs.New(errs.Invalid, "%s: %s", cmd.CommandPath(), countRule(v, len(args))).WithHint("usage: %s", cmd.UseLine())
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c.Args, c.Dash, c.Flags = args, cmd.ArgsLenAtDash(), fs
		return v.Run(cmd.Context(), c)
	}
	if c.Completing {
		completeFlags(c, cmd)
	}
	if v.Complete != nil {
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			c.Args, c.Dash, c.Flags = args, -1, fs
			return v.Complete(cmd.Context(), c, typed), cobra.ShellCompDirectiveNoFileComp
		}
	}
	return cmd
}

func countRule(v verb.Def, got int) string {
	switch {
	case v.Max == 0:
		return "takes no arguments"
	case v.Min == v.Max:
		return fmt.Sprintf("takes %s, not %d", render.Plural(v.Min, "argument"), got)
	case got < v.Min:
		return fmt.Sprintf("needs at least %s", render.Plural(v.Min, "argument"))
	}
	return fmt.Sprintf("takes at most %s, not %d", render.Plural(v.Max, "argument"), got)
}

func unknownVerb(cmd *cobra.Command, name string) error {
	var names []string
	for _, s := range cmd.Commands() {
		names = append(names, s.Name())
	}
	e := errs.New(errs.Invalid, "%s has no command %q", cmd.CommandPath(), name).WithHint("%s --help lists them", cmd.CommandPath())
	if near := api.Nearest(name, names); near != "" {
		e.Hint = fmt.Sprintf("did you mean %s %s?", cmd.CommandPath(), near)
	}
	return e
}

// flagError says which flag was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	e := errs.New(errs.Invalid, "%s: %s", cmd.CommandPath(), err.Error()).WithHint("%s --help lists the flags", cmd.CommandPath())
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := api.Nearest(unknown.GetSpecifiedName(), names); near != "" && unknown.GetSpecifiedShortnames() == "" {
			e.Hint = fmt.Sprintf("did you mean --%s?", near)
		}
	}
	return e
}

func exitCodesText() string {
	codes := append(errs.ExitCodes(), "0  done")
	slices.Sort(codes)
	return strings.Join(codes, "\n") + `

run, exec and attach end with the exit code of the process inside (128 + signal
when a signal ended it). When Atoll itself could not do what was asked, they print
a line beginning with "error:" and end with a code from this list, like every
other command. A command ended by Ctrl-C ends with 130.`
}

// outline is a verb as the list of verbs shows it.
func outline(v verb.Def) verb.Def {
	return verb.Def{Use: v.Use, Short: v.Short, Group: v.Group, Aliases: v.Aliases}
}
