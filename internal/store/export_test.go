package store

// Forget cuts the history of the mirror, for the conformance suite.
func (c *Cache) Forget(rev int64) {
	for _, f := range c.feeds {
		f.forget(rev)
	}
}
