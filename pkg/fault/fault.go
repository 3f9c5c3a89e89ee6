// Package fault names the few kinds of error that callers act upon, so that
// a library can say what kind a failure is without knowing about exit codes.
//
// A package that finds such an error wraps the sentinel with %w:
//
//	fmt.Errorf("layer %s: got %s: %w", want, got, fault.ErrIntegrity)
package fault

import (
	"errors"
	"fmt"
)

var (
	// ErrUnauthorized: the registry refused the credentials, or wanted some.
	ErrUnauthorized = errors.New("not authorized")
	// ErrNotFound: no such reference, blob, layer, path or platform.
	ErrNotFound = errors.New("not found")
	// ErrIntegrity: bytes do not match the digest, size or checksum that was
	// promised for them.
	ErrIntegrity = errors.New("integrity check failed")
	// ErrCorrupt: the input breaks the rules of its own format.
	ErrCorrupt = errors.New("corrupt input")
	// ErrUnsupported: the input is valid but uses what is not implemented.
	ErrUnsupported = errors.New("unsupported")
	// ErrUsage: the caller asked for something that makes no sense.
	ErrUsage = errors.New("usage")
)

// Usagef makes an ErrUsage whose text is only what it says: unlike the other
// kinds, this one's name would not help who reads the message.
func Usagef(format string, args ...any) error {
	return usageError(fmt.Sprintf(format, args...))
}

type usageError string

func (e usageError) Error() string        { return string(e) }
func (e usageError) Is(target error) bool { return target == ErrUsage }
