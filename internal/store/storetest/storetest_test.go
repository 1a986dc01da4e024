package storetest

import (
	"testing"

	"atoll/internal/store"
)

func TestMem(t *testing.T) {
	Run(t, func(*testing.T) store.Store { return store.NewMem() })
}
