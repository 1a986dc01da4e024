package twin

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/term"

	"atoll/internal/sim"
)

// simBar shows how far a run is, when somebody looks.
type simBar struct {
	w     *os.File
	name  string
	quiet bool
	last  time.Time
	drawn bool
}

func newSimBar(w *os.File, name string, quiet bool) *simBar {
	return &simBar{w: w, name: name, quiet: quiet || !term.IsTerminal(int(w.Fd()))}
}

const simBarWidth = 30

func (b *simBar) show(p sim.Progress) {
	now := time.Now()
	if b.quiet || now.Sub(b.last) < 100*time.Millisecond && p.At < p.Of {
		return
	}
	b.last, b.drawn = now, true
	done := int(simBarWidth * p.At / max(p.Of, 1))
	fmt.Fprintf(b.w, "\r%s [%s%s] %s of %s, %d running, %d waiting\x1b[K", b.name, strings.Repeat("=", done), strings.Repeat(" ", simBarWidth-done),
		p.At.Round(time.Second), p.Of, p.Running, p.Waiting)
}

// end gives the line back.
func (b *simBar) end() {
	if b.drawn {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

// memoryUsed is the most memory this process had, as the kernel counts it.
func memoryUsed() string {
	b, err := os.ReadFile("/proc/self/status")
	if err == nil {
		for _, l := range strings.Split(string(b), "\n") {
			var kb int64
			if n, _ := fmt.Sscanf(l, "VmHWM: %d kB", &kb); n == 1 {
				return fmt.Sprintf("%d MB at most", kb>>10)
			}
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return fmt.Sprintf("%d MB", m.Sys>>20)
}
