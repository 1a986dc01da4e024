package cli

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

func completionVerb() verb.Def {
	return verb.Def{
		Use: "completion bash|zsh|fish", Group: verb.GroupSetup, Min: 1, Max: 1, Short: "Print a script that completes commands, kinds and names",
		Example: "  source <(atoll completion bash)\n  atoll completion zsh > ~/.zfunc/_atoll\n  atoll completion fish > ~/.config/fish/completions/atoll.fish",
		Flags:   func(*pflag.FlagSet) {},
		Run: func(_ context.Context, c *verb.Call) error {
			fresh := &verb.Call{IO: c.IO}
			root := tree(fresh)
			gen := map[string]func() error{
				"bash": func() error { return root.GenBashCompletionV2(c.Out, true) },
				"zsh":  func() error { return root.GenZshCompletion(c.Out) },
				"fish": func() error { return root.GenFishCompletion(c.Out, true) },
			}[c.Args[0]]
			if gen == nil {
				return errs.New(errs.Invalid, "completion: unknown shell %q", c.Args[0]).WithHint("bash, zsh or fish")
			}
			return gen()
		},
		Complete: func(context.Context, *verb.Call, string) []string { return []string{"bash", "zsh", "fish"} },
	}
}

// completeFlags completes the values of flags that name objects.
func completeFlags(c *verb.Call, cmd *cobra.Command) {
	values := map[string]func(ctx context.Context) []string{
		"tenant": func(ctx context.Context) []string { c.Args = nil; return verb.CompleteTenants(ctx, c, "") },
		"in":     func(ctx context.Context) []string { c.Args = nil; return verb.CompleteTenants(ctx, c, "") },
		"node":   func(ctx context.Context) []string { return c.NamesOf(ctx, api.KindNode) },
		"output": func(context.Context) []string { return []string{"table", "wide", "json", "yaml", "name"} },
		"isolation": func(context.Context) []string {
			return []string{"container", "sandbox", "vm", "wasm", "auto"}
		},
		"restart": func(context.Context) []string { return []string{"always", "on-failure", "never"} },
		"pull":    func(context.Context) []string { return []string{"missing", "always", "never"} },
	}
	for name, fn := range values {
		if cmd.Flags().Lookup(name) == nil {
			continue
		}
		_ = cmd.RegisterFlagCompletionFunc(name, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return fn(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
		})
	}
}
