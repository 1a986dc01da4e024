package cli

import (
	"context"
	"io"
	"os"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/errs"
)

func backupVerb() Verb {
	force, yes := false, false
	return Verb{
		Use: "backup", Group: groupSetup, Short: "Save and restore the state of the control plane",
		Long:    "A backup holds every object of the pool: tenants, users, instances and so on, but not the data inside instances and volumes. It holds token hashes and host names, so keep it like a key.",
		Example: "  atoll backup create pool.backup\n  atoll backup restore pool.backup",
		Sub: []Verb{
			{Use: "create FILE|-", Min: 1, Max: 1, Short: "Save the state to a file", Example: "  atoll backup create pool.backup\n  atoll backup create - | ssh vault 'cat > pool.backup'",
				Flags: func(fs *pflag.FlagSet) { fs.BoolVar(&force, "force", false, "replace a file that is there") },
				Run:   func(ctx context.Context, c *call) error { return backupCreate(ctx, c, force) }},
			{Use: "restore FILE|-", Min: 1, Max: 1, Short: "Replace the state by a backup", Example: "  atoll backup restore pool.backup --yes",
				Flags: func(fs *pflag.FlagSet) { fs.BoolVarP(&yes, "yes", "y", false, "do not ask") },
				Run:   func(ctx context.Context, c *call) error { return backupRestore(ctx, c, yes) }},
		},
	}
}

func backupCreate(ctx context.Context, c *call, force bool) error {
	cl, err := c.server()
	if err != nil {
		return err
	}
	path := c.args[0]
	if path == "-" {
		if c.Term.OutIs() {
			return errs.New(errs.Invalid, "a backup is not for a terminal").WithHint("name a file, or send it on: atoll backup create - > FILE")
		}
		return cl.Backup(ctx, c.Out)
	}
	n, err := writeWhole(path, force, func(w io.Writer) error { return cl.Backup(ctx, w) })
	if err != nil {
		return err
	}
	c.say("%s  %s", path, api.HumanQuantity(api.Disk, n))
	return nil
}

func backupRestore(ctx context.Context, c *call, yes bool) error {
	var r io.Reader = c.In
	if c.args[0] != "-" {
		f, err := os.Open(c.args[0])
		if err != nil {
			return errs.New(errs.NotFound, "%w", err)
		}
		defer f.Close()
		r = f
		if err := c.confirm(yes, "replace the whole state of the pool by %s? What was made since is lost.", c.args[0]); err != nil {
			return err
		}
	} else if !yes && c.Term.ErrIs() {
		return errs.New(errs.Invalid, "standard input is the backup, so nobody can be asked").WithHint("give --yes")
	}
	cl, err := c.server()
	if err != nil {
		return err
	}
	if err := cl.Restore(ctx, r); err != nil {
		return err
	}
	c.say("restored")
	return nil
}
