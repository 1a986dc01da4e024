//go:build profile

package main

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof" //nolint:gosec // on a socket that only root can open, in builds for measuring
	"os"
)

// Builds for measuring only (go build -tags profile): pprof on the socket that
// ATOLLD_PROFILE names. An init, so that other builds hold no trace of it.
func init() {
	path := os.Getenv("ATOLLD_PROFILE")
	if path == "" || len(os.Args) < 2 || os.Args[1] != "up" {
		return
	}
	_ = os.Remove(path) // left by an earlier run
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		return
	}
	go func() { _ = http.Serve(l, nil) }() //nolint:gosec // as long as the process
}
