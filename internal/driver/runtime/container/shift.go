package container

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"

	"atoll/internal/driver"
	"atoll/internal/sys/mount"
)

// shifted gives copies of the image's layers whose files belong to the tenant's range, for
// kernels and file systems that cannot shift IDs at mount time. A copy is made once per layer
// and range, and kept: layers are named by their content.
func (r *Runtime) shifted(ctx context.Context, s driver.Spec) ([]string, error) {
	out := make([]string, len(s.Image.Layers))
	for i, l := range s.Image.Layers {
		sum := sha256.Sum256([]byte(l))
		dir := r.state("shifted", fmt.Sprint(s.IDs.Base), hex.EncodeToString(sum[:16]))
		if _, err := os.Stat(dir); err == nil {
			out[i] = dir
			continue
		}
		// One copy at a time per layer and range, whoever wants it.
		unlock, err := r.keys.lock(ctx, "shift "+dir)
		if err != nil {
			return nil, err
		}
		err = shiftOne(ctx, l, dir, s.IDs)
		unlock()
		if err != nil {
			return nil, fmt.Errorf("copy layer %d with shifted IDs: %w", i, err)
		}
		out[i] = dir
	}
	return out, nil
}

func shiftOne(ctx context.Context, from, dir string, ids driver.IDRange) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	if err := mount.CopyShifted(ctx, from, tmp, ids.Base, ids.Count); err != nil {
		_ = os.RemoveAll(tmp)
		return err
	}
	return os.Rename(tmp, dir)
}
