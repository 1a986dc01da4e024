package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// process is what /proc tells of one.
type process struct{ pid int }

// tick is the kernel's unit of processor time for programs, on every architecture Atoll runs on.
const tick = 10 * time.Millisecond

// cpu is the processor time used so far, in user mode and in the kernel.
func (p process) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may hold spaces
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	return (number(f[11]) + number(f[12])) * tick
}

func number(s string) time.Duration {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(n)
}

// rss is the resident memory in MB, peak the most it ever was.
func (p process) rss() float64  { return p.status("VmRSS:") }
func (p process) peak() float64 { return p.status("VmHWM:") }

func (p process) status(key string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == key {
			return float64(number(f[1])) / 1024
		}
	}
	return 0
}

// load is the machine's load average of the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
