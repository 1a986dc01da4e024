package driver

// ValidID reports whether id can name an instance on a node: 1-64 of a-z, 0-9 and -,
// beginning with a letter or digit. Drivers use it in paths, so they refuse any other.
func ValidID(id string) bool {
	if id == "" || len(id) > 64 || id[0] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
