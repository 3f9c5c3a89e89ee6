package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/peakmem"
)

func TestMain(m *testing.M) {
	peakmem.Init()
	testscript.Main(m, map[string]func(){
		"tar2erofs": func() { cli.Main("tar2erofs", run) },
		"mktar":     mktar,
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata"})
}
