package exact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"atoll/internal/errs"
)

// Find tells where the solver is; errs.Unsupported when it is not installed.
func Find() (string, error) {
	path, err := exec.LookPath("cbc")
	if err != nil {
		return "", errs.New(errs.Unsupported, "the solver cbc is not installed").WithHint("install it: apt-get install coinor-cbc")
	}
	return path, nil
}

// Solve has a problem solved by the solver at path, within a limit. Errors are
// those of Read; errs.Internal when the solver cannot be run.
func Solve(ctx context.Context, path string, p *Problem, limit time.Duration) (Solution, error) {
	if err := p.Check(); err != nil {
		return Solution{}, err
	}
	if len(p.Items) == 0 {
		return Solution{Proven: true}, nil
	}
	dir, err := os.MkdirTemp("", "atoll-exact-")
	if err != nil {
		return Solution{}, fmt.Errorf("exact: make a directory: %w", err)
	}
	s, err := solveIn(ctx, dir, path, p, limit)
	return s, errors.Join(err, os.RemoveAll(dir))
}

func solveIn(ctx context.Context, dir, path string, p *Problem, limit time.Duration) (Solution, error) {
	var text bytes.Buffer
	if err := Write(&text, p); err != nil {
		return Solution{}, err
	}
	in, out := filepath.Join(dir, "problem.lp"), filepath.Join(dir, "answer.txt")
	if err := os.WriteFile(in, text.Bytes(), 0o600); err != nil {
		return Solution{}, fmt.Errorf("exact: write the problem: %w", err)
	}
	// The solver keeps its own time; twice of it is only for one that hangs.
	ctx, cancel := context.WithTimeout(ctx, 2*limit+10*time.Second)
	defer cancel()
	seconds := strconv.FormatFloat(limit.Seconds(), 'f', 1, 64)
	cmd := exec.CommandContext(ctx, path, in, "threads", "1", "timeMode", "elapsed", "sec", seconds, "solve", "solution", out)
	cmd.Dir = dir
	if said, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return Solution{}, errs.New(errs.Timeout, "the solver did not end: %v", ctx.Err())
		}
		return Solution{}, errs.New(errs.Internal, "run %s: %v: %s", path, err, clip(string(said)))
	}
	f, err := os.Open(out)
	if err != nil {
		return Solution{}, errs.New(errs.Internal, "the solver wrote no answer: %v", err)
	}
	defer f.Close()
	return Read(f, p)
}
