package driver

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"atoll/api"
	"atoll/internal/errs"
)

// RenameRecords is Renamer for drivers that keep a JSON file per instance, whose member
// "ref" is the instance's name. Every other member stays as it is, also those that this
// version does not know. What cannot be read is left to whoever observes it.
func RenameRecords(pattern string, tenants map[string]string) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return errs.New(errs.Internal, "look for records: %w", err)
	}
	for _, f := range files {
		if err := renameRecord(f, tenants); err != nil && !errors.Is(err, os.ErrNotExist) {
			return errs.New(errs.Unavailable, "new name of a tenant: %w", err)
		}
	}
	return nil
}

func renameRecord(path string, tenants map[string]string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var whole map[string]json.RawMessage
	var ref api.Ref
	if json.Unmarshal(b, &whole) != nil || json.Unmarshal(whole["ref"], &ref) != nil {
		return nil
	}
	to, ok := tenants[ref.Tenant]
	if !ok {
		return nil
	}
	ref.Tenant = to
	if whole["ref"], err = json.Marshal(ref); err != nil {
		return err
	}
	if b, err = json.Marshal(whole); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
