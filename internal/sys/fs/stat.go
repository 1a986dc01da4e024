//go:build linux

package fs

import "syscall"

// unixStat is what os.FileInfo.Sys returns on Linux.
type unixStat = syscall.Stat_t
