package proc

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// LockMemory keeps what this process has in memory, and will have, from being paged out. It
// is not tried without CAP_IPC_LOCK: under a limit, a later allocation would fail.
func LockMemory() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_IPC_LOCK) == 0 {
		return fmt.Errorf("lock memory: no CAP_IPC_LOCK: %w", unix.EPERM)
	}
	// On fault: address space that a runtime only reserves stays empty.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return nil
}

// LiveLongest makes this process the last to be killed when memory is short, as far as it
// may: without CAP_SYS_RESOURCE nobody gets below what he was started with. It returns what
// holds now.
func LiveLongest() int {
	const file = "/proc/self/oom_score_adj"
	for _, score := range []int{-1000, -999, -900, -500, 0} {
		if now := oomScore(file); now <= score {
			return now
		}
		if os.WriteFile(file, []byte(strconv.Itoa(score)), 0o600) == nil {
			return score
		}
	}
	return oomScore(file)
}

func oomScore(file string) int {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(string(trimNewline(b)))
	if err != nil {
		return 0
	}
	return n
}

func trimNewline(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}

// GoFirst gives every thread of this process the highest ordinary priority; an error
// without CAP_SYS_NICE.
func GoFirst() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("raise priority: %w", err)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, -20); err != nil {
			return fmt.Errorf("raise priority: %w", err)
		}
	}
	return nil
}
