package server

import "atoll/internal/errs"

// keyAnnotation remembers on an object the Idempotency-Key it was made with, as
// hashes of key and body. Users cannot set it.
const keyAnnotation = "atoll/idempotency"

const maxKey = 256

func (c *call) idempotencyKey() (string, error) {
	key := c.r.Header.Get("Idempotency-Key")
	if len(key) > maxKey || !plainText(key) {
		return "", errs.InvalidFields("request", []errs.Field{{Field: "Idempotency-Key", Rule: "must be at most 256 printable characters", Example: "b1e4a3f0-create-web"}})
	}
	return key, nil
}
