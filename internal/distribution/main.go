// Distribution is the reference implementation of a registry, of the version
// that go.mod pins, for the tests to run against: "distribution serve FILE". It
// is a module of its own because it needs more than sixty others.
package main

import (
	"fmt"
	"os"

	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

func main() {
	if err := registry.RootCmd.Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "distribution: %v\n", err)
		os.Exit(1)
	}
}
