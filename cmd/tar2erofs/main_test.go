package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"tar2erofs": func() { cli.Main("tar2erofs", run) },
		"mktar":     mktar,
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata"})
}
