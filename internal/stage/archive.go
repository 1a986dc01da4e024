package stage

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
)

const (
	maxEntries = 1000
	maxTotal   = 2 << 30
)

// Unpack keeps the version that is in a tar, compressed with gzip or not. Where in it the
// programs are does not matter, nor what else is there: a program is known by its name,
// and says itself for which processor it is. The version is what atolld for this host
// says. want, where it is given, must be that.
func (d Dir) Unpack(ctx context.Context, r io.Reader, want string) (api.UpgradeUpload, error) {
	var up api.UpgradeUpload
	tmp, err := d.temporary()
	if err != nil {
		return up, err
	}
	defer os.RemoveAll(tmp)
	if up.Files, err = extract(ctx, r, tmp); err != nil {
		return up, err
	}
	own := api.UpgradeFile{OS: runtime.GOOS, Arch: runtime.GOARCH, Binary: "atolld"}
	if !slices.ContainsFunc(up.Files, func(f api.UpgradeFile) bool { return f.OS == own.OS && f.Arch == own.Arch && f.Binary == own.Binary }) {
		return up, errs.New(errs.Invalid, "there is no atolld for %s/%s in it, which this server is", own.OS, own.Arch).WithHint("it must hold at least atolld: tar czf atoll.tar.gz -C bin atolld atoll atoll-watchdog")
	}
	told, err := Probe(ctx, at(tmp, own))
	if err != nil {
		return up, err
	}
	if want != "" && told.Version != want {
		return up, errs.InvalidFields("upgrade", []errs.Field{{Field: "version", Value: want, Rule: "the programs say that they are " + told.Version, Example: told.Version}})
	}
	up.Version, up.Release = told.Version, told.Release
	if have, err := d.Files(up.Version); err == nil && d.holds(up.Version, have, up.Files) {
		return up, nil
	}
	return up, d.keep(tmp, up.Version, up.Files)
}

// extract writes the programs of a tar below dir.
func extract(ctx context.Context, r io.Reader, dir string) ([]api.UpgradeFile, error) {
	notTar := func(err error) error {
		if errs.KindOf(err) != errs.Internal || ctx.Err() != nil {
			return err
		}
		return errs.New(errs.Invalid, "it is not a tar that can be read: %w", err).WithHint("tar czf atoll.tar.gz -C bin atolld atoll atoll-watchdog")
	}
	br := bufio.NewReader(r)
	var in io.Reader = br
	if magic, err := br.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, notTar(err)
		}
		defer z.Close()
		in = z
	}
	t := tar.NewReader(io.LimitReader(in, maxTotal))
	var out []api.UpgradeFile
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, notTar(err)
		}
		if n >= maxEntries {
			return nil, errs.New(errs.Invalid, "there are more than %d files in it", maxEntries)
		}
		name := path.Base(h.Name)
		if h.Typeflag != tar.TypeReg || !slices.Contains(api.UpgradeBinaries(), name) {
			continue
		}
		if h.Size < 0 || h.Size > MaxFile {
			return nil, errs.New(errs.Invalid, "%s in it is larger than %s", name, api.HumanQuantity(api.Disk, MaxFile))
		}
		f, err := one(t, name, dir)
		if err != nil {
			return nil, notTar(err)
		}
		out = append(out, f)
	}
}

// one writes a program where it belongs by the processor it is for.
func one(r io.Reader, name, dir string) (api.UpgradeFile, error) {
	f := api.UpgradeFile{Binary: name}
	br := bufio.NewReader(r)
	head, err := br.Peek(headSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return f, err
	}
	if f.OS, f.Arch, err = processor(head); err != nil {
		return f, errs.New(errs.Invalid, "%s in it: %w", name, err)
	}
	to := at(dir, f)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return f, errs.New(errs.Unavailable, "%w", err)
	}
	h, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, os.ErrExist) {
		return f, errs.New(errs.Invalid, "%s for %s/%s is in it twice", name, f.OS, f.Arch)
	}
	if err != nil {
		return f, errs.New(errs.Unavailable, "%w", err)
	}
	sum := sha256.New()
	f.Size, err = io.Copy(io.MultiWriter(h, sum), br)
	f.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return f, errors.Join(err, h.Sync(), h.Close())
}

const headSize = 20 // of an ELF file: up to the machine

// processor reads for which processor a program is.
func processor(head []byte) (goos, arch string, err error) {
	if len(head) < headSize || string(head[:4]) != "\x7fELF" {
		return "", "", errs.New(errs.Invalid, "it is no program for Linux")
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	arch, ok := map[uint16]string{62: "amd64", 183: "arm64", 243: "riscv64", 22: "s390x", 258: "loong64"}[order.Uint16(head[18:])]
	if !ok || head[4] != 2 { // 64 bits
		return "", "", errs.New(errs.Unsupported, "it is for a processor Atoll does not run on")
	}
	return "linux", arch, nil
}
