package parse

import (
	"io"
	"os"

	"atoll/internal/errs"
)

// ReadFile reads a file of at most so many bytes.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadAll(f, path, limit)
}

// ReadAll reads at most so many bytes of what.
func ReadAll(r io.Reader, what string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, errs.New(errs.Invalid, "%s is larger than %d bytes", what, limit)
	}
	return b, nil
}
