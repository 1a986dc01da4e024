// Package deploy is the files of this directory that the product needs itself: a
// server gives them to hosts that join. It must never do more than hold them.
package deploy

import _ "embed" // the files

// Install is the script that installs Atoll from a server; package install fills it in.
//
//go:embed install.sh
var Install []byte

// Packages installs the OS packages Atoll needs.
//
//go:embed packages.sh
var Packages string

// Unit is the unit of the service manager.
//
//go:embed atolld.service
var Unit string
