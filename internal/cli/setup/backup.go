package setup

import (
	"context"
	"io"
	"os"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// Backup is the group of verbs that save and restore the control plane.
func Backup() verb.Def {
	force, yes := false, false
	return verb.Def{
		Use: "backup", Group: verb.GroupSetup, Short: "Save and restore the state of the control plane",
		Long:    "A backup holds every object of the pool: tenants, users, instances and so on, but not the data inside instances and volumes. It holds token hashes and host names, so keep it like a key.",
		Example: "  atoll backup create pool.backup\n  atoll backup restore pool.backup",
		Sub: []verb.Def{
			{Use: "create FILE|-", Min: 1, Max: 1, Short: "Save the state to a file", Example: "  atoll backup create pool.backup\n  atoll backup create - | ssh vault 'cat > pool.backup'",
				Flags: func(fs *pflag.FlagSet) { fs.BoolVar(&force, "force", false, "replace a file that is there") },
				Run:   func(ctx context.Context, c *verb.Call) error { return backupCreate(ctx, c, force) }},
			{Use: "restore FILE|-", Min: 1, Max: 1, Short: "Replace the state by a backup", Example: "  atoll backup restore pool.backup --yes",
				Flags: func(fs *pflag.FlagSet) { fs.BoolVarP(&yes, "yes", "y", false, "do not ask") },
				Run:   func(ctx context.Context, c *verb.Call) error { return backupRestore(ctx, c, yes) }},
		},
	}
}

func backupCreate(ctx context.Context, c *verb.Call, force bool) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	path := c.Args[0]
	if path == "-" {
		if c.Term.OutIs() {
			return errs.New(errs.Invalid, "a backup is not for a terminal").WithHint("name a file, or send it on: atoll backup create - > FILE")
		}
		return cl.Backup(ctx, c.Out)
	}
	n, err := render.File(path, force, func(w io.Writer) error { return cl.Backup(ctx, w) })
	if err != nil {
		return err
	}
	c.Say("%s  %s", path, api.HumanQuantity(api.Disk, n))
	return nil
}

func backupRestore(ctx context.Context, c *verb.Call, yes bool) error {
	var r io.Reader = c.In
	if c.Args[0] != "-" {
		f, err := os.Open(c.Args[0])
		if err != nil {
			return errs.New(errs.NotFound, "%w", err)
		}
		defer f.Close()
		r = f
		if err := c.Confirm(yes, "replace the whole state of the pool by %s? What was made since is lost.", c.Args[0]); err != nil {
			return err
		}
	} else if !yes && c.Term.ErrIs() {
		return errs.New(errs.Invalid, "standard input is the backup, so nobody can be asked").WithHint("give --yes")
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	if err := cl.Restore(ctx, r); err != nil {
		return err
	}
	c.Say("restored")
	return nil
}
