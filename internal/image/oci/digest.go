package oci

import (
	"crypto/sha256"
	"encoding/hex"
)

// Digest is the digest of bytes.
func Digest(raw []byte) string {
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// IsDigest tells whether s is sha256: and 64 hex digits.
func IsDigest(s string) bool { return digestRE.MatchString(s) }
