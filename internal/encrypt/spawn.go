package encrypt

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"atoll/internal/errs"
	"atoll/internal/sys/cgroup"
	"atoll/internal/sys/proc"
	"atoll/internal/sys/wg"
)

// OwnGroup is the resource group of the process, beside the daemon's, whose end must not be its own.
func OwnGroup(root string) string { return root + "-wireguard" }

// Verb is that of the daemon's program which serves a device.
const Verb = "wireguard"

// Spawn starts the process that serves a device: this program with another verb, in a session of its own. It goes on when
// this process ends. group is the root of the tenants' groups.
func Spawn(group string) func(dir, name string, mtu int) error {
	return func(dir, name string, mtu int) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		self = strings.TrimSuffix(self, " (deleted)") // replaced by an update: the new one will do
		// It has a file to write to: what this process writes to may end with it.
		log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer log.Close()
		cmd := exec.Command(self, Verb, dir, name, strconv.Itoa(mtu), group)
		cmd.Dir, cmd.Stderr = "/", log
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%s: %w", self, err)
		}
		go func() { _ = cmd.Wait() }() // collected when it ends before this process does; it ends by itself
		return nil
	}
}

// Main is that process: args are what Spawn gives.
func Main(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return errs.New(errs.Invalid, "%s is started by the daemon", Verb)
	}
	mtu, err := strconv.Atoi(args[2])
	if err != nil || mtu < 576 || mtu > 65535 {
		return errs.InvalidFields(Verb, []errs.Field{{Field: "mtu", Value: args[2], Rule: "must be 576 to 65535", Example: "1420"}})
	}
	if group := args[3]; group != "" {
		if err := join(OwnGroup(group)); err != nil {
			fmt.Fprintln(os.Stderr, "wireguard: it is in the daemon's resource group:", err)
		}
	}
	proc.LiveLongest() // all networks of the host go through it
	return wg.Serve(ctx, wg.ServeConfig{Dir: args[0], Name: args[1], MTU: mtu, Log: os.Stderr})
}

func join(group string) error {
	cg, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if _, err := cg.Ensure(group, cgroup.Limits{CPUWeight: 1000, IOWeight: 100}); err != nil {
		return err
	}
	return cg.Join(group, os.Getpid())
}
