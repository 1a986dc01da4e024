package proc

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// UserNS makes a user namespace in which IDs 0..count-1 are the host's base..base+count-1
// and returns it as an open file, for mount.Idmapped. No process stays in it.
func UserNS(base, count uint32) (*os.File, error) {
	var f *os.File
	err := OnThread(func() error { // ptrace belongs to the thread that started the child
		maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: int(count)}}
		// With ptrace the child stops before its first instruction: nothing of it ever runs.
		p, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps, Ptrace: true, Pdeathsig: syscall.SIGKILL,
		}})
		if err != nil {
			return fmt.Errorf("start a process in a new user namespace: %w", err)
		}
		defer func() {
			_ = p.Kill()
			_, _ = p.Wait()
			runtime.KeepAlive(p)
		}()
		f, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
		return err
	})
	return f, err
}
