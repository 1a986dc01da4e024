// Package release says which release this build is: a small number beside the version
// that git gives it. Releases grow by one; whatever hosts of a pool must agree on, such
// as how objects are stored, is told in releases. A version is only a name.
//
// It must stay free of everything: the smallest program of the product may ask it.
package release

import "strconv"

// number is the release of this build. The build may set it (-X), which tests of
// upgrades do to make two releases of one tree.
var number = "1" //nolint:gochecknoglobals // the linker's way to tell a binary what it is

// Reach is how many releases apart two builds may be and still work together.
const Reach = 2

// First is the release of builds that do not know that there are releases.
const First = 1

// Number is the release of this build.
func Number() int {
	n, err := strconv.Atoi(number)
	if err != nil || n < First {
		return First
	}
	return n
}

// Oldest is the oldest release that a build of release n works with.
func Oldest(n int) int { return max(n-Reach, First) }

// Or gives the release that somebody told, or that of those who tell none.
func Or(n int) int { return max(n, First) }

// Compatible reports whether builds of two releases work together.
func Compatible(a, b int) bool {
	a, b = Or(a), Or(b)
	return a-b <= Reach && b-a <= Reach
}
