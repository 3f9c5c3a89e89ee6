// Package guest has the tests that run inside a virtual machine: those of the
// kernel's NBD driver. internal/vm builds and boots them.
package guest
