// Package planetlab reads a day of the PlanetLab CPU traces: what each virtual
// machine used, every five minutes. It only reads what it is given; it opens no
// file, keeps nothing and starts no goroutine.
package planetlab

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// Samples is how many values a machine has: a day, every Interval.
const Samples = 288

// Interval is the time between two values.
const Interval = 300 * time.Second

// Bounds of a file: more is refused rather than read.
const (
	maxMachines = 100_000
	maxLine     = 64 << 10
	maxBytes    = 1 << 30 // unpacked
)

// Machine is one row.
type Machine struct {
	Name string
	// Use is the CPU used in percent of the machine's own size, 0 to 100.
	Use [Samples]uint8
}

// Read reads rows "name,u0,…,u287" in their order. Errors are errs.Invalid and
// name the line.
func Read(r io.Reader) ([]Machine, error) {
	sc := bufio.NewScanner(io.LimitReader(r, maxBytes))
	sc.Buffer(make([]byte, 0, 4096), maxLine)
	var out []Machine
	for line := 1; sc.Scan(); line++ {
		if len(out) == maxMachines {
			return nil, errs.New(errs.Invalid, "trace: line %d: more than %d machines", line, maxMachines)
		}
		m, err := parse(sc.Text())
		if err != nil {
			return nil, errs.New(errs.Invalid, "trace: line %d: %v", line, err)
		}
		out = append(out, m)
	}
	if err := sc.Err(); err != nil {
		return nil, errs.New(errs.Invalid, "trace: %v", err)
	}
	return out, nil
}

// ReadGzip reads a packed file.
func ReadGzip(r io.Reader) ([]Machine, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, errs.New(errs.Invalid, "trace: %v", err)
	}
	return Read(z)
}

func parse(text string) (Machine, error) {
	name, rest, ok := strings.Cut(strings.TrimRight(text, "\r"), ",")
	if !ok || name == "" {
		return Machine{}, fmt.Errorf("must be name,u0,…,u%d", Samples-1)
	}
	m := Machine{Name: name}
	for i := range Samples {
		field, tail, more := strings.Cut(rest, ",")
		if more != (i < Samples-1) {
			return Machine{}, fmt.Errorf("%d values after the name are needed", Samples)
		}
		u, err := strconv.ParseUint(strings.TrimSpace(field), 10, 8)
		if err != nil || u > 100 {
			return Machine{}, fmt.Errorf("value %d is %q, not a percentage", i, field)
		}
		m.Use[i], rest = uint8(u), tail
	}
	return m, nil
}
