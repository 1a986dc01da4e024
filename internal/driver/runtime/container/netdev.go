package container

import (
	"io"
	"os"
	"strconv"
	"strings"
)

// netBytes sums the interfaces of a network namespace, without its loopback.
func netBytes(path string) (received, sent int64) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return 0, 0
	}
	return parseNetDev(string(b))
}

func parseNetDev(s string) (received, sent int64) {
	for l := range strings.Lines(s) {
		name, rest, ok := strings.Cut(l, ":")
		f := strings.Fields(rest)
		if !ok || strings.TrimSpace(name) == "lo" || len(f) < 9 {
			continue
		}
		rx, _ := strconv.ParseInt(f[0], 10, 64)
		tx, _ := strconv.ParseInt(f[8], 10, 64)
		received, sent = received+rx, sent+tx
	}
	return received, sent
}
