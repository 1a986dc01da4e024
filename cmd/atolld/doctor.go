package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"atoll/internal/errs"
	"atoll/internal/sys/host"
)

// runDoctor looks the host over. It needs no running daemon.
func runDoctor(ctx context.Context, args []string) error {
	var format string
	c, err := load("doctor", args, func(fs *flag.FlagSet) { fs.StringVar(&format, "o", "text", "text or json") })
	if err != nil {
		return err
	}
	checks := host.Probe(ctx, host.Options{State: c.State})
	failed := 0
	for _, k := range checks {
		if !k.OK && k.Severity == host.Failure {
			failed++
		}
	}
	if format == "json" {
		return json.NewEncoder(os.Stdout).Encode(findings(checks))
	}
	for _, k := range checks {
		mark := "ok"
		if !k.OK {
			mark = string(k.Severity)
		}
		fmt.Printf("%-8s %-16s %s\n", mark, k.Name, k.Detail)
		if k.Fix != "" && !k.OK {
			fmt.Printf("%-8s %-16s   do: %s\n", "", "", k.Fix)
		}
	}
	if failed > 0 {
		return errs.New(errs.Unsupported, "%d things keep Atoll from working on this host", failed)
	}
	return nil
}

// finding is a check as 'atoll doctor' reads it.
type finding struct {
	Name    string `json:"name"`
	Status  string `json:"status"` // ok, warn, fail
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func findings(checks []host.Check) []finding {
	out := make([]finding, 0, len(checks))
	for _, k := range checks {
		f := finding{Name: k.Name, Status: "ok", Message: k.Detail}
		if !k.OK {
			f.Hint = k.Fix
			switch k.Severity {
			case host.Failure:
				f.Status = "fail"
			case host.Warning:
				f.Status = "warn"
			}
		}
		out = append(out, f)
	}
	return out
}
