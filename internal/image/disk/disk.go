// Package disk writes what must be whole or not there at all: hashed on the way, synced,
// and renamed into its place; and it tells what room there is.
//
// It starts no goroutine. It must never show a file under its name before all of it is on
// the disk.
package disk

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	stdfs "io/fs"
	"os"
	"path/filepath"

	"atoll/internal/errs"
	"atoll/internal/sys/fs"
)

// Writer writes a file that has no name yet, and hashes it.
type Writer struct {
	File *os.File
	h    hash.Hash
	N    int64 // bytes of it
}

// New writes to a new file in dir.
func New(dir string) (*Writer, error) {
	f, err := os.CreateTemp(dir, "blob-")
	if err != nil {
		return nil, fmt.Errorf("image store: %w", NoSpace(err))
	}
	return &Writer{File: f, h: sha256.New()}, nil
}

// Resume goes on with what is in a file already, which it reads.
func Resume(f *os.File) (*Writer, error) {
	w := &Writer{File: f, h: sha256.New()}
	var err error
	w.N, err = io.Copy(w.h, f)
	return w, err
}

// Restart makes the file empty.
func (w *Writer) Restart() error {
	w.h.Reset()
	w.N = 0
	if _, err := w.File.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return w.File.Truncate(0)
}

// Write goes to the file and into the digest.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.File.Write(p)
	w.h.Write(p[:n])
	w.N += int64(n)
	return n, NoSpace(err)
}

// Digest is of what was written so far.
func (w *Writer) Digest() string { return "sha256:" + hex.EncodeToString(w.h.Sum(nil)) }

// Discard removes it; harmless after it was published.
func (w *Writer) Discard() {
	w.File.Close()
	os.Remove(w.File.Name())
}

// Publish makes a file durable, then visible under its name. It closes f.
func Publish(f *os.File, to string) error {
	err := f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err == nil {
		err = SyncDir(filepath.Dir(to))
	}
	if err != nil {
		return fmt.Errorf("image store: %w", NoSpace(err))
	}
	return nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Replace writes a small file, all or nothing, by way of a directory tmp on the same disk.
func Replace(tmp, path string, raw []byte) error {
	f, err := os.CreateTemp(tmp, "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(raw); err != nil {
		f.Close()
		return err
	}
	return Publish(f, path)
}

// Hash gives the digest of a file's bytes.
func Hash(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), n, err
}

// Usage sums what a tree takes on the disk; names that share a file count once.
func Usage(root string) (total int64) {
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(root, func(_ string, e stdfs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		fi, err := e.Info()
		if err != nil {
			return nil
		}
		n, links, inode := fs.Allocated(fi)
		if links > 1 && !e.IsDir() {
			if seen[inode] {
				return nil
			}
			seen[inode] = true
		}
		total += n
		return nil
	})
	return total
}

// Room refuses work that needs so many bytes when the disk of dir has less than these and a reserve.
func Room(dir string, need, reserve int64) error {
	free, err := fs.Free(dir)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if need > free-reserve {
		return errs.New(errs.NoCapacity, "image store: %d bytes needed, %d free on the disk of which %d stay reserved", need, free, reserve).
			WithHint("remove images nobody needs (atoll image rm), or give the disk more room")
	}
	return nil
}

// NoSpace gives an error of a full disk its kind.
func NoSpace(err error) error {
	if fs.IsNoSpace(err) {
		return errs.New(errs.NoCapacity, "image store: %w", err).WithHint("remove images nobody needs (atoll image rm), or give the disk more room")
	}
	return err
}
