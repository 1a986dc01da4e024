// Package api holds the words of Atoll: one file per kind, with its Spec (what is
// wanted), its Status (what is), its rules and its Definition (route, names,
// columns). Everything that shows or accepts objects (server, CLI, console, store)
// reads the Definition; nothing about a kind is written twice.
//
// Objects handed out by a store are shared: treat them as read-only and change a
// Clone. The package knows no network, disk or clock; it starts no goroutine.
package api
