// Package cli is the command line: one file per verb, each an options struct with
// its flags and its run. It speaks to the pool only through Client and knows
// nothing of how things are stored, placed or run, so that it starts in a few
// milliseconds; what a verb needs is made when the verb runs.
//
// It starts goroutines only for the length of one verb and waits for them, with
// one exception that it names: a read of standard input cannot be taken back.
// It must never put a secret on a command line, in a log or in an error.
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
	"atoll/internal/errs"
)

// Commands lists every verb.
func Commands() []Verb {
	return []Verb{
		runVerb(), createVerb(), execVerb(), attachVerb(), logsVerb(), cpVerb(),
		startVerb(), stopVerb(), restartVerb(),
		getVerb(), describeVerb(), applyVerb(), editVerb(), deleteVerb(), waitVerb(),
		whyVerb(), explainVerb(), eventsVerb(), topVerb(), apiResourcesVerb(),
		tenantVerb(), nodeVerb(), imageVerb(), userVerb(), tokenVerb(), roleVerb(),
		useVerb(), loginVerb(), backupVerb(), doctorVerb(), versionVerb(), completionVerb(),
	}
}

// Main runs one command line and returns its exit code.
func Main(ctx context.Context, w IO, args []string) int {
	c := &call{IO: w, words: args, completing: len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd)}
	root := c.tree()
	root.SetArgs(args)
	root.SetIn(w.In)
	root.SetOut(w.Out)
	root.SetErr(w.Err)
	err := root.ExecuteContext(ctx)
	c.close()
	return c.report(err)
}

func (c *call) tree() *cobra.Command {
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
	c.global.flags(root.Flags())
	root.SetFlagErrorFunc(flagError)
	for _, g := range []cobra.Group{
		{ID: groupRun, Title: "Run things:"}, {ID: groupObject, Title: "Objects:"}, {ID: groupTell, Title: "See and understand:"},
		{ID: groupPool, Title: "The pool:"}, {ID: groupSetup, Title: "Setup:"},
	} {
		root.AddGroup(&g)
	}
	for _, v := range Commands() {
		if !c.mayBeMeant(v) {
			v = outline(v)
		}
		root.AddCommand(c.command(v))
	}
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "Exit codes of atoll", Long: exitCodesText()})
	return root
}

// mayBeMeant reports whether a verb's name is among the words of the command line.
// Only then its flags are made: all flags of all verbs take a noticeable part of a
// start. What shows or completes any verb needs them all.
func (c *call) mayBeMeant(v Verb) bool {
	if c.words == nil || c.completing {
		return true
	}
	names := append([]string{strings.Fields(v.Use)[0]}, v.Aliases...)
	return slices.ContainsFunc(c.words, func(w string) bool { return slices.Contains(names, w) })
}

func (c *call) command(v Verb) *cobra.Command {
	cmd := &cobra.Command{Use: v.Use, Short: v.Short, Long: v.Long, Example: v.Example, Aliases: v.Aliases, GroupID: v.Group,
		DisableFlagsInUseLine: true}
	for _, s := range v.Sub {
		cmd.AddCommand(c.command(s))
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
	c.global.flags(fs)
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) < v.Min || v.Max >= 0 && len(args) > v.Max {
			return errs.New(errs.Invalid, "%s: %s", cmd.CommandPath(), countRule(v, len(args))).WithHint("usage: %s", cmd.UseLine())
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c.args, c.dash, c.flags = args, cmd.ArgsLenAtDash(), fs
		return v.Run(cmd.Context(), c)
	}
	if c.completing {
		c.completeFlags(cmd)
	}
	if v.Complete != nil {
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			c.args, c.dash, c.flags = args, -1, fs
			return v.Complete(cmd.Context(), c, typed), cobra.ShellCompDirectiveNoFileComp
		}
	}
	return cmd
}

func countRule(v Verb, got int) string {
	switch {
	case v.Max == 0:
		return "takes no arguments"
	case v.Min == v.Max:
		return fmt.Sprintf("takes %s, not %d", plural(v.Min, "argument"), got)
	case got < v.Min:
		return fmt.Sprintf("needs at least %s", plural(v.Min, "argument"))
	}
	return fmt.Sprintf("takes at most %s, not %d", plural(v.Max, "argument"), got)
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
func outline(v Verb) Verb {
	return Verb{Use: v.Use, Short: v.Short, Group: v.Group, Aliases: v.Aliases}
}
