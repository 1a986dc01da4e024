package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"atoll/api"
	"atoll/internal/errs"
)

// FilePath is where a server gives a program of a version.
func FilePath(version string, f api.UpgradeFile) string {
	return "/v1/upgrade/" + url.PathEscape(version) + "/" + f.OS + "/" + f.Arch + "/" + f.Binary
}

// Fetch gets a program from the first of some servers that has it. Whoever keeps it
// checks the sum (Put); a server that breaks off is not followed by another, since part
// of the file has been written.
func Fetch(ctx context.Context, client *http.Client, servers []string, version string, f api.UpgradeFile, w io.Writer) error {
	var all error
	for _, s := range servers {
		n, err := fetch(ctx, client, s+FilePath(version, f), f, w)
		if err == nil || ctx.Err() != nil || n > 0 {
			return err
		}
		all = errors.Join(all, fmt.Errorf("%s: %w", s, err))
	}
	if all == nil {
		return errs.New(errs.Unavailable, "no server of the pool is known")
	}
	return errs.New(errs.Unavailable, "no server gives %s of version %s: %w", f.Binary, version, all).WithHint("it is tried again; or send it once more: atoll upgrade prepare --file FILE")
}

func fetch(ctx context.Context, client *http.Client, from string, f api.UpgradeFile, w io.Writer) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return 0, errs.New(errs.Internal, "ask for a program: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, errs.New(errs.Unavailable, "%w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, errs.New(errs.Unavailable, "it answers %s", strconv.Itoa(resp.StatusCode))
	}
	n, err := io.Copy(w, io.LimitReader(resp.Body, f.Size+1))
	if err != nil {
		return n, errs.New(errs.Unavailable, "it broke off: %w", err)
	}
	return n, nil
}
