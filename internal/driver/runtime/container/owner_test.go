package container

import (
	"io/fs"
	"syscall"
)

func ownerOf(st fs.FileInfo) int {
	if st == nil {
		return -1
	}
	return int(st.Sys().(*syscall.Stat_t).Uid)
}
