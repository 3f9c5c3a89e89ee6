package cli

import (
	"os"
	"sync"
)

// temporaries are the files and directories to remove should a signal end the
// process before their owners can.
var temporaries = struct {
	sync.Mutex
	names map[string]struct{}
}{names: make(map[string]struct{})}

// Temporary is for a directory that its owner removes or renames. A signal that
// ends the process before that removes it, unless forget was called.
func Temporary(dir string) (forget func()) {
	keepTemporary(dir)
	return func() { forgetTemporary(dir) }
}

// keepTemporary is for a name that a file is about to get.
func keepTemporary(name string) {
	temporaries.Lock()
	defer temporaries.Unlock()
	temporaries.names[name] = struct{}{}
}

func forgetTemporary(name string) {
	temporaries.Lock()
	defer temporaries.Unlock()
	delete(temporaries.names, name)
}

// removeTemporaries is called right before the process ends. The lock is not
// given back: nobody is to make another one.
func removeTemporaries() {
	temporaries.Lock()
	for name := range temporaries.names {
		os.RemoveAll(name)
	}
}
