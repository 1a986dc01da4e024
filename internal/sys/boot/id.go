package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ID names this run of the kernel; it changes with every boot.
func ID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the kernel's boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Hardware is the time by the clock that runs while the host is off; zero: there is none
// that can be read.
func Hardware() time.Time { return hardware("/sys/class/rtc") }

func hardware(dir string) time.Time {
	files, err := filepath.Glob(filepath.Join(dir, "rtc*", "since_epoch"))
	if err != nil {
		return time.Time{}
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a clock without a time; another may have one
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
			return time.Unix(n, 0)
		}
	}
	return time.Time{}
}
